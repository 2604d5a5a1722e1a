"""Which rectangles of blocks to compute: all that are wanted, disjoint, of few sizes, at the least cost."""

import collections
from typing import Any, Callable, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from whole_slide_cnn.sizes import Size, Window

# From the sizes of tiles in blocks, and how many there are of each, to what they cost together.
Cost = Callable[[Mapping[Size, int]], float]


class Cover(NamedTuple):
    """Tiles from top to bottom, and what they cost together."""

    tiles: Tuple[Window, ...]
    cost: float


def cheapest_cover(wanted: np.ndarray, sizes: Iterable[Size], cost: Cost, halves: bool = True) -> Cover:
    """The cheapest of the covers with tiles of some sizes.

    Args:
        wanted: bool, blocks that must be in a tile.
        sizes: of the tiles of a cover, in blocks.
        cost: of tiles.
        halves: whether tiles of which a half is not wanted may be halved.
    """
    if not wanted.any():
        return Cover((), 0.0)
    covers = []
    for size in sizes:
        whole = cover(wanted, size)
        for tiles in (whole, halved(wanted, whole, size)) if halves else (whole,):
            covers.append(Cover(tiles, cost(counted(tiles))))
    return min(covers, key=lambda one: one.cost)


def counted(tiles: Iterable[Window]) -> Mapping[Size, int]:
    """How many tiles there are of each size."""
    return collections.Counter(tile.size for tile in tiles)


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


def halved(wanted: np.ndarray, tiles: Iterable[Window], size: Size) -> Tuple[Window, ...]:
    """Tiles of which every one of full size is cut to half its height, its width or both, where the rest holds nothing
    that is wanted: four sizes at most, beside those at the last row and column."""
    found = []
    for tile in tiles:
        if tile.size == size:
            inside = wanted[tile.top : tile.bottom, tile.left : tile.right]
            top, height = _half(np.any(inside, axis=1))
            left, width = _half(np.any(inside, axis=0))
            tile = Window(tile.top + top, tile.left + left, height, width)
        found.append(tile)
    return tuple(found)


def _half(wanted: Any) -> Tuple[int, int]:
    """First and number of the positions along an axis to keep: all, or the half that holds all that is wanted."""
    length = len(wanted)
    half = length // 2
    if length % 2 == 0:
        if not wanted[half:].any():
            return 0, half
        if not wanted[:half].any():
            return half, half
    return 0, length


def sides(most: int) -> Sequence[int]:
    """Sides of tiles in blocks to try: powers of two up to a limit, and the limit."""
    return [2**power for power in range(12) if 2**power < most] + [most]
