"""Plain images, and TIFFs that OpenSlide does not open, as slides of one level."""

import logging
import threading
import warnings
from typing import NamedTuple, Optional, Tuple

import numpy as np
import tifffile
from PIL import Image

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.interface import SlideReader
from whole_slide_cnn.slides.openslide_reader import over_white
from whole_slide_cnn.slides.resolution import mpp_from_tiff_tags

# An image without tiles is decoded as a whole: 3 bytes a pixel, 512 MB here. Pillow itself refuses little more.
MAX_DECODED_PIXELS = 170_000_000

_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
_MODES_WITH_ALPHA = {"LA", "PA", "RGBA", "RGBa"}
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAPPABLE_KINDS = ((1, ()), (2, (3,)))  # photometric tag and shape of a pixel: grey where 0 is black, and RGB
_TIFF_UNITS = {2: "inch", 3: "centimeter"}
_pillow_warnings = threading.Lock()

# What tifffile logs about a damaged file is said by the SlideError; a program that sets up logging still gets it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class _TiffFacts(NamedTuple):
    mpp: Optional[Tuple[float, float]]
    pixels: Optional[np.ndarray]  # memory-mapped where the file allows it


class ImageReader(SlideReader):
    """Reads through Pillow, or maps an uncompressed TIFF into memory.

    Other images are decoded as a whole at the first read and kept until the reader is closed. The dots per inch of PNG
    and JPEG say nothing about the tissue and are ignored; TIFF resolution tags count.

    Raises:
        SlideError: the file is no image, has more than 8 bits per channel, or is too large to be decoded as a whole.
    """

    def __init__(self, path: str, name: str):
        facts = _TiffFacts(None, None)
        try:
            with open(path, "rb") as stream:
                is_tiff = stream.read(4) in _TIFF_SIGNATURES
        except OSError as error:
            raise SlideError(name, "cannot open {} ({})".format(path, error.strerror)) from error
        if is_tiff:
            facts = _tiff_facts(path)
        size = Size(*facts.pixels.shape[:2]) if facts.pixels is not None else _image_size(path, name)
        super().__init__(name, path, [size], facts.mpp)
        self._pixels = facts.pixels
        self._lock = threading.Lock()

    def _read(self, level: int, window: Window) -> np.ndarray:
        with self._lock:
            if self._pixels is None:
                self._pixels = _decode(self.path, self.name)
            pixels = self._pixels
        part = pixels[window.top : window.bottom, window.left : window.right]
        if part.ndim == 2:
            return np.repeat(part[..., None], 3, axis=2)
        return np.array(part)

    def _release(self) -> None:
        self._pixels = None


def _tiff_facts(path: str) -> _TiffFacts:
    """Resolution and, for uncompressed 8-bit grey or RGB data in one piece, the pixels as a memory map."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            tags = {name: page.tags[name].value for name in ("XResolution", "YResolution") if name in page.tags}
            unit = page.tags["ResolutionUnit"].value if "ResolutionUnit" in page.tags else 2  # TIFF's default: inch
            mpp = mpp_from_tiff_tags(
                _quotient(tags.get("YResolution")), _quotient(tags.get("XResolution")), _TIFF_UNITS.get(int(unit))
            )
            kind = (int(page.photometric), page.shape[2:])
            mappable = page.is_memmappable and page.dtype == np.uint8 and kind in _MAPPABLE_KINDS
    except Exception:  # a damaged TIFF can raise nearly anything; Pillow, asked next, will say that it is damaged
        return _TiffFacts(None, None)
    try:
        return _TiffFacts(mpp, tifffile.memmap(path, page=0, mode="r") if mappable else None)
    except (OSError, ValueError):  # shorter than its header says
        return _TiffFacts(mpp, None)


def _quotient(rational) -> Optional[float]:
    if not isinstance(rational, tuple) or rational[1] == 0:
        return None
    return rational[0] / rational[1]


def _open_image(path: str, name: str) -> Image.Image:
    try:
        # Pillow warns of damaged metadata, and of images half as large as it refuses; what matters raises below.
        with _pillow_warnings, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(path)
    except Image.DecompressionBombError as error:
        raise SlideError(name, _too_large(path)) from error
    except Exception as error:  # decoders of damaged headers raise SyntaxError, struct.error, OverflowError, ...
        raise SlideError(
            name,
            "{} is neither a slide that OpenSlide can open nor an image that Pillow can open; "
            "it may be corrupt, truncated or of another type than its name says".format(path),
        ) from error


def _image_size(path: str, name: str) -> Size:
    with _open_image(path, name) as image:
        if image.width * image.height > MAX_DECODED_PIXELS:
            raise SlideError(name, _too_large(path))
        if image.mode not in _EIGHT_BIT_MODES:
            raise SlideError(
                name,
                "{} is not grey or RGB with 8 bits per channel (mode {}); convert it to 8-bit RGB".format(
                    path, image.mode
                ),
            )
        return Size(image.height, image.width)


def _too_large(path: str) -> str:
    return (
        "{} is an image without tiles of more than {} million pixels, which can only be decoded as a whole; "
        "convert it to a tiled pyramidal TIFF, for example with: vips tiffsave INPUT OUTPUT.tif --tile --pyramid"
    ).format(path, MAX_DECODED_PIXELS // 1_000_000)


def _decode(path: str, name: str) -> np.ndarray:
    """The whole image: uint8 (height, width, 3)."""
    with _open_image(path, name) as image:
        try:
            if image.mode in _MODES_WITH_ALPHA or "transparency" in image.info:
                return over_white(np.asarray(image.convert("RGBA")))
            return np.array(image.convert("RGB"))
        except Exception as error:  # the same variety as when opening
            raise SlideError(
                name, "cannot decode {} ({}); the file is corrupt or truncated".format(path, error)
            ) from error
