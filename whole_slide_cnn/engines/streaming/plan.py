"""What ``streaming`` computes of a canvas, before anything is computed: windows, blank cells, shapes, bytes and FLOPs.

The engine follows this plan, and what is said of its memory and time is read from it, so that a better plan needs no
second change. It is arithmetic on shapes: TensorFlow is not imported.
"""

from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from whole_slide_cnn.engines.replay import pass_bytes
from whole_slide_cnn.engines.streaming.blank import BlankCanvas, BlankKinds
from whole_slide_cnn.engines.streaming.cover import blank_cells, grid_cover
from whole_slide_cnn.models import geometry, shapes
from whole_slide_cnn.models.geometry import Range, WindowGeometry
from whole_slide_cnn.models.layers import Trunk
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import BLANK_BLOCK

REMEDY = "use a smaller streaming.window"


class Cover(NamedTuple):
    """What a canvas needs computed: windows of cells, and the blank cells in none of them."""

    windows: Tuple[Window, ...]
    blank: BlankKinds


class WindowKind(NamedTuple):
    """Windows that are computed alike: of one size, with the same padding and crops.

    Attributes:
        window: the first of them, in cells.
        pixels: what each reads, halo included.
        number: how many there are.
    """

    window: Window
    pixels: Size
    number: int


class Flops(NamedTuple):
    """Multiplications and additions of convolutions."""

    forward: int
    backward: int


class StreamingPlan:
    """How canvases of one size are streamed.

    Args:
        window: side of a full window's core in canvas pixels; rounded down to whole cells.

    Attributes:
        cells: size of the canvas's embedding map.
        side: of a full window's core in cells.
        blank: the small canvas that stands for blank cells.
    """

    def __init__(self, trunk: Trunk, canvas: Size, window: int):
        self.trunk, self.canvas = trunk, Size(*canvas)
        self.cells = geometry.cells_of(trunk, self.canvas)
        self.side = window_side(trunk, self.canvas.height, window)
        self.blank = BlankCanvas(trunk, self.canvas)

    def cover(self, blank_blocks: np.ndarray) -> Cover:
        """The cheaper of windows for what is not blank together with the blank canvas, and windows for everything.

        Args:
            blank_blocks: see :func:`whole_slide_cnn.engines.streaming.cover.blank_cells`.
        """
        rows, columns = (geometry.interior_cells(self.trunk, extent) for extent in self.canvas)
        are_blank = blank_cells(self.trunk, self.canvas, blank_blocks)
        choices = []
        for wanted in (~are_blank, np.ones_like(are_blank)):
            windows = grid_cover(wanted, self.side, (rows, columns))
            left = np.ones_like(are_blank)
            for window in windows:
                left[slices(window)] = False
            cost = pixels_of(self.kinds(windows))
            if left.any():
                cost += self.blank.size.height * self.blank.size.width
            choices.append((cost, windows, left))
        _, windows, left = min(choices, key=lambda choice: choice[0])
        return Cover(tuple(windows), self.blank.kinds_of(left))

    def cover_of_share(self, tissue: float) -> Cover:
        """The cover of a canvas of whose area a share is not blank, taken for a square in its middle."""
        blocks = np.ones([-(-side // BLANK_BLOCK) for side in self.canvas], bool)
        height, width = (max(1, int(round(side * tissue**0.5 / BLANK_BLOCK))) for side in self.canvas)
        top, left = (blocks.shape[0] - height) // 2, (blocks.shape[1] - width) // 2
        blocks[max(top, 0) : top + height, max(left, 0) : left + width] = False
        return self.cover(blocks)

    def geometry(self, window: Window) -> WindowGeometry:
        """Pixels, padding and crops of a window of cells."""
        return geometry.window_geometry(self.trunk, self.canvas, window)

    def blank_geometry(self) -> WindowGeometry:
        """Those of the blank canvas."""
        return geometry.window_geometry(self.trunk, self.blank.size, Window(0, 0, *self.blank.cells))

    # What it takes.

    def kinds(self, windows: Sequence[Window]) -> Tuple[WindowKind, ...]:
        """Windows by what they compute. Rows of a window depend on its rows alone, and so do its columns: of a grid of
        windows, only one of each row and of each column is worked out."""
        rows, columns = _Axis(self.trunk, self.canvas.height), _Axis(self.trunk, self.canvas.width)
        found: Dict[Tuple, WindowKind] = {}
        for window in windows:
            height, row = rows(window.top, window.bottom)
            width, column = columns(window.left, window.right)
            first = found.get((row, column), WindowKind(window, Size(height, width), 0))
            found[row, column] = first._replace(number=first.number + 1)
        return tuple(found.values())

    def flops(self, windows: Sequence[Window]) -> Flops:
        """FLOPs of computing windows forward, and of their gradients after that."""
        forward = backward = 0
        for kind in self.kinds(windows):
            steps = shapes.window_shapes(self.trunk, self.geometry(kind.window))
            forward += kind.number * shapes.forward_flops(steps)
            backward += kind.number * shapes.backward_flops(steps)
        return Flops(forward, backward)

    def largest(self) -> List[WindowGeometry]:
        """The windows that can take most memory: a full one amid the canvas, one in its corner, and the blank
        canvas."""
        size = Size(min(self.side, self.cells.height), min(self.side, self.cells.width))
        amid = Window((self.cells.height - size.height) // 2, (self.cells.width - size.width) // 2, *size)
        return [self.geometry(amid), self.geometry(Window(0, 0, *size)), self.blank_geometry()]

    def peak_bytes(self, compute: str, training: bool, unrolls: bool) -> Tuple[int, int]:
        """The most bytes of feature maps and of pixels that a window takes.

        Args:
            compute: type of the maps.
            unrolls: see :func:`whole_slide_cnn.engines.replay.peak_elements`.
        """
        passes = [
            pass_bytes(shapes.window_shapes(self.trunk, window), window.pixels.size, compute, training, unrolls)
            for window in self.largest()
        ]
        return max(passes, key=sum)

    def check_sizes(self):
        """Refuse windows with tensors that no operation may touch.

        Raises:
            TensorTooLargeError: names the tensor, its shape and the remedy.
        """
        for window in self.largest():
            shapes.check_tensor_sizes(shapes.window_shapes(self.trunk, window), REMEDY)


def commonest(kinds: Sequence[WindowKind], blank: Size) -> Size:
    """The size in pixels that most windows have; the blank canvas's where there is no window."""
    counts: Dict[Size, int] = {}
    for kind in kinds:
        counts[kind.pixels] = counts.get(kind.pixels, 0) + kind.number
    return max(counts, key=lambda size: (counts[size], size)) if counts else blank


def pixels_of(kinds: Sequence[WindowKind]) -> int:
    """Pixels that windows read, halo included."""
    return sum(kind.pixels.height * kind.pixels.width * kind.number for kind in kinds)


def window_side(trunk: Trunk, extent: int, window: int) -> int:
    """Side of the core of a full window in cells, for a core of some pixels."""
    return max(1, window // geometry.field_of(trunk, extent).stride)


def slices(window: Window) -> Tuple[slice, slice]:
    """The part of a map that a window of cells is."""
    return slice(window.top, window.bottom), slice(window.left, window.right)


class _Axis:
    """Ranges of cells along one axis of a canvas: how many pixels each reads, and what makes it differ from others."""

    def __init__(self, trunk: Trunk, extent: int):
        self._trunk, self._extent = trunk, extent
        self._known: Dict[Tuple[int, int], Tuple[int, Tuple]] = {}

    def __call__(self, start: int, stop: int) -> Tuple[int, Tuple]:
        if (start, stop) not in self._known:
            axis = geometry.axis_geometry(self._trunk, self._extent, Range(start, stop))
            length = axis.source.stop - axis.source.start
            kind = (length, stop - start, tuple(axis.padding.values()), tuple(axis.crops.values()))
            self._known[start, stop] = length, kind
        return self._known[start, stop]
