"""Resampling: the crop of the whole, Pillow's filter, the level by µm/px."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides import resample
from whole_slide_cnn.slides.reader import open_slide
from whole_slide_cnn.slides.resample import ResampledSlide

FACTORS = st.one_of(
    st.sampled_from([1.0, 0.5, 1 / 3, 0.25, 2.0, 1.5]), st.floats(0.02, 3.0, allow_nan=False, allow_infinity=False)
)


def whole(slide):
    return slide.read(Window(0, 0, *slide.size))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), ratio=FACTORS, height=st.integers(1, 190), width=st.integers(1, 190))
def test_a_region_is_the_crop_of_the_whole(array_pyramid, photograph, data, ratio, height, width):
    levels = [photograph(height, width, 1), photograph(max(1, height // 2), max(1, width // 2), 2)]
    slide = ResampledSlide(array_pyramid(levels), ratio=ratio)
    expected = whole(slide)
    top, left = data.draw(st.integers(0, slide.size.height)), data.draw(st.integers(0, slide.size.width))
    bottom = data.draw(st.integers(top, slide.size.height))
    right = data.draw(st.integers(left, slide.size.width))
    pixels = slide.read(Window.from_bounds(top, left, bottom, right))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected[top:bottom, left:right])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(ratio=FACTORS, height=st.integers(1, 150), width=st.integers(1, 150))
def test_it_is_pillows_filter(array_pyramid, photograph, ratio, height, width):
    pixels = photograph(height, width)
    slide = ResampledSlide(array_pyramid([pixels]), ratio=ratio)
    expected = Image.fromarray(pixels).resize((slide.size.width, slide.size.height), Image.BILINEAR)
    assert np.abs(whole(slide).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("tile", [(1, 1), (16, 50), (100, 7)])
def test_the_tile_size_changes_nothing(array_pyramid, photograph, monkeypatch, tile):
    slide = ResampledSlide(array_pyramid([photograph(200, 170)]), ratio=0.37)
    expected = whole(slide)
    monkeypatch.setattr(resample, "_SOURCE_TILE", Size(*tile))
    np.testing.assert_array_equal(whole(slide), expected)


def test_pixels_are_the_same_on_every_runtime(array_pyramid):
    """Whole numbers from fixed integers: one list for all versions of NumPy and SciPy."""
    values = (np.arange(7 * 5 * 3) * 37 % 256).astype(np.uint8).reshape(7, 5, 3)
    slide = ResampledSlide(array_pyramid([values]), ratio=0.4)
    assert slide.size == Size(3, 2)
    assert whole(slide).reshape(-1).tolist() == [
        99,
        115,
        130,
        129,
        110,
        116,
        139,
        130,
        133,
        131,
        134,
        125,
        119,
        133,
        135,
        134,
        128,
        136,
    ]


@settings(deadline=None, max_examples=60)
@given(n_in=st.integers(1, 3000), n_out=st.integers(1, 3000), data=st.data())
def test_weights_are_a_partition_of_one(n_in, n_out, data):
    start = data.draw(st.integers(0, n_out - 1))
    stop = data.draw(st.integers(start + 1, min(n_out, start + 20)))
    weights = resample._axis_weights(n_in, n_out, start, stop)
    assert 0 <= weights.start < weights.stop <= n_in
    assert (np.asarray(weights.matrix.sum(axis=1)) == 1 << 15).all()
    assert (weights.matrix.data > 0).all()


@pytest.mark.parametrize("colour", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("ratio", [0.013, 0.3, 0.77, 1.9])
def test_constant_areas_keep_their_colour(array_pyramid, ratio, colour):
    slide = ResampledSlide(array_pyramid([np.full((131, 97, 3), colour, np.uint8)]), ratio=ratio)
    assert (whole(slide) == colour).all()


def test_scale_one_is_the_level_itself(array_pyramid, photograph):
    pixels = photograph(40, 30)
    for slide in (
        ResampledSlide(array_pyramid([pixels], mpp=(0.499, 0.499)), mpp=0.499),
        ResampledSlide(array_pyramid([pixels]), ratio=1.0),
        ResampledSlide(array_pyramid([pixels]), ratio=1),
    ):
        np.testing.assert_array_equal(whole(slide), pixels)


def test_size_is_rounded_half_up_and_never_empty(array_pyramid):
    pixels = np.zeros((5, 7, 3), np.uint8)
    assert ResampledSlide(array_pyramid([pixels]), ratio=0.5).size == Size(3, 4)
    assert ResampledSlide(array_pyramid([pixels]), ratio=0.3).size == Size(2, 2)
    assert ResampledSlide(array_pyramid([pixels]), ratio=0.01).size == Size(1, 1)
    assert ResampledSlide(array_pyramid([pixels], mpp=(0.5, 0.25)), mpp=1.0).size == Size(3, 2)


@pytest.mark.parametrize(
    "mpp, level", [(0.1, 0), (0.25, 0), (0.49, 0), (0.495, 0), (0.496, 1), (0.5, 1), (1.9, 1), (2.0, 2), (40.0, 2)]
)
def test_level_is_the_coarsest_that_is_fine_enough(array_pyramid, mpp, level):
    levels = [np.zeros((800 // scale, 800 // scale, 3), np.uint8) for scale in (1, 2, 8)]
    reader = array_pyramid(levels, mpp=(0.25, 0.25))
    slide = ResampledSlide(reader, mpp=mpp)
    slide.read(Window(0, 0, 1, 1))
    assert {read for read, _ in reader.requests} == {level} == {slide.level}


def test_level_must_be_fine_enough_along_both_axes(array_pyramid):
    levels = [np.zeros(size + (3,), np.uint8) for size in ((100, 100), (50, 25))]
    assert ResampledSlide(array_pyramid(levels), ratio=0.5).level == 0
    assert ResampledSlide(array_pyramid(levels), ratio=0.25).level == 1


def test_resolution_of_the_result(array_pyramid):
    pixels = np.zeros((40, 40, 3), np.uint8)
    assert ResampledSlide(array_pyramid([pixels]), ratio=0.5).mpp is None
    assert ResampledSlide(array_pyramid([pixels], mpp=(0.5, 0.25)), ratio=0.5).mpp == (1.0, 0.5)
    assert ResampledSlide(array_pyramid([pixels], mpp=(0.5, 0.25)), mpp=2).mpp == (2.0, 2.0)


def test_stated_source_resolution_goes_before_the_files(array_pyramid):
    pixels = np.zeros((40, 40, 3), np.uint8)
    assert ResampledSlide(array_pyramid([pixels], mpp=(1.0, 1.0)), mpp=1.0, source_mpp=0.5).size == Size(20, 20)
    assert ResampledSlide(array_pyramid([pixels]), mpp=1.0, source_mpp=(0.5, 0.25)).size == Size(20, 10)


def test_unusable_requests_name_the_slide(array_pyramid):
    def attempt(file_mpp=None, **request):
        return ResampledSlide(array_pyramid([np.zeros((4, 4, 3), np.uint8)], mpp=file_mpp, name="S"), **request)

    with pytest.raises(SlideError, match="slide S: .*manifest column mpp.*data.slide_mpp"):
        attempt(mpp=1.0)
    for request in ({}, {"mpp": 1.0, "ratio": 1.0}):
        with pytest.raises(SlideError, match="slide S: .*not both"):
            attempt(**request)
    for value in (0, -1, float("nan"), float("inf"), "4x"):
        for request in ({"mpp": value}, {"ratio": value}, {"mpp": 1.0, "source_mpp": value}):
            with pytest.raises(SlideError, match="slide S: .*above 0"):
                attempt(file_mpp=(1.0, 1.0), **request)
    with pytest.raises(ValueError, match="leaves"):
        attempt(ratio=1.0).read(Window(0, 0, 5, 5))


def test_only_the_needed_source_is_read(array_pyramid, photograph):
    reader = array_pyramid([photograph(400, 400)])
    ResampledSlide(reader, ratio=0.25).read(Window(50, 20, 10, 10))
    assert [window for _, window in reader.requests] == [Window(198, 78, 44, 44)]


def test_memory_stays_small_for_a_large_request(array_pyramid):
    class Procedural(array_pyramid):
        def _read(self, level, window):
            rows = (np.arange(window.top, window.bottom) % 251).astype(np.uint8)
            return np.broadcast_to(rows[:, None, None], window.size + (3,)).copy()

    # 14,000 x 3,000 source pixels are 126 MB, and 504 MB as 32-bit integers
    slide = ResampledSlide(Procedural([np.broadcast_to(np.uint8(0), (14000, 3000, 3))]), ratio=0.2)
    tracemalloc.start()
    try:
        pixels = whole(slide)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pixels.shape == (2800, 600, 3)
    assert peak < pixels.nbytes + (150 << 20)


@pytest.mark.parametrize("mpp", [0.499, 1.0])
def test_real_slide_regions_are_crops(real_slide, mpp):
    with open_slide(real_slide) as reader:
        slide = ResampledSlide(reader, mpp=mpp)
        assert slide.size == (Size(2967, 2220) if mpp == 0.499 else Size(1481, 1108))
        expected = whole(slide)
        random = np.random.RandomState(5)
        for _ in range(8):
            top, left = random.randint(slide.size.height - 300), random.randint(slide.size.width - 300)
            pixels = slide.read(Window(top, left, 300, 299))
            np.testing.assert_array_equal(pixels, expected[top : top + 300, left : left + 299])
