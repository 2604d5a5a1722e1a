"""Which rectangles of blocks to compute: all that are wanted, disjoint, of few sizes, at the least cost."""

import collections
from typing import Callable, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from whole_slide_cnn.sizes import Size, Window

# From the sizes of tiles in blocks, and how many there are of each, to what they cost together.
Cost = Callable[[Mapping[Size, int]], float]


_SMALL_SIDE = 32  # of a map that may be one tile whatever its size


class Cover(NamedTuple):
    """Tiles from top to bottom, what they cost together, and the size that they were cut from."""

    tiles: Tuple[Window, ...]
    cost: float
    size: Size = Size(1, 1)


def cheapest_cover(wanted: np.ndarray, sizes: Iterable[Size], cost: Cost, halves: bool = True) -> Cover:
    """The cheapest of the covers with tiles of some sizes.

    Args:
        wanted: bool, blocks that must be in a tile.
        sizes: of the tiles of a cover, in blocks.
        cost: of tiles.
        halves: whether tiles of which a half is not wanted may be halved.
    """
    number = int(np.count_nonzero(wanted))
    if not number:
        return Cover((), 0.0)
    # no cover of a size costs less than as many of its tiles as are needed to hold that many blocks
    least = {size: cost({size: max(1, number // (size.height * size.width))}) for size in sizes}
    best = Cover((), np.inf)
    for size in sorted(least, key=lambda one: least[one]):
        if least[size] >= best.cost:
            break
        whole = cover(wanted, size)
        for tiles in (whole, halved(wanted, whole, size)) if halves else (whole,):
            found = cost(counted(tiles))
            if found < best.cost:
                best = Cover(tiles, found, size)
    return best


def counted(tiles: Iterable[Window]) -> Mapping[Size, int]:
    """How many tiles there are of each size."""
    return collections.Counter(tile.size for tile in tiles)


def cover(wanted: np.ndarray, size: Size) -> Tuple[Window, ...]:
    """Disjoint tiles that hold every wanted block: stripes of one height where there is something, cut into tiles of
    one width where there is something. Only at the last rows and columns are they smaller, by powers of two, so that
    there are few shapes, wherever the tissue is. (oneDNN keeps megabytes of compiled kernels for every shape that it
    has met: docs/measurements.md.)"""
    last_row, last_column = wanted.shape
    tiles: List[Window] = []
    bottom = 0
    for row in np.flatnonzero(wanted.any(axis=1)).tolist():
        if row < bottom:
            continue
        bottom = row + _fitting(size.height, last_row - row)
        right = 0
        for column in np.flatnonzero(wanted[row:bottom].any(axis=0)).tolist():
            if column >= right:
                right = column + _fitting(size.width, last_column - column)
                tiles.append(Window(row, column, bottom - row, right - column))
    return tuple(tiles)


def _fitting(side: int, left: int) -> int:
    """A tile's side where so many blocks are left: itself, or the largest power of two that fits."""
    return side if side <= left else 2 ** (left.bit_length() - 1)


def halved(wanted: np.ndarray, tiles: Sequence[Window], size: Size) -> Tuple[Window, ...]:
    """Tiles of which every one of full size is cut to half its height, its width or both, where the rest holds nothing
    that is wanted: four sizes at most, beside those at the last row and column."""
    bounds: np.ndarray = np.array(tiles, np.int64).reshape(-1, 4)
    full = (bounds[:, 2:] == size).all(axis=1)
    # sums[i, j]: blocks above i and left of j that are wanted
    sums = np.zeros(np.add(wanted.shape, 1), np.int64)
    sums[1:, 1:] = np.cumsum(np.cumsum(wanted, axis=0), axis=1)

    def holds(top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        bottom, right = top + height, left + width
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        found: np.ndarray = inside > 0
        return found

    for axis in range(2):
        if size[axis] % 2 == 0:
            first, second = bounds.copy(), bounds.copy()
            first[:, 2 + axis] //= 2
            second[:, 2 + axis] //= 2
            second[:, axis] += second[:, 2 + axis]
            in_first, in_second = holds(*first.T), holds(*second.T)
            bounds = np.where((full & ~in_second)[:, np.newaxis], first, bounds)
            bounds = np.where((full & ~in_first)[:, np.newaxis], second, bounds)
    return tuple(Window(*tile) for tile in bounds.tolist())


def sides(most: int) -> Sequence[int]:
    """Sides of tiles in blocks to try: powers of two up to a limit, and the limit where it is small."""
    found = [2**power for power in range(12) if 2**power <= most]
    return found if most in found or most > _SMALL_SIDE else found + [most]
