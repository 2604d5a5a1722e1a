"""A canvas whose pixels are another's, moved by one affine map and then changed in colour.

Windows are made a tile at a time, each from the smallest rectangle of the source that it needs: neither the augmented
nor the original slide is ever held.
"""

import functools
import importlib
from types import ModuleType

import numpy as np

from whole_slide_cnn.augment import bicubic
from whole_slide_cnn.augment.affine import PHASES, affine_of, blank_blocks_after, positions, source_window
from whole_slide_cnn.augment.colour import ColourMap
from whole_slide_cnn.augment.parameters import Ranges, TransformParameters, ranges_of, sample_parameters
from whole_slide_cnn.augment.source import CACHE_BYTES, BlockSource
from whole_slide_cnn.config import Augmentation
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.sizes import Window
from whole_slide_cnn.slides.canvas import Canvas

# Pixels along a side worked on at a time: the temporary arrays of a tile stay near the processor.
TILE = 512

# What one read holds beyond its result: the source of a rotated tile and the arrays between it and the result.
WORKING_BYTES = 10 * 2**20
# What augmentation adds to the memory of a process that reads one window at a time.
PROCESS_BYTES = WORKING_BYTES + CACHE_BYTES


def augments(settings: Augmentation) -> bool:
    """Whether a section ``augment`` asks for any change."""
    return ranges_of(settings) != Ranges()


def augmented(canvas: Canvas, settings: Augmentation, seed: int, position: int) -> Canvas:
    """The canvas of one slide in one training step: itself where the configuration asks for no change.

    Args:
        canvas: the slide; closing the result closes it.
        settings: the section ``augment`` of the configuration.
        seed: the run's seed.
        position: how many slides the run has drawn before this one.

    Raises:
        ConfigError: ``augment.device`` is cuda and CuPy is missing or finds no GPU.
    """
    if not augments(settings):
        return canvas
    return AugmentedCanvas(
        canvas, sample_parameters(ranges_of(settings), seed, position), array_module(settings.device)
    )


class AugmentedCanvas(Canvas):
    """A canvas under one :class:`TransformParameters`: as large as its source, with the same name.

    Whatever lies outside of the source has its blank colour; that colour, changed, is this canvas's ``blank_colour``.
    Every pixel is a function of its position alone, so that all windows agree (architecture, law 2).

    Args:
        source: the canvas to change; closing this one closes it.
        xp: NumPy, which works with OpenCV on the CPU, or CuPy, which works on the GPU.

    Attributes:
        source: the canvas as given.
        parameters: what is done to it.
    """

    def __init__(self, source: Canvas, parameters: TransformParameters, xp: ModuleType = np):
        self._xp = xp
        self._affine = affine_of(parameters, source.size)
        self._colours = ColourMap(parameters, xp)
        blank = self._colours(xp.asarray(source.blank_colour[np.newaxis, np.newaxis]))
        super().__init__(source.name, source.size, _to_host(blank)[0, 0])
        self._blocks = BlockSource(source)
        self.source = source
        self.parameters = parameters

    def close(self) -> None:
        self.source.close()

    def _read(self, window: Window) -> np.ndarray:
        pixels = np.empty(window.size + (3,), np.uint8)
        for top in range(0, window.height, TILE):
            for left in range(0, window.width, TILE):
                part = Window(window.top + top, window.left + left, TILE, TILE).intersect(window)
                pixels[top : top + part.height, left : left + part.width] = self._read_tile(part)
        return pixels

    def _read_tile(self, tile: Window) -> np.ndarray:
        if not (tile.height and tile.width):
            return np.empty(tile.size + (3,), np.uint8)
        needed = source_window(self._affine, tile, self.size)
        if not (needed.height and needed.width):
            return np.broadcast_to(self.blank_colour, tile.size + (3,))
        source = self._blocks.read(needed)
        if source is None:
            return np.broadcast_to(self.blank_colour, tile.size + (3,))
        source = self._xp.asarray(source)
        if not self._affine.is_identity:
            source = self._sample(source, needed, tile)
        return _to_host(self._colours(source))

    def _sample(self, source, needed: Window, tile: Window):
        rows, columns = (positions(axis, tile, self._xp) for axis in self._affine[:2])
        rows -= needed.top * PHASES
        columns -= needed.left * PHASES
        if self._xp is np:
            return bicubic.remap(source, rows, columns, self.source.blank_colour)
        return bicubic.gather(source, rows, columns, self.source.blank_colour, self._xp)

    def _find_blank_blocks(self) -> np.ndarray:
        return blank_blocks_after(self._affine, self.size, self._blocks.blank_blocks())


@functools.lru_cache(maxsize=None)
def array_module(device: str) -> ModuleType:
    """NumPy for ``cpu``, CuPy for ``cuda``.

    Raises:
        ConfigError: CuPy is missing or finds no GPU.
    """
    if device == "cpu":
        return np
    try:
        cupy = importlib.import_module("cupy")
        cupy.cuda.runtime.getDevice()
    except Exception as error:
        raise ConfigError(
            "augment.device is cuda, but CuPy cannot be used ({}); install it with pip install "
            "'whole_slide_cnn[cupy]', or set augment.device to cpu".format(" ".join(str(error).split()))
        ) from error
    return cupy


def _to_host(array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()
