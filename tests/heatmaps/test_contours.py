"""Contours: closed, simple, correctly turning rings around exactly the cells that reach the threshold."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path

from whole_slide_cnn.heatmaps.cells import CellAxis, CellGrid
from whole_slide_cnn.heatmaps.contours import feature, polygons_above, signed_area
from whole_slide_cnn.sizes import Size


def grid_of(height, width, first=16.0, step=32.0):
    """Cells over all of a slide."""
    rows, columns = (CellAxis(n, first, step, 0.0, n * step) for n in (height, width))
    return CellGrid(rows, columns, Size(int(height * step), int(width * step)))


def segments_cross(ring):
    """Whether two segments of a ring share a point other than that of neighbours."""
    starts, stops = ring[:-1], ring[1:]
    one, other = np.triu_indices(len(starts), 2)
    apart = ~((one == 0) & (other == len(starts) - 1))
    a, b, c, d = starts[one[apart]], stops[one[apart]], starts[other[apart]], stops[other[apart]]
    crossing = (_turn(a, b, c) * _turn(a, b, d) <= 0) & (_turn(c, d, a) * _turn(c, d, b) <= 0)
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    return bool((crossing & (low <= high).all(axis=1)).any())


def _turn(a, b, c):
    (x, y), (u, v) = (b - a).T, (c - a).T
    return np.sign(x * v - y * u)


def inside(polygon, points):
    """Whether points lie in a polygon and in none of its holes."""
    found = Path(polygon.rings[0]).contains_points(points)
    for hole in polygon.rings[1:]:
        found &= ~Path(hole).contains_points(points)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**31),
    st.sampled_from([0.1, 0.5, 0.75]),
    st.booleans(),
)
def test_rings_are_simple_and_hold_exactly_the_cells_above(height, width, seed, threshold, coarse):
    random = np.random.RandomState(seed)
    # coarse values meet the threshold exactly, and many saddles
    values = random.randint(0, 5, (height, width)) / 4.0 if coarse else random.rand(height, width)
    grid = grid_of(height, width)
    polygons = polygons_above(values, grid, threshold)
    y, x = np.meshgrid(grid.rows.centres(), grid.columns.centres(), indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    times = sum((inside(polygon, points).astype(int) for polygon in polygons), np.zeros(len(points), int))
    np.testing.assert_array_equal(times, (values >= threshold).ravel().astype(int))
    for polygon in polygons:
        for index, ring in enumerate(polygon.rings):
            assert (ring[0] == ring[-1]).all() and len(ring) >= 4
            assert (signed_area(ring) > 0) == (index == 0)
            assert not segments_cross(ring)
            assert ring.min() >= 0 and (ring.max(axis=0) <= (32 * width, 32 * height)).all()
            if index:
                assert Path(polygon.rings[0]).contains_points(ring).all()
        assert polygon.area > 0 and threshold - 1e-9 <= polygon.mean <= polygon.maximum <= 1


def test_a_square_with_a_hole_and_an_island():
    values = np.zeros((11, 11), np.float32)
    values[1:10, 1:10] = 0.9
    values[3:8, 3:8] = 0.1
    values[5, 5] = 1.0
    square, island = sorted(polygons_above(values, grid_of(11, 11), 0.5), key=lambda polygon: -polygon.area)
    assert [len(square.rings), len(island.rings)] == [2, 1]
    low, high = square.rings[0].min(axis=0), square.rings[0].max(axis=0)
    # between the cells at 16 (0) and at 48 (0.9) the line reaches 0.5 at 5/9 of the way
    np.testing.assert_allclose(low, 16 + 32 * 5 / 9, atol=1e-3)
    np.testing.assert_allclose(high, 32 * 11 - low, atol=1e-3)
    assert square.mean == pytest.approx(0.9, abs=1e-6) and square.maximum == pytest.approx(0.9, abs=1e-6)
    assert island.maximum == 1.0


def test_nothing_and_everything():
    grid = grid_of(4, 5)
    assert polygons_above(np.full((4, 5), 0.4), grid, 0.5) == []
    for value in (0.5, 1.0):
        (whole,) = polygons_above(np.full((4, 5), value), grid, 0.5)
        assert whole.area == 4 * 5 * 32**2 and whole.mean == value


def test_contours_are_cut_to_what_the_canvas_shows_of_the_slide():
    rows = CellAxis(10, -40.0, 32.0, 0.0, 200.0)
    columns = CellAxis(10, 100.0, 32.0, 84.0, 333.5)
    (whole,) = polygons_above(np.ones((10, 10)), CellGrid(rows, columns, Size(200, 600)), 0.5)
    np.testing.assert_array_equal(whole.rings[0].min(axis=0), [84.0, 0.0])
    np.testing.assert_array_equal(whole.rings[0].max(axis=0), [333.5, 200.0])


def test_a_feature_is_an_annotation_with_class_and_measurements():
    values = np.zeros((5, 5))
    values[2, 2] = 1.0
    (polygon,) = polygons_above(values, grid_of(5, 5), 0.5)
    entry = json.loads(json.dumps(feature(polygon, "tumor", 1), allow_nan=False))
    assert entry["type"] == "Feature" and entry["geometry"]["type"] == "Polygon"
    assert entry["geometry"]["coordinates"][0][0] == entry["geometry"]["coordinates"][0][-1]
    properties = entry["properties"]
    assert properties["objectType"] == "annotation" and properties["classification"]["name"] == "tumor"
    assert len(properties["classification"]["color"]) == 3
    measured = {item["name"]: item["value"] for item in properties["measurements"]}
    assert measured["Mean probability"] == measured["Maximum probability"] == 1.0
    assert math.isclose(measured["Area px^2"], polygon.area, abs_tol=1e-3)
