"""The trunk in stages, and the maps between them (activation checkpoints).

A stage is a run of layers of the trunk. Between stages lie levels: level 0 holds the pixels, level ``i + 1`` what stage
``i`` gives. While a slide is computed the map of a level is kept, so that windows have no halo but their stage's own,
and so that going back computes one stage at a time (Chen et al. 2016, section 4, on the windows of a slide).

It is arithmetic on shapes: TensorFlow is not imported.
"""

from typing import Dict, List, Tuple

import numpy as np

from whole_slide_cnn.models import geometry, shapes
from whole_slide_cnn.models.geometry import AxisGeometry, Range, WindowGeometry
from whole_slide_cnn.models.layers import Conv, MaxPool, Residual, Trunk, layer_variables, walk
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import BLANK_BLOCK

CHECKPOINTS = ("block", "stage", "none")


def split(trunk: Trunk, checkpoints: str) -> Tuple[Trunk, ...]:
    """The stages of a trunk.

    Args:
        checkpoints: where maps are kept: after the stem and every residual ``block``, before every layer that lowers
            the resolution (``stage``), or nowhere (``none``), which makes the trunk one stage.
    """
    parts: List[Trunk] = [()]
    for layer, before in zip(trunk, (None,) + trunk[:-1]):
        ended = isinstance(before, MaxPool) or (len(parts[-1]) > 1 and isinstance(parts[-1][-2], Residual))
        if ended:
            parts.append(())
        parts[-1] += (layer,)
    if checkpoints == "block":
        return tuple(parts)
    stages: List[Trunk] = [()]
    for part in parts:
        if checkpoints == "stage" and stages[-1] and _stride(part) > 1:
            stages.append(())
        stages[-1] += part
    return tuple(stages)


def _stride(layers: Trunk) -> int:
    return geometry.field_of(layers, BLANK_BLOCK).stride


def _channels(layers: Trunk, given: int) -> int:
    """Channels after some layers."""
    for layer in layers:
        if isinstance(layer, Conv):
            given = layer.channels
        elif isinstance(layer, Residual):
            given = _channels(layer.body, given)
    return given


class Level:
    """The map between two stages, on canvases of one size; its blocks are squares of 32 x 32 canvas pixels.

    Attributes:
        prefix: the layers from the pixels to the map.
        size: positions of the map, rows and columns.
        stride: canvas pixels between two positions.
        side: positions along a block's side.
        grid: blocks, rows and columns; the last ones may be smaller.
        channels: of the map.
    """

    def __init__(self, prefix: Trunk, canvas: Size):
        self.prefix, self.canvas = prefix, canvas
        self.size = Size(*(geometry.extents(prefix, side)[-1] for side in canvas))
        self.stride = _stride(prefix)
        assert BLANK_BLOCK % self.stride == 0, "a block holds whole positions"
        self.side = BLANK_BLOCK // self.stride
        self.grid = Size(*(-(-extent // self.side) for extent in self.size))
        self.channels = _channels(prefix, 3)

    def coloured(self, blank_blocks: np.ndarray) -> np.ndarray:
        """Blocks of the map that may differ from a blank canvas's: bool, ``grid``.

        Args:
            blank_blocks: bool, one per 32 x 32 px of the canvas, clipped by it.
        """
        # counts[i, j]: blocks above i and left of j that are not blank
        counts = np.zeros(np.add(blank_blocks.shape, 1), np.int64)
        counts[1:, 1:] = np.cumsum(np.cumsum(~blank_blocks, axis=0), axis=1)
        (top, bottom), (left, right) = (self._seen(axis) for axis in range(2))
        above = counts[np.ix_(top, right)] - counts[np.ix_(top, left)]
        return counts[np.ix_(bottom, right)] - counts[np.ix_(bottom, left)] - above > 0

    def _seen(self, axis: int) -> Tuple[np.ndarray, np.ndarray]:
        """Blocks of the canvas that each block of the map sees along an axis: first, and the one after the last."""
        field, extent = geometry.field_of(self.prefix, self.canvas[axis]), self.canvas[axis]
        first = np.arange(self.grid[axis]) * self.side
        last = np.minimum(first + self.side, self.size[axis]) - 1
        start = np.clip(first * field.stride - field.offset, 0, extent)
        stop = np.clip(last * field.stride - field.offset + field.size, 0, extent)
        return start // BLANK_BLOCK, -(-stop // BLANK_BLOCK)

    def positions(self, blocks: Window) -> Window:
        """The positions of a rectangle of blocks, clipped to the map."""
        whole = Window(*(number * self.side for number in blocks))
        return whole.intersect(Window(0, 0, *self.size))


class Stage:
    """Some layers of the trunk, from one level to the next, on canvases of one size.

    Attributes:
        index: position among the stages.
        layers: what it computes.
        source, target: the levels before and after it.
        weights: values of the variables of its layers.
    """

    def __init__(self, index: int, layers: Trunk, source: Level, target: Level):
        self.index, self.layers, self.source, self.target = index, layers, source, target
        self.weights = sum(int(np.prod(spec.shape)) for layer in walk(layers) for spec in layer_variables(layer))
        self._axes: Dict[Tuple[int, int, int], AxisGeometry] = {}
        self._spatial, self._residual = geometry.spatial_names(layers), geometry.residual_names(layers)

    def axis(self, axis: int, start: int, stop: int) -> AxisGeometry:
        """What a range of positions of the target needs along an axis."""
        key = (axis, start, stop)
        if key not in self._axes:
            self._axes[key] = geometry.axis_geometry(self.layers, self.source.size[axis], Range(start, stop))
        return self._axes[key]

    def amid(self, blocks: Size) -> Window:
        """A window of the target amid the canvas, of some blocks."""
        grid = self.target.grid
        top, left = (max(0, (whole - part) // 2) for whole, part in zip(grid, blocks))
        return self.target.positions(Window(top, left, *blocks))

    def geometry(self, window: Window) -> WindowGeometry:
        """Padding and crops of a window of the target's positions, and the window of the source's (``pixels``) that it
        is computed from."""
        rows, columns = self.axis(0, window.top, window.bottom), self.axis(1, window.left, window.right)
        return geometry.join_axes(self._spatial, self._residual, window, rows, columns)

    def shapes(self, window: Window) -> List[shapes.Step]:
        """The forward pass over a window of the target's positions."""
        return shapes.window_shapes(self.layers, self.geometry(window), self.source.channels)

    def kind(self, window: Window) -> Tuple:
        """Equal for windows that are computed alike."""
        axes = (self.axis(0, window.top, window.bottom), self.axis(1, window.left, window.right))
        return tuple((a.source.stop - a.source.start, tuple(a.padding.values()), tuple(a.crops.values())) for a in axes)


def stages_of(trunk: Trunk, canvas: Size, checkpoints: str) -> Tuple[Stage, ...]:
    """The stages of a trunk on canvases of a size."""
    layers = split(trunk, checkpoints)
    levels = [Level(sum(layers[:index], ()), canvas) for index in range(len(layers) + 1)]
    return tuple(Stage(i, part, *levels[i : i + 2]) for i, part in enumerate(layers))
