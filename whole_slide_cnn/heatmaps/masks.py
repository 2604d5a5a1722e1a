"""Masks of lesions, images of whole slides at any resolution."""

import math
import os
from typing import Optional

import numpy as np
from PIL import Image

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.sizes import Size

_NEAREST = Image.NEAREST  # type: ignore[attr-defined]  # by its name in all versions of Pillow


def mask_path(folder: str, slide: str) -> Optional[str]:
    """The file of a slide's mask in a folder, ``<slide>.png`` with or without the slide's own extension; None where
    there is none."""
    paths = [os.path.join(folder, name + ".png") for name in (slide, os.path.splitext(slide)[0])]
    return next((path for path in paths if os.path.isfile(path)), None)


def read_mask(path: str, size: Size) -> np.ndarray:
    """A mask image of the whole slide, at any resolution, brought to ``size``: bool, true where it is not black.

    Raises:
        WholeSlideError: the file is no image, or its shape is not the slide's.
    """
    try:
        with Image.open(path) as image:
            if abs(math.log(image.height / image.width * size.width / size.height)) > 2.0 / min(size + image.size):
                raise WholeSlideError(
                    "mask {} has {} x {} px, which is not the shape of its slide".format(path, *image.size[::-1])
                )
            return np.asarray(image.convert("L").resize(size[::-1], _NEAREST)) > 0
    except (OSError, Image.DecompressionBombError) as error:
        raise WholeSlideError("mask {} cannot be read: {}".format(path, error)) from error
