"""Tiled, pyramidal TIFF files with a resolution, as OpenSlide reads them ("generic-tiff")."""

import inspect

import numpy as np
import tifffile

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.files import replacing

MICROMETRES_PER_CENTIMETRE = 10000.0
BIGTIFF_BYTES = 2**32 - 2**25  # room for the tags; pixels that do not compress must still be addressable
REDUCED_IMAGE = 1  # NewSubfileType of every level but the first
BAND_ROWS = 512  # rows halved at a time, so that the 16 bit sums stay small beside the image


def write_pyramid(path, image, mpp, tile=256, levels=None):
    """Write an image as a tiled pyramid, replacing ``path`` only when it is complete.

    Level ``k`` has ``size // 2**k`` pixels; each of them is the rounded mean of 2 x 2 pixels of level ``k - 1``
    (the last row or column of an odd side belongs to no pixel of the next level). Tiles are deflated without
    predictor. Beside the image only its levels (a third of its size) and one tile are held in memory.

    Args:
        path: the file to write.
        image: uint8 array (height, width, 3), RGB.
        mpp: micrometres per pixel of level 0, one number or ``(y, x)``; None states none.
        tile: side of the tiles in pixels, a multiple of 16.
        levels: number of levels, level 0 included; None halves until the longest side fits into one tile.

    Raises:
        WholeSlideError: an argument cannot be used, or the file cannot be written.
    """
    mpp = mpp if mpp is None or np.ndim(mpp) else (mpp, mpp)
    _check(image, mpp, tile, levels)
    count = levels or default_levels(image.shape, tile)
    big = image.nbytes * 4 // 3 > BIGTIFF_BYTES
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=big) as writer:
        for level in range(count):
            if level:
                image = halve(image)
            scaled = mpp and tuple(value * 2**level for value in mpp)
            _write_level(writer, image, scaled, tile, REDUCED_IMAGE if level else 0)


def default_levels(shape, tile=256):
    """Number of levels after which the longest side fits into one tile."""
    height, width = shape[:2]
    levels = 1
    while max(height, width) > tile and min(height, width) > 1:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels


def halve(image):
    """Rounded mean of each 2 x 2 block of a uint8 image (height, width, 3), halves rounded up."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    result = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND_ROWS):
        rows = slice(2 * top, 2 * min(top + BAND_ROWS, height))
        band = image[rows, : 2 * width].astype(np.uint16)
        pairs = band[0::2] + band[1::2]
        result[top : top + BAND_ROWS] = (pairs[:, 0::2] + pairs[:, 1::2] + 2) >> 2
    return result


def _write_level(writer, image, mpp, tile, subfile_type):
    writer.write(
        _tiles(image, tile),
        shape=image.shape,
        dtype=np.uint8,
        photometric="rgb",
        tile=(tile, tile),
        compression="zlib",
        subfiletype=subfile_type,
        metadata=None,
        software="whole_slide_cnn",
        **_resolution(writer, mpp),
    )


def _resolution(writer, mpp):
    """The keywords for a resolution in pixels per centimetre, along x first; tifffile changed them in 2022."""
    if mpp is None:
        return {}
    per_centimetre = MICROMETRES_PER_CENTIMETRE / mpp[1], MICROMETRES_PER_CENTIMETRE / mpp[0]
    if "resolutionunit" in inspect.signature(writer.write).parameters:
        return {"resolution": per_centimetre, "resolutionunit": "CENTIMETER"}
    return {"resolution": per_centimetre + ("CENTIMETER",)}


def _tiles(image, tile):
    """Tiles in raster order, those at the right and bottom border filled up with white."""
    height, width = image.shape[:2]
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            part = image[top : top + tile, left : left + tile]
            if part.shape[:2] != (tile, tile):
                whole = np.full((tile, tile, 3), 255, np.uint8)
                whole[: part.shape[0], : part.shape[1]] = part
                part = whole
            yield np.ascontiguousarray(part)


def _check(image, mpp, tile, levels):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise WholeSlideError(
            "a pyramid is written from a uint8 image (height, width, 3), not from {} {}; convert it to RGB".format(
                image.dtype, image.shape
            )
        )
    if mpp is not None and not all(np.isfinite(value) and value > 0 for value in mpp):
        shown = mpp[0] if mpp[0] == mpp[1] else "{} and {}".format(*mpp)
        raise WholeSlideError("a pyramid needs a resolution above 0 micrometres per pixel, not {}".format(shown))
    if tile < 16 or tile % 16:
        raise WholeSlideError("the tile side of a TIFF must be a multiple of 16 pixels, not {}".format(tile))
    most = int(np.log2(min(image.shape[:2]))) + 1
    if levels is not None and not 1 <= levels <= most:
        raise WholeSlideError("an image of {} has 1 to {} levels, not {}".format(image.shape[:2], most, levels))
