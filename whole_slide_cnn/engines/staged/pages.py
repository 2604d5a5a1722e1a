"""Maps of a slide that are mostly blank: kept in pages, which exist only where something was written."""

from typing import Callable, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

from whole_slide_cnn.engines.staged.stages import Level
from whole_slide_cnn.sizes import Window

PAGE_BLOCKS = 8  # along a side of a page: 256 x 256 canvas pixels

# From a window of positions to its values (height, width, channels) on a canvas that is all blank.
Blank = Callable[[Window], np.ndarray]
# An array that is yet to be set, from its shape and type.
Make = Callable[[Sequence[int], np.dtype], np.ndarray]


class Pages:
    """A map (rows, columns, channels) of a level; what was never written is blank, or zero.

    Args:
        level: which map it is.
        dtype: of its values.
        blank: what the map is where nothing was written; None for zero.
        covered: blocks that will be written (bool, the level's grid) before they are read; None for none.
    """

    def __init__(self, level: Level, dtype, blank: Optional[Blank] = None, covered: Optional[np.ndarray] = None):
        self._level, self._dtype, self._blank, self._covered = level, np.dtype(dtype), blank, covered
        self._side = page_side(level)
        self._pages: Dict[Tuple[int, int], np.ndarray] = {}

    def read(self, windows: Sequence[Window], make: Make = np.empty) -> np.ndarray:
        """Values of windows of one size: (n, height, width, channels), a copy.

        Args:
            make: makes the array that they are put into, from its shape and type.
        """
        values = make((len(windows),) + windows[0].size + (self._level.channels,), self._dtype)
        for target, window in zip(values, windows):
            self._read(window, target)
        return values

    def _read(self, window: Window, values: np.ndarray) -> None:
        for key, inside, (rows, columns) in self._parts(window):
            page = self._pages.get(key)
            if page is not None:
                values[rows, columns] = page[inside]
            else:
                part = Window.from_bounds(
                    window.top + rows.start, window.left + columns.start, window.top + rows.stop,
                    window.left + columns.stop,
                )  # fmt: skip
                values[rows, columns] = 0 if self._blank is None else self._blank(part)

    def write(self, window: Window, values: np.ndarray) -> None:
        """Set a window to values (height, width, channels)."""
        for key, inside, (rows, columns) in self._parts(window):
            self._page(key)[inside] = values[rows, columns]

    def add(self, window: Window, values: np.ndarray) -> None:
        """Add values (height, width, channels) to a window."""
        for key, inside, (rows, columns) in self._parts(window):
            self._page(key)[inside] += values[rows, columns]

    def move_out(self, blocks: np.ndarray) -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Take what was written in some blocks, and leave zero there.

        Args:
            blocks: bool, the level's grid.

        Yields:
            Rows (n,), columns (n,) and values (n, channels) of positions, page by page.
        """
        side = self._level.side
        for (row, column), page in self._pages.items():
            top, left = row * PAGE_BLOCKS, column * PAGE_BLOCKS
            wanted = blocks[top : top + PAGE_BLOCKS, left : left + PAGE_BLOCKS]
            if not wanted.any():
                continue
            rows, columns = np.nonzero(np.repeat(np.repeat(wanted, side, 0), side, 1))
            values = page[rows, columns]
            moved = values.any(axis=1)
            if moved.any():
                rows, columns, values = rows[moved], columns[moved], values[moved]
                page[rows, columns] = 0
                yield rows + row * self._side, columns + column * self._side, values

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(page.nbytes for page in self._pages.values())

    def _page(self, key: Tuple[int, int]) -> np.ndarray:
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = self._new_page(key)
        return page

    def _new_page(self, key: Tuple[int, int]) -> np.ndarray:
        shape = (self._side, self._side, self._level.channels)
        rows, columns = (slice(number * PAGE_BLOCKS, (number + 1) * PAGE_BLOCKS) for number in key)
        if self._covered is not None and self._covered[rows, columns].all():
            return np.empty(shape, self._dtype)
        page = np.zeros(shape, self._dtype)
        if self._blank is not None:
            whole = Window(key[0] * self._side, key[1] * self._side, self._side, self._side)
            part = whole.intersect(Window(0, 0, *self._level.size))
            page[: part.height, : part.width] = self._blank(part)
        return page

    def _parts(self, window: Window) -> Iterator[Tuple]:
        """For each page that a window touches its key, the part of the page, and the part of the window."""
        side = self._side
        for row in range(window.top // side, -(-window.bottom // side)):
            top, bottom = max(window.top, row * side), min(window.bottom, (row + 1) * side)
            rows, inner = slice(top - window.top, bottom - window.top), slice(top - row * side, bottom - row * side)
            for column in range(window.left // side, -(-window.right // side)):
                left, right = max(window.left, column * side), min(window.right, (column + 1) * side)
                inside = (inner, slice(left - column * side, right - column * side))
                yield (row, column), inside, (rows, slice(left - window.left, right - window.left))


def page_side(level: Level) -> int:
    """Positions along a side of a page."""
    return PAGE_BLOCKS * level.side


def page_count(blocks: np.ndarray, inside: Window) -> int:
    """Pages that hold some blocks.

    Args:
        blocks: bool, a rectangle of a level's grid.
        inside: where that lies in the grid.
    """
    top, left = inside.top % PAGE_BLOCKS, inside.left % PAGE_BLOCKS
    rows, columns = (-(-(start + n) // PAGE_BLOCKS) for start, n in ((top, inside.height), (left, inside.width)))
    padded = np.zeros((rows * PAGE_BLOCKS, columns * PAGE_BLOCKS), bool)
    padded[top : top + inside.height, left : left + inside.width] = blocks
    return int(padded.reshape(rows, PAGE_BLOCKS, columns, PAGE_BLOCKS).any(axis=(1, 3)).sum())
