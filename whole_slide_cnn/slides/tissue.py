"""Tissue on a thumbnail: stained pixels have colour, glass and padding have none."""

import numpy as np

from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.resample import ResampledSlide

# Bounds of the threshold on max(RGB) - min(RGB). Below, JPEG noise and off-white glass would count as tissue, also on a
# slide that holds none; above, the threshold would separate dark from pale tissue on a slide without background.
_LOWEST_THRESHOLD = 10
_HIGHEST_THRESHOLD = 40


def thumbnail(slide: ResampledSlide, limits: Size) -> np.ndarray:
    """The whole slide, at most as high and as wide as ``limits`` and no larger than level 0: uint8 (height, width, 3).

    Raises:
        SlideError: the slide cannot be read.
    """
    full = slide.reader.level_sizes[0]
    ratio = min(1.0, limits.height / full.height, limits.width / full.width)
    small = ResampledSlide(slide.reader, ratio=ratio)
    return small.read(Window(0, 0, *small.size))


def tissue_mask(rgb: np.ndarray) -> np.ndarray:
    """True where uint8 (height, width, 3) shows stained tissue: bool (height, width).

    The threshold on the difference between the strongest and the weakest channel is Otsu's, within fixed bounds. (The
    saturation of HSV divides by the brightness and would take dark grey dust for tissue.)
    """
    colour = rgb.max(axis=-1) - rgb.min(axis=-1)
    threshold = min(max(_otsu_threshold(colour), _LOWEST_THRESHOLD), _HIGHEST_THRESHOLD)
    return colour > threshold


def tissue_share(rgb: np.ndarray) -> float:
    """Share of the pixels of uint8 (height, width, 3) that are tissue, from 0 to 1."""
    return float(tissue_mask(rgb).mean())


def _otsu_threshold(values: np.ndarray) -> int:
    """The grey level that splits uint8 ``values`` into two classes of the largest variance between them."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = counts.sum() - below
    weighted = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_below = weighted / below
        mean_above = (weighted[-1] - weighted) / above
        between = below * above * (mean_below - mean_above) ** 2
    return int(np.argmax(np.nan_to_num(between)))
