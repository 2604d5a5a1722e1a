"""Class activation maps as files that lie on the slide: numbers, overlays, pyramids and contours.

Probabilities are shown on one scale from 0 to 1, on every slide alike (2021, Fig. 4; 2022, Methods).
"""

import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import expit

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.plots import DPI, plain
from whole_slide_cnn.files import replacing, write_text
from whole_slide_cnn.heatmaps.cells import CellGrid, grid_of
from whole_slide_cnn.heatmaps.contours import feature, polygons_above
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import SlideCanvas
from whole_slide_cnn.slides.pyramid import write_pyramid
from whole_slide_cnn.slides.tissue import thumbnail

MAP, PLACEMENT, CONTOURS = "map.npy", "map.json", "contours.geojson"
COLOURS = "turbo"
OPACITY = 0.45
OVERLAY = Size(2048, 2048)

_PIXELS_PER_CELL = 4  # of the pyramid
_LARGEST_SIDE = 4096  # of the pyramid
_CONTOUR_BYTES_PER_CELL = 64  # copies of a map while its contours are drawn
_BYTES_PER_PIXEL = 20  # of a figure: resampled values twice, colours, and the levels below
_BAND_ROWS = 256
_BAR_INCHES = (1.3, 2.4)  # width and least height
_OUTSIDE = 255


@dataclass(frozen=True)
class HeatmapSettings:
    """What is drawn, and what it is drawn from.

    Attributes:
        network: the network that made the maps.
        classes: names of its classes.
        drawn: indices of the classes to draw.
        threshold: of the contours.
        origin: where the weights are from, in JSON types; stored with every map.
        overlay: height and width within which an overlay shows the slide.
    """

    network: Network
    classes: Tuple[str, ...]
    drawn: Tuple[int, ...]
    threshold: float
    origin: Mapping[str, Any]
    overlay: Size = OVERLAY


def cell_probabilities(logits: np.ndarray, activation: str) -> np.ndarray:
    """Probabilities of every cell by the model's own activation: float32, of the shape of ``logits``.

    Args:
        logits: (cells high, cells wide, classes).
        activation: ``softmax`` or ``sigmoid``.
    """
    logits = np.asarray(logits, np.float64)
    if activation == "sigmoid":
        return expit(logits).astype(np.float32)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)


def heatmap_memory(network: Network, canvas: Size, overlay: Size = OVERLAY) -> Tuple[Tuple[str, int], ...]:
    """Bytes, by what for, that heat maps take beside the engine, for a slide of about the size of its canvas.

    Args:
        canvas: size of the canvas.
        overlay: as in :class:`HeatmapSettings`.
    """
    cells = geometry.cells_of(network.trunk, canvas)
    side = min(_LARGEST_SIDE, _PIXELS_PER_CELL * max(cells))
    pixels = max(side**2, overlay.height * overlay.width)
    count = cells.height * cells.width
    each = 3 * 8 * network.classes  # logits, and what makes them probabilities, in up to float64
    return ("class map", count * each), ("figures", pixels * _BYTES_PER_PIXEL + count * _CONTOUR_BYTES_PER_CELL)


def write_heatmap(folder: str, canvas: SlideCanvas, probabilities: np.ndarray, settings: HeatmapSettings) -> np.ndarray:
    """Write all files of one slide to a folder.

    ``map.npy`` holds the probabilities of all classes, ``map.json`` where its cells lie and where it comes from (it is
    written last); for each class drawn there are ``overlay-<class>.png``, ``heatmap-<class>.tiff`` and polygons in
    ``contours.geojson``.

    Args:
        canvas: the slide on its canvas.
        probabilities: float32 (cells high, cells wide, classes).

    Returns:
        The thumbnail that was drawn on, uint8 (height, width, 3): all of the slide.

    Raises:
        SlideError: the slide cannot be read.
        WholeSlideError: a file cannot be written.
    """
    grid = grid_of(settings.network.trunk, canvas)
    small = thumbnail(canvas.slide, settings.overlay)
    stems = file_stems(settings.classes)
    downsample = pyramid_downsample(grid)
    mpp = canvas.slide.source_mpp
    write_array(os.path.join(folder, MAP), probabilities)
    features = []
    for index in settings.drawn:
        values, stem = probabilities[..., index], stems[index]
        overlay = overlay_image(small, heat_on(grid, values, Size(*small.shape[:2])))
        write_image(os.path.join(folder, "overlay-{}.png".format(stem)), add_bar(overlay, settings.classes[index]))
        write_pyramid(
            os.path.join(folder, "heatmap-{}.tiff".format(stem)),
            pyramid_image(grid, values, downsample),
            mpp and tuple(value * downsample for value in mpp),
        )
        polygons = polygons_above(values, grid, settings.threshold)
        features += [feature(polygon, settings.classes[index], index) for polygon in polygons]
    write_json(os.path.join(folder, CONTOURS), {"type": "FeatureCollection", "features": features})
    placement = describe_placement(canvas, grid, settings.network)
    placement.update(
        classes=list(settings.classes),
        activation=settings.network.activation,
        threshold=settings.threshold,
        files=_describe_files(settings, stems, grid, small.shape, downsample),
        origin=dict(settings.origin),
    )
    write_json(os.path.join(folder, PLACEMENT), placement)
    return small


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
        ScalarMappable(Normalize(0.0, 1.0), COLOURS), cax=figure.add_axes([0.15, 0.08, 0.2, 0.84]), alpha=OPACITY
    )
    bar.set_label("Probability of {}".format(plain(name)), fontsize="small")
    drawn.draw()
    side = np.asarray(drawn.buffer_rgba())[..., :3]
    joined = np.full((max(image.shape[0], side.shape[0]), image.shape[1] + side.shape[1], 3), 255, np.uint8)
    joined[: image.shape[0], : image.shape[1]] = image
    joined[: side.shape[0], image.shape[1] :] = side
    return joined


def describe_placement(canvas: SlideCanvas, grid: CellGrid, network: Network) -> Dict[str, Any]:
    """Where cells lie, in JSON types. Pairs are ``[y, x]``; pixel ``i`` covers ``[i, i + 1)``."""
    fields = network.receptive_field(canvas.size)
    placement = canvas.placement
    return {
        "slide": canvas.name,
        "level0_size": list(grid.slide),
        "level0_mpp": canvas.slide.source_mpp and list(canvas.slide.source_mpp),
        "canvas_size": list(canvas.size),
        "slide_corner_on_canvas": [placement.top, placement.left],
        "level0_pixels_per_canvas_pixel": [placement.scale_y, placement.scale_x],
        "cells": list(grid.cells),
        "cell_stride": [field.stride for field in fields],
        "receptive_field": [field.size for field in fields],
        "receptive_field_offset": [field.offset for field in fields],
        "first_cell_centre_level0": [grid.rows.first, grid.columns.first],
        "cell_step_level0": [grid.rows.step, grid.columns.step],
        "shown_level0": [[grid.rows.start, grid.rows.stop], [grid.columns.start, grid.columns.stop]],
    }


def _describe_files(settings: HeatmapSettings, stems, grid: CellGrid, small, downsample: int) -> List[Dict[str, Any]]:
    pixel = [grid.slide.height / small[0], grid.slide.width / small[1]]
    files: List[Dict[str, Any]] = [
        {"name": MAP, "holds": "probabilities, float32, (cells high, cells wide, classes)"},
        {"name": CONTOURS, "holds": "polygons in level-0 pixels"},
    ]
    for index in settings.drawn:
        shared = {"class": settings.classes[index], "colours": COLOURS, "range": [0, 1]}
        overlay = {"name": "overlay-{}.png".format(stems[index]), "level0_pixels_per_pixel": pixel}
        overlay.update(shared, size=list(small[:2]), opacity=OPACITY)  # of the image left of the colour bar
        pyramid = {"name": "heatmap-{}.tiff".format(stems[index]), "level0_pixels_per_pixel": [downsample] * 2}
        files += [overlay, dict(pyramid, **shared)]
    return files


def file_stems(names: Sequence[str]) -> Tuple[str, ...]:
    """A different file name for each name, without anything that a file system or a shell could misread."""
    stems: List[str] = []
    taken = set()
    for name in names:
        plain_name = re.sub(r"[^\w.+-]+", "_", name).lstrip(".-") or "_"
        stem, number = plain_name, 1
        while stem.lower() in taken:
            number += 1
            stem = "{}-{}".format(plain_name, number)
        taken.add(stem.lower())
        stems.append(stem)
    return tuple(stems)


def _bands(rows: int) -> Iterator[slice]:
    """Rows coloured at a time, so that what is in between stays small beside the image."""
    for top in range(0, rows, _BAND_ROWS):
        yield slice(top, top + _BAND_ROWS)


def write_array(path: str, values: np.ndarray):
    """Replace a ``.npy`` file, atomically."""
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, values)


def write_image(path: str, image: np.ndarray):
    """Replace a PNG file by uint8 (height, width, 3), atomically."""
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def write_json(path: str, value):
    """Replace a JSON file, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_mask(path: str, size: Size) -> np.ndarray:
    """A mask image of the whole slide, at any resolution, brought to ``size``: bool, true where it is not black.

    Raises:
        WholeSlideError: the file is no image, or its shape is not the slide's.
    """
    try:
        with Image.open(path) as image:
            if abs(math.log(image.height / image.width * size.width / size.height)) > 2.0 / min(size + image.size):
                raise WholeSlideError(
                    "mask {} has {} x {} px, which is not the shape of its slide".format(path, *image.size[::-1])
                )
            return np.asarray(image.convert("L").resize(size[::-1], Image.NEAREST)) > 0
    except (OSError, Image.DecompressionBombError) as error:
        raise WholeSlideError("mask {} cannot be read: {}".format(path, error)) from error
