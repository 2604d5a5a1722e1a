"""A heat map's numbers as files that can be read back: :func:`read_heatmap`.

``map.npy`` holds the probabilities of all cells, float32 (cells high, cells wide, classes). ``map.json`` says where the
cells lie on the slide, what the classes are and where the map comes from; it names the format and its version, and the
SHA-256 of the values that it describes. Pairs are ``[y, x]``; pixel ``i`` covers ``[i, i + 1)``.

Versions: 0 is what was written before files named one, without a hash; 1 is the same with both. What adds keys keeps
the version; what changes the meaning of one raises it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import numpy as np

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.files import replacing, write_text
from whole_slide_cnn.heatmaps.cells import CellAxis, CellGrid
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import Placement, SlideCanvas

FORMAT, VERSION = "whole_slide_cnn heat map", 1
VALUES, DESCRIPTION = "map.npy", "map.json"

_UNVERSIONED = 0


@dataclass(frozen=True)
class Heatmap:
    """One slide's heat map as it was stored.

    Attributes:
        probabilities: float32 (cells high, cells wide, classes).
        slide: name of the slide.
        classes: names of the classes.
        activation: ``softmax`` or ``sigmoid``, what made logits probabilities.
        threshold: at which contours were drawn.
        grid: where the cells lie on the slide, in level-0 pixels.
        level0_mpp: micrometres per level-0 pixel ``(y, x)``, or None where the slide does not state it.
        canvas: size of the canvas that the network saw.
        placement: of the slide on it.
        receptive_field: height and width of what a cell sees, in canvas pixels.
        files: drawings beside the numbers, as ``map.json`` lists them.
        origin: weights, commit and versions, in JSON types.
        version: of the format that it was stored in.
    """

    probabilities: np.ndarray
    slide: str
    classes: Tuple[str, ...]
    activation: str
    threshold: float
    grid: CellGrid
    level0_mpp: Optional[Tuple[float, float]]
    canvas: Size
    placement: Placement
    receptive_field: Size
    files: Tuple[Mapping[str, Any], ...]
    origin: Mapping[str, Any]
    version: int


def write_values(folder: str, probabilities: np.ndarray) -> str:
    """Write ``map.npy``, atomically; returns the SHA-256 that :func:`write_description` is to state.

    Args:
        probabilities: float32 (cells high, cells wide, classes).

    Raises:
        WholeSlideError: the file cannot be written.
    """
    with replacing(os.path.join(folder, VALUES)) as temporary, open(temporary, "wb") as stream:
        np.save(stream, probabilities)
    return _digest(probabilities)


def write_description(folder: str, description: Mapping[str, Any], values: str) -> None:
    """Write ``map.json``, atomically.

    Args:
        description: :func:`describe_geometry`, and the keys ``classes``, ``activation``, ``threshold``, ``files`` and
            ``origin``.
        values: what :func:`write_values` returned.

    Raises:
        WholeSlideError: the file cannot be written.
    """
    write_json(
        os.path.join(folder, DESCRIPTION), dict(format=FORMAT, version=VERSION, **description, values_sha256=values)
    )


def describe_geometry(canvas: SlideCanvas, grid: CellGrid, network: Network) -> Dict[str, Any]:
    """Where cells lie, in JSON types."""
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


def read_heatmap(path: str) -> Heatmap:
    """A heat map's values, where they lie and where they come from.

    Args:
        path: a slide's folder of heat maps, or the ``map.json`` or ``map.npy`` in it.

    Raises:
        WholeSlideError: a file is missing, broken, of another format or a later version, or the two do not belong
            together.
    """
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    described = os.path.join(folder, DESCRIPTION)
    description = _load(described, _read_json)
    version = _version(description, described)
    values = os.path.join(folder, VALUES)
    probabilities = _load(values, lambda name: np.load(name, allow_pickle=False))
    try:
        heatmap = _parse(description, probabilities, version)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WholeSlideError("{} does not describe a heat map: {!r}".format(described, error)) from error
    shape = heatmap.grid.cells + (len(heatmap.classes),)
    if not isinstance(probabilities, np.ndarray) or probabilities.dtype != np.float32 or probabilities.shape != shape:
        raise WholeSlideError("{} does not hold the float32 {} that {} describes".format(values, shape, described))
    if version != _UNVERSIONED and _digest(probabilities) != description.get("values_sha256"):
        raise WholeSlideError("{} is not the one that {} describes; draw the slide again".format(values, described))
    return heatmap


def write_json(path: str, value: Any) -> None:
    """Replace a JSON file, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def _load(path: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(path)
    except (OSError, ValueError, EOFError) as error:  # ValueError: no JSON, no UTF-8, no array
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise WholeSlideError("heat map {} cannot be read: {}".format(path, reason)) from error


def _version(description: Any, path: str) -> int:
    """The version of the format.

    Raises:
        WholeSlideError: it is of another format, or of a version that is not known.
    """
    if not isinstance(description, dict):
        raise WholeSlideError("{} does not describe a heat map".format(path))
    if "format" not in description and "version" not in description:
        return _UNVERSIONED
    if description.get("format") != FORMAT:
        raise WholeSlideError("{} is of the format {!r}, not {!r}".format(path, description.get("format"), FORMAT))
    version = description.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise WholeSlideError(
            "{} is of version {!r} of the heat map format; this program reads versions up to {}".format(
                path, version, VERSION
            )
        )
    return VERSION


def _parse(description: Mapping[str, Any], probabilities: np.ndarray, version: int) -> Heatmap:
    slide, mpp = Size(*_pair(description["level0_size"], int)), description["level0_mpp"]
    axes = [
        CellAxis(cells, first, step, *_pair(shown, float))
        for cells, first, step, shown in zip(
            _pair(description["cells"], int),
            _pair(description["first_cell_centre_level0"], float),
            _pair(description["cell_step_level0"], float),
            _pair(description["shown_level0"], list),
        )
    ]
    corner = _pair(description["slide_corner_on_canvas"], int)
    scales = _pair(description["level0_pixels_per_canvas_pixel"], float)
    return Heatmap(
        probabilities=probabilities,
        slide=str(description["slide"]),
        classes=tuple(map(str, description["classes"])),
        activation=str(description["activation"]),
        threshold=float(description["threshold"]),
        grid=CellGrid(axes[0], axes[1], slide),
        level0_mpp=None if mpp is None else _pair(mpp, float),
        canvas=Size(*_pair(description["canvas_size"], int)),
        placement=Placement(*(corner + scales)),
        receptive_field=Size(*_pair(description["receptive_field"], int)),
        files=tuple(map(dict, description["files"])),
        origin=dict(description["origin"]),
        version=version,
    )


def _pair(values: Any, convert: Callable[[Any], Any]) -> Tuple[Any, Any]:
    first, second = values
    return convert(first), convert(second)


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
