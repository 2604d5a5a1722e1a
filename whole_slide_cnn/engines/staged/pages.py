"""Maps of a slide that are mostly blank: kept in pages, which exist only where something was written."""

import itertools
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from whole_slide_cnn.engines.staged.stages import Level
from whole_slide_cnn.sizes import Window

PAGE_BLOCKS = 8  # along a side of a page: 256 x 256 canvas pixels
_LARGE_PAGE = 2**21
_SLAB_BYTES = 2**25

# From a window of positions to its values (height, width, channels) on a canvas that is all blank.
Blank = Callable[[Window], np.ndarray]
# An array that is yet to be set, from its shape and type.
Make = Callable[[Sequence[int], np.dtype], np.ndarray]


class PagePool:
    """Memory for pages, taken from the system in slabs and used again: new memory costs about as much as to fill it,
    less in slabs that are long enough for the large pages of the system (2 MiB)."""

    def __init__(self) -> None:
        self._keeps = 0
        self._empty: List[np.ndarray] = []
        self._free: Dict[int, List[Tuple[int, np.ndarray]]] = {}  # by size: slab and block
        self._slabs: Dict[int, Tuple[np.ndarray, int]] = {}  # by number: the slab, and how many blocks are in use
        self._numbers = itertools.count()

    def take(self, size: int) -> Tuple[int, np.ndarray]:
        """A block of some bytes, of any content, and the number that gives it back."""
        if size > _SLAB_BYTES:
            return -1, np.empty(size, np.uint8)
        free = self._free.setdefault(size, [])
        if not free:
            number, slab = next(self._numbers), self._empty.pop() if self._empty else _slab()
            self._slabs[number] = (slab, 0)
            free += [(number, slab[start : start + size]) for start in range(0, _SLAB_BYTES - size + 1, size)]
        number, block = free.pop()
        slab, used = self._slabs[number]
        self._slabs[number] = (slab, used + 1)
        return number, block

    def give_back(self, number: int, block: np.ndarray) -> None:
        """Take back a block that is not used any more."""
        if number < 0:
            return
        slab, used = self._slabs[number]
        self._slabs[number] = (slab, used - 1)
        self._free[block.nbytes].append((number, block))
        if used == 1:
            del self._slabs[number]
            self._free[block.nbytes] = [one for one in self._free[block.nbytes] if one[0] != number]
            self._empty.append(slab)
            self._trim()

    def keep(self, size: int) -> None:
        """From now on keep slabs in which nothing is, as long as all slabs together take no more bytes than that."""
        self._keeps = size
        self._trim()

    def _trim(self) -> None:
        while self._empty and (len(self._slabs) + len(self._empty)) * _SLAB_BYTES > self._keeps:
            self._empty.pop()


def _slab() -> np.ndarray:
    memory = np.empty(_SLAB_BYTES + _LARGE_PAGE, np.uint8)
    start = -memory.ctypes.data % _LARGE_PAGE
    return memory[start : start + _SLAB_BYTES]


class Pages:
    """A map (rows, columns, channels) of a level; what was never written is blank, or zero.

    Args:
        level: which map it is.
        dtype: of its values.
        blank: what the map is where nothing was written; None for zero.
        covered: blocks that will be written (bool, the level's grid) before they are read; None for none.
        pool: where its memory comes from; None for one of its own.
    """

    def __init__(
        self,
        level: Level,
        dtype,
        blank: Optional[Blank] = None,
        covered: Optional[np.ndarray] = None,
        pool: Optional[PagePool] = None,
    ):
        self._pool = PagePool() if pool is None else pool
        self._blocks: List[Tuple[int, np.ndarray]] = []
        self._level, self._dtype, self._blank, self._covered = level, np.dtype(dtype), blank, covered
        self._side = page_side(level)
        self._pages: Dict[Tuple[int, int], np.ndarray] = {}

    def close(self) -> None:
        """Give the memory back; nothing may be read any more."""
        self._pages.clear()
        while self._blocks:
            self._pool.give_back(*self._blocks.pop())

    def __del__(self) -> None:
        self.close()

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
        self._blocks.append(self._pool.take(int(np.prod(shape)) * self._dtype.itemsize))
        page: np.ndarray = self._blocks[-1][1].view(self._dtype).reshape(shape)
        rows, columns = (slice(number * PAGE_BLOCKS, (number + 1) * PAGE_BLOCKS) for number in key)
        if self._covered is None or not self._covered[rows, columns].all():
            page[...] = 0
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
