"""The affine map and bicubic sampling, in whole 32nds and whole weights."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.augment import bicubic
from whole_slide_cnn.augment.affine import (
    PHASES,
    Affine,
    Axis,
    affine_of,
    blank_blocks_after,
    positions,
    source_window,
)
from whole_slide_cnn.augment.parameters import TransformParameters
from whole_slide_cnn.sizes import Size, Window

draws = st.builds(
    TransformParameters,
    flip_rows=st.booleans(),
    flip_columns=st.booleans(),
    angle=st.one_of(st.sampled_from([0.0, 90.0, -90.0, 180.0, 45.0]), st.floats(-180, 180)),
    shift=st.one_of(st.just((0.0, 0.0)), st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))),
)


def everything(size):
    return Window(0, 0, *size)


def test_no_change_is_the_identity():
    assert affine_of(TransformParameters(), Size(7, 10)).is_identity
    assert not affine_of(TransformParameters(flip_rows=True), Size(7, 10)).is_identity
    assert affine_of(TransformParameters(flip_rows=True), Size(7, 10)) == Affine(
        Axis(-1.0, 0.0, 6.0), Axis(0.0, 1.0, 0.0), True
    )


@pytest.mark.parametrize("angle", [90.0, 180.0, -90.0])
def test_quarter_turns_fall_on_whole_pixels_where_the_sides_allow(angle):
    assert affine_of(TransformParameters(angle=angle), Size(75000, 75000)).whole
    assert affine_of(TransformParameters(angle=angle), Size(74999, 74999)).whole
    assert affine_of(TransformParameters(angle=angle), Size(75000, 74999)).whole == (angle == 180)
    assert not affine_of(TransformParameters(angle=angle, shift=(1e-5, 0)), Size(75000, 75000)).whole


def exact_positions(drawn, size, window):
    """Source rows and columns of a window's pixels by the definition, in pixels."""
    down = np.arange(window.top, window.bottom)[:, None] - (size.height - 1) / 2 - drawn.shift[0] * size.height
    right = np.arange(window.left, window.right)[None, :] - (size.width - 1) / 2 - drawn.shift[1] * size.width
    cosine, sine = math.cos(math.radians(drawn.angle)), math.sin(math.radians(drawn.angle))
    return (
        (size.height - 1) / 2 + (-1) ** drawn.flip_rows * (cosine * down + sine * right),
        (size.width - 1) / 2 + (-1) ** drawn.flip_columns * (cosine * right - sine * down),
    )


@settings(max_examples=40, deadline=None)
@given(drawn=draws, size=st.tuples(st.integers(50, 90000), st.integers(50, 90000)), data=st.data())
def test_positions_are_those_of_exact_arithmetic_rounded(drawn, size, data):
    size = Size(*size)
    affine = affine_of(drawn, size)
    for window in (
        Window(*[data.draw(st.integers(0, side - 50)) for side in size], 50, 50),
        Window(size.height - 50, size.width - 50, 50, 50),
    ):
        for axis, exact in zip(affine[:2], exact_positions(drawn, size, window)):
            assert np.abs(positions(axis, window) / PHASES - exact).max() <= 0.5 / PHASES + 1e-6


@settings(max_examples=80, deadline=None)
@given(drawn=draws, size=st.tuples(st.integers(1, 120), st.integers(1, 120)), data=st.data())
def test_the_source_window_is_the_smallest(drawn, size, data):
    affine = affine_of(drawn, Size(*size))
    top, left = (data.draw(st.integers(0, side - 1)) for side in size)
    window = Window(top, left, data.draw(st.integers(1, size[0] - top)), data.draw(st.integers(1, size[1] - left)))
    for axis, side, ends in zip(affine[:2], size, span(source_window(affine, window, Size(*size)))):
        pixels = positions(axis, window) // PHASES
        taps = [pixels] if affine.whole else [pixels - 1, pixels + 2]
        first, stop = max(0, min(tap.min() for tap in taps)), min(side, max(tap.max() for tap in taps) + 1)
        assert ends == (first, stop) if first < stop else ends[0] == ends[1]


def span(window):
    return (window.top, window.bottom), (window.left, window.right)


@settings(max_examples=60, deadline=None)
@given(drawn=draws, size=st.tuples(st.integers(1, 300), st.integers(1, 300)), seed=st.integers(0, 1000))
def test_blank_blocks_come_from_blank_blocks_alone(drawn, size, seed):
    size = Size(*size)
    affine = affine_of(drawn, size)
    blank = np.random.RandomState(seed).random_sample((-(-size.height // 32), -(-size.width // 32))) < 0.8
    found = blank_blocks_after(affine, size, blank)
    assert found.shape == blank.shape
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            block = Window(32 * row, 32 * column, 32, 32).intersect(everything(size))
            needed = source_window(affine, block, size)
            met = blank[needed.top // 32 : -(-needed.bottom // 32), needed.left // 32 : -(-needed.right // 32)]
            assert found[row, column] == (needed.height == 0 or needed.width == 0 or bool(met.all()))


def test_blank_blocks_of_a_large_canvas():
    blank = np.ones((2344, 2344), bool)
    blank[900:1000, 1100:1300] = False
    size = Size(75000, 75000)
    for drawn in (TransformParameters(flip_rows=True), TransformParameters(angle=33.0, shift=(0.02, -0.02))):
        found = blank_blocks_after(affine_of(drawn, size), size, blank)
        assert (~blank).sum() <= (~found).sum() <= 1.15 * (~blank).sum()


def test_weights_sum_to_one_and_whole_pixels_are_themselves():
    table = bicubic.weights()
    assert (table.sum(axis=0) == 1 << 15).all()
    assert table[5, 0] == (1 << 15) - 1 and np.abs(table[:, 0]).sum() == 1 << 15


def test_opencv_and_the_table_agree_on_every_bit(other_module):
    random = np.random.RandomState(0)
    source = random.randint(0, 256, (60, 71, 3)).astype(np.uint8)
    rows, columns = (random.randint(-10 * 32, (side + 10) * 32, (321, 257)).astype(np.int32) for side in (60, 71))
    outside = np.array([255, 7, 100], np.uint8)
    expected = bicubic.remap(source, rows, columns, outside)
    np.testing.assert_array_equal(bicubic.gather(source, rows, columns, outside), expected)
    np.testing.assert_array_equal(bicubic.gather(source, rows, columns, outside, other_module), expected)


def test_sampling_is_cubic_convolution():
    def kernel(x):
        x = abs(x)
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        return near if x <= 1 else -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0

    random = np.random.RandomState(1)
    source = random.randint(60, 190, (20, 20, 3)).astype(np.uint8)
    rows, columns = (random.randint(2 * 32, 17 * 32, (1, 200)).astype(np.int32) for _ in range(2))
    found = bicubic.remap(source, rows, columns, np.zeros(3, np.uint8))[0]
    for index in range(200):
        y, x = rows[0, index] / 32.0, columns[0, index] / 32.0
        by_row, by_column = (np.array([kernel(place - tap) for tap in range(20)]) for place in (y, x))
        exact = np.einsum("i,j,ijc->c", by_row, by_column, source.astype(np.float64))
        assert np.abs(np.clip(exact, 0, 255) - found[index]).max() < 0.52


@settings(max_examples=20, deadline=None)
@given(colour=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)))
def test_one_colour_stays_that_colour(colour):
    rows, columns = np.mgrid[-200:1200:13, -200:1200:11].astype(np.int32)
    colour = np.array(colour, np.uint8)
    source = np.broadcast_to(colour, (30, 31, 3)).copy()
    assert (bicubic.remap(source, rows, columns, colour) == colour).all()
