"""The work that a slide takes without any halo, and how fast this machine convolves: what a step is compared with.

A position of a feature map has to be computed where what it sees of the canvas is not blank: all others equal those of
the blank canvas. Going back, only positions matter that a cell with a gradient sees. Both are counted for each
convolution by itself, so no cover of windows, with their halos, can do with less while it computes what the network is.
"""

import dataclasses
import time
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

import numpy as np

from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.geometry import Field
from whole_slide_cnn.models.layers import Conv, MaxPool, Residual, Trunk
from whole_slide_cnn.models.shapes import canvas_shapes
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import BLANK_BLOCK


class LayerWork(NamedTuple):
    """Work of one convolution.

    Attributes:
        name: of the layer.
        positions: outputs that are not blank.
        wanted: those among them that a wanted cell sees.
        macs: multiply-accumulates of one output.
        reads_image: whether it needs no gradient of its input.
    """

    name: str
    positions: int
    wanted: int
    macs: int
    reads_image: bool


@dataclasses.dataclass(frozen=True)
class Work:
    """Multiply-accumulates of a slide without any halo, each convolution where it is needed.

    Attributes:
        forward: over all that is not blank.
        again: over what wanted cells see, forward: for the backward pass, where nothing was kept.
        backward: gradients of filters and inputs, over the same.
        blank: the blank canvas, forward and backward.
        layers: what it is made of.
    """

    forward: int
    again: int
    backward: int
    blank: int
    layers: Tuple[LayerWork, ...]

    @property
    def share(self) -> float:
        """Of the forward work, what wanted cells need (f)."""
        return self.again / self.forward if self.forward else 0.0

    @property
    def step(self) -> int:
        """A training step that keeps nothing between its passes."""
        return self.forward + self.again + self.backward + self.blank

    @property
    def step_kept(self) -> int:
        """A training step that keeps everything."""
        return self.forward + self.backward + self.blank


def work(trunk: Trunk, canvas: Size, blank_blocks: np.ndarray, wanted: Optional[np.ndarray] = None) -> Work:
    """The work of a slide without any halo.

    Args:
        canvas: size in pixels.
        blank_blocks: bool, one per block of 32 px of the canvas (:meth:`Canvas.blank_blocks`).
        wanted: bool, one per cell: those with a gradient; all that are not blank where not given.
    """
    canvas = Size(*canvas)
    coloured = _sums(~blank_blocks)
    if wanted is None:
        wanted = _cells_not_blank(trunk, canvas, coloured)
    asked = _sums(wanted)
    layers = []
    axes = [list(_views(trunk, side)) for side in canvas]
    for row, column in zip(*axes):
        conv = row.conv
        rows, columns = (_classes(view, side) for view, side in zip((row, column), canvas))
        colour = _touched(coloured, rows.blocks, columns.blocks)
        seen = colour & _touched(asked, rows.cells, columns.cells)
        counts = rows.counts.astype(np.float64)[:, np.newaxis] * columns.counts
        macs = conv.kernel**2 * conv.channels_in * conv.channels
        layers.append(LayerWork(conv.name, int(counts[colour].sum()), int(counts[seen].sum()), macs, row.first))
    forward = sum(layer.positions * layer.macs for layer in layers)
    again = sum(layer.wanted * layer.macs for layer in layers)
    backward = sum(layer.wanted * layer.macs * (1 if layer.reads_image else 2) for layer in layers)
    return Work(forward, again, backward, _blank_macs(trunk, canvas, blank_blocks), tuple(layers))


class _View(NamedTuple):
    """Of a convolution's outputs along one axis: how many, what each sees, and which cells see them.

    Attributes:
        first: whether its input is the image.
        field: of an output, in canvas pixels.
        later: of a cell, in outputs.
    """

    conv: Conv
    extent: int
    first: bool
    field: Field
    later: Field


def _views(trunk: Trunk, extent: int) -> Iterator[_View]:
    yield from _views_in(trunk, (), extent, Field(1, 1, 0), True)


def _views_in(layers: Trunk, after: Trunk, extent: int, field: Field, first: bool) -> Iterator[_View]:
    """Convolutions of some layers, of which ``after`` follow the last."""
    for index, layer in enumerate(layers):
        rest = tuple(layers[index + 1 :]) + tuple(after)
        if isinstance(layer, Residual):
            for branch in (layer.body, layer.shortcut):
                yield from _views_in(branch, rest, extent, field, first)
            inner = geometry.field_of((layer,), extent)
        elif isinstance(layer, (Conv, MaxPool)):
            inner = Field(layer.kernel, layer.stride, geometry.padding_of(layer, extent)[0])
        else:
            continue
        field = _compose(field, inner)
        extent = geometry.extent_after(layer, extent)
        if isinstance(layer, Conv):
            yield _View(layer, extent, first, field, geometry.field_of(rest, extent))
        first = False


def _compose(field: Field, inner: Field) -> Field:
    size = field.size + (inner.size - 1) * field.stride
    return Field(size, field.stride * inner.stride, field.offset + inner.offset * field.stride)


class _Classes(NamedTuple):
    """Outputs along an axis that see the same blocks and are seen by the same cells.

    Attributes:
        blocks, cells: first and last plus one of each class, (classes, 2).
        counts: outputs of each class.
    """

    blocks: np.ndarray
    cells: np.ndarray
    counts: np.ndarray


def _classes(view: _View, side: int) -> _Classes:
    at = np.arange(view.extent)
    start = at * view.field.stride - view.field.offset
    stop = start + view.field.size
    start, stop = np.clip(start, 0, side), np.clip(stop, 0, side)
    # cell c sees the outputs [c * stride - offset, c * stride - offset + size)
    later = view.later
    first = -(-(at + later.offset - later.size + 1) // later.stride)
    last = (at + later.offset) // later.stride + 1
    ranges = np.stack(
        [start // BLANK_BLOCK, -(-stop // BLANK_BLOCK), np.maximum(first, 0), np.maximum(last, 0)], axis=1
    )
    found, counts = np.unique(ranges, axis=0, return_counts=True)
    return _Classes(found[:, :2], found[:, 2:], counts)


def _sums(mask: np.ndarray) -> np.ndarray:
    sums = np.zeros(np.add(mask.shape, 1), np.int64)
    sums[1:, 1:] = np.cumsum(np.cumsum(mask, axis=0), axis=1)
    return sums


def _touched(sums: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whether rectangles hold anything: bool (rows, columns)."""
    (top, bottom), (left, right) = (
        np.minimum(ranges, extent - 1).T for ranges, extent in zip((rows, columns), sums.shape)
    )
    inside = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    return inside > 0


def _cells_not_blank(trunk: Trunk, canvas: Size, coloured: np.ndarray) -> np.ndarray:
    ranges = []
    for side, cells in zip(canvas, geometry.cells_of(trunk, canvas)):
        field = geometry.field_of(trunk, side)
        start = np.arange(cells) * field.stride - field.offset
        start, stop = np.clip(start, 0, side), np.clip(start + field.size, 0, side)
        ranges.append(np.stack([start // BLANK_BLOCK, -(-stop // BLANK_BLOCK)], axis=1))
    return _touched(coloured, *ranges)


def _blank_macs(trunk: Trunk, canvas: Size, blank_blocks: np.ndarray) -> int:
    """Of the smallest canvas that has all values of blank cells, forward, and backward with it kept."""
    if not blank_blocks.any():
        return 0
    sides = []
    for side in canvas:
        field = geometry.field_of(trunk, side)
        shortest = field.size + field.stride
        sides.append(min(side, shortest + (side - shortest) % field.stride))
    views = zip(*(list(_views(trunk, side)) for side in sides))
    return sum(
        row.extent
        * column.extent
        * row.conv.kernel**2
        * row.conv.channels_in
        * row.conv.channels
        * (2 if row.first else 3)
        for row, column in views
    )


# ---- how fast this machine convolves ----


def convolution_rate(trunk: Trunk, compute: str = "float32", side: int = 1024, repeats: int = 3) -> Dict[str, Any]:
    """FLOP/s of a network's convolutions, forward, each as often as the network has it.

    Every different convolution of a canvas is timed by itself, in the engines' layout, without its bias and activation:
    what a step could reach if it did nothing else. The fastest of some runs, since what else a machine does only adds.

    Args:
        compute: type.
        side: of the canvas in pixels.
        repeats: runs of each, after one that is not counted.
    """
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.runtime import choose_products, session_config
    from whole_slide_cnn.models.build import COMPUTE_TYPES

    choose_products(compute)
    kinds: Dict[Tuple, int] = {}
    steps = canvas_shapes(trunk, Size(side, side))
    for step in steps:
        if step.kind == "conv":
            before = steps[step.inputs[0]].shape if step.inputs[0] >= 0 else (side, side, 3)
            kind = (before, step.shape, step.kernel)
            kinds[kind] = kinds.get(kind, 0) + 1
    dtype = COMPUTE_TYPES[compute]
    seconds = flops = 0.0
    for ((height, width, inputs), (rows, _, outputs), kernel), number in kinds.items():
        stride = max(1, (height - kernel) // max(rows - 1, 1))
        with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
            pixels = tf.get_variable("pixels", (1, height, width, inputs), dtype, tf.ones_initializer())
            filters = tf.get_variable("filters", (kernel, kernel, inputs, outputs), dtype, tf.ones_initializer())
            made = tf.nn.conv2d(pixels, filters, [1, stride, stride, 1], "VALID")
            corner = made[0, 0, 0, 0]  # a value, so that nothing is pruned, and no copy of all
            session.run(tf.global_variables_initializer())
            times = []
            for _ in range(1 + repeats):
                began = time.perf_counter()
                session.run(corner)
                times.append(time.perf_counter() - began)
        seconds += number * min(times[1:])
        flops += number * 2.0 * kernel**2 * inputs * outputs * rows * made.shape[2]
    return {"flops": float(flops / seconds), "side": side, "kinds": len(kinds), "compute": compute}
