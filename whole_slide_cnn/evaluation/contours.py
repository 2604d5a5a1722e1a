"""Contours of a map of cells at a threshold, as polygons with holes, and as GeoJSON that QuPath imports."""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path

from whole_slide_cnn.evaluation.cell_grid import CellAxis, CellGrid

# Values are moved this far from the threshold. A contour then never runs through a cell's own position, where its lines
# could touch, and its points stay apart when they are rounded: every ring is simple.
_CLEARANCE = 1e-3
_DECIMALS = 3
_CLOSE = 0.1  # in cells: a line of cells this near to the edge of the slide gives way to the edge
_ABOVE_ALL = 2.0


class Polygon(NamedTuple):
    """An area where values reach a threshold.

    Attributes:
        rings: closed rings (points, 2) of ``x, y`` in level-0 pixels, the first point repeated at the end: the outer
            one, which turns counterclockwise in these numbers, then the holes, which turn clockwise (RFC 7946).
        mean: of the values of the cells in it.
        maximum: of these values.
    """

    rings: Tuple[np.ndarray, ...]
    mean: float
    maximum: float

    @property
    def area(self) -> float:
        """Area in level-0 pixels, holes left out."""
        return sum(map(signed_area, self.rings))


def polygons_above(values: np.ndarray, grid: CellGrid, threshold: float) -> List[Polygon]:
    """Areas where the values of cells, linear in between, reach a threshold; cut to the slide and to the canvas.

    Args:
        values: (cells high, cells wide), at most 1.
        threshold: above 0 and below 1.
    """
    rows, columns = _lines(grid.rows), _lines(grid.columns)
    on_lines = _interpolate(_interpolate(values, grid.rows, rows).T, grid.columns, columns).T
    reached = on_lines >= threshold
    if not reached.any():
        return []
    cleared = np.where(
        reached, np.maximum(on_lines, threshold + _CLEARANCE), np.minimum(on_lines, threshold - _CLEARANCE)
    )
    rings = _rings(columns, rows, cleared, threshold)
    outer = [ring for ring in rings if signed_area(ring) > 0]
    holes: List[List[np.ndarray]] = [[] for _ in outer]
    for ring in rings:
        if signed_area(ring) < 0:
            holes[_smallest_around(ring, outer)].append(ring)
    return [_measured((ring,) + tuple(inner), rows, columns, on_lines) for ring, inner in zip(outer, holes)]


def feature(polygon: Polygon, name: str, index: int) -> Dict[str, Any]:
    """A polygon as a GeoJSON feature: for QuPath, an annotation of class ``name`` with its measurements.

    Args:
        index: position of the class, which decides its colour.
    """
    colours = colormaps["tab10"].colors
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in polygon.rings]},
        "properties": {
            "objectType": "annotation",
            "classification": {
                "name": name,
                "color": [int(round(255 * part)) for part in colours[index % len(colours)]],
            },
            # a list of pairs is what all versions of QuPath read, an object only later ones
            "measurements": [
                {"name": "Mean probability", "value": polygon.mean},
                {"name": "Maximum probability", "value": polygon.maximum},
                {"name": "Area px^2", "value": round(polygon.area, _DECIMALS)},
            ],
        },
    }


def signed_area(ring: np.ndarray) -> float:
    """Area of a closed ring (points, 2) of ``x, y``; negative where it turns clockwise."""
    x, y = (ring - ring[0]).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _lines(axis: CellAxis) -> np.ndarray:
    """Positions at which values are needed: both edges, and the cells in between."""
    centres = axis.centres()
    gap = _CLOSE * axis.step
    inside = centres[(centres > axis.start + gap) & (centres < axis.stop - gap)]
    return np.concatenate([[axis.start], inside, [axis.stop]])


def _interpolate(values: np.ndarray, axis: CellAxis, positions: np.ndarray) -> np.ndarray:
    """Values along the first axis at some positions: linear, and constant beyond the outermost cells."""
    at = np.clip(axis.in_cells(positions), 0, axis.cells - 1)
    lower = np.minimum(at.astype(np.int64), max(axis.cells - 2, 0))
    upper = np.minimum(lower + 1, axis.cells - 1)
    weight = (at - lower)[:, np.newaxis]
    return values[lower] * (1 - weight) + values[upper] * weight


def _rings(x: np.ndarray, y: np.ndarray, values: np.ndarray, threshold: float) -> List[np.ndarray]:
    """Closed rings around everything above a threshold, those of holes clockwise."""
    figure = Figure()
    FigureCanvasAgg(figure)
    filled = figure.add_subplot(1, 1, 1).contourf(x, y, values, levels=[threshold, _ABOVE_ALL])
    rings = []
    for points, codes in zip(filled.allsegs[0], filled.allkinds[0]):
        starts = np.flatnonzero(np.asarray(codes) == Path.MOVETO)
        rings += [_closed(part) for part in np.split(np.asarray(points, np.float64), starts[1:])]
    return [ring for ring in rings if len(ring) > 3]


def _closed(points: np.ndarray) -> np.ndarray:
    """A ring rounded, without repeated points but for the last, which is the first."""
    points = np.round(points, _DECIMALS) + 0.0  # no negative zeros
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    return np.concatenate([points, points[:1]])


def _smallest_around(hole: np.ndarray, rings: Sequence[np.ndarray]) -> int:
    """Which ring a hole belongs to."""
    low, high = hole.min(axis=0), hole.max(axis=0)
    around = [
        (signed_area(ring), index)
        for index, ring in enumerate(rings)
        if (ring.min(axis=0) <= low).all() and (ring.max(axis=0) >= high).all() and Path(ring).contains_point(hole[0])
    ]
    return min(around)[1]


def _measured(rings: Tuple[np.ndarray, ...], rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Polygon:
    """A polygon with mean and maximum of the values in it."""
    (left, top), (right, bottom) = rings[0].min(axis=0), rings[0].max(axis=0)
    in_rows = slice(*np.searchsorted(rows, (top, bottom)) + (0, 1))
    in_columns = slice(*np.searchsorted(columns, (left, right)) + (0, 1))
    y, x = np.meshgrid(rows[in_rows], columns[in_columns], indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    # a little wider, so that points on the edge of the slide belong to it
    inside = Path(rings[0]).contains_points(points, radius=10.0**-_DECIMALS)
    for hole in rings[1:]:
        inside &= ~Path(hole).contains_points(points)
    found = values[in_rows, in_columns].ravel()[inside]
    maximum = float(found.max())
    return Polygon(rings, min(float(found.mean()), maximum), maximum)  # a rounded mean may exceed what it is of
