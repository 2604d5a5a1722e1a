"""Where the cells of an embedding map lie on the slide, and the map as an image of the slide.

All positions are continuous level-0 pixels: pixel ``i`` covers ``[i, i + 1)``. A cell stands at the centre of its
receptive field.
"""

import math
from typing import Any, NamedTuple, Tuple

import numpy as np
from PIL import Image

from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.layers import Trunk
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import Placement, SlideCanvas

_BICUBIC = Image.BICUBIC  # type: ignore[attr-defined]  # by its name in all versions of Pillow
_SUPPORT = 2  # cells on either side that a bicubic value depends on


class CellAxis(NamedTuple):
    """Cells along one axis of a slide.

    Attributes:
        cells: how many there are.
        first: position of the first cell.
        step: distance from one cell to the next.
        start: the canvas shows the part ``[start, stop)`` of the slide.
        stop: see ``start``.
    """

    cells: int
    first: float
    step: float
    start: float
    stop: float

    def centres(self) -> np.ndarray:
        """Positions of all cells."""
        return self.first + self.step * np.arange(self.cells)

    def in_cells(self, position: Any) -> Any:
        """A position counted in cells, 0 at the first cell's own."""
        return (position - self.first) / self.step


class CellGrid(NamedTuple):
    """Cells of a canvas on the slide it holds.

    Attributes:
        rows: cells along the height.
        columns: cells along the width.
        slide: height and width of level 0.
    """

    rows: CellAxis
    columns: CellAxis
    slide: Size

    @property
    def cells(self) -> Size:
        """How many there are."""
        return Size(self.rows.cells, self.columns.cells)

    def resample(self, values: np.ndarray, size: Size, pixel: Tuple[float, float]) -> np.ndarray:
        """The values of cells as an image that begins at the slide's corner, by bicubic interpolation (2021, Fig. 4).

        Beyond the outermost cells their values go on. Between steep neighbours bicubic curves overshoot; the result is
        cut to the range of ``values``.

        Args:
            values: (cells high, cells wide).
            size: of the image.
            pixel: level-0 pixels ``(y, x)`` that a pixel of the image covers.

        Returns:
            float32 of ``size``; nan where the canvas does not show the slide.
        """
        image = np.full(size, np.nan, np.float32)
        spans = [_span(axis, *args) for axis, args in zip((self.rows, self.columns), zip(size, pixel))]
        if all(span.first < span.stop for span in spans):
            rows, columns = spans
            padded = np.pad(np.asarray(values, np.float32), [span.padding for span in spans], mode="edge")
            resized = Image.fromarray(padded).resize(
                (columns.stop - columns.first, rows.stop - rows.first),
                _BICUBIC,
                (columns.box[0], rows.box[0], columns.box[1], rows.box[1]),
            )
            image[rows.first : rows.stop, columns.first : columns.stop] = np.clip(
                np.asarray(resized), values.min(), values.max()
            )
        return image


class _Span(NamedTuple):
    """The pixels ``[first, stop)`` of an image that show cells, and the part of the padded map they cover."""

    first: int
    stop: int
    padding: Tuple[int, int]
    box: Tuple[float, float]


def grid_of(trunk: Trunk, canvas: SlideCanvas) -> CellGrid:
    """The cells of a slide's canvas."""
    return cell_grid(trunk, canvas.size, canvas.placement, canvas.slide.reader.level_sizes[0])


def cell_grid(trunk: Trunk, canvas: Size, placement: Placement, slide: Size) -> CellGrid:
    """The cells of a canvas.

    Args:
        trunk: the network's, which decides receptive fields.
        canvas: size of the canvas.
        placement: of the slide on it.
        slide: size of level 0.
    """
    fields = [geometry.field_of(trunk, side) for side in canvas]
    centres = [field.size / 2.0 - field.offset for field in fields]
    first, start, stop = (
        placement.to_level0(*position) for position in (centres, (0, 0), (canvas.height, canvas.width))
    )
    scales = placement.scale_y, placement.scale_x
    axes = [
        CellAxis(cells, first[i], fields[i].stride * scales[i], max(0.0, start[i]), min(float(slide[i]), stop[i]))
        for i, cells in enumerate(geometry.cells_of(trunk, canvas))
    ]
    return CellGrid(axes[0], axes[1], Size(*slide))


def _span(axis: CellAxis, length: int, pixel: float) -> _Span:
    # a pixel belongs to the canvas if its centre does
    first = max(0, math.ceil(axis.start / pixel - 0.5))
    stop = min(length, math.ceil(axis.stop / pixel - 0.5))
    # Pillow counts from the corner of the first value, half a cell before its centre
    low, high = (axis.in_cells(edge * pixel) + 0.5 for edge in (first, stop))
    before = math.ceil(max(0.0, -low)) + _SUPPORT
    after = math.ceil(max(0.0, high - axis.cells)) + _SUPPORT
    return _Span(first, stop, (before, after), (low + before, high + before))
