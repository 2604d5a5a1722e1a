"""The one affine map of a canvas: where in the source each pixel lies, in whole 32nds of a pixel.

Positions are computed from a pixel's own coordinates on the canvas and rounded at once, so that a pixel has the same
position through every window (architecture, law 2). A map that starts anew in each window differs in some of them.
"""

import math
from typing import NamedTuple, Tuple

import numpy as np

from whole_slide_cnn.augment.parameters import TransformParameters
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import BLANK_BLOCK

PHASES = 32  # positions between two pixels
_SNAP = 1e-12  # the cosine of 90 degrees is 6e-17 in floating point
_BLOCK_ROWS = 64  # of blank blocks worked on at a time


class Axis(NamedTuple):
    """One coordinate of the source position: ``row_step * row + column_step * column + start``, in source pixels."""

    row_step: float
    column_step: float
    start: float


class Affine(NamedTuple):
    """The source position of every canvas pixel.

    Attributes:
        whole: whether all positions are whole pixels, as under flips alone, so that no neighbour has any weight.
    """

    rows: Axis
    columns: Axis
    whole: bool

    @property
    def is_identity(self) -> bool:
        """Whether every pixel stays where it is."""
        return self == Affine(Axis(1.0, 0.0, 0.0), Axis(0.0, 1.0, 0.0), True)


def affine_of(parameters: TransformParameters, size: Size) -> Affine:
    """From each pixel of a canvas back over shift, rotation and flip, all about the canvas's centre."""
    angle = math.radians(parameters.angle)
    cosine, sine = _snapped(math.cos(angle)), _snapped(math.sin(angle))
    centre = ((size.height - 1) / 2.0, (size.width - 1) / 2.0)
    moved = (centre[0] + parameters.shift[0] * size.height, centre[1] + parameters.shift[1] * size.width)
    axes = []
    for flipped, steps, middle in (
        (parameters.flip_rows, (cosine, sine), centre[0]),
        (parameters.flip_columns, (-sine, cosine), centre[1]),
    ):
        sign = -1.0 if flipped else 1.0
        row_step, column_step = sign * steps[0] + 0.0, sign * steps[1] + 0.0  # plus zero: -0.0 becomes 0.0
        axes.append(Axis(row_step, column_step, middle - row_step * moved[0] - column_step * moved[1]))
    whole = all(step == round(step) for axis in axes for step in axis[:2])
    if whole:  # the start may then be rounded before, and all positions are exact
        axes = [axis._replace(start=math.floor(axis.start * PHASES + 0.5) / PHASES) for axis in axes]
        whole = all(axis.start == round(axis.start) for axis in axes)
    return Affine(axes[0], axes[1], whole)


def positions(axis: Axis, window: Window, xp=np):
    """One coordinate of the source positions of a window's pixels, in 32nds of a pixel: int32 (height, width).

    Args:
        xp: the array module, NumPy or CuPy.
    """
    by_row, by_column = _parts(axis, xp.arange(window.top, window.bottom), xp.arange(window.left, window.right))
    places = by_row[:, None] + by_column[None, :]
    return xp.floor(places, out=places).astype(np.int32)


def source_window(affine: Affine, window: Window, size: Size) -> Window:
    """The smallest rectangle of source pixels that the pixels of a window need; empty where all of them lie outside."""
    ends = np.array([window.top, window.bottom - 1]), np.array([window.left, window.right - 1])
    ranges = [_touched(_bounds(axis, *ends), affine.whole, side) for axis, side in zip(affine[:2], size)]
    (top, bottom), (left, right) = ((int(first.item()), int(stop.item())) for first, stop in ranges)
    return Window.from_bounds(top, left, bottom, right)


def blank_blocks_after(affine: Affine, size: Size, blank: np.ndarray) -> np.ndarray:
    """Blocks whose pixels are made of blank source blocks alone, or lie outside the source.

    Args:
        blank: bool (ceil(height/32), ceil(width/32)), the source's blank blocks.

    Returns:
        bool, of the same shape. A block counts as not blank if the rectangle around its source, not only the rotated
        square, meets a block that is not blank.
    """
    counts = np.zeros(np.add(blank.shape, 1), np.int32)  # [i, j]: blocks above i and left of j that are not blank
    counts[1:, 1:] = np.cumsum(np.cumsum(~blank, axis=0, dtype=np.int32), axis=1, dtype=np.int32)
    rows, columns = (_block_ends(side) for side in size)
    found = np.empty(blank.shape, bool)
    for start in range(0, len(blank), _BLOCK_ROWS):
        some = rows[start : start + _BLOCK_ROWS]
        (top, bottom), (left, right) = (
            _blocks_of(_touched(_bounds(axis, some, columns), affine.whole, side))
            for axis, side in zip(affine[:2], size)
        )
        coloured = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]
        found[start : start + _BLOCK_ROWS] = coloured == 0
    return found


def _parts(axis: Axis, rows, columns):
    """What rows and columns add to a position in 32nds, rounding included."""
    return (axis.row_step * PHASES) * rows, (axis.column_step * columns + axis.start) * PHASES + 0.5


def _bounds(axis: Axis, row_ends: np.ndarray, column_ends: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest position in 32nds over rectangles: their sums, like all sums of floats, grow with
    each part, so that both are at corners, to the last bit.

    Args:
        row_ends: (..., 2), the first and the last row.
        column_ends: (..., 2), likewise; rows and columns are combined, each with each.

    Returns:
        Two int64 arrays (number of row ends, number of column ends).
    """
    by_row, by_column = _parts(axis, row_ends.reshape(-1, 2), column_ends.reshape(-1, 2))
    least = np.floor(by_row.min(axis=1)[:, None] + by_column.min(axis=1)[None, :])
    most = np.floor(by_row.max(axis=1)[:, None] + by_column.max(axis=1)[None, :])
    return least.astype(np.int64), most.astype(np.int64)


def _touched(bounds, whole: bool, side: int):
    """First source pixel and one past the last that the bicubic filter touches between two positions, within the
    source; the same number twice where there are none."""
    least, most = bounds
    before, after = (0, 0) if whole else (1, 2)
    first = np.clip(least // PHASES - before, 0, side)
    return first, np.maximum(np.clip(most // PHASES + after + 1, 0, side), first)


def _blocks_of(pixels):
    first, stop = pixels
    return first // BLANK_BLOCK, np.where(stop > first, -(-stop // BLANK_BLOCK), first // BLANK_BLOCK)


def _block_ends(side: int) -> np.ndarray:
    """First and last pixel of each block along an axis: (blocks, 2)."""
    first = np.arange(0, side, BLANK_BLOCK)
    return np.stack([first, np.minimum(first + BLANK_BLOCK, side) - 1], axis=1)


def _snapped(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < _SNAP else value
