"""One slide dealt to several processes: a rectangle of cells for each, of about the same cost."""

from typing import Callable, List, NamedTuple, Sequence, Tuple

from whole_slide_cnn.sizes import Window

# From a rectangle of cells and an axis to what its cells between two rows or columns cost, with the halo around them:
# never more than if they were part of more cells, and zero where there is nothing to compute.
CostAlong = Callable[[Window, int], Callable[[int, int], float]]

NOTHING = Window(0, 0, 0, 0)


def deal(cells: Window, parts: int, cost_along: CostAlong) -> List[Window]:
    """Cut a rectangle into disjoint ones, by recursive bisection (Berger and Bokhari 1987): the two sides of a cut get
    a half of the parts each, and the cut lies where the side that costs more for each of its parts costs least.

    The halo, which both sides compute, counts on both. So a cut through tissue costs more than one beside it, and a
    part amid others gets fewer cells than one at the border.

    Returns:
        ``parts`` rectangles; those for which there is nothing left are empty.
    """
    if parts == 1:
        return [cells]
    numbers = parts // 2, parts - parts // 2
    cuts = [cut for axis in (0, 1) for cut in _cuts(cells, axis, numbers, cost_along)]
    if not cuts:
        return [cells] + [NOTHING] * (parts - 1)
    best = min(cuts, key=lambda cut: cut.order)
    return [part for side, number in zip(best.sides, numbers) for part in deal(side, number, cost_along)]


def between(cells: Window, axis: int, start: int, stop: int) -> Window:
    """The part of a rectangle between two rows (axis 0) or columns (axis 1)."""
    if axis == 0:
        return cells._replace(top=start, height=stop - start)
    return cells._replace(left=start, width=stop - start)


class _Cut(NamedTuple):
    """A rectangle cut in two; the cut with the lowest ``order`` is the best one."""

    order: Tuple[float, float, int]
    sides: Tuple[Window, Window]


def _cuts(cells: Window, axis: int, numbers: Tuple[int, int], cost_along: CostAlong) -> Sequence[_Cut]:
    """The best cuts across an axis, for some numbers of parts on its sides; none where there is nothing to cut."""
    start, stop = (cells.top, cells.bottom) if axis == 0 else (cells.left, cells.right)
    cost = cost_along(cells, axis)
    if stop - start < 2 or not cost(start, stop):
        return ()

    def each(place: int) -> Tuple[float, float]:
        return cost(start, place) / numbers[0], cost(place, stop) / numbers[1]

    # What the first side costs grows with the place, and what the second one does falls: best is where they cross.
    low, high = start + 1, stop - 1
    while low < high:
        middle = (low + high) // 2
        first, second = each(middle)
        if first >= second:
            high = middle
        else:
            low = middle + 1
    cuts = []
    for place in (low - 1, low):
        if place > start:
            first, second = each(place)
            order = (max(first, second), first * numbers[0] + second * numbers[1], start - stop)
            cuts.append(_Cut(order, (between(cells, axis, start, place), between(cells, axis, place, stop))))
    return cuts
