"""Reading for rotated windows: blocks on a fixed grid, kept for a while, blank ones never read.

The rectangles around rotated tiles overlap by half, and the halos of windows once more. Cut into blocks, most of a
slide's pixels are read once.
"""

from typing import Optional, Tuple

import numpy as np

from whole_slide_cnn.sizes import Window
from whole_slide_cnn.slides.block_cache import BlockCache
from whole_slide_cnn.slides.canvas import BLANK_BLOCK, Canvas

BLOCK = 256  # pixels along a side; a multiple of BLANK_BLOCK
CACHE_BYTES = 64 * 2**20  # for all canvases of the process together

# One cache for the process: a batch holds many canvases open, of which one is read at a time.
_CACHE = BlockCache(CACHE_BYTES)


class BlockSource:
    """Windows of a canvas, put together from blocks. Reading is safe from several threads at once.

    Args:
        canvas: where the blocks come from; it stays the caller's to close.
    """

    def __init__(self, canvas: Canvas):
        self._canvas = canvas
        self._whole = Window(0, 0, *canvas.size)
        self._token = object()  # part of the keys: no other canvas has it, now or later
        self._blank: Optional[np.ndarray] = None

    def blank_blocks(self) -> np.ndarray:
        """The canvas's blank blocks; from now on none of the blocks within them is read.

        Raises:
            SlideError: the slide cannot be read.
        """
        blank = self._canvas.blank_blocks()
        ratio = BLOCK // BLANK_BLOCK
        rows, columns = (-(-side // ratio) for side in blank.shape)
        padded = np.ones((rows * ratio, columns * ratio), bool)
        padded[: blank.shape[0], : blank.shape[1]] = blank
        self._blank = np.asarray(padded.reshape(rows, ratio, columns, ratio).all(axis=(1, 3)))
        return blank

    def read(self, window: Window) -> Optional[np.ndarray]:
        """Pixels of a window that lies within the canvas: uint8 (height, width, 3), or None where all are blank.

        Raises:
            SlideError: the slide cannot be read there.
        """
        corners = [
            (top, left)
            for top in range(window.top // BLOCK * BLOCK, window.bottom, BLOCK)
            for left in range(window.left // BLOCK * BLOCK, window.right, BLOCK)
        ]
        coloured = [corner for corner in corners if not self._is_blank(*corner)]
        if not coloured:
            return None
        pixels = np.empty(window.size + (3,), np.uint8)
        if len(coloured) < len(corners):
            pixels[...] = self._canvas.blank_colour
        for top, left in coloured:
            block = Window(top, left, BLOCK, BLOCK).intersect(self._whole)
            part = block.intersect(window)
            pixels[_slices(part, window)] = self._block(block)[_slices(part, block)]
        return pixels

    def _is_blank(self, top: int, left: int) -> bool:
        return self._blank is not None and bool(self._blank[top // BLOCK, left // BLOCK])

    def _block(self, window: Window) -> np.ndarray:
        key = self._token, window.top, window.left
        pixels = _CACHE.get(key)
        if pixels is None:
            pixels = self._canvas.read(window)
            _CACHE.put(key, pixels)
        return pixels


def _slices(part: Window, window: Window) -> Tuple[slice, slice]:
    top, left = part.top - window.top, part.left - window.left
    return slice(top, top + part.height), slice(left, left + part.width)
