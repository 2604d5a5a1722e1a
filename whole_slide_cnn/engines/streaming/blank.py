"""One small all-blank canvas that has every value a blank cell of a large canvas can have.

The value of a blank cell depends only on how far it is from each border, clipped to the receptive field. A small canvas
with the same residues modulo the cell stride pads alike in every layer; with at least one interior cell it has all the
values (architecture, streaming). Going back, the gradients of all blank cells of a kind are summed onto it.
"""

import zlib
from typing import NamedTuple, Tuple

import numpy as np

from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.layers import Trunk
from whole_slide_cnn.sizes import Size


class BlankKinds(NamedTuple):
    """The blank cells of one canvas, by the cell of the small canvas they equal (their kind).

    Attributes:
        kinds: flat positions in the small embedding map, ordered by ``first``.
        counts: cells of each kind.
        first: raster position, in the large map, of the first cell of each kind.
    """

    kinds: np.ndarray
    counts: np.ndarray
    first: np.ndarray

    @property
    def digest(self) -> int:
        """Equal where all blank cells are."""
        return zlib.crc32(np.concatenate(self).astype("<i8").tobytes())


class BlankCanvas:
    """The small canvas that stands for the blank cells of canvases of one size.

    Attributes:
        size: its size in pixels.
        cells: size of its embedding map.
    """

    def __init__(self, trunk: Trunk, canvas: Size):
        self.canvas = Size(*canvas)
        self.size = Size(*(blank_side(trunk, side) for side in canvas))
        self.cells = geometry.cells_of(trunk, self.size)
        self._rows, self._columns = self.axes(trunk)

    def axes(self, prefix: Trunk) -> Tuple[np.ndarray, np.ndarray]:
        """For each row and each column of a map of the large canvas that of the small canvas's with the same values.

        Args:
            prefix: the layers from the pixels to the map.
        """
        rows, columns = (_cell_map(prefix, large, small) for large, small in zip(self.canvas, self.size))
        return rows, columns

    def kinds_of(self, cells: np.ndarray) -> BlankKinds:
        """Sort blank cells into kinds.

        Args:
            cells: bool, one per cell of the large map: the blank cells that no window computes.
        """
        rows, columns = np.nonzero(cells)
        kinds = self._rows[rows] * self.cells.width + self._columns[columns]
        positions = rows * cells.shape[1] + columns
        counts = np.bincount(kinds, minlength=self.cells.height * self.cells.width)
        first = np.full(counts.shape, -1, np.int64)
        first[kinds[::-1]] = positions[::-1]  # the last assignment stays: the first in raster order
        present = np.flatnonzero(counts)
        present = present[np.argsort(first[present], kind="stable")]
        return BlankKinds(present, counts[present], first[present])

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Give every cell of the large map the value that it has if it is blank.

        Args:
            values: (cells of the small canvas in raster order, n).

        Returns:
            (cells high, cells wide, n).
        """
        return values.reshape(self.cells + (-1,))[self._rows[:, np.newaxis], self._columns]


def blank_side(trunk: Trunk, side: int) -> int:
    """Side of the small canvas for a canvas side, in pixels: the shortest that is congruent modulo the cell stride and
    at least a receptive field and a stride long, or the side itself where that is not longer."""
    field = geometry.field_of(trunk, side)
    shortest = field.size + field.stride
    return min(side, shortest + (side - shortest) % field.stride)


def _cell_map(trunk: Trunk, large: int, small: int) -> np.ndarray:
    """For each cell along an axis of the large canvas the cell of the small canvas with the same value."""
    cells, small_cells = geometry.extents(trunk, large)[-1], geometry.extents(trunk, small)[-1]
    if large == small:
        return np.arange(cells)
    first, stop = geometry.interior_cells(trunk, small)
    assert first < stop, "a blank canvas of {} px has no interior cell".format(small)
    index = np.arange(cells)
    from_end = small_cells - (cells - index)
    return np.where(index < first, index, np.maximum(from_end, first))
