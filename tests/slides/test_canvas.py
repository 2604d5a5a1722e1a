"""The canvas: centred, padded or cropped, lazy, and sure of what is blank."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides import canvas as canvas_module
from whole_slide_cnn.slides.canvas import BLANK_BLOCK, ArrayCanvas, SlideCanvas, open_canvas
from whole_slide_cnn.slides.resample import ResampledSlide
from whole_slide_cnn.slides.settings import SlideSettings
from whole_slide_cnn.slides.tissue import thumbnail, tissue_mask, tissue_share

PINK = (200, 100, 160)


def blank_by_definition(pixels, colour):
    """Every block looked at on its own."""
    rows, columns = (-(-side // 32) for side in pixels.shape[:2])
    blank = np.empty((rows, columns), bool)
    for row in range(rows):
        for column in range(columns):
            blank[row, column] = (pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] == colour).all()
    return blank


@pytest.fixture(scope="module")
def make_canvas(array_pyramid):
    """A function (pixels of level 0, canvas size, ratio) -> SlideCanvas."""

    def make(pixels, size, ratio=1.0):
        return SlideCanvas(ResampledSlide(array_pyramid([pixels], name="S"), ratio=ratio), size)

    return make


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    slide=st.tuples(st.integers(1, 140), st.integers(1, 140)),
    size=st.tuples(st.integers(1, 170), st.integers(1, 170)),
    data=st.data(),
)
def test_windows_are_crops_of_the_centred_slide(make_canvas, photograph, slide, size, data):
    pixels = photograph(*slide)
    (top, left) = offset = tuple((outer - inner) // 2 for outer, inner in zip(size, slide))
    expected = np.full(size + (3,), 255, np.uint8)
    inner = pixels[max(0, -top) : size[0] - top, max(0, -left) : size[1] - left]
    expected[max(0, top) :, max(0, left) :][: inner.shape[0], : inner.shape[1]] = inner
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        canvas = make_canvas(pixels, size)
    assert canvas.size == Size(*size) and canvas.placement[:2] == offset
    np.testing.assert_array_equal(canvas.read(Window(0, 0, *size)), expected)
    y, x = data.draw(st.integers(0, size[0])), data.draw(st.integers(0, size[1]))
    bottom, right = data.draw(st.integers(y, size[0])), data.draw(st.integers(x, size[1]))
    np.testing.assert_array_equal(canvas.read(Window.from_bounds(y, x, bottom, right)), expected[y:bottom, x:right])
    np.testing.assert_array_equal(canvas.blank_blocks(), blank_by_definition(expected, 255))


@settings(deadline=None, max_examples=30)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    dots=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 199), st.integers(0, 2)), max_size=6),
    colour=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
)
def test_one_pixel_in_one_channel_makes_its_block_not_blank(size, dots, colour):
    pixels = np.empty(size + (3,), np.uint8)
    pixels[:] = colour
    for y, x, channel in dots:
        pixels[y % size[0], x % size[1], channel] ^= 1
    canvas = ArrayCanvas(pixels, blank_colour=colour)
    assert canvas.blank_colour.dtype == np.uint8 and tuple(canvas.blank_colour) == colour
    np.testing.assert_array_equal(canvas.blank_blocks(), blank_by_definition(pixels, colour))


def test_blank_blocks_do_not_depend_on_the_scan_tile(make_canvas, photograph, monkeypatch):
    pixels = np.full((300, 260, 3), 255, np.uint8)
    pixels[70:170, 100:130] = photograph(100, 30)
    expected = make_canvas(pixels, (391, 333)).blank_blocks()
    assert expected.any() and not expected.all()
    monkeypatch.setattr(canvas_module, "_SCAN_TILE", 2 * BLANK_BLOCK)
    np.testing.assert_array_equal(make_canvas(pixels, (391, 333)).blank_blocks(), expected)


def test_blank_blocks_are_found_once_or_taken_from_the_caller(make_canvas, photograph):
    canvas = make_canvas(photograph(100, 100), (200, 210))
    first = canvas.blank_blocks()
    requests = len(canvas.slide.reader.requests)
    first[:] = True  # the caller's own copy
    second = canvas.blank_blocks()
    assert not second.all() and len(canvas.slide.reader.requests) == requests
    other = make_canvas(photograph(100, 100), (200, 210))
    other.set_blank_blocks(second)
    np.testing.assert_array_equal(other.blank_blocks(), second)
    assert other.slide.reader.requests == []
    for wrong in (second[:-1], second.astype(int)):
        with pytest.raises(ValueError, match="bool of shape"):
            other.set_blank_blocks(wrong)


def test_opening_reads_nothing(make_canvas, photograph):
    canvas = make_canvas(photograph(100, 100), (200, 200))
    canvas.read(Window(0, 0, 30, 200))  # padding only
    assert canvas.slide.reader.requests == []


def test_empty_windows_are_empty_anywhere(make_canvas, photograph):
    canvas = make_canvas(photograph(4, 4), (10, 10))
    for top, left in ((0, 0), (5, 5), (10, 10)):
        assert canvas.read(Window(top, left, 0, 0)).shape == (0, 0, 3)


def test_arrays_and_windows_are_checked(photograph):
    with pytest.raises(ValueError, match="uint8"):
        ArrayCanvas(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="uint8"):
        ArrayCanvas(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        ArrayCanvas(np.zeros((0, 4, 3), np.uint8))
    pixels = photograph(9, 8)
    with ArrayCanvas(pixels, name="A") as canvas:
        assert canvas.name == "A"
        np.testing.assert_array_equal(canvas.read(Window(2, 3, 7, 5)), pixels[2:, 3:])
        with pytest.raises(ValueError, match="leaves"):
            canvas.read(Window(2, 3, 8, 5))


def test_crop_warns_with_name_and_lost_tissue(make_canvas):
    pixels = np.full((400, 400, 3), 255, np.uint8)
    pixels[150:250, 200:300] = PINK  # a quarter of its width lies beyond column 275
    with pytest.warns(UserWarning, match=r"slide S: 400 x 400 px .* 300 x 150 px; 25\.\d% of its tissue"):
        canvas = make_canvas(pixels, (300, 150))
    np.testing.assert_array_equal(canvas.read(Window(0, 0, 300, 150)), pixels[50:350, 125:275])
    pixels[:] = 255
    with pytest.warns(UserWarning, match=r"0\.0% of its tissue"):
        make_canvas(pixels, (300, 150))


def test_a_slide_that_fits_does_not_warn(make_canvas, photograph):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_canvas(photograph(30, 30), (30, 30))


def test_placement_converts_both_ways(make_canvas, photograph):
    canvas = make_canvas(photograph(100, 200), (150, 300), ratio=0.5)
    assert canvas.placement.to_level0(50, 100) == (0, 0)
    assert canvas.placement.to_level0(100, 200) == (100, 200)
    y, x = canvas.placement.from_level0(*canvas.placement.to_level0(np.arange(5), np.arange(5)))
    np.testing.assert_allclose((y, x), [np.arange(5)] * 2)


def test_open_canvas(tmp_path, photograph, write_tiff):
    pixels = photograph(600, 700)
    path = write_tiff(tmp_path / "slide.tif", [pixels, pixels[::2, ::2]], mpp=0.5)
    with open_canvas(path, (640, 768), SlideSettings(mpp=0.5), "S") as canvas:
        assert canvas.name == "S"
        np.testing.assert_array_equal(canvas.read(Window(20, 34, 600, 700)), pixels)
    with open_canvas(path, (640, 768), SlideSettings(mpp=1.0)) as canvas:
        np.testing.assert_array_equal(canvas.read(Window(170, 209, 300, 350)), pixels[::2, ::2])
    with open_canvas(path, (640, 768), SlideSettings(mpp=1.0, slide_mpp=1.0)) as canvas:
        assert canvas.slide.size == (600, 700)
    bare = write_tiff(tmp_path / "bare.tif", [pixels])
    with pytest.raises(SlideError, match="bare.tif.*µm/px"):
        open_canvas(bare, (640, 768), SlideSettings(mpp=1.0))


@pytest.mark.parametrize(
    "stated, ratio_mpp, factor",
    [
        ("40", 0.46, 0.25 / 0.46),
        ("20", 0.46, 0.5 / 0.46),
        ("20.0", 0.5, 1.0),
        ("40", None, 1.0),  # the ratio as it is
        ("none", 0.46, 1.0),
        ("0", 0.46, 1.0),
        ("nan", 0.46, 1.0),
    ],
)
def test_a_ratio_on_aperio_slides(tmp_path, photograph, write_tiff, stated, ratio_mpp, factor):
    """A ratio meant for slides of one um/px gives the same um/px on those of another, by the magnification."""
    path = str(tmp_path / "slide.svs")
    write_tiff(path, [photograph(300, 400)], None, (64, 64), description="Aperio |AppMag = {}|".format(stated))
    with open_canvas(path, (300, 400), SlideSettings(ratio=0.4, reader="openslide", ratio_mpp=ratio_mpp)) as canvas:
        assert canvas.slide.size == (round(300 * 0.4 * factor), round(400 * 0.4 * factor))


def test_a_ratio_on_other_slides(tmp_path, photograph, write_tiff):
    write_tiff(tmp_path / "slide.tif", [photograph(300, 400)], 0.25, (64, 64))
    for options in ({"ratio": 0.4}, {"mpp": 0.625}):
        with open_canvas(str(tmp_path / "slide.tif"), (300, 400), SlideSettings(ratio_mpp=0.46, **options)) as canvas:
            assert canvas.slide.size == (120, 160)


def test_a_canvas_of_75000_px_stays_small(array_pyramid):
    class Procedural(array_pyramid):
        """White with a pink square."""

        def _read(self, level, window):
            pixels = np.full(window.size + (3,), 255, np.uint8)
            part = window.intersect(Window(1000, 1500, 900, 900))
            if part.height and part.width:
                top, left = part.top - window.top, part.left - window.left
                pixels[top : top + part.height, left : left + part.width] = PINK
            return pixels

    slide = Procedural([np.broadcast_to(np.uint8(0), (12000, 10000, 3))])
    tracemalloc.start()
    try:
        canvas = SlideCanvas(ResampledSlide(slide, ratio=0.5), (75000, 75000))
        pixels = canvas.read(Window(34000, 34000, 4000, 4000))
        blank = canvas.blank_blocks()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300 << 20
    assert blank.shape == (2344, 2344)
    rows, columns = np.nonzero(~blank)
    first_row, first_column = (75000 - 6000) // 2 + 500, (75000 - 5000) // 2 + 750
    assert (rows.min(), columns.min()) == (first_row // 32, first_column // 32)
    assert (rows.max(), columns.max()) == ((first_row + 449) // 32, (first_column + 449) // 32)
    assert tuple(pixels[first_row + 200 - 34000, first_column + 200 - 34000]) == PINK


def test_tissue_is_what_has_colour(photograph):
    for empty in (np.full((50, 60, 3), 255, np.uint8), np.full((50, 60, 3), 243, np.uint8)):
        assert tissue_share(empty) == 0
    noisy = np.clip(np.random.RandomState(0).normal(245, 1.5, (50, 60, 3)), 0, 255).astype(np.uint8)
    assert tissue_share(noisy) == 0
    noisy[10:30, 20:50] = PINK
    assert tissue_mask(noisy).sum() == 600 and tissue_mask(noisy)[10:30, 20:50].all()
    assert tissue_share(np.full((5, 5, 3), PINK, np.uint8)) == 1
    pale_and_dark = np.full((20, 20, 3), (230, 180, 210), np.uint8)
    pale_and_dark[:10] = (90, 20, 120)
    assert tissue_share(pale_and_dark) == 1
    grey_dust = np.full((20, 20, 3), 250, np.uint8)
    grey_dust[5:8] = (40, 42, 45)
    assert tissue_share(grey_dust) == 0


def test_thumbnail(array_pyramid, photograph):
    slide = ResampledSlide(array_pyramid([photograph(300, 100)]), ratio=1.0)
    assert thumbnail(slide, Size(60, 60)).shape == (60, 20, 3)
    assert thumbnail(slide, Size(300, 50)).shape == (150, 50, 3)
    assert thumbnail(slide, Size(1000, 1000)).shape == (300, 100, 3)


def test_real_slide_on_a_canvas(real_slide):
    with open_canvas(real_slide, (1536, 1536), SlideSettings(mpp=1.0)) as canvas:
        blank = canvas.blank_blocks()
        assert blank.shape == (48, 48) and blank[:, :6].all() and not blank[:, 8:40].all()
        whole = canvas.read(Window(0, 0, 1536, 1536))
        np.testing.assert_array_equal(canvas.read(Window(300, 100, 500, 500)), whole[300:800, 100:600])
        assert 0.3 < tissue_share(thumbnail(canvas.slide, Size(256, 256))) < 1
