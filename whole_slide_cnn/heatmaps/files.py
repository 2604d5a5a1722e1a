"""Class activation maps as files that lie on the slide: numbers, overlays, pyramids and contours."""

import os
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
from scipy.special import expit

from whole_slide_cnn.heatmaps import drawing
from whole_slide_cnn.heatmaps.cells import CellGrid, grid_of
from whole_slide_cnn.heatmaps.contours import feature, polygons_above
from whole_slide_cnn.heatmaps.format import VALUES, describe_geometry, write_description, write_json, write_values
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import SlideCanvas
from whole_slide_cnn.slides.pyramid import write_pyramid
from whole_slide_cnn.slides.tissue import thumbnail

CONTOURS = "contours.geojson"

_CONTOUR_BYTES_PER_CELL = 64  # copies of a map while its contours are drawn


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
    overlay: Size = drawing.OVERLAY


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


def heatmap_memory(network: Network, canvas: Size, overlay: Size = drawing.OVERLAY) -> Tuple[Tuple[str, int], ...]:
    """Bytes, by what for, that heat maps take beside the engine, for a slide of about the size of its canvas.

    Args:
        canvas: size of the canvas.
        overlay: as in :class:`HeatmapSettings`.
    """
    cells = geometry.cells_of(network.trunk, canvas)
    count = cells.height * cells.width
    each = 3 * 8 * network.classes  # logits, and what makes them probabilities, in up to float64
    figures = drawing.drawing_memory(cells, overlay) + count * _CONTOUR_BYTES_PER_CELL
    return ("class map", count * each), ("figures", figures)


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
    downsample = drawing.pyramid_downsample(grid)
    digest = write_values(folder, probabilities)
    features: List[Dict[str, Any]] = []
    for index in settings.drawn:
        values, name = probabilities[..., index], settings.classes[index]
        _draw_class(folder, canvas, grid, values, small, downsample, name, stems[index])
        polygons = polygons_above(values, grid, settings.threshold)
        features += [feature(polygon, name, index) for polygon in polygons]
    write_json(os.path.join(folder, CONTOURS), {"type": "FeatureCollection", "features": features})
    description = dict(
        describe_geometry(canvas, grid, settings.network),
        classes=list(settings.classes),
        activation=settings.network.activation,
        threshold=settings.threshold,
        files=_describe_files(settings, stems, grid, small.shape, downsample),
        origin=dict(settings.origin),
    )
    write_description(folder, description, digest)
    return small


def _draw_class(
    folder: str,
    canvas: SlideCanvas,
    grid: CellGrid,
    values: np.ndarray,
    small: np.ndarray,
    downsample: int,
    name: str,
    stem: str,
) -> None:
    """Write the overlay and the pyramid of one class."""
    overlay = drawing.overlay_image(small, drawing.heat_on(grid, values, Size(*small.shape[:2])))
    path = os.path.join(folder, "overlay-{}.png".format(stem))
    drawing.write_image(path, drawing.add_bar(overlay, name))
    mpp = canvas.slide.source_mpp
    write_pyramid(
        os.path.join(folder, "heatmap-{}.tiff".format(stem)),
        drawing.pyramid_image(grid, values, downsample),
        mpp and tuple(value * downsample for value in mpp),
    )


def _describe_files(
    settings: HeatmapSettings, stems: Sequence[str], grid: CellGrid, small: Sequence[int], downsample: int
) -> List[Dict[str, Any]]:
    pixel = [grid.slide.height / small[0], grid.slide.width / small[1]]
    files: List[Dict[str, Any]] = [
        {"name": VALUES, "holds": "probabilities, float32, (cells high, cells wide, classes)"},
        {"name": CONTOURS, "holds": "polygons in level-0 pixels"},
    ]
    for index in settings.drawn:
        shared = {"class": settings.classes[index], "colours": drawing.COLOURS, "range": [0, 1]}
        overlay: Dict[str, Any] = {"name": "overlay-{}.png".format(stems[index]), "level0_pixels_per_pixel": pixel}
        overlay.update(shared, size=list(small[:2]), opacity=drawing.OPACITY)  # of the image left of the colour bar
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
