"""Law 2 under augmentation: one value per pixel, whichever window, thread, tile or array module it comes through."""

import concurrent.futures
import dataclasses
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.augment import AugmentedCanvas, TransformParameters, augmented, sample_parameters
from whole_slide_cnn.augment import canvas as canvas_module
from whole_slide_cnn.augment import source as source_module
from whole_slide_cnn.augment.canvas import TILE, WORKING_BYTES, array_module
from whole_slide_cnn.augment.parameters import PRESETS, Ranges
from whole_slide_cnn.augment.source import BLOCK, CACHE_BYTES
from whole_slide_cnn.config import Augmentation
from whole_slide_cnn.errors import ConfigError, SlideError
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.block_cache import BlockCache
from whole_slide_cnn.slides.canvas import ArrayCanvas, Canvas, open_canvas
from whole_slide_cnn.slides.settings import SlideSettings

RANDOM_PRESETS = sorted(set(PRESETS) - {"none"})
sizes = st.tuples(st.integers(1, 100), st.integers(1, 100))


def whole(canvas):
    return canvas.read(Window(0, 0, *canvas.size))


def draw_window(data, size):
    top, left = (data.draw(st.integers(0, side)) for side in size)
    return Window(top, left, data.draw(st.integers(0, size[0] - top)), data.draw(st.integers(0, size[1] - left)))


def crop(pixels, window):
    return pixels[window.top : window.bottom, window.left : window.right]


@settings(max_examples=120, deadline=None)
@given(
    size=sizes,
    preset=st.sampled_from(RANDOM_PRESETS),
    seed=st.integers(0, 2**32 - 1),
    position=st.integers(0, 10**6),
    tiles=st.tuples(*[st.sampled_from([5, 16, 64, TILE])] * 2),
    data=st.data(),
)
def test_any_two_windows_agree_with_each_other_and_with_the_whole(picture, size, preset, seed, position, tiles, data):
    canvas = augmented(ArrayCanvas(picture(*size, seed=seed % 97)), Augmentation(preset=preset), seed, position)
    assert canvas.size == size and canvas.name == "array"
    everything = whole(canvas)
    windows = [draw_window(data, size) for _ in tiles]
    pixels = []
    for window, tile in zip(windows, tiles):
        with mock.patch.object(canvas_module, "TILE", tile):
            pixels.append(canvas.read(window))
        assert pixels[-1].dtype == np.uint8 and pixels[-1].shape == window.size + (3,)
        np.testing.assert_array_equal(pixels[-1], crop(everything, window))
    common = windows[0].intersect(windows[1])
    moved = [common._replace(top=common.top - window.top, left=common.left - window.left) for window in windows]
    if common.height and common.width:
        np.testing.assert_array_equal(crop(pixels[0], moved[0]), crop(pixels[1], moved[1]))


def test_windows_of_a_large_canvas_agree():
    """Far from the origin, where a map that starts anew in each window rounds otherwise."""
    canvas = AugmentedCanvas(
        Checkers("C", Size(75000, 74999)), TransformParameters(angle=29.7, shift=(0.011, -0.017), hue=13.0)
    )
    base = Window(52000, 61000, 700, 650)
    expected = canvas.read(base)
    assert len(np.unique(expected)) > 50
    random = np.random.RandomState(0)
    for _ in range(20):
        top, left = random.randint(0, 600), random.randint(0, 550)
        window = Window(base.top + top, base.left + left, random.randint(1, 700 - top), random.randint(1, 650 - left))
        found = canvas.read(window)
        np.testing.assert_array_equal(found, expected[top : top + window.height, left : left + window.width])


def test_threads_that_read_at_once_see_the_same(picture):
    source = ArrayCanvas(picture(211, 187))
    canvas = AugmentedCanvas(source, sample_parameters(PRESETS["paper_2021"], 0, 5))
    expected = whole(AugmentedCanvas(source, canvas.parameters))
    random = np.random.RandomState(1)
    corners = [(random.randint(0, 150), random.randint(0, 130)) for _ in range(60)]
    windows = [Window(top, left, 61, 57) for top, left in corners]
    with mock.patch.object(canvas_module, "TILE", 32), concurrent.futures.ThreadPoolExecutor(8) as pool:
        for window, pixels in zip(windows, pool.map(canvas.read, windows)):
            np.testing.assert_array_equal(pixels, crop(expected, window))


@settings(max_examples=60, deadline=None)
@given(size=sizes, preset=st.sampled_from(RANDOM_PRESETS), position=st.integers(0, 10**6), seed=st.integers(0, 50))
def test_blank_blocks_hold_nothing_but_the_blank_colour(picture, size, preset, position, seed):
    size = tuple(3 * side for side in size)
    pixels = picture(*size, seed=seed)
    canvas = AugmentedCanvas(ArrayCanvas(pixels), sample_parameters(PRESETS[preset], seed, position))
    found, blank = whole(canvas), canvas.blank_blocks()
    assert blank.shape == tuple(-(-side // 32) for side in size)
    for row, column in zip(*np.nonzero(blank)):
        block = found[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert (block == canvas.blank_colour).all()


def test_blank_blocks_are_found_without_reading(picture):
    source = CountingCanvas(picture(300, 300))
    blank = source.blank_blocks()
    source.pixels = 0
    canvas = AugmentedCanvas(source, TransformParameters(angle=20.0))
    assert 0 < canvas.blank_blocks().sum() < blank.size and source.pixels == 0
    np.testing.assert_array_equal(AugmentedCanvas(source, TransformParameters(contrast=0.5)).blank_blocks(), blank)
    flipped = AugmentedCanvas(CountingCanvas(picture(320, 320)), TransformParameters(flip_rows=True))
    np.testing.assert_array_equal(flipped.blank_blocks(), flipped.source.blank_blocks()[::-1])


@settings(max_examples=25, deadline=None)
@given(size=sizes, seed=st.integers(0, 50), flips=st.tuples(st.booleans(), st.booleans()))
def test_flips_are_those_of_numpy(picture, size, seed, flips):
    pixels = picture(*size, seed=seed)
    expected = pixels[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    canvas = AugmentedCanvas(ArrayCanvas(pixels), TransformParameters(flip_rows=flips[0], flip_columns=flips[1]))
    np.testing.assert_array_equal(whole(canvas), expected)


@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 100), turns=st.integers(-2, 2), flip=st.booleans(), seed=st.integers(0, 50))
def test_quarter_turns_are_those_of_numpy(picture, side, turns, flip, seed):
    pixels = picture(side, side, seed=seed)
    canvas = AugmentedCanvas(ArrayCanvas(pixels), TransformParameters(flip_rows=flip, angle=90.0 * turns))
    np.testing.assert_array_equal(whole(canvas), np.rot90(pixels[::-1] if flip else pixels, turns))


def test_shifts_move_down_and_right(picture):
    pixels = picture(40, 80)
    found = whole(AugmentedCanvas(ArrayCanvas(pixels), TransformParameters(shift=(0.1, 0.05))))
    expected = np.full_like(pixels, 255)
    expected[4:, 4:] = pixels[:-4, :-4]
    np.testing.assert_array_equal(found, expected)


def test_no_change_is_the_canvas_itself_or_its_pixels(picture):
    source = ArrayCanvas(picture(50, 41))
    assert augmented(source, Augmentation(), 0, 0) is source
    assert augmented(source, Augmentation(preset="paper_2021", **NEUTRAL), 0, 0) is source
    canvas = AugmentedCanvas(source, TransformParameters())
    np.testing.assert_array_equal(whole(canvas), whole(source))
    np.testing.assert_array_equal(canvas.blank_blocks(), source.blank_blocks())
    assert (canvas.blank_colour == 255).all()


NEUTRAL = Ranges()._asdict()


@pytest.mark.parametrize("preset", RANDOM_PRESETS)
@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 238, 251)])
def test_padding_outside_and_blank_have_one_colour(preset, colour):
    source = ArrayCanvas(np.broadcast_to(np.array(colour, np.uint8), (64, 90, 3)), blank_colour=colour)
    seen = set()
    for position in range(25):
        canvas = augmented(source, Augmentation(preset=preset), 3, position)
        pixels = whole(canvas)
        assert (pixels == canvas.blank_colour).all() and canvas.blank_blocks().all()
        assert canvas.blank_colour.dtype == np.uint8 and not canvas.blank_colour.flags.writeable
        seen.add(tuple(canvas.blank_colour))
    if preset != "paper_2022":
        assert len(seen) > 5
    elif colour == (255, 255, 255):
        assert seen == {colour}


@pytest.mark.parametrize("preset", RANDOM_PRESETS)
def test_what_cupy_runs_gives_the_same_pixels_on_numpy(preset, picture, other_module):
    source = ArrayCanvas(picture(130, 97))
    for position in range(4):
        drawn = sample_parameters(PRESETS[preset], 2, position)
        canvas, other = AugmentedCanvas(source, drawn), AugmentedCanvas(source, drawn, other_module)
        np.testing.assert_array_equal(whole(other), whole(canvas))
        np.testing.assert_array_equal(other.blank_colour, canvas.blank_colour)


def test_cupy_differs_by_at_most_one_grey_level(picture):
    try:
        cupy = array_module("cuda")
    except ConfigError as error:
        pytest.skip(str(error))
    source = ArrayCanvas(picture(700, 650))
    for preset in RANDOM_PRESETS:
        for position in range(3):
            drawn = sample_parameters(PRESETS[preset], 2, position)
            found, expected = (whole(AugmentedCanvas(source, drawn, xp)).astype(int) for xp in (cupy, np))
            assert np.abs(found - expected).max() <= 1


def test_missing_cupy_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    array_module.cache_clear()
    with pytest.raises(ConfigError, match="^augment.device is cuda, but CuPy cannot be used .*set augment.device"):
        array_module("cuda")
    array_module.cache_clear()
    assert array_module("cpu") is np


def test_memory_of_a_read_does_not_grow_with_the_window(monkeypatch):
    line = np.random.RandomState(0).randint(0, 256, (6000, 3)).astype(np.uint8)
    source = ArrayCanvas(np.broadcast_to(line, (6000, 6000, 3)))
    monkeypatch.setattr(source_module, "_CACHE", BlockCache(0))
    for preset in ("reference_2021", "paper_2022"):
        canvas = AugmentedCanvas(source, dataclasses.replace(sample_parameters(PRESETS[preset], 0, 1), angle=45.0))
        peaks = []
        for side in (800, 2000):
            canvas.read(Window(2000, 2000, 10, 10))
            tracemalloc.start()
            canvas.read(Window(2000, 2000, side, side))
            peaks.append(tracemalloc.get_traced_memory()[1] - 3 * side * side)
            tracemalloc.stop()
        assert WORKING_BYTES / 2 < max(peaks) < WORKING_BYTES
        assert peaks[1] < 1.2 * peaks[0]


def test_only_blocks_that_a_window_needs_are_read():
    source = CountingCanvas(np.zeros((2048, 2048, 3), np.uint8))
    AugmentedCanvas(source, TransformParameters(angle=45.0)).read(Window(924, 924, 200, 200))
    assert source.pixels == (2 * BLOCK) ** 2
    source.pixels = 0
    AugmentedCanvas(source, TransformParameters(flip_rows=True)).read(Window(BLOCK, 0, BLOCK, 2 * BLOCK))
    assert source.pixels == 2 * BLOCK**2
    source.pixels = 0
    AugmentedCanvas(source, TransformParameters(angle=45.0)).read(
        Window(0, 0, 200, 200)
    )  # a corner that turns out of the slide
    assert source.pixels == 0


def test_most_pixels_are_read_once_and_blank_blocks_never():
    pixels = np.full((2048, 2048, 3), 255, np.uint8)
    pixels[700:1300, 600:1400] = 0
    source = CountingCanvas(pixels)
    canvas = AugmentedCanvas(source, TransformParameters(angle=30.0))
    canvas.blank_blocks()
    source.pixels = 0
    for top, left in ((500, 500), (500, 900), (900, 500), (900, 900)):
        canvas.read(Window(top, left, 700, 700))
    assert 0 < source.pixels <= 16 * BLOCK**2  # blocks that hold tissue: rows and columns from 512 to 1536
    source.pixels = 0
    AugmentedCanvas(source, TransformParameters(angle=30.0)).read(
        Window(500, 500, 1000, 1000)
    )  # another canvas shares nothing
    assert source.pixels > 1000**2


def test_all_canvases_together_keep_a_bounded_number_of_blocks():
    source = Checkers("C", Size(8192, 8192))
    for angle in (0.0, 90.0):
        AugmentedCanvas(source, TransformParameters(angle=angle, contrast=0.5)).read(Window(0, 0, 4096, 4096))
    assert 0 < source_module._CACHE.held_bytes <= CACHE_BYTES


def test_errors_and_closing_reach_the_source():
    class Broken(ArrayCanvas):
        closed = 0

        def _read(self, window):
            raise SlideError(self.name, "it is broken")

        def close(self):
            self.closed += 1

    source = Broken(np.zeros((50, 50, 3), np.uint8), name="S")
    with AugmentedCanvas(source, TransformParameters(angle=1.0)) as canvas:
        assert canvas.name == "S"
        with pytest.raises(SlideError, match="slide S: it is broken"):
            canvas.read(Window(10, 10, 5, 5))
        with pytest.raises(ValueError, match="leaves"):
            canvas.read(Window(0, 0, 51, 50))
    assert source.closed == 1


def test_a_slide_file(make_slide, tmp_path):
    path = str(tmp_path / "slide.tif")
    make_slide(path, 1, 0, size=(180, 150))
    settings = Augmentation(preset="paper_2021")
    with augmented(open_canvas(path, (256, 256), SlideSettings(mpp=1.0)), settings, 0, 1) as canvas:
        everything = whole(canvas)
        window = Window(71, 64, 100, 129)
        np.testing.assert_array_equal(canvas.read(window), crop(everything, window))
        assert 0 < canvas.blank_blocks().sum() < 64


class Checkers(Canvas):
    """Pixels of any canvas size, computed from their place."""

    def close(self):
        """Nothing to release."""

    def _read(self, window):
        rows = np.arange(window.top, window.bottom)[:, None, None]
        columns = np.arange(window.left, window.right)[None, :, None]
        return ((rows * 37 ^ columns * 101 ^ np.arange(3) * 85) % 251).astype(np.uint8)


class CountingCanvas(ArrayCanvas):
    """Counts the pixels that are read."""

    pixels = 0

    def _read(self, window):
        self.pixels += window.height * window.width
        return super()._read(window)
