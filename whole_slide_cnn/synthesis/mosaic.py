"""Photographs laid over a region at random places and angles, blended where they meet."""

from typing import NamedTuple

import numpy as np

from whole_slide_cnn.sizes import Window
from whole_slide_cnn.synthesis.colour_matching import Colour, map_between, reachable
from whole_slide_cnn.synthesis.noise import SmoothNoise
from whole_slide_cnn.synthesis.photographs import Photograph

CELL = 8  # side in pixels of the cells whose centres must be covered
_COVER = 0.68  # share of a photograph's radius within which it counts as covering a cell
_SHARPNESS = 4  # squarings of the weight: the last of them makes the blended seam about 8 pixels wide
_WARP = 8  # most rows or columns by which a seam leaves its straight course
_MARGIN = 12  # pixels of a photograph's border that only the displacement of seams may reach
_WARP_WAVELENGTH = 24.0
_NEGLIGIBLE = 0.004  # share of all weights below which a photograph is not sampled at a pixel
_MEAN_JITTER = 3.0  # deviation of the mean of single photographs from the slide's staining, in grey levels
_DEVIATION_JITTER = 0.05  # the same of the deviation, relative


class Placement(NamedTuple):
    """A photograph on the slide.

    ``row`` and ``column`` are its centre in pixels of the slide, ``radius`` that of the disc it may fill, ``turn``
    the two rows of its rotation (or rotated reflection), ``colour`` the staining it gets.
    """

    photograph: Photograph
    row: float
    column: float
    radius: float
    turn: tuple
    colour: Colour


class Seams:
    """The displacement that keeps the seams between photographs from being straight."""

    def __init__(self, stream, size):
        self._noise = [SmoothNoise(stream, size, _WARP_WAVELENGTH) for _ in range(2)]

    def displaced(self, window):
        """Rows and columns of a window's pixels after displacement: two float32 (height, width)."""
        rows, columns = (np.clip(noise.window(window) * 3.5, -_WARP, _WARP) for noise in self._noise)
        rows += np.arange(window.top, window.bottom, dtype=np.float32)[:, None]
        columns += np.arange(window.left, window.right, dtype=np.float32)
        return rows, columns


def place(stream, cells, photographs, load, colour):
    """Place random photographs until every wanted cell is covered.

    Args:
        stream: RandomState.
        cells: bool array, the cells of ``CELL`` pixels to cover.
        photographs: the Photographs to draw from.
        load: function from a Photograph to its pixels and their Colour.
        colour: Colour of the slide, which each photograph gets with a little jitter.

    Returns:
        list of Placement.
    """
    open_cells = cells.copy()
    wanted = np.argwhere(cells)
    placements = []
    for row, column in wanted[stream.permutation(len(wanted))]:
        if not open_cells[row, column]:
            continue
        photograph = photographs[stream.randint(len(photographs))]
        radius = min(load(photograph)[0].shape[:2]) / 2.0 - 1 - _MARGIN
        centre = (np.array([row, column]) + stream.uniform(0, 1, 2)) * CELL
        placements.append(Placement(photograph, centre[0], centre[1], radius, _turn(stream), _jitter(stream, colour)))
        _cover(open_cells, centre / CELL, _COVER * radius / CELL)
    return placements


def _turn(stream):
    angle, mirror = stream.uniform(0, 2 * np.pi), stream.choice([-1.0, 1.0])
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return (cosine, -sine), (np.float32(mirror) * sine, np.float32(mirror) * cosine)


def _jitter(stream, colour):
    mean = colour.mean + stream.normal(0, _MEAN_JITTER, 3)
    scale = 1 + stream.normal(0, _DEVIATION_JITTER, 3)
    return reachable(Colour(mean, colour.covariance * np.outer(scale, scale)))


def _cover(open_cells, centre, radius):
    top, left = (max(0, int(c - radius)) for c in centre)
    part = open_cells[top : int(centre[0] + radius) + 2, left : int(centre[1] + radius) + 2]
    rows = (np.arange(part.shape[0]) + top + 0.5 - centre[0])[:, None]
    columns = np.arange(part.shape[1]) + left + 0.5 - centre[1]
    part &= rows * rows + columns * columns > radius * radius


def render(placements, window, displaced, load, colour):
    """The blended photographs in a window.

    At each pixel the photograph whose centre is nearest has nearly all weight, and near a seam the two share it.
    Deviations from the slide's mean are summed and divided by the root of the summed squares of the weights,
    because a plain average of unrelated textures would be flatter at the seams.

    Args:
        placements: list of Placement.
        window: Window of the slide.
        displaced: rows and columns of its pixels from ``Seams.displaced``.
        load: function from a Photograph to its pixels and their Colour.
        colour: Colour of the slide.

    Returns:
        float32 (height, width, 3); the mean of the colour where no photograph lies.
    """
    total = np.zeros(window.size, np.float32)
    parts = []
    for placement in placements:
        part = _reached(placement, window)
        if part.height and part.width:
            weight = _weights(placement, part, window, displaced)
            _crop(total, part, window)[...] += weight
            parts.append((placement, part, weight))
    mean = colour.mean.astype(np.float32)
    deviations = np.zeros((window.height * window.width, 3), np.float32)
    squares = np.zeros(window.height * window.width, np.float32)
    for placement, part, weight in parts:
        rows, columns = np.nonzero(weight > _NEGLIGIBLE * _crop(total, part, window))
        if not len(rows):
            continue
        pixels, own_colour = load(placement.photograph)
        values = _sample(pixels, placement, rows + part.top, columns + part.left)
        values = map_between(own_colour, placement.colour).apply(values)
        weight = weight[rows, columns]
        flat = (rows + (part.top - window.top)) * window.width + columns + (part.left - window.left)
        deviations[flat] += weight[:, None] * (values - mean)
        squares[flat] += weight * weight
    squares[squares == 0] = 1
    return (mean + deviations / np.sqrt(squares)[:, None]).reshape(window.height, window.width, 3)


def _reached(placement, window):
    """The part of a window a photograph may reach."""
    reach = placement.radius + _MARGIN
    return Window.from_bounds(
        int(np.floor(placement.row - reach)),
        int(np.floor(placement.column - reach)),
        int(np.ceil(placement.row + reach)) + 1,
        int(np.ceil(placement.column + reach)) + 1,
    ).intersect(window)


def _crop(values, part, window):
    top, left = part.top - window.top, part.left - window.left
    return values[top : top + part.height, left : left + part.width]


def _weights(placement, part, window, displaced):
    """(1 - squared distance / squared radius) to a high power, which needs no exponential: one result everywhere."""
    rows, columns = (_crop(values, part, window) for values in displaced)
    rows, columns = rows - np.float32(placement.row), columns - np.float32(placement.column)
    weight = np.maximum(1 - (rows * rows + columns * columns) / np.float32(placement.radius**2), 0)
    for _ in range(_SHARPNESS):
        weight *= weight
    return weight


def _sample(pixels, placement, rows, columns):
    """Bilinear values (count, 3) of a photograph turned about its centre, at pixels of the slide."""
    height, width = pixels.shape[:2]
    y, x = rows - np.float32(placement.row), columns - np.float32(placement.column)
    (a, b), (c, d) = placement.turn
    source_row = np.clip(a * y + b * x + np.float32((height - 1) / 2.0), 0, height - 1.001).astype(np.float32)
    source_column = np.clip(c * y + d * x + np.float32((width - 1) / 2.0), 0, width - 1.001).astype(np.float32)
    top, left = source_row.astype(np.int64), source_column.astype(np.int64)
    down, right = (source_row - top).astype(np.float32)[:, None], (source_column - left).astype(np.float32)[:, None]
    flat, index = pixels.reshape(-1, 3), top * width + left
    upper = flat[index] * (1 - right) + flat[index + 1] * right
    lower = flat[index + width] * (1 - right) + flat[index + width + 1] * right
    return upper * (1 - down) + lower * down
