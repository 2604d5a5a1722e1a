"""Heat maps as pictures: overlays on the slide, and colours of the whole slide for a pyramid.

Probabilities are shown on one scale from 0 to 1, on every slide alike (2021, Fig. 4; 2022, Methods).
"""

from typing import Iterator

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from whole_slide_cnn.evaluation.plots import DPI, plain
from whole_slide_cnn.files import replacing
from whole_slide_cnn.heatmaps.cells import CellGrid
from whole_slide_cnn.sizes import Size

COLOURS = "turbo"
OPACITY = 0.45
OVERLAY = Size(2048, 2048)

_PIXELS_PER_CELL = 4  # of the pyramid
_LARGEST_SIDE = 4096  # of the pyramid
_BYTES_PER_PIXEL = 20  # of a figure: resampled values twice, colours, and the levels below
_BAND_ROWS = 256
_BAR_INCHES = (1.3, 2.4)  # width and least height
_OUTSIDE = 255


def drawing_memory(cells: Size, overlay: Size) -> int:
    """Bytes that drawing takes, for a slide of about the size of its canvas.

    Args:
        cells: of the map.
        overlay: height and width within which an overlay shows the slide.
    """
    side = min(_LARGEST_SIDE, _PIXELS_PER_CELL * max(cells))
    return max(side**2, overlay.height * overlay.width) * _BYTES_PER_PIXEL


def heat_on(grid: CellGrid, values: np.ndarray, size: Size) -> np.ndarray:
    """The values of cells on an image of the whole slide: float32 of ``size``, nan beside the canvas."""
    return grid.resample(values, size, (grid.slide.height / size.height, grid.slide.width / size.width))


def overlay_image(small: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A translucent heat map on a thumbnail of the slide: uint8 (height, width, 3). Where there is no heat (nan), the
    thumbnail stays as it is."""
    image = small.copy()
    for rows in _bands(len(image)):
        shown = np.isfinite(heat[rows])
        blended = (1 - OPACITY) * image[rows][shown] + OPACITY * colour_of(heat[rows][shown])
        image[rows][shown] = np.floor(blended + 0.5).astype(np.uint8)
    return image


def pyramid_downsample(grid: CellGrid) -> int:
    """Level-0 pixels along either side of a pixel of the pyramid: some pixels a cell, but no side longer than 4,096."""
    by_cell = int(min(grid.rows.step, grid.columns.step) / _PIXELS_PER_CELL)
    return max(1, by_cell, -(-max(grid.slide) // _LARGEST_SIDE))


def pyramid_image(grid: CellGrid, values: np.ndarray, downsample: int) -> np.ndarray:
    """The heat map of the whole slide in colours: uint8 (height, width, 3), white beside the canvas.

    Its corner is the slide's; at the far edges it may reach beyond the slide by less than a pixel of its own.
    """
    size = Size(*(-(-side // downsample) for side in grid.slide))
    heat = grid.resample(values, size, (downsample, downsample))
    image = np.full(size + (3,), _OUTSIDE, np.uint8)
    for rows in _bands(len(image)):
        shown = np.isfinite(heat[rows])
        image[rows][shown] = colour_of(heat[rows][shown])
    return image


def colour_of(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3), uint8, of probabilities from 0 to 1."""
    return colour_table()[np.floor(255 * values + 0.5).astype(np.uint8)]


def colour_table() -> np.ndarray:
    """The 256 colours of probabilities 0, 1/255 to 1: uint8 (256, 3)."""
    return colormaps[COLOURS](np.arange(256), bytes=True)[:, :3]


def add_bar(image: np.ndarray, name: str) -> np.ndarray:
    """An image with a colour bar from 0 to 1 to its right; not a pixel of the image moves."""
    width, height = _BAR_INCHES
    figure = Figure(figsize=(width, max(height, min(image.shape[0], 1000) / DPI)), dpi=DPI)
    drawn = FigureCanvasAgg(figure)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0.0, 1.0), COLOURS), cax=figure.add_axes((0.15, 0.08, 0.2, 0.84)), alpha=OPACITY
    )
    bar.set_label("Probability of {}".format(plain(name)), fontsize="small")
    drawn.draw()
    side = np.asarray(drawn.buffer_rgba())[..., :3]
    joined = np.full((max(image.shape[0], side.shape[0]), image.shape[1] + side.shape[1], 3), 255, np.uint8)
    joined[: image.shape[0], : image.shape[1]] = image
    joined[: side.shape[0], image.shape[1] :] = side
    return joined


def write_image(path: str, image: np.ndarray) -> None:
    """Replace a PNG file by uint8 (height, width, 3), atomically."""
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _bands(rows: int) -> Iterator[slice]:
    """Rows coloured at a time, so that what is in between stays small beside the image."""
    for top in range(0, rows, _BAND_ROWS):
        yield slice(top, top + _BAND_ROWS)
