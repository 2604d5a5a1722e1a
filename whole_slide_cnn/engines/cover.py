"""Which rectangles of cells to compute: all that are not blank, in windows of bounded size."""

from typing import List

import numpy as np

from whole_slide_cnn.models import geometry
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


def grid_cover(wanted: np.ndarray, side: int, bucket: int = 1) -> List[Window]:
    """Disjoint rectangles that hold every wanted cell, each at most ``side`` cells high and wide, in raster order.

    The grid starts at the bounding box of the wanted cells and divides it evenly; each rectangle is then shrunk to the
    wanted cells inside, up to a multiple of ``bucket`` cells so that few distinct shapes occur.
    """
    box = bounding_box(wanted)
    if box is None:
        return []
    windows = []
    for top, bottom in _even_parts(box.top, box.bottom, side):
        for left, right in _even_parts(box.left, box.right, side):
            inner = shrink(wanted[top:bottom, left:right], bucket)
            if inner is not None:
                windows.append(Window(top + inner.top, left + inner.left, *inner.size))
    return windows


def bounding_box(mask: np.ndarray):
    """The smallest window around the true cells of a mask, or None."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return Window.from_bounds(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def shrink(mask: np.ndarray, bucket: int = 1):
    """The smallest window around the true cells of a mask whose sides are multiples of ``bucket`` (or the mask's own
    side), or None where no cell is true."""
    box = bounding_box(mask)
    if box is None:
        return None
    top, bottom = _round_up(box.top, box.bottom, mask.shape[0], bucket)
    left, right = _round_up(box.left, box.right, mask.shape[1], bucket)
    return Window.from_bounds(top, left, bottom, right)


def _even_parts(start: int, stop: int, most: int):
    parts = -(-(stop - start) // most)
    bounds = [start + (stop - start) * part // parts for part in range(parts + 1)]
    return list(zip(bounds[:-1], bounds[1:]))


def _round_up(start: int, stop: int, side: int, bucket: int):
    """Grow a range to a multiple of ``bucket`` within ``[0, side)`` where there is room."""
    length = min(-(-(stop - start) // bucket) * bucket, side)
    start = min(start, side - length)
    return start, start + length
