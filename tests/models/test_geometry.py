"""Extents, receptive fields and windows, against a plain marking of which position depends on which."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SMALL_TRUNKS

from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.geometry import Range, axis_geometry, extents, field_of, window_geometry
from whole_slide_cnn.models.layers import SAME, Conv, MaxPool, Relu, Residual, Scalar, walk
from whole_slide_cnn.models.network import BACKBONES, Network
from whole_slide_cnn.sizes import Size, Window

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)


class _Names:
    """Distinct layer names."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return "layer{}".format(self.count)


@st.composite
def filters(draw, names, strides=(1, 2, 3), centred=False):
    """A convolution or max-pool. ``centred``: one whose output extent is that of its input divided by its stride,
    rounded up, as both branches of a residual block must have it."""
    kernel = draw(st.sampled_from((1, 3, 5) if centred else (1, 2, 3, 4, 5)))
    padding = draw(st.sampled_from((kernel // 2, SAME) if centred else tuple(range(kernel)) + (SAME,)))
    stride = draw(st.sampled_from(strides))
    if draw(st.booleans()):
        return Conv(names(), 1, 1, kernel, stride, padding)
    return MaxPool(names(), kernel, stride, padding)


@st.composite
def residuals(draw, names):
    stride = draw(st.sampled_from((1, 2)))
    body = [Scalar(names(), False), draw(filters(names, (stride,), centred=True)), Relu()]
    body += draw(st.lists(filters(names, (1,), centred=True), max_size=2))
    shortcut = [draw(filters(names, (stride,), centred=True))] if stride > 1 or draw(st.booleans()) else []
    return Residual(names(), tuple(body), tuple(shortcut))


@st.composite
def trunks(draw):
    names = _Names()
    kinds = draw(st.lists(st.sampled_from(("filter", "residual", "relu")), min_size=1, max_size=4))
    make = {"filter": lambda: draw(filters(names)), "residual": lambda: draw(residuals(names)), "relu": Relu}
    return tuple(make[kind]() for kind in kinds)


@st.composite
def cases(draw):
    """A trunk, an extent that gives at least one cell, and a range of cells."""
    trunk = draw(trunks())
    extent = draw(st.integers(1, 90).filter(lambda extent: min(len(cells) for cells in _levels(trunk, extent)) > 0))
    cells = len(_dependencies(trunk, _identity(extent)))
    start = draw(st.integers(0, cells - 1))
    return trunk, extent, Range(start, draw(st.integers(start + 1, cells)))


# Every position as the set of input positions that reach it, written as the bits of an integer.


def _identity(extent):
    return [1 << position for position in range(extent)]


def _same_padding(layer, extent):
    """TensorFlow's documentation of SAME: from the remainder of the extent, the odd one after."""
    remainder = extent % layer.stride
    total = max(layer.kernel - (remainder or layer.stride), 0)
    return total // 2, total - total // 2


def _slide(layer, marks, padding):
    before, after = padding
    padded = [0] * before + marks + [0] * after
    starts = range(0, len(padded) - layer.kernel + 1, layer.stride)
    return [_union(padded[start : start + layer.kernel]) for start in starts]


def _union(marks):
    union = 0
    for mark in marks:
        union |= mark
    return union


def _dependencies(layers, marks):
    for layer in layers:
        marks = _after(layer, marks)
    return marks


def _after(layer, marks):
    if isinstance(layer, Residual):
        body, shortcut = _dependencies(layer.body, marks), _dependencies(layer.shortcut, marks)
        assert len(body) == len(shortcut)
        return [a | b for a, b in zip(body, shortcut)]
    if isinstance(layer, (Conv, MaxPool)):
        padding = _same_padding(layer, len(marks)) if layer.padding == SAME else (layer.padding,) * 2
        return _slide(layer, marks, padding)
    return marks


def _levels(layers, extent):
    """Marks before and after every layer, and after every layer within residual blocks."""
    marks = _identity(extent)
    found = [marks]
    for layer in layers:
        if isinstance(layer, Residual):
            for branch in (layer.body, layer.shortcut):
                found += _levels(branch, len(marks))
        marks = _after(layer, _identity(len(marks)))
        found.append(marks)
        marks = _identity(len(marks))
    return found


def _window_dependencies(layers, marks, axis):
    """As a graph computes a window: padding and crops from the geometry, not from the extent."""
    for layer in layers:
        if isinstance(layer, Residual):
            parts = []
            for branch, (start, length) in zip((layer.body, layer.shortcut), axis.crops[layer.name]):
                assert start >= 0 and start + length <= len(marks)
                parts.append(_window_dependencies(branch, marks[start : start + length], axis))
            assert len(parts[0]) == len(parts[1])
            marks = [a | b for a, b in zip(*parts)]
        elif isinstance(layer, (Conv, MaxPool)):
            marks = _slide(layer, marks, axis.padding[layer.name])
    return marks


def _hull(mark):
    return Range((mark & -mark).bit_length() - 1, mark.bit_length())


@PROPERTY
@given(cases())
def test_extents_count_positions(case):
    trunk, extent, _ = case
    marks, lengths = _identity(extent), [extent]
    for layer in trunk:
        marks = _after(layer, marks)
        lengths.append(len(marks))
    assert extents(trunk, extent) == lengths


@PROPERTY
@given(cases())
def test_a_window_reads_exactly_what_its_cells_depend_on(case):
    trunk, extent, wanted = case
    whole = _dependencies(trunk, _identity(extent))
    axis = axis_geometry(trunk, extent, wanted)
    assert axis.source == _hull(_union(whole[wanted.start : wanted.stop]))


@PROPERTY
@given(cases())
def test_a_window_computes_its_cells_as_the_whole_canvas_does(case):
    trunk, extent, wanted = case
    axis = axis_geometry(trunk, extent, wanted)
    window = _window_dependencies(trunk, _identity(extent)[axis.source.start : axis.source.stop], axis)
    assert window == _dependencies(trunk, _identity(extent))[wanted.start : wanted.stop]
    assert all(min(padding) >= 0 for padding in axis.padding.values())


@PROPERTY
@given(cases())
def test_fields_are_tight_inside_and_never_too_small(case):
    trunk, extent, _ = case
    field = field_of(trunk, extent)
    for cell, mark in enumerate(_dependencies(trunk, _identity(extent))):
        unclipped, seen = field.of(Range(cell, cell + 1)), _hull(mark)
        assert unclipped.start <= seen.start and seen.stop <= unclipped.stop
        assert unclipped.stop - unclipped.start == field.size
        if unclipped.start >= 0 and unclipped.stop <= extent:
            assert unclipped == seen


def test_same_padding_depends_on_parity():
    pool = MaxPool("pool", 3, 2, SAME)
    assert geometry.padding_of(pool, 8) == (0, 1)
    assert geometry.padding_of(pool, 9) == (1, 1)
    assert [geometry.extent_after(pool, extent) for extent in (8, 9)] == [4, 5]
    assert field_of((pool,), 8).offset == 0 and field_of((pool,), 9).offset == 1


@pytest.mark.parametrize("canvas", [Size(96, 64), Size(71, 130)])
@pytest.mark.parametrize("family", sorted(SMALL_TRUNKS))
def test_window_arrays_join_rows_and_columns_in_layer_order(family, canvas):
    trunk = SMALL_TRUNKS[family]()
    cells = geometry.cells_of(trunk, canvas)
    window = Window(cells.height // 2, 0, cells.height - cells.height // 2, max(1, cells.width - 2))
    found = window_geometry(trunk, canvas, window)
    rows = axis_geometry(trunk, canvas.height, Range(window.top, window.bottom))
    columns = axis_geometry(trunk, canvas.width, Range(window.left, window.right))
    assert found.cells == window
    assert found.pixels == Window(
        rows.source.start,
        columns.source.start,
        rows.source.stop - rows.source.start,
        columns.source.stop - columns.source.start,
    )
    neighbours = [layer.name for layer in walk(trunk) if getattr(layer, "kernel", 1) > 1]
    assert found.padding.dtype == found.crops.dtype == np.int32
    assert found.padding.tolist() == [list(rows.padding[n] + columns.padding[n]) for n in neighbours]
    for block, crops in zip([layer.name for layer in walk(trunk) if isinstance(layer, Residual)], found.crops):
        for branch in range(2):
            (top, height), (left, width) = rows.crops[block][branch], columns.crops[block][branch]
            assert crops[branch].tolist() == [top, left, height, width]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_whole_map_as_one_window_reads_no_padding_as_pixels(backbone):
    trunk, canvas = Network(backbone, "gmp", "softmax", 2).trunk, Size(321, 350)
    cells = geometry.cells_of(trunk, canvas)
    window = window_geometry(trunk, canvas, Window(0, 0, *cells))
    assert window.pixels.top == window.pixels.left == 0
    # at most the last pixels of a side, which no strided filter reaches, are left out
    assert 0 <= canvas.height - window.pixels.height < 32 and 0 <= canvas.width - window.pixels.width < 32


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("side", [32, 33, 63, 64, 483, 1000])
def test_every_backbone_gives_one_cell_for_each_32_pixels_begun(backbone, side):
    trunk = Network(backbone, "gmp", "softmax", 2).trunk
    assert geometry.cells_of(trunk, Size(side, 32)) == Size(-(-side // 32), 1)


@pytest.mark.parametrize("canvas", [Size(0, 64), Size(64, 0), Size(-5, 64)])
def test_an_empty_canvas_is_refused(canvas):
    with pytest.raises(ConfigError, match="a canvas of {} x {} px is too small".format(*canvas)):
        geometry.cells_of(SMALL_TRUNKS["fixup_basic"](), canvas)


def test_a_canvas_without_a_cell_is_refused():
    with pytest.raises(ConfigError, match="6 x 7 px is too small"):
        geometry.cells_of((Conv("conv", 3, 4, 7),), Size(6, 7))
    assert geometry.cells_of((Conv("conv", 3, 4, 7),), Size(7, 7)) == Size(1, 1)
