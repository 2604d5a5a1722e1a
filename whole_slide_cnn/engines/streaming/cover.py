"""Which rectangles of cells to compute: all that are not blank, in windows of bounded size."""

from typing import List, Optional, Tuple

import numpy as np

from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.geometry import Range
from whole_slide_cnn.models.layers import Trunk
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import BLANK_BLOCK


def blank_cells(trunk: Trunk, canvas: Size, blank_blocks: np.ndarray) -> np.ndarray:
    """Cells whose receptive field within the canvas lies in blank blocks only.

    Args:
        blank_blocks: bool, one per ``BLANK_BLOCK`` square of the canvas.

    Returns:
        bool, one per cell. A cell that touches a block with a single coloured pixel counts as not blank, although its
        own field may be blank: it is then computed, to the same value.
    """
    # counts[i, j]: blocks above i and left of j that are not blank
    counts = np.zeros(np.add(blank_blocks.shape, 1), np.int64)
    counts[1:, 1:] = np.cumsum(np.cumsum(~blank_blocks, axis=0), axis=1)
    (top, bottom), (left, right) = (
        _block_ranges(geometry.field_of(trunk, side), cells, side)
        for side, cells in zip(canvas, geometry.cells_of(trunk, canvas))
    )
    above = counts[np.ix_(top, right)] - counts[np.ix_(top, left)]
    coloured = counts[np.ix_(bottom, right)] - counts[np.ix_(bottom, left)] - above
    return coloured == 0


def _block_ranges(field: geometry.Field, cells: int, side: int):
    start = np.arange(cells) * field.stride - field.offset
    first = np.clip(start, 0, side) // BLANK_BLOCK
    last = -(-np.clip(start + field.size, 0, side) // BLANK_BLOCK)
    return first, last


def grid_cover(wanted: np.ndarray, side: int, interior: Optional[Tuple[Range, Range]] = None) -> List[Window]:
    """Disjoint rectangles that hold every wanted cell, ``side`` cells high and wide, in raster order.

    The grid lies over the bounding box of the wanted cells; rectangles without a wanted cell are left out. Where a
    border of the canvas clips a rectangle's input, the grid starts at that border; so only a few shapes occur, wherever
    the tissue is. (oneDNN keeps megabytes of compiled kernels for every shape it has met: docs/measurements.md.) Where
    the grid reaches from border to border, its last row and column are as small as what is left.

    Args:
        interior: rows and columns of cells whose receptive field crosses no border; all of them where not given.
    """
    box = bounding_box(wanted)
    if box is None:
        return []
    rows, columns = interior or (Range(0, wanted.shape[0]), Range(0, wanted.shape[1]))
    windows = []
    for top, bottom in _parts(_anchor(Range(box.top, box.bottom), wanted.shape[0], rows, side), side):
        for left, right in _parts(_anchor(Range(box.left, box.right), wanted.shape[1], columns, side), side):
            if wanted[top:bottom, left:right].any():
                windows.append(Window.from_bounds(top, left, bottom, right))
    return windows


def bounding_box(mask: np.ndarray) -> Optional[Window]:
    """The smallest window around the true cells of a mask, or None."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return Window.from_bounds(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _anchor(wanted: Range, cells: int, interior: Range, side: int) -> Range:
    """Grow a range to a multiple of ``side``: away from the border that clips it, else inside the interior; to all
    cells where there is no room."""
    length = _round_up(wanted.stop - wanted.start, side)
    if wanted.start < interior.start:
        grown = Range(0, _round_up(wanted.stop, side))
        fits = grown.stop <= interior.stop
    elif wanted.stop > interior.stop:
        grown = Range(cells - _round_up(cells - wanted.start, side), cells)
        fits = grown.start >= interior.start
    else:
        start = min(wanted.start, interior.stop - length)
        grown = Range(start, start + length)
        fits = start >= interior.start
    return grown if fits else Range(0, cells)


def _parts(whole: Range, side: int) -> List[Range]:
    return [Range(start, min(start + side, whole.stop)) for start in range(whole.start, whole.stop, side)]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
