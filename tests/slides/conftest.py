"""Tiny slides for the tests of this folder."""

import os

import numpy as np
import pytest
import tifffile

from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.interface import SlideReader

REAL_SLIDE = os.path.join(
    os.path.dirname(__file__), "..", "..", "..", "shared", "data", "slides", "CMU-1-Small-Region.svs"
)


class ArrayPyramid(SlideReader):
    """Levels given as arrays; remembers what was asked of it."""

    def __init__(self, levels, mpp=None, name="pyramid"):
        super().__init__(name, "", [Size(*level.shape[:2]) for level in levels], mpp)
        self.levels = levels
        self.requests = []

    def _read(self, level, window):
        self.requests.append((level, window))
        return self.levels[level][window.top : window.bottom, window.left : window.right].copy()

    def _release(self):
        self.levels = None


@pytest.fixture(scope="session")
def array_pyramid():
    """The class :class:`ArrayPyramid`: a slide reader over arrays."""
    return ArrayPyramid


@pytest.fixture(scope="session")
def photograph():
    """A function (height, width, seed) -> smooth noise with sharp edges: uint8 (height, width, 3)."""

    def make(height, width, seed=0):
        random = np.random.RandomState(seed)
        coarse = random.randint(0, 256, (height // 7 + 1, width // 7 + 1, 3))
        image = np.kron(coarse, np.ones((7, 7, 1), np.int64))[:height, :width]
        return np.clip(image + random.randint(-20, 21, image.shape), 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def write_tiff():
    """A function (path, levels, mpp, tile, **options) that writes a tiled pyramidal TIFF."""

    def write(path, levels, mpp=None, tile=(512, 512), **options):
        options = dict({"compression": "deflate", "photometric": "rgb", "metadata": None, "tile": tile}, **options)
        resolution = {} if mpp is None else _resolution(1e4 / mpp)
        with tifffile.TiffWriter(str(path)) as tiff:
            for index, level in enumerate(levels):
                tiff.write(level, subfiletype=int(index > 0), **dict(options, **({} if index else resolution)))
        return str(path)

    return write


@pytest.fixture
def real_slide():
    """The Aperio slide region of the shared test data."""
    if not os.path.exists(REAL_SLIDE):
        pytest.skip("the slide CMU-1-Small-Region.svs of ../shared/data is not here")
    return REAL_SLIDE


def _resolution(pixels_per_centimetre):
    if int(tifffile.__version__.split(".")[0]) < 2022:
        return {"resolution": (pixels_per_centimetre, pixels_per_centimetre, "CENTIMETER")}
    return {"resolution": (pixels_per_centimetre, pixels_per_centimetre), "resolutionunit": "CENTIMETER"}
