"""Heat maps lie on the slide: a known square is found where it is, to one cell, in every file."""

import json
import os
import warnings
from typing import NamedTuple, Tuple

import numpy as np
import pytest
from matplotlib.path import Path
from PIL import Image
from scipy.spatial import cKDTree

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.heatmaps import drawing, files, masks
from whole_slide_cnn.heatmaps.cells import CellAxis, CellGrid, grid_of
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.geometry import Range
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import open_canvas
from whole_slide_cnn.slides.pyramid import write_pyramid
from whole_slide_cnn.slides.reader import open_slide
from whole_slide_cnn.slides.settings import SlideSettings

BLUE, PINK = (40, 40, 160), (225, 170, 195)


class Case(NamedTuple):
    """A slide with a dark square in it, on a canvas. Sizes are height, width; the square is in level-0 pixels."""

    slide: Tuple[int, int]
    slide_mpp: float
    mpp: float
    canvas: Tuple[int, int]
    square: Tuple[int, int, int, int]  # top, left, bottom, right
    backbone: str = "tiny"


CASES = {
    "smaller than the canvas": Case((1101, 803), 1.0, 1.0, (1300, 1311), (300, 200, 620, 570)),
    "larger than the canvas": Case((1100, 1401), 1.0, 1.0, (640, 735), (380, 500, 700, 850)),
    "larger in one direction": Case((1300, 501), 1.0, 1.0, (800, 800), (500, 100, 800, 400)),
    "finer than the canvas": Case((1501, 1203), 0.5, 1.37, (800, 900), (600, 300, 1100, 800), "fixup_resnet50"),
    "coarser than the canvas": Case((401, 333), 1.0, 0.5, (900, 901), (100, 60, 260, 200), "resnet18"),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def drawn(request, tmp_path_factory):
    """A slide, a map that marks the cells in whose middle the canvas is dark, and the files made from it."""
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("heatmaps")
    image = np.full(case.slide + (3,), 255, np.uint8)
    image[30:-30, 20:-20] = PINK
    top, left, bottom, right = case.square
    image[top:bottom, left:right] = BLUE
    write_pyramid(str(folder / "slide.tiff"), image, case.slide_mpp)
    network = Network(case.backbone, "gmp", "softmax", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of slides that are cropped
        canvas = open_canvas(str(folder / "slide.tiff"), case.canvas, SlideSettings(mpp=case.mpp), "slide")
    with canvas:
        probabilities = marked_cells(network, canvas)
        files.write_heatmap(str(folder / "out"), canvas, probabilities, settings(network))
        yield case, folder, grid_of(network.trunk, canvas), probabilities


def settings(network, drawn=(1,), threshold=0.5):
    return files.HeatmapSettings(network, ("normal", "tu/mor $"), drawn, threshold, {"checkpoint": "none"})


def marked_cells(network, canvas):
    """0.95 where the canvas is dark amid the receptive field, 0.05 elsewhere; read from the canvas pixel by pixel."""
    fields = network.receptive_field(canvas.size)
    cells = geometry.cells_of(network.trunk, canvas.size)
    middles = [
        [int(np.clip(sum(field.of(Range(i, i + 1))) // 2, 0, side - 1)) for i in range(count)]
        for field, side, count in zip(fields, canvas.size, cells)
    ]
    pixels = canvas.read(Window(0, 0, *canvas.size))[np.ix_(*middles)]
    marked = np.where(pixels[..., 0] < 100, 0.95, 0.05)
    return np.stack([1 - marked, marked], axis=-1).astype(np.float32)


def extent(mask):
    """First and last row and column, as edges: top, left, bottom, right."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], float)


def values_of(colours):
    """Probabilities from colours: the nearest of the colour table."""
    _, nearest = cKDTree(drawing.colour_table().astype(float)).query(colours.reshape(-1, 3))
    return nearest.reshape(colours.shape[:2]) / 255.0


def assert_within_a_cell(found, case, grid):
    cell = np.array([grid.rows.step, grid.columns.step] * 2)
    error = np.abs(found - np.array(case.square, float))
    assert (error <= cell).all(), (found, case.square, cell)


def test_numbers(drawn):
    case, folder, grid, probabilities = drawn
    stored = np.load(str(folder / "out" / "map.npy"))
    assert stored.dtype == np.float32 and stored.shape == grid.cells + (2,)
    np.testing.assert_array_equal(stored, probabilities)
    described = read_json(folder / "out" / "map.json")
    first, step = described["first_cell_centre_level0"], described["cell_step_level0"]
    np.testing.assert_allclose(step, [32 * case.mpp / case.slide_mpp] * 2, rtol=5e-3)
    rows, columns = (
        np.flatnonzero((stored[..., 1] > 0.5).any(axis=axis)) * step[i] + first[i] for i, axis in ((0, 1), (1, 0))
    )
    half = np.array(step) / 2
    assert_within_a_cell(
        np.array([rows[0] - half[0], columns[0] - half[1], rows[-1] + half[0], columns[-1] + half[1]]), case, grid
    )
    assert described["classes"] == ["normal", "tu/mor $"] and described["activation"] == "softmax"
    assert described["level0_size"] == list(case.slide) and described["origin"] == {"checkpoint": "none"}
    assert {entry["name"] for entry in described["files"]} | {"map.json"} == set(os.listdir(str(folder / "out")))


def test_overlay(drawn):
    case, folder, grid, _ = drawn
    (entry,) = [e for e in read_json(folder / "out" / "map.json")["files"] if e["name"].startswith("overlay")]
    with Image.open(str(folder / "out" / entry["name"])) as image:
        height, width = entry["size"]
        assert image.width > width and image.height >= height  # the colour bar stands to the right
        overlay = np.asarray(image.convert("RGB"))[:height, :width].astype(float)
    with open_slide(str(folder / "slide.tiff")) as slide:
        original = slide.read_level(0, Window(0, 0, *slide.level_sizes[0])).astype(float)
    assert original.shape == overlay.shape  # so small a slide is shown in full
    heat = values_of((overlay - (1 - drawing.OPACITY) * original) / drawing.OPACITY)
    shown = slice_of(grid)
    assert_within_a_cell(extent(heat[shown] > 0.5) + offset_of(grid), case, grid)
    hidden = np.ones(heat.shape, bool)
    hidden[shown] = False
    np.testing.assert_array_equal(overlay[hidden], original[hidden])


def slice_of(grid):
    """Level-0 pixels whose centre the canvas shows."""
    return tuple(
        slice(int(np.ceil(axis.start - 0.5)), int(np.ceil(axis.stop - 0.5))) for axis in (grid.rows, grid.columns)
    )


def offset_of(grid):
    rows, columns = slice_of(grid)
    return np.array([rows.start, columns.start] * 2)


def test_pyramid(drawn):
    case, folder, grid, _ = drawn
    (entry,) = [e for e in read_json(folder / "out" / "map.json")["files"] if e["name"].endswith(".tiff")]
    downsample = entry["level0_pixels_per_pixel"][0]
    with open_slide(str(folder / "out" / entry["name"]), reader="openslide") as tiff:
        size = tiff.level_sizes[0]
        np.testing.assert_allclose(tiff.mpp, [case.slide_mpp * downsample] * 2, rtol=1e-6)
        image = tiff.read_level(0, Window(0, 0, *size))
    # the same area in micrometres, but for less than a pixel
    assert all(0 <= n * downsample - full < downsample for n, full in zip(size, case.slide))
    assert downsample <= grid.rows.step / 4 + 1
    shown = (image != 255).any(axis=2)
    heat = np.where(shown, values_of(image), 0.0)
    assert_within_a_cell(extent(heat > 0.5) * downsample, case, grid)
    covered = extent(shown) * downsample
    expected = [grid.rows.start, grid.columns.start, grid.rows.stop, grid.columns.stop]
    assert np.abs(covered - expected).max() <= downsample


def test_contours(drawn):
    case, folder, grid, _ = drawn
    collection = read_json(folder / "out" / "contours.geojson")
    assert collection["type"] == "FeatureCollection"
    (found,) = collection["features"]
    assert found["properties"]["classification"]["name"] == "tu/mor $"
    (ring,) = map(np.array, found["geometry"]["coordinates"])
    low, high = ring.min(axis=0), ring.max(axis=0)
    assert_within_a_cell(np.array([low[1], low[0], high[1], high[0]]), case, grid)
    top, left, bottom, right = case.square
    assert Path(ring).contains_point(((left + right) / 2, (top + bottom) / 2))
    measured = {item["name"]: item["value"] for item in found["properties"]["measurements"]}
    assert measured["Mean probability"] == pytest.approx(0.95, abs=1e-6)


def test_a_linear_map_stays_linear():
    """Interpolation puts every value where it belongs: a ramp comes out as the same ramp."""
    rows, columns = CellAxis(20, 7.5, 32.0, 0.0, 640.0), CellAxis(25, -3.0, 32.0, 0.0, 780.0)
    grid = CellGrid(rows, columns, Size(640, 780))
    values = (rows.centres()[:, None] + 2 * columns.centres()) / 3000
    image = grid.resample(values, Size(160, 195), (4.0, 4.0))
    y, x = np.meshgrid(np.arange(160) * 4 + 2, np.arange(195) * 4 + 2, indexing="ij")
    inside = (slice(20, 130), slice(20, 170))
    np.testing.assert_allclose(image[inside], ((y + 2 * x) / 3000)[inside], atol=2e-4)
    assert image.dtype == np.float32 and values.min() - 1e-6 <= image.min() and image.max() <= values.max() + 1e-6


def test_colours_have_one_scale_whatever_the_slide():
    """A map of low values is not stretched to bright ones."""
    table = drawing.colour_table()
    np.testing.assert_array_equal(drawing.colour_of(np.array([0.0, 1.0])), table[[0, 255]])
    grid = CellGrid(CellAxis(5, 16.0, 32.0, 0.0, 160.0), CellAxis(5, 16.0, 32.0, 0.0, 160.0), Size(160, 160))
    low = np.random.RandomState(0).rand(5, 5) * 0.1
    assert values_of(drawing.pyramid_image(grid, low, 8)).max() <= 0.11
    assert len(np.unique(table, axis=0)) == 256  # so that a colour says which value it stands for


def test_probabilities_by_activation():
    logits = np.array([[[1.0, 2.0], [1000.0, -1000.0]]])
    soft, sigmoid = (files.cell_probabilities(logits, name) for name in ("softmax", "sigmoid"))
    assert soft.dtype == sigmoid.dtype == np.float32 and soft.shape == logits.shape
    np.testing.assert_allclose(soft[0], [[1 / (1 + np.e), np.e / (1 + np.e)], [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(sigmoid[0, 0], 1 / (1 + np.exp([-1.0, -2.0])), rtol=1e-6)
    np.testing.assert_array_equal(sigmoid[0, 1], [1, 0])


def test_file_stems_are_safe_and_differ():
    stems = files.file_stems(["a", "A", "a/b", "a b", "../x", ".", "größe"])
    assert stems == ("a", "A-2", "a_b", "a_b-2", "_x", "_", "größe")


def test_a_slide_of_unknown_resolution_still_gets_its_files(tmp_path):
    write_pyramid(str(tmp_path / "slide.tiff"), np.full((300, 310, 3), 200, np.uint8), None)
    network = Network("tiny", "gmp", "sigmoid", 2)
    with open_canvas(str(tmp_path / "slide.tiff"), (320, 320), SlideSettings(ratio=1.0)) as canvas:
        files.write_heatmap(str(tmp_path), canvas, np.zeros((10, 10, 2), np.float32), settings(network, (0, 1)))
    assert read_json(tmp_path / "map.json")["level0_mpp"] is None
    assert read_json(tmp_path / "contours.geojson")["features"] == []
    with open_slide(str(tmp_path / "heatmap-normal.tiff")) as tiff:
        assert tiff.mpp is None


def test_masks(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:45] = 255
    Image.fromarray(mask).save(str(tmp_path / "mask.png"))
    found = masks.read_mask(str(tmp_path / "mask.png"), Size(80, 120))
    np.testing.assert_array_equal(found, np.kron(mask > 0, np.ones((2, 2), bool)))
    with pytest.raises(WholeSlideError, match="which is not the shape of its slide"):
        masks.read_mask(str(tmp_path / "mask.png"), Size(80, 80))
    (tmp_path / "mask.png").write_text("no image")
    with pytest.raises(WholeSlideError, match="cannot be read"):
        masks.read_mask(str(tmp_path / "mask.png"), Size(80, 120))


def read_json(path):
    with open(str(path), encoding="utf-8") as stream:
        return json.load(stream)
