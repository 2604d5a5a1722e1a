"""Which rectangles of blocks to compute: all that are wanted, disjoint, of one size, at the least cost."""

from typing import Callable, Iterable, List, NamedTuple, Sequence, Tuple

import numpy as np

from whole_slide_cnn.sizes import Size, Window

# From the size of a tile in blocks to what it costs.
Cost = Callable[[Size], float]


class Cover(NamedTuple):
    """Tiles from top to bottom, and what they cost together."""

    tiles: Tuple[Window, ...]
    cost: float


def cheapest_cover(wanted: np.ndarray, sizes: Iterable[Size], cost: Cost) -> Cover:
    """The cheapest of the covers with tiles of some sizes.

    Args:
        wanted: bool, blocks that must be in a tile.
        sizes: of the tiles of a cover, in blocks.
        cost: of a tile.
    """
    if not wanted.any():
        return Cover((), 0.0)
    covers = []
    for size in sizes:
        tiles = cover(wanted, size)
        covers.append(Cover(tiles, len(tiles) * cost(size)))
    return min(covers, key=lambda one: one.cost)


def cover(wanted: np.ndarray, size: Size) -> Tuple[Window, ...]:
    """Disjoint tiles that hold every wanted block: stripes of one height where there is something, cut into tiles of
    one width where there is something. Only at the last row and column is one cut short, so that there are few shapes,
    wherever the tissue is. (oneDNN keeps megabytes of compiled kernels for every shape that it has met:
    docs/measurements.md.)"""
    height, width = size
    last_row, last_column = wanted.shape
    tiles: List[Window] = []
    bottom = 0
    for row in np.flatnonzero(wanted.any(axis=1)).tolist():
        if row < bottom:
            continue
        bottom = min(row + height, last_row)
        right = 0
        for column in np.flatnonzero(wanted[row:bottom].any(axis=0)).tolist():
            if column >= right:
                right = min(column + width, last_column)
                tiles.append(Window(row, column, bottom - row, right - column))
    return tuple(tiles)


def sides(most: int) -> Sequence[int]:
    """Sides of tiles in blocks to try: powers of two up to a limit, and the limit."""
    return [2**power for power in range(12) if 2**power < most] + [most]
