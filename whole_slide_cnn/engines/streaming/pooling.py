"""Pooling of an embedding map that nobody holds: window by window, blank cells by kind (architecture, streaming)."""

from typing import Any, NamedTuple, Optional, Union

import numpy as np

from whole_slide_cnn.engines.streaming.blank import BlankKinds
from whole_slide_cnn.sizes import Size, Window

BLANK = -1  # the owner of a maximum on the blank canvas


class Pooled(NamedTuple):
    """Pooled features and, for the maximum, where they are.

    Attributes:
        values: (channels,).
        owner: (channels,) position of the window in the cover that holds the maximum, or -1 for the blank canvas;
            empty for the average.
        cell: (channels,) row * width + column of the maximum in its window's map, or in the blank canvas's.
        position: (channels,) raster position of the maximum in the whole map.
    """

    values: np.ndarray
    owner: np.ndarray
    cell: np.ndarray
    position: np.ndarray


class RunningMaximum:
    """The maximum over windows and blank cells; ties go to the first cell in raster order of the whole map.

    Args:
        cells: size of the whole map.
    """

    def __init__(self, cells: Size):
        self._cells = cells
        self._values: Optional[np.ndarray] = None

    def add_window(self, index: int, window: Window, values: np.ndarray, cells: np.ndarray):
        """Take in a window.

        Args:
            index: position of the window in the cover.
            values: (channels,) its maxima.
            cells: (channels,) row * width + column of the first cell in the window that has it.
        """
        rows, columns = cells // window.width, cells % window.width
        positions = (window.top + rows.astype(np.int64)) * self._cells.width + window.left + columns
        self._add(values, positions, index, cells)

    def add_blank(self, kinds: BlankKinds, blank: np.ndarray):
        """Take in the blank cells.

        Args:
            blank: (cells of the blank canvas, channels).
        """
        present = blank[kinds.kinds]
        best = np.argmax(present, axis=0)  # kinds come in raster order, and argmax takes the first
        values = present[best, np.arange(present.shape[1])]
        self._add(values, kinds.first[best], BLANK, kinds.kinds[best])

    def part(self) -> Optional[Pooled]:
        """What was found, for :meth:`add_part` of another process; None where nothing was taken in."""
        return None if self._values is None else self.result()

    def add_part(self, part: Optional[Pooled]):
        """Take in what a process has taken in."""
        if part is not None:
            self._add(part.values, part.position, part.owner, part.cell)

    def result(self) -> Pooled:
        """What was found."""
        assert self._values is not None, "nothing was pooled"
        return Pooled(self._values, self._owner, self._cell, self._positions)

    def _add(self, values: np.ndarray, positions: np.ndarray, owner: Union[int, np.ndarray], cells: np.ndarray):
        if self._values is None:
            self._values, self._positions = values, positions
            self._owner, self._cell = np.array(np.broadcast_to(owner, values.shape)), np.array(cells, np.int64)
            return
        with np.errstate(invalid="ignore"):
            better = (values > self._values) | ((values == self._values) & (positions < self._positions))
        better |= np.isnan(values)  # so that it is seen in the loss
        self._values = np.where(better, values, self._values)
        self._positions = np.where(better, positions, self._positions)
        self._owner, self._cell = np.where(better, owner, self._owner), np.where(better, cells, self._cell)


class RunningAverage:
    """The average over windows and blank cells.

    Args:
        cells: size of the whole map.
    """

    def __init__(self, cells: Size):
        self._cells = cells
        self._total: Any = 0.0

    def add_window(self, index: int, window: Window, sums: np.ndarray):
        """Take in a window.

        Args:
            sums: (channels,) over its cells.
        """
        self._total = self._total + sums

    def add_blank(self, kinds: BlankKinds, blank: np.ndarray):
        """Take in the blank cells.

        Args:
            blank: (cells of the blank canvas, channels).
        """
        self._total = self._total + kinds.counts.astype(blank.dtype) @ blank[kinds.kinds]

    def part(self) -> Any:
        """The sums, for :meth:`add_part` of another process."""
        return self._total

    def add_part(self, part: Any):
        """Take in what a process has taken in."""
        self._total = self._total + part

    def result(self) -> Pooled:
        """What was found."""
        nowhere = np.zeros(0, np.int64)
        return Pooled(self._total / (self._cells.height * self._cells.width), nowhere, nowhere, nowhere)


def running_pooling(pooling: str, cells: Size) -> Union[RunningMaximum, RunningAverage]:
    """The pooling of a network: ``gmp`` or ``gap``."""
    return RunningMaximum(cells) if pooling == "gmp" else RunningAverage(cells)
