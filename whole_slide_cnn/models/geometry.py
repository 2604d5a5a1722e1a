"""Where a layer looks: extents, receptive fields, and the exact padding of any window of a canvas.

Everything is one-dimensional arithmetic, done once for rows and once for columns. Padding always follows from the
extent of the whole canvas at that layer, never from the window's, because ``SAME`` depends on parity.
"""

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.layers import SAME, Conv, Filter, Layer, MaxPool, Residual, Trunk, is_spatial, walk
from whole_slide_cnn.sizes import Size, Window


class Range(NamedTuple):
    """Half-open range of positions along one axis."""

    start: int
    stop: int


class Field(NamedTuple):
    """The receptive field of cell ``i`` along an axis: ``[i * stride - offset, i * stride - offset + size)``."""

    size: int
    stride: int
    offset: int

    def of(self, cells: Range) -> Range:
        """The unclipped range of input positions that a range of cells sees."""
        return Range(cells.start * self.stride - self.offset, (cells.stop - 1) * self.stride - self.offset + self.size)


def padding_of(layer: Filter, extent: int) -> Tuple[int, int]:
    """Padding before and after an axis of ``extent`` positions."""
    if isinstance(layer.padding, int):
        return layer.padding, layer.padding
    assert layer.padding == SAME, layer.padding
    outputs = -(-extent // layer.stride)
    total = max((outputs - 1) * layer.stride + layer.kernel - extent, 0)
    return total // 2, total - total // 2


def extent_after(layer: Layer, extent: int) -> int:
    """Positions along an axis after a layer that had ``extent`` before it."""
    if isinstance(layer, Residual):
        body, shortcut = extents(layer.body, extent)[-1], extents(layer.shortcut, extent)[-1]
        assert body == shortcut, "{}: body gives {} positions, shortcut {}".format(layer.name, body, shortcut)
        return body
    if isinstance(layer, (Conv, MaxPool)):
        before, after = padding_of(layer, extent)
        return (extent + before + after - layer.kernel) // layer.stride + 1
    return extent


def extents(layers: Trunk, extent: int) -> List[int]:
    """Extents before the first and after every layer."""
    found = [extent]
    for layer in layers:
        found.append(extent_after(layer, found[-1]))
    return found


def cells_of(trunk: Trunk, canvas: Size) -> Size:
    """Size of the embedding map of a canvas.

    Raises:
        ConfigError: the canvas is too small to give a single cell.
    """
    cells = Size(*(extents(trunk, side)[-1] for side in canvas))
    if min(cells) < 1 or min(canvas) < 1:
        raise ConfigError("a canvas of {} x {} px is too small for this network".format(*canvas))
    return cells


def field_of(trunk: Trunk, extent: int) -> Field:
    """Receptive field along an axis of a canvas side (the offset depends on its parity under ``SAME``)."""
    size, stride, offset = 1, 1, 0
    for layer, before in zip(trunk, extents(trunk, extent)):
        if isinstance(layer, Residual):
            inner = [field_of(layer.body, before), field_of(layer.shortcut, before)]
            start = max(part.offset for part in inner)
            stop = max(part.size - part.offset for part in inner)
            part = Field(start + stop, inner[0].stride, start)
        elif isinstance(layer, (Conv, MaxPool)):
            part = Field(layer.kernel, layer.stride, padding_of(layer, before)[0])
        else:
            continue
        size, offset = size + (part.size - 1) * stride, offset + part.offset * stride
        stride *= part.stride
    return Field(size, stride, offset)


def interior_cells(trunk: Trunk, extent: int) -> Range:
    """Cells along an axis whose receptive field crosses neither border; an empty range at the end where none is."""
    field, cells = field_of(trunk, extent), extents(trunk, extent)[-1]
    first = -(-field.offset // field.stride)
    stop = (extent - field.size + field.offset) // field.stride + 1
    return Range(first, min(stop, cells)) if first < min(stop, cells) else Range(cells, cells)


@dataclass(frozen=True)
class AxisGeometry:
    """What one axis of a window needs: its input range, padding by layer, and crops by residual block and branch.

    ``crops[name]`` gives ``(start, length)`` of the block's input for the body and for the shortcut.
    ``lengths[name]`` gives the positions of each layer's output (for memory and FLOPs).
    """

    source: Range
    padding: Dict[str, Tuple[int, int]]
    crops: Dict[str, Tuple[Tuple[int, int], Tuple[int, int]]]


def axis_geometry(layers: Trunk, extent: int, wanted: Range) -> AxisGeometry:
    """Walk back from a range of outputs to the range of inputs that decides them, clipped to the canvas.

    Where the walk leaves the canvas the layer pads, exactly as it would for the whole canvas.
    """
    padding: Dict[str, Tuple[int, int]] = {}
    crops: Dict[str, Tuple[Tuple[int, int], Tuple[int, int]]] = {}
    for layer, before in zip(reversed(layers), reversed(extents(layers, extent)[:-1])):
        if isinstance(layer, Residual):
            parts = [axis_geometry(branch, before, wanted) for branch in (layer.body, layer.shortcut)]
            for part in parts:
                padding.update(part.padding)
                crops.update(part.crops)
            sources = [part.source for part in parts]
            wanted = Range(min(s.start for s in sources), max(s.stop for s in sources))
            body, shortcut = ((s.start - wanted.start, s.stop - s.start) for s in sources)
            crops[layer.name] = (body, shortcut)
        elif isinstance(layer, (Conv, MaxPool)):
            start = wanted.start * layer.stride - padding_of(layer, before)[0]
            stop = (wanted.stop - 1) * layer.stride - padding_of(layer, before)[0] + layer.kernel
            wanted = Range(max(start, 0), min(stop, before))
            padding[layer.name] = (wanted.start - start, stop - wanted.stop)
    return AxisGeometry(wanted, padding, crops)


def spatial_names(trunk: Trunk) -> Tuple[str, ...]:
    """Names of the layers that may pad, in the order the arrays of :class:`WindowGeometry` use."""
    return tuple(layer.name for layer in walk(trunk) if isinstance(layer, (Conv, MaxPool)) and is_spatial(layer))


def residual_names(trunk: Trunk) -> Tuple[str, ...]:
    """Names of the residual blocks, in the order the arrays of :class:`WindowGeometry` use."""
    return tuple(layer.name for layer in walk(trunk) if isinstance(layer, Residual))


@dataclass(frozen=True)
class WindowGeometry:
    """Everything a graph needs to compute a rectangle of cells from a window of pixels.

    Attributes:
        cells: the rectangle of the embedding map.
        pixels: the rectangle of the canvas to feed, halo included.
        padding: int32, (spatial layers, 4): top, bottom, left, right.
        crops: int32, (residual blocks, 2 branches, 4): top, left, height, width.
    """

    cells: Window
    pixels: Window
    padding: np.ndarray
    crops: np.ndarray


def window_geometry(trunk: Trunk, canvas: Size, cells: Window) -> WindowGeometry:
    """Geometry of a rectangle of cells of a canvas (architecture, streaming)."""
    rows = axis_geometry(trunk, canvas.height, Range(cells.top, cells.bottom))
    columns = axis_geometry(trunk, canvas.width, Range(cells.left, cells.right))
    return join_axes(spatial_names(trunk), residual_names(trunk), cells, rows, columns)


def join_axes(
    spatial: Sequence[str], residual: Sequence[str], cells: Window, rows: AxisGeometry, columns: AxisGeometry
) -> WindowGeometry:
    """Geometry of a window from that of its rows and of its columns.

    Args:
        spatial, residual: names of the layers that may pad, and of the residual blocks.
    """
    padding = [rows.padding[name] + columns.padding[name] for name in spatial]
    crops = [[(r[0], c[0], r[1], c[1]) for r, c in zip(rows.crops[name], columns.crops[name])] for name in residual]
    return WindowGeometry(
        cells,
        Window.from_bounds(rows.source.start, columns.source.start, rows.source.stop, columns.source.stop),
        np.array(padding, np.int32).reshape(-1, 4),
        np.array(crops, np.int32).reshape(-1, 2, 4),
    )
