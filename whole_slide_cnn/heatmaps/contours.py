"""Contours of a map of cells at a threshold, as polygons with holes, and as GeoJSON that QuPath imports."""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from whole_slide_cnn.heatmaps.cells import CellAxis, CellGrid

# Values are moved this far from the threshold. A contour then never runs through a cell's own position, where its lines
# could touch, and its points stay apart when they are rounded: every ring is simple.
_CLEARANCE = 1e-3
_DECIMALS = 3
_CLOSE = 0.1  # in cells: a line of cells this near to the edge of the slide gives way to the edge
_SNAP = 1e-4  # in positions: nearer to one than any crossing, so it is one
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
    rings = _rings(cleared, threshold)
    owner, areas = _areas(rings, reached)
    count = int(owner.max()) + 1
    mean = np.bincount(areas[reached], on_lines[reached], count) / np.bincount(areas[reached], minlength=count)
    maximum = ndimage.maximum(on_lines, areas, np.arange(count))
    parts: List[List[np.ndarray]] = [[] for _ in range(count)]
    for ring, index in zip(rings, owner):
        x, y = (np.interp(ring[:, axis], np.arange(len(lines)), lines) for axis, lines in ((0, columns), (1, rows)))
        parts[index].append(_closed(np.stack([x, y], axis=1)))
    return [
        # the outer ring has the only positive area; a rounded mean may exceed the maximum
        Polygon(tuple(sorted(part, key=signed_area, reverse=True)), min(float(average), float(most)), float(most))
        for part, average, most in zip(parts, mean, maximum)
    ]


def feature(polygon: Polygon, name: str, index: int) -> Dict[str, Any]:
    """A polygon as a GeoJSON feature: for QuPath, an annotation of class ``name`` with its measurements.

    Args:
        index: position of the class, which decides its colour.
    """
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
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


def _rings(values: np.ndarray, threshold: float) -> List[np.ndarray]:
    """Rings (points, 2) around everything above a threshold, those of holes clockwise; in columns and rows."""
    figure = Figure()
    FigureCanvasAgg(figure)
    filled = figure.add_subplot(1, 1, 1).contourf(values, levels=[threshold, _ABOVE_ALL])
    rings: List[np.ndarray] = []
    for points, codes in zip(filled.allsegs[0], filled.allkinds[0]):
        points = np.asarray(points, np.float64)
        whole = np.round(points)
        points = np.where(np.abs(points - whole) < _SNAP, whole, points)
        rings += np.split(points, np.flatnonzero(np.asarray(codes) == Path.MOVETO)[1:])
    return rings


def _areas(rings: Sequence[np.ndarray], reached: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Which area each ring bounds, and which area each position belongs to (-1: none), in time linear in their number.

    Every point of a ring lies on a line between two neighbouring positions of which one is reached, and that one
    belongs to the ring's area. Rings and groups of neighbours that are linked so make an area.
    """
    groups, count = ndimage.label(reached)
    points = np.concatenate(rings)
    columns, rows = points.T
    beside = np.maximum(
        groups[np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)],
        groups[np.ceil(rows).astype(np.int64), np.ceil(columns).astype(np.int64)],
    )
    ring = np.repeat(np.arange(len(rings)), [len(part) for part in rings])
    links = sparse.coo_matrix((np.ones(len(ring), bool), (ring, len(rings) + beside - 1)), (len(rings) + count,) * 2)
    _, area = csgraph.connected_components(links, directed=False)
    return area[: len(rings)], np.concatenate([[-1], area[len(rings) :]])[groups]


def _closed(points: np.ndarray) -> np.ndarray:
    """A ring rounded, without repeated points but for the last, which is the first."""
    points = np.round(points, _DECIMALS) + 0.0  # no negative zeros
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    return np.concatenate([points, points[:1]])
