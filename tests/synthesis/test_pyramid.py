import glob
import os

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.slides import pyramid
from whole_slide_cnn.slides.pyramid import default_levels, halve, write_pyramid


def _noise(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("height,width,levels", [(300, 517, 3), (64, 64, 1), (512, 512, 2), (129, 1000, 3)])
def test_openslide_reads_every_level_as_written(tmp_path, height, width, levels):
    image = _noise(height, width)
    path = str(tmp_path / "slide.tiff")
    write_pyramid(path, image, mpp=0.5)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_count == levels
        for level in range(levels):
            assert slide.level_dimensions[level] == (image.shape[1], image.shape[0])
            pixels = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
            np.testing.assert_array_equal(pixels[..., :3], image)
            assert (pixels[..., 3] == 255).all()
            image = halve(image)


@pytest.mark.parametrize("mpp", [0.25, 0.499, 1.0, 8.0])
def test_resolution_is_stored_in_pixels_per_centimetre(tmp_path, mpp):
    path = str(tmp_path / "slide.tiff")
    write_pyramid(path, _noise(64, 64), mpp)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["tiff.ResolutionUnit"] == "centimeter"
        for axis in "XY":
            assert 10000 / float(slide.properties["tiff.{}Resolution".format(axis)]) == pytest.approx(mpp, rel=1e-5)


def test_number_of_levels_and_tile_can_be_chosen(tmp_path):
    path = str(tmp_path / "slide.tiff")
    image = _noise(200, 200)
    write_pyramid(path, image, 1.0, tile=64, levels=4)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((200, 200), (100, 100), (50, 50), (25, 25))
        assert slide.properties["openslide.level[0].tile-width"] == "64"
        np.testing.assert_array_equal(
            np.asarray(slide.read_region((130, 10), 0, (70, 70)))[..., :3], image[10:80, 130:]
        )


def test_large_files_are_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(pyramid, "BIGTIFF_BYTES", 1000)
    path = str(tmp_path / "slide.tiff")
    image = _noise(70, 40)
    write_pyramid(path, image, 1.0)
    with open(path, "rb") as stream:
        assert stream.read(4)[2] == 43  # 42 in a classic TIFF
    with openslide.OpenSlide(path) as slide:
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, (40, 70)))[..., :3], image)


@given(st.integers(2, 1100), st.integers(2, 40), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_halving_is_the_rounded_mean_of_four(height, width, seed):
    image = _noise(height, width, seed)
    even = image[: height // 2 * 2, : width // 2 * 2].astype(np.float64)
    mean = even.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(halve(image), np.floor(mean + 0.5))


def test_default_levels_end_in_one_tile():
    assert [default_levels((side, side)) for side in (1, 256, 257, 512, 514, 16384)] == [1, 1, 2, 2, 3, 7]
    assert default_levels((2, 100000)) == 2


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = str(tmp_path / "slide.tiff")
    write_pyramid(path, _noise(32, 32), 1.0)
    before = (tmp_path / "slide.tiff").read_bytes()

    def fail(image):
        raise KeyboardInterrupt

    monkeypatch.setattr(pyramid, "halve", fail)
    with pytest.raises(KeyboardInterrupt):
        write_pyramid(path, _noise(300, 300, 1), 1.0)
    assert (tmp_path / "slide.tiff").read_bytes() == before
    assert glob.glob(str(tmp_path / ".*")) == [] and os.listdir(str(tmp_path)) == ["slide.tiff"]


@pytest.mark.parametrize(
    "change,words",
    [
        ({"image": np.zeros((8, 8), np.uint8)}, "RGB"),
        ({"image": np.zeros((8, 8, 3), np.float32)}, "uint8"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "RGB"),
        ({"mpp": 0}, "above 0"),
        ({"mpp": float("nan")}, "above 0"),
        ({"tile": 100}, "multiple of 16"),
        ({"levels": 5}, "1 to 4 levels"),
        ({"levels": 0}, "1 to 4 levels"),
    ],
)
def test_bad_arguments_are_refused_by_name(tmp_path, change, words):
    arguments = dict({"image": np.zeros((8, 8, 3), np.uint8), "mpp": 1.0}, **change)
    with pytest.raises(WholeSlideError, match=words):
        write_pyramid(str(tmp_path / "slide.tiff"), **arguments)
    assert not os.listdir(str(tmp_path))
