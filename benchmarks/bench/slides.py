"""Slides to measure on: tissue made of noise, of any size and at no cost; LungMosaic; or files."""

import hashlib
import os
from typing import NamedTuple, Optional

import numpy as np

from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import BLANK_BLOCK, ArrayCanvas, Canvas

GRID = 256  # side of the grid that tissue is drawn on: one pattern at every size of canvas
_PERIOD = 2039  # px: a prime, so that no two cells within 65,000 px see the same noise
_DARKEST, _BRIGHTEST = 60, 230
_MOSAIC_CLASSES = ("normal", "adenocarcinoma", "squamous")


class NoiseCanvas(Canvas):
    """Blobs of noise on white that cover a share of the canvas. Pixels are made as they are read, so that a canvas of
    any size takes a few megabytes, and reading costs next to nothing.

    Args:
        side: of the square canvas in pixels.
        share: of its area that is tissue.
        grid: side of the grid on which the tissue is drawn.
    """

    def __init__(self, side: int, share: float, seed: int = 0, grid: int = GRID):
        super().__init__("noise", Size(side, side))
        from scipy import ndimage

        random, grid = np.random.RandomState(seed), min(grid, side)
        field = ndimage.gaussian_filter(random.standard_normal((grid, grid)), grid / 12)
        self._mask = field >= np.quantile(field, 1 - share)
        self._at = np.minimum(np.arange(side) * grid // side, grid - 1)
        period = min(side, _PERIOD)
        self._noise = random.randint(_DARKEST, _BRIGHTEST, (period, period, 3), dtype=np.uint8)

    def close(self) -> None:
        """Nothing to release."""

    def _read(self, window: Window) -> np.ndarray:
        rows, columns = np.arange(window.top, window.bottom), np.arange(window.left, window.right)
        pixels = self._noise[rows[:, np.newaxis] % len(self._noise), columns % len(self._noise)]
        pixels[~self._mask[self._at[rows]][:, self._at[columns]]] = 255
        return pixels

    def _find_blank_blocks(self) -> np.ndarray:
        """From the grid, without reading: 75,000 px would take a minute."""
        sums = np.zeros(np.add(self._mask.shape, 1), np.int64)
        sums[1:, 1:] = np.cumsum(np.cumsum(self._mask, axis=0), axis=1)
        starts = np.arange(0, self.size.height, BLANK_BLOCK)
        first = self._at[starts]
        last = self._at[np.minimum(starts + BLANK_BLOCK, self.size.height) - 1] + 1
        inside = (
            sums[np.ix_(last, last)]
            - sums[np.ix_(first, last)]
            - sums[np.ix_(last, first)]
            + sums[np.ix_(first, first)]
        )
        return inside == 0


def tissue_image(side: int, share: float, seed: int = 0) -> np.ndarray:
    """A square slide, uint8: blobs of noise on white that cover a share of its pixels, finer on larger slides."""
    canvas = NoiseCanvas(side, share, seed, max(16, side // 64))
    return whole(canvas)


def whole(canvas: Canvas) -> np.ndarray:
    """All pixels of a canvas, read in bands."""
    pixels = np.empty(canvas.size + (3,), np.uint8)
    for top in range(0, canvas.size.height, 1024):
        band = Window(top, 0, min(1024, canvas.size.height - top), canvas.size.width)
        pixels[top : band.bottom] = canvas.read(band)
    return pixels


class SlideKind(NamedTuple):
    """What slides are made of, in plain values, so that a process can be told.

    Attributes:
        kind: noise, mosaic, or file.
        share: of noise and of a mosaic that is tissue.
        seed: of both.
        path: of photographs, or of a slide.
        folder: that mosaics are kept in.
    """

    kind: str = "noise"
    share: float = 0.25
    seed: int = 0
    path: Optional[str] = None
    folder: Optional[str] = None

    def sentence(self) -> str:
        """What it is, for a reader."""
        if self.kind == "file":
            return "slide {}, scaled to fit each canvas".format(os.path.basename(self.path or ""))
        what = "blobs of noise" if self.kind == "noise" else "LungMosaic, composed of photographs of lung tissue"
        return "{} on white, {:.0%} tissue, seed {}".format(what, self.share, self.seed)


def open_slide(slide: SlideKind, side: int) -> Canvas:
    """A square canvas."""
    if slide.kind == "noise":
        return NoiseCanvas(side, slide.share, slide.seed)
    if slide.kind == "mosaic":
        return ArrayCanvas(np.load(mosaic_path(slide, side)), "LungMosaic")
    from whole_slide_cnn.slides.canvas import open_canvas
    from whole_slide_cnn.slides.reader import open_slide as open_reader
    from whole_slide_cnn.slides.settings import SlideSettings

    assert slide.path is not None
    with open_reader(slide.path) as reader:
        ratio = min(1.0, side / max(reader.level_sizes[0]))
    return open_canvas(slide.path, Size(side, side), SlideSettings(ratio=ratio))


def mosaic_path(slide: SlideKind, side: int) -> str:
    """The file of a mosaic, which is composed on first use."""
    key = hashlib.sha256(repr((os.path.abspath(slide.path or ""), slide.share, slide.seed)).encode()).hexdigest()[:8]
    assert slide.folder is not None
    path = os.path.join(slide.folder, "mosaic-{}-{}.npy".format(side, key))
    if not os.path.exists(path):
        from whole_slide_cnn.files import replacing

        with replacing(path) as temporary, open(temporary, "wb") as stream:
            np.save(stream, _compose(slide, side))
    return path


def _compose(slide: SlideKind, side: int) -> np.ndarray:
    """A slide of the first class that is not normal, made as LungMosaic's are."""
    from whole_slide_cnn.synthesis.photographs import FolderPhotographs, split_by_source
    from whole_slide_cnn.synthesis.synthetic import SlideComposer, SlideSettings, photograph_colours

    assert slide.path is not None
    source = FolderPhotographs(slide.path, _MOSAIC_CLASSES)
    splits = {"val": split_by_source(source.photographs, slide.seed)["val"]}
    settings = SlideSettings(size=side, tissue=(slide.share, slide.share), seed=slide.seed)
    composer = SlideComposer(source, splits, photograph_colours(source, splits), settings)
    return composer.compose("val", _MOSAIC_CLASSES[1], 0).image


def tissue_share(canvas: Canvas) -> float:
    """Share of a canvas's blocks of 32 px that are not blank."""
    return float(1 - canvas.blank_blocks().mean())
