"""A slide at a working resolution, on a pixel grid that belongs to the slide and not to the request.

Every output pixel is a function of its own position alone, computed in integers from the filter weights to the final
rounding. A region is therefore the crop of the whole resized slide bit for bit, whatever the order of reading, the tile
size, the machine or the version of NumPy.
"""

import math
from typing import NamedTuple, Optional, Tuple, Union

import numpy as np
import scipy.sparse

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.interface import SlideReader, require_inside

# A level counts as fine enough if it is at most this much coarser than asked: levels are rarely exact powers of two.
LEVEL_TOLERANCE = 0.01

# Weights are multiples of 2^-15. Between the two passes 7 bits are kept below the grey level, so that the largest
# intermediate value, 255 * 2^7 * 2^15, still fits 31 bits.
_WEIGHT_BITS = 15
_GUARD_BITS = 7

# Source rows and columns worked on at a time: 6 MB as 32-bit integers, which stay near the processor. Wide and flat,
# because tiles of one column follow each other: a reader's cache of blocks then only has to span the width of one tile.
_SOURCE_TILE = Size(64, 8192)

PerAxis = Tuple[float, float]


class ResampledSlide:
    """A slide resized as a whole by an antialiased triangle filter, read region by region.

    Give either ``mpp`` or ``ratio``. The source is the coarsest level that is at least as fine as asked for.

    Args:
        reader: the open slide.
        mpp: wanted µm per pixel, the same along both axes.
        ratio: wanted size relative to level 0; needs no µm/px.
        source_mpp: µm per pixel of level 0, one number or ``(y, x)``; goes before what the file states.

    Attributes:
        reader: the slide as given.
        size: height and width of the whole resized slide: level 0's times the factor, rounded half up, at least 1.
        mpp: µm per pixel ``(y, x)`` of the result, or None if only a ratio is known.
        source_mpp: µm per pixel ``(y, x)`` of level 0, or None where nobody states it.
        level: the level that is read.

    Raises:
        SlideError: the request is unusable, or needs a µm/px that nobody states.
    """

    def __init__(
        self,
        reader: SlideReader,
        mpp: Optional[float] = None,
        ratio: Optional[float] = None,
        source_mpp: Optional[Union[float, PerAxis]] = None,
    ):
        name = reader.name
        if (mpp is None) == (ratio is None):
            raise SlideError(name, "give either the wanted µm/px (mpp) or a resize ratio, and not both")
        source = _pair(source_mpp) or reader.mpp
        if source is not None:
            vertical, horizontal = (_positive(name, "the slide's µm/px", value) for value in source)
            source = vertical, horizontal
        if ratio is not None:
            ratio = _positive(name, "the resize ratio", ratio)
            factors = (ratio, ratio)
            self.mpp: Optional[PerAxis] = source and (source[0] / ratio, source[1] / ratio)
        else:
            mpp = _positive(name, "the wanted µm/px", mpp)
            if source is None:
                raise SlideError(
                    name,
                    "the file does not state its µm/px; give it in the manifest column mpp "
                    "or the config key data.slide_mpp, or resize by a plain ratio",
                )
            factors = (source[0] / mpp, source[1] / mpp)
            self.mpp = (mpp, mpp)
        self.reader = reader
        self.source_mpp: Optional[PerAxis] = source
        self.size = Size(*(max(1, math.floor(n * factor + 0.5)) for n, factor in zip(reader.level_sizes[0], factors)))
        self.level = _choose_level(reader, factors)

    @property
    def name(self) -> str:
        """The slide's name."""
        return self.reader.name

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window of the resized slide: uint8 (height, width, 3).

        Besides the result, memory use is bounded whatever the window's size.

        Raises:
            SlideError: the file is corrupt or truncated there.
            ValueError: the window leaves the slide.
        """
        require_inside(window, self.size)
        source_size = self.reader.level_sizes[self.level]
        if source_size == self.size:
            return self.reader.read_level(self.level, window)
        pixels = np.empty(window.size + (3,), np.uint8)
        step_y, step_x = (
            max(1, min(n, n * n_out // n_in)) for n, n_in, n_out in zip(_SOURCE_TILE, source_size, self.size)
        )
        for left in range(window.left, window.right, step_x):
            columns = _axis_weights(source_size.width, self.size.width, left, min(left + step_x, window.right))
            for top in range(window.top, window.bottom, step_y):
                rows = _axis_weights(source_size.height, self.size.height, top, min(top + step_y, window.bottom))
                source = self.reader.read_level(
                    self.level, Window.from_bounds(rows.start, columns.start, rows.stop, columns.stop)
                )
                tile = _apply(rows.matrix, columns.matrix, source)
                y, x = top - window.top, left - window.left
                pixels[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        return pixels

    def close(self) -> None:
        """Close the reader."""
        self.reader.close()


class _AxisWeights(NamedTuple):
    start: int  # first source pixel that is needed
    stop: int  # one past the last
    matrix: scipy.sparse.csr_matrix  # int32 (output pixels, source pixels); every row sums to 2^_WEIGHT_BITS


def _axis_weights(n_in: int, n_out: int, start: int, stop: int) -> _AxisWeights:
    """Triangle filter that takes ``n_in`` pixels to ``n_out``, for the output pixels ``[start, stop)``.

    Output ``i`` has its centre at ``(i + 1/2) n_in / n_out`` and source ``j`` at ``j + 1/2``; the triangle's half width
    is ``max(1, n_in / n_out)``. Multiplied by ``2 n_out`` all of these are whole numbers. Rounding to 2^-15 hands what
    is missing from a sum of exactly 1 to the largest remainders, so that constant areas keep their colour.
    """
    half_width = 2 * max(n_in, n_out)
    centre = ((2 * np.arange(start, stop, dtype=np.int64) + 1) * n_in)[:, None]
    first = (centre - half_width + n_out) // (2 * n_out)
    source = first + np.arange(half_width // n_out + 2)
    weight = np.maximum(half_width - np.abs((2 * source + 1) * n_out - centre), 0)
    weight[(source < 0) | (source >= n_in)] = 0
    quotient, remainder = np.divmod(weight << _WEIGHT_BITS, weight.sum(axis=1, keepdims=True))
    missing = (1 << _WEIGHT_BITS) - quotient.sum(axis=1, keepdims=True)
    order = np.argsort(-remainder, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    quotient += rank < missing

    used = quotient > 0
    low, high = int(source[used].min()), int(source[used].max()) + 1
    ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
    matrix = scipy.sparse.csr_matrix(
        (quotient[used].astype(np.int32), (source[used] - low).astype(np.int32), ends), shape=(stop - start, high - low)
    )
    return _AxisWeights(low, high, matrix)


def _apply(rows: scipy.sparse.csr_matrix, columns: scipy.sparse.csr_matrix, source: np.ndarray) -> np.ndarray:
    """Filter uint8 (source height, source width, 3) along both axes: uint8 (height, width, 3)."""
    height, width = rows.shape[0], columns.shape[0]
    if source.min() == 255:  # background, which rows that sum to 1 leave as it is
        return np.full((height, width, 3), 255, np.uint8)
    source_width = source.shape[1]
    tall = _round(rows @ source.reshape(source.shape[0], -1).astype(np.int32), _WEIGHT_BITS - _GUARD_BITS)
    turned = tall.reshape(height, source_width, 3).transpose(1, 0, 2).reshape(source_width, -1)
    small = _round(columns @ turned, _WEIGHT_BITS + _GUARD_BITS)
    return small.astype(np.uint8).reshape(width, height, 3).transpose(1, 0, 2)


def _round(values: np.ndarray, bits: int) -> np.ndarray:
    """Divide by 2^bits, rounding half up, in place."""
    values += 1 << (bits - 1)
    values >>= bits
    return values


def _choose_level(reader: SlideReader, factors: PerAxis) -> int:
    """The coarsest level at least as fine as level 0 times ``factors`` along both axes; level 0 if none is."""
    fine_enough = [
        level
        for level, downsamples in enumerate(reader.level_downsamples)
        if all(down * factor <= 1 + LEVEL_TOLERANCE for down, factor in zip(downsamples, factors))
    ]
    return max(fine_enough, key=lambda level: sum(reader.level_downsamples[level]), default=0)


def _pair(value) -> Optional[PerAxis]:
    if value is None:
        return None
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _positive(name: str, what: str, value) -> float:
    if not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value > 0):
        raise SlideError(name, "{} must be a number above 0, not {!r}".format(what, value))
    return float(value)
