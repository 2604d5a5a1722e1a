"""Slides that OpenSlide can decode."""

import numpy as np

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.block_cache import BlockCache
from whole_slide_cnn.slides.interface import SlideReader
from whole_slide_cnn.slides.resolution import mpp_from_tiff_tags, plausible_magnification, plausible_mpp

BLOCK = 512
DEFAULT_CACHE_BYTES = 8 * 2**20


def load_openslide():
    """The ``openslide`` module, or None where it or its C library is not installed."""
    try:
        import openslide
    except (ImportError, OSError):  # the package raises OSError when it finds no libopenslide
        return None
    return openslide


class OpenSlideReader(SlideReader):
    """Reads through openslide-python.

    OpenSlide addresses every level in level-0 pixels and interpolates where that is not a whole pixel of the level, so
    the value of a pixel depends on the origin of the request. Therefore each level is read in blocks on a fixed grid,
    always by the same call for the same block, and windows are cut from those.

    Args:
        path: the slide file.
        name: how messages call the slide.
        cache_bytes: memory for decoded blocks; OpenSlide's own tile cache gets the same where it can be set.

    Raises:
        SlideError: OpenSlide is missing or cannot open the file.
    """

    def __init__(self, path: str, name: str, cache_bytes: int = DEFAULT_CACHE_BYTES):
        openslide = load_openslide()
        if openslide is None:
            raise SlideError(
                name,
                "OpenSlide is not installed; install openslide-python with openslide-bin or your system's libopenslide",
            )
        self._error = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
            sizes = [Size(height, width) for width, height in self._slide.level_dimensions]
            # OpenSlide divides by its own downsample, the mean of both axes, so block origins must use the same.
            self._downsamples = self._slide.level_downsamples
            properties = dict(self._slide.properties)
        except self._error as error:  # the parent of the error for unknown formats
            raise SlideError(name, "OpenSlide cannot open {} ({})".format(path, _reason(error))) from error
        if not sizes:
            self._slide.close()
            raise SlideError(name, "{} holds no image".format(path))
        magnification = plausible_magnification(properties.get("aperio.AppMag"))
        super().__init__(name, path, sizes, _mpp(properties), magnification)
        self._cache = BlockCache(cache_bytes)
        _limit_own_cache(openslide, self._slide, cache_bytes)

    def _read(self, level: int, window: Window) -> np.ndarray:
        pixels = np.empty(window.size + (3,), np.uint8)
        for top in range(window.top // BLOCK * BLOCK, window.bottom, BLOCK):
            for left in range(window.left // BLOCK * BLOCK, window.right, BLOCK):
                block = self._block(level, top, left)
                part = Window(top, left, *block.shape[:2]).intersect(window)
                pixels[
                    part.top - window.top : part.bottom - window.top, part.left - window.left : part.right - window.left
                ] = block[part.top - top : part.bottom - top, part.left - left : part.right - left]
        return pixels

    def _block(self, level: int, top: int, left: int) -> np.ndarray:
        """The block of the fixed grid at ``(top, left)``, clipped at the level's edge: uint8 (height, width, 3)."""
        key = (level, top, left)
        block = self._cache.get(key)
        if block is None:
            block = self._decode(level, top, left)
            self._cache.put(key, block)
        return block

    def _decode(self, level: int, top: int, left: int) -> np.ndarray:
        size = self.level_sizes[level]
        height, width = min(BLOCK, size.height - top), min(BLOCK, size.width - left)
        downsample = self._downsamples[level]
        location = (int(round(left * downsample)), int(round(top * downsample)))
        try:
            image = self._slide.read_region(location, level, (width, height))
        except self._error as error:
            # OpenSlide refuses everything on this handle from now on, and repeats this first message.
            raise SlideError(
                self.name,
                "level {} cannot be read ({}); the file is corrupt or truncated".format(level, _reason(error)),
            ) from error
        return over_white(np.asarray(image))

    def _release(self) -> None:
        self._cache.clear()
        self._slide.close()


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Composite straight-alpha uint8 (height, width, 4) over white: uint8 (height, width, 3)."""
    alpha = rgba[..., 3:]
    if alpha.size == 0 or alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weighted = rgba[..., :3].astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    return ((weighted + 127) // 255).astype(np.uint8)


def _limit_own_cache(openslide, slide, cache_bytes: int) -> None:
    """Bound OpenSlide's tile cache; versions before openslide-python 1.2 or libopenslide 4 keep their fixed default."""
    if not hasattr(openslide, "OpenSlideCache"):
        return
    try:
        slide.set_cache(openslide.OpenSlideCache(cache_bytes))
    except openslide.lowlevel.OpenSlideVersionError:
        return


def _mpp(properties):
    stated = plausible_mpp(properties.get("openslide.mpp-y"), properties.get("openslide.mpp-x"))
    return stated or mpp_from_tiff_tags(
        properties.get("tiff.YResolution"), properties.get("tiff.XResolution"), properties.get("tiff.ResolutionUnit")
    )


def _reason(error: Exception) -> str:
    return str(error) or "format not supported"
