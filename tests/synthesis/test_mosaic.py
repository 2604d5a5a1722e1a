import numpy as np
import pytest
from scipy import ndimage

from whole_slide_cnn.sizes import Window
from whole_slide_cnn.synthesis.colour_matching import Colour, measure
from whole_slide_cnn.synthesis.mosaic import CELL, Seams, place, render
from whole_slide_cnn.synthesis.noise import random_stream
from whole_slide_cnn.synthesis.photographs import Photograph

PHOTOGRAPHS = [Photograph("normal", "s{}".format(k), "s{}_0".format(k)) for k in range(5)]
COLOUR = Colour(np.array([150.0, 120.0, 160.0]), np.diag([400.0, 300.0, 200.0]))
SIZE = 320


def _load(photograph):
    pixels = random_stream(photograph.name).randint(0, 256, (90, 110, 3)).astype(np.uint8)
    return pixels, measure(pixels.reshape(-1, 3))


@pytest.fixture(scope="module")
def placements():
    cells = np.ones((SIZE // CELL, SIZE // CELL), bool)
    return place(random_stream(0), cells, PHOTOGRAPHS, _load, COLOUR)


def test_every_wanted_cell_is_covered_at_random_angles_off_any_grid(placements):
    grid = (np.indices((SIZE // CELL, SIZE // CELL)) + 0.5) * CELL
    distance = np.min([np.hypot(grid[0] - p.row, grid[1] - p.column) / p.radius for p in placements], axis=0)
    assert distance.max() < 0.75
    assert len({round(float(p.turn[0][0]), 3) for p in placements}) > 0.9 * len(placements)
    for values in ([p.row for p in placements], [p.column for p in placements]):
        assert len(np.unique(np.mod(values, CELL).round(2))) > 0.8 * len(placements)


def test_cells_that_are_not_wanted_attract_no_photograph():
    cells = np.zeros((40, 40), bool)
    cells[5:10, 20:30] = True
    for placement in place(random_stream(1), cells, PHOTOGRAPHS, _load, COLOUR):
        assert 5 * CELL <= placement.row < 10 * CELL and 20 * CELL <= placement.column < 30 * CELL


def test_windows_equal_crops_of_the_whole(placements):
    seams = Seams(random_stream(2), SIZE)
    whole = Window(0, 0, SIZE, SIZE)
    image = render(placements, whole, seams.displaced(whole), _load, COLOUR)
    for window in (Window(0, 0, 64, 320), Window(100, 37, 131, 55), Window(319, 319, 1, 1)):
        part = render(placements, window, seams.displaced(window), _load, COLOUR)
        np.testing.assert_array_equal(part, image[window.top : window.bottom, window.left : window.right])


def test_seams_are_neither_flat_nor_visible_in_the_colour(placements):
    """Photographs of pure noise: blended by plain averages, seams would be visibly flatter than the rest."""
    seams = Seams(random_stream(2), SIZE)
    whole = Window(0, 0, SIZE, SIZE)
    image = render(placements, whole, seams.displaced(whole), _load, COLOUR).astype(np.float64)
    np.testing.assert_allclose(image.mean(axis=(0, 1)), COLOUR.mean, atol=4)
    local = np.sqrt(ndimage.uniform_filter((image[..., 0] - image[..., 0].mean()) ** 2, 15))
    assert np.percentile(local, 1) > 0.6 * np.median(local)


def test_one_photograph_is_laid_down_turned_and_unscaled():
    bright = np.full((99, 99, 3), 100, np.uint8)
    bright[49, 49:80] = 200  # a line from the centre to the right
    (placement,) = place(random_stream(3), np.ones((1, 1), bool), PHOTOGRAPHS[:1], lambda _: (bright, None), COLOUR)
    placement = placement._replace(row=60.0, column=60.0)
    colour = measure(bright.reshape(-1, 3))
    placement = placement._replace(colour=Colour(colour.mean, colour.covariance + np.eye(3)))
    window = Window(0, 0, 121, 121)
    still = np.meshgrid(np.arange(121.0, dtype=np.float32), np.arange(121.0, dtype=np.float32), indexing="ij")
    image = render([placement], window, still, lambda _: (bright, colour), placement.colour)[..., 0]
    (a, b), (c, d) = placement.turn
    rows, columns = np.nonzero(image > 150)
    along = c * (rows - 60.0) + d * (columns - 60.0)
    across = a * (rows - 60.0) + b * (columns - 60.0)
    assert np.abs(across).max() < 1.0
    assert -1.0 < along.min() < 1.0 and 28 < along.max() < 31
