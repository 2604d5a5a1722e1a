"""Opens a slide file with whichever reader understands it."""

import os
from typing import Optional

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.slides.image_reader import ImageReader
from whole_slide_cnn.slides.interface import SlideReader
from whole_slide_cnn.slides.openslide_reader import DEFAULT_CACHE_BYTES, OpenSlideReader, load_openslide

__all__ = ["READERS", "ImageReader", "OpenSlideReader", "SlideReader", "open_slide"]

READERS = ("auto", "openslide", "image")


def open_slide(
    path: str, name: Optional[str] = None, reader: str = "auto", cache_bytes: int = DEFAULT_CACHE_BYTES
) -> SlideReader:
    """Open a slide; no pixel is read yet.

    Args:
        path: the slide file.
        name: how messages call the slide; the file name by default.
        reader: one of :data:`READERS`; "auto" takes OpenSlide for what it recognises and plain images otherwise.
        cache_bytes: memory for the decoded blocks of an OpenSlide slide.

    Raises:
        SlideError: the file is missing, unknown or damaged.
    """
    if reader not in READERS:
        raise ValueError("reader must be one of {}, not {!r}".format(", ".join(READERS), reader))
    path = os.fspath(path)
    name = os.path.basename(path) if name is None else name
    if not os.path.isfile(path):
        raise SlideError(name, "there is no file {}".format(path))
    if reader == "openslide" or (reader == "auto" and _openslide_recognises(path)):
        return OpenSlideReader(path, name, cache_bytes)
    try:
        return ImageReader(path, name)
    except SlideError as error:
        if reader == "auto" and load_openslide() is None:
            raise SlideError(name, "{} (OpenSlide is not installed)".format(error.reason)) from error
        raise


def _openslide_recognises(path: str) -> bool:
    openslide = load_openslide()
    if openslide is None:
        return False
    try:
        return openslide.OpenSlide.detect_format(path) is not None
    except openslide.OpenSlideError:  # a known format, but damaged: let opening it say how
        return True
