"""Where the tissue of a synthetic slide lies, and where in it the lesion."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.sizes import Window
from whole_slide_cnn.synthesis.noise import fractal_noise

GRID_SIDE = 512  # longest side of the grid on which outlines are drawn
_PATH_SIDE = 128  # side of the coarser grid on which a lesion grows
_NARROWEST = 3  # bays of up to twice as many grid pixels are closed
_ATTEMPTS = 8  # to meet the tissue area, which jumps where two parts join
_AREA_TOLERANCE = 0.005
_OUTSIDE_COST = 12.0  # of growing through a pixel without tissue, relative to one with tissue


@dataclass(frozen=True)
class Layout:
    """Tissue and lesion as bool arrays (side, side) on a grid that covers the slide."""

    tissue: np.ndarray
    lesion: np.ndarray


def draw_layout(stream, size, tissue_share, lesion_share):
    """Draw one connected region of tissue without holes, and in it one connected region of lesion.

    Args:
        stream: RandomState.
        size: side of the slide in pixels; the grid has that side or 512, whichever is less.
        tissue_share: wanted tissue area relative to the slide; met to a hundredth unless two parts join just there.
        lesion_share: lesion area relative to the tissue; met to one pixel of the grid.
    """
    side = min(size, GRID_SIDE)
    tissue = _draw_tissue(stream, side, tissue_share)
    return Layout(tissue, _draw_lesion(stream, tissue, lesion_share))


def magnify(values, size, window):
    """Values of a grid (side, side) at the pixels of a window of the slide it covers: float32, bilinear."""
    rows, row_next, row_weight = _bilinear(len(values), size, window.top, window.height)
    columns, column_next, column_weight = _bilinear(len(values), size, window.left, window.width)
    values = values.astype(np.float32)
    lines = values[rows] * (1 - row_weight)[:, None] + values[row_next] * row_weight[:, None]
    return lines[:, columns] * (1 - column_weight) + lines[:, column_next] * column_weight


def _bilinear(side, size, start, count):
    position = np.clip((np.arange(start, start + count) + 0.5) * side / size - 0.5, 0, side - 1)
    index = position.astype(np.int64)
    return index, np.minimum(index + 1, side - 1), (position - index).astype(np.float32)


def _draw_tissue(stream, side, share):
    window = Window(0, 0, side, side)
    across = (np.arange(side) + 0.5) / side * 2 - 1
    centre = stream.uniform(-0.12, 0.12, 2)
    stretch = 2.0 ** stream.uniform(-0.3, 0.3)
    distance = ((across[:, None] - centre[0]) * stretch) ** 2 + ((across[None, :] - centre[1]) / stretch) ** 2
    border = np.maximum(np.abs(across)[:, None], np.abs(across)[None, :]) ** 16
    field = 0.3 * fractal_noise(stream, window, side / 3.0, 6, 0.55) - distance - 3 * border
    low, high = 0.0, 1.0
    aim, best = share, None
    for _ in range(_ATTEMPTS):  # dropping islets and closing bays changes the area: aim again
        tissue = _largest_part(field >= _upper_quantile(field, max(1, int(aim * side * side))))
        # Closed first: the soft edge would turn a bay with a narrow mouth into a white hole.
        tissue = ndimage.binary_fill_holes(tissue | ndimage.binary_closing(tissue, iterations=_NARROWEST))
        actual = tissue.mean()
        if best is None or abs(actual - share) < abs(best.mean() - share):
            best = tissue
        if abs(actual - share) < _AREA_TOLERANCE:
            break
        low, high = (aim, high) if actual < share else (low, aim)
        aim = aim + share - actual
        if not low < aim < high:
            aim = (low + high) / 2
    return best


def _upper_quantile(field, count):
    """The value that ``count`` values of the field reach."""
    return np.partition(field, -count, axis=None)[-count]


def _largest_part(mask):
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _draw_lesion(stream, tissue, share):
    """The pixels that growth through the tissue from a random one reaches first: connected at any share."""
    side = len(tissue)
    count = int(round(share * tissue.sum()))
    if count < 1:
        raise WholeSlideError(
            "a lesion of {} of the tissue has no pixel; make the lesion or the slide larger".format(share)
        )
    arrival = magnify(_arrival_times(stream, tissue), side, Window(0, 0, side, side))
    arrival += 2.0 * fractal_noise(stream, Window(0, 0, side, side), max(8.0, side / 24.0), 4)
    allowed = tissue.copy()
    while True:
        lesion = allowed & (arrival <= np.partition(arrival[allowed], count - 1)[count - 1])
        main = _largest_part(lesion)
        if main.sum() == lesion.sum():
            return lesion
        allowed &= main | ~lesion  # islets of the roughened front may not be lesion: the front moves on instead
        if allowed.sum() < count:
            return main


def _arrival_times(stream, tissue):
    """Arrival times of a front on a coarse grid, in cells: float64 (cells, cells)."""
    cells = min(len(tissue), _PATH_SIDE)
    inside = magnify(tissue, cells, Window(0, 0, cells, cells)) >= 0.5
    starts = np.flatnonzero(inside if inside.any() else np.ones_like(inside))
    start = starts[stream.randint(len(starts))]
    slowness = np.exp2(1.3 * fractal_noise(stream, Window(0, 0, cells, cells), cells / 6.0, 3).astype(np.float64))
    slowness = slowness * np.where(inside, 1.0, _OUTSIDE_COST)
    node = np.arange(cells * cells).reshape(cells, cells)
    pairs = [
        (node[:-1], node[1:], 1.0),
        (node[:, :-1], node[:, 1:], 1.0),
        (node[:-1, :-1], node[1:, 1:], np.sqrt(2)),
        (node[1:, :-1], node[:-1, 1:], np.sqrt(2)),
    ]
    tails = np.concatenate([tail.ravel() for tail, _, _ in pairs])
    heads = np.concatenate([head.ravel() for _, head, _ in pairs])
    lengths = np.concatenate([np.full(tail.size, length) for tail, _, length in pairs])
    costs = lengths * (slowness.ravel()[tails] + slowness.ravel()[heads]) / 2
    graph = sparse.csr_matrix((costs, (tails, heads)), shape=(node.size, node.size))
    return csgraph.dijkstra(graph, directed=False, indices=start).reshape(cells, cells)
