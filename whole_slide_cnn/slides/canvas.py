"""The canvas: a slide at the working resolution, centred on a fixed size and padded with white."""

import abc
import threading
import warnings
from typing import NamedTuple, Optional, Tuple, Union

import numpy as np

from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.interface import require_inside
from whole_slide_cnn.slides.resample import ResampledSlide
from whole_slide_cnn.slides.settings import SlideSettings
from whole_slide_cnn.slides.tissue import thumbnail, tissue_mask

BLANK_BLOCK = 32
WHITE = (255, 255, 255)

_SCAN_TILE = 32 * BLANK_BLOCK
_THUMBNAIL = Size(1024, 1024)


class Canvas(abc.ABC):
    """Pixels of a fixed size, read window by window. Reading is safe from several threads at once.

    Attributes:
        name: the slide's name.
        size: height and width in canvas pixels.
        blank_colour: uint8 (3,), the colour of padding and of whatever counts as blank.
    """

    def __init__(self, name: str, size: Size, blank_colour=WHITE):
        self.name = name
        self.size = Size(*size)
        if min(self.size) < 1:
            raise ValueError("a canvas needs at least one pixel, not {} x {}".format(*self.size))
        self.blank_colour = np.array(blank_colour, np.uint8)
        self.blank_colour.setflags(write=False)
        self._blank_bits: Optional[np.ndarray] = None
        self._blank_lock = threading.Lock()

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window: uint8 (height, width, 3).

        Raises:
            SlideError: the slide cannot be read there.
            ValueError: the window leaves the canvas.
        """
        require_inside(window, self.size)
        return self._read(window)

    def blank_blocks(self) -> np.ndarray:
        """Which blocks of 32 x 32 px hold nothing but the blank colour: bool (ceil(height/32), ceil(width/32)).

        Blocks at the lower and right edge are clipped by it. The first call reads everything but the padding; the
        answer is kept, packed to a bit per block.

        Raises:
            SlideError: the slide cannot be read.
        """
        with self._blank_lock:
            if self._blank_bits is None:
                self._blank_bits = np.packbits(self._find_blank_blocks())
            rows, columns = self._block_grid()
            return np.unpackbits(self._blank_bits, count=rows * columns).reshape(rows, columns).astype(bool)

    def set_blank_blocks(self, blocks: np.ndarray) -> None:
        """Give the result of an earlier :meth:`blank_blocks` of the same canvas, so that nothing needs to be read."""
        blocks = np.asarray(blocks)
        if blocks.dtype != bool or blocks.shape != self._block_grid():
            raise ValueError("blank blocks must be bool of shape {}".format(self._block_grid()))
        with self._blank_lock:
            self._blank_bits = np.packbits(blocks)

    @abc.abstractmethod
    def close(self) -> None:
        """Release the slide; closing twice does no harm."""

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @abc.abstractmethod
    def _read(self, window: Window) -> np.ndarray:
        """:meth:`read` for a window that is known to lie within the canvas."""

    def _content(self) -> Window:
        """The part of the canvas outside of which everything is known to be blank."""
        return Window(0, 0, *self.size)

    def _block_grid(self) -> Tuple[int, int]:
        return -(-self.size.height // BLANK_BLOCK), -(-self.size.width // BLANK_BLOCK)

    def _find_blank_blocks(self) -> np.ndarray:
        blank = np.ones(self._block_grid(), bool)
        content, everything = self._content(), Window(0, 0, *self.size)
        for top in range(content.top // BLANK_BLOCK * BLANK_BLOCK, content.bottom, _SCAN_TILE):
            for left in range(content.left // BLANK_BLOCK * BLANK_BLOCK, content.right, _SCAN_TILE):
                pixels = self.read(Window(top, left, _SCAN_TILE, _SCAN_TILE).intersect(everything))
                blocks = _uniform_blocks(pixels, self.blank_colour)
                row, column = top // BLANK_BLOCK, left // BLANK_BLOCK
                blank[row : row + blocks.shape[0], column : column + blocks.shape[1]] = blocks
        return blank


class ArrayCanvas(Canvas):
    """A canvas whose pixels are in memory: ``array`` is uint8 (height, width, 3)."""

    def __init__(self, array: np.ndarray, name: str = "array", blank_colour=None):
        array = np.asarray(array)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError("a canvas needs uint8 (height, width, 3), not {} {}".format(array.dtype, array.shape))
        super().__init__(name, Size(*array.shape[:2]), WHITE if blank_colour is None else blank_colour)
        self._array = array

    def close(self) -> None:
        """Nothing to release: the array belongs to the caller."""

    def _read(self, window: Window) -> np.ndarray:
        return self._array[window.top : window.bottom, window.left : window.right].copy()


class Placement(NamedTuple):
    """Where a slide lies on its canvas.

    Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)`` and has its centre at ``i + 1/2``. Numbers and arrays
    are both taken.
    """

    top: int  # canvas row of the slide's first row; negative where the slide is cropped
    left: int
    scale_y: float  # level-0 pixels per canvas pixel
    scale_x: float

    def to_level0(self, y, x):
        """Level-0 ``(y, x)`` of a canvas position."""
        return (y - self.top) * self.scale_y, (x - self.left) * self.scale_x

    def from_level0(self, y, x):
        """Canvas ``(y, x)`` of a level-0 position."""
        return y / self.scale_y + self.top, x / self.scale_x + self.left


class SlideCanvas(Canvas):
    """A slide centred on a white canvas, read lazily.

    A slide larger than the canvas is cropped around its centre, with a warning that says how much tissue that costs.
    Closing the canvas closes the slide.

    Attributes:
        slide: the slide at the working resolution.
        placement: its position, for conversion to level-0 pixels.
    """

    def __init__(self, slide: ResampledSlide, size: Union[Size, Tuple[int, int]]):
        super().__init__(slide.name, Size(*size))
        self.slide = slide
        full = slide.reader.level_sizes[0]
        self.placement = Placement(
            (self.size.height - slide.size.height) // 2,
            (self.size.width - slide.size.width) // 2,
            full.height / slide.size.height,
            full.width / slide.size.width,
        )
        if slide.size.height > self.size.height or slide.size.width > self.size.width:
            self._warn_of_crop()

    def close(self) -> None:
        self.slide.close()

    def _content(self) -> Window:
        whole = Window(self.placement.top, self.placement.left, *self.slide.size)
        return whole.intersect(Window(0, 0, *self.size))

    def _read(self, window: Window) -> np.ndarray:
        part = self._content().intersect(window)
        empty = not (part.height and part.width)
        if part == window and not empty:
            return self._read_slide(part)
        pixels = np.full(window.size + (3,), self.blank_colour, np.uint8)
        if not empty:
            top, left = part.top - window.top, part.left - window.left
            pixels[top : top + part.height, left : left + part.width] = self._read_slide(part)
        return pixels

    def _read_slide(self, part: Window) -> np.ndarray:
        top, left = part.top - self.placement.top, part.left - self.placement.left
        return self.slide.read(Window(top, left, part.height, part.width))

    def _warn_of_crop(self) -> None:
        mask = tissue_mask(thumbnail(self.slide, _THUMBNAIL))
        content = self._content()
        kept = mask[
            _fraction_of(mask.shape[0], content.top - self.placement.top, content.height, self.slide.size.height),
            _fraction_of(mask.shape[1], content.left - self.placement.left, content.width, self.slide.size.width),
        ]
        total = int(mask.sum())
        lost = 1 - int(kept.sum()) / total if total else 0.0
        warnings.warn(
            "slide {}: {} x {} px at the working resolution, cropped to the canvas of {} x {} px; "
            "{:.1%} of its tissue is lost".format(self.name, *(self.slide.size + self.size + (lost,))),
            stacklevel=3,
        )


def open_canvas(
    path: str, size: Union[Size, Tuple[int, int]], settings: SlideSettings, name: Optional[str] = None
) -> SlideCanvas:
    """Open a slide file on a canvas. No pixel is read, unless the slide has to be cropped.

    Args:
        path: the slide file.
        size: canvas height and width.
        settings: how the slide is read.
        name: how messages call the slide; the file name by default.

    Raises:
        SlideError: the slide cannot be opened, or its µm/px is needed and nobody states it.
    """
    slide = settings.open(path, name)
    try:
        return SlideCanvas(slide, size)
    except Exception:
        slide.close()
        raise


def _uniform_blocks(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Per block of 32 x 32 px, clipped at the lower and right edge, whether all of it has ``colour``."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // BLANK_BLOCK), -(-width // BLANK_BLOCK)
    differs = np.zeros((rows * BLANK_BLOCK, columns * BLANK_BLOCK), bool)
    for channel in range(3):
        differs[:height, :width] |= pixels[..., channel] != colour[channel]
    blocks: np.ndarray = differs.reshape(rows, BLANK_BLOCK, columns, BLANK_BLOCK)
    return np.logical_not(blocks.any(axis=(1, 3)))


def _fraction_of(length: int, start: int, extent: int, whole: int) -> slice:
    """The slice of ``length`` thumbnail pixels that covers ``[start, start + extent)`` out of ``whole``."""
    return slice(int(round(length * start / whole)), int(round(length * (start + extent) / whole)))
