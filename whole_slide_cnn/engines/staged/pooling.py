"""Pooling of an embedding map that nobody holds: tile by tile, blank cells by kind (architecture, streaming)."""

from typing import Any, NamedTuple, Optional, Union

import numpy as np

from whole_slide_cnn.engines.streaming.blank import BlankKinds
from whole_slide_cnn.sizes import Size, Window


class Pooled(NamedTuple):
    """Pooled features and, for the maximum, where they are.

    Attributes:
        values: (channels,).
        is_blank: (channels,) whether the maximum is on the blank canvas; empty for the average.
        cell: (channels,) raster position of the maximum in the whole map, or in the blank canvas's.
    """

    values: np.ndarray
    is_blank: np.ndarray
    cell: np.ndarray


class RunningMaximum:
    """The maximum over tiles and blank cells; ties go to the first cell in raster order of the whole map.

    Args:
        cells: size of the whole map.
    """

    def __init__(self, cells: Size):
        self._cells = cells
        self._values: Optional[np.ndarray] = None

    def add_tile(self, tile: Window, values: np.ndarray, cells: np.ndarray) -> None:
        """Take in a tile.

        Args:
            tile: its cells.
            values: (channels,) its maxima.
            cells: (channels,) row * width + column of the first cell in the tile that has it.
        """
        rows, columns = cells // tile.width, cells % tile.width
        positions = (tile.top + rows.astype(np.int64)) * self._cells.width + tile.left + columns
        self._add(values, positions, positions, False)

    def add_blank(self, kinds: BlankKinds, blank: np.ndarray) -> None:
        """Take in the blank cells.

        Args:
            blank: (cells of the blank canvas, channels).
        """
        present = blank[kinds.kinds]
        best = np.argmax(present, axis=0)  # kinds come in raster order, and argmax takes the first
        values = present[best, np.arange(present.shape[1])]
        self._add(values, kinds.first[best], kinds.kinds[best], True)

    def result(self) -> Pooled:
        """What was found."""
        assert self._values is not None, "nothing was pooled"
        return Pooled(self._values, self._is_blank, self._cell)

    def _add(self, values: np.ndarray, positions: np.ndarray, cells: np.ndarray, is_blank: bool) -> None:
        if self._values is None:
            self._values, self._positions = np.array(values), np.array(positions, np.int64)
            self._is_blank, self._cell = np.full(values.shape, is_blank), np.array(cells, np.int64)
            return
        with np.errstate(invalid="ignore"):
            better = (values > self._values) | ((values == self._values) & (positions < self._positions))
        better |= np.isnan(values)  # so that it is seen in the loss
        self._values = np.where(better, values, self._values)
        self._positions = np.where(better, positions, self._positions)
        self._is_blank, self._cell = np.where(better, is_blank, self._is_blank), np.where(better, cells, self._cell)


class RunningAverage:
    """The average over tiles and blank cells.

    Args:
        cells: size of the whole map.
    """

    def __init__(self, cells: Size):
        self._cells = cells
        self._total: Any = 0.0

    def add_tile(self, tile: Window, sums: np.ndarray) -> None:
        """Take in a tile.

        Args:
            sums: (channels,) over its cells.
        """
        self._total = self._total + sums

    def add_blank(self, kinds: BlankKinds, blank: np.ndarray) -> None:
        """Take in the blank cells.

        Args:
            blank: (cells of the blank canvas, channels).
        """
        self._total = self._total + kinds.counts.astype(blank.dtype) @ blank[kinds.kinds]

    def result(self) -> Pooled:
        """What was found."""
        nowhere = np.zeros(0, np.int64)
        return Pooled(self._total / (self._cells.height * self._cells.width), nowhere.astype(bool), nowhere)


def running_pooling(pooling: str, cells: Size) -> Union[RunningMaximum, RunningAverage]:
    """The pooling of a network: ``gmp`` or ``gap``."""
    return RunningMaximum(cells) if pooling == "gmp" else RunningAverage(cells)
