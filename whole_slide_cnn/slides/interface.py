"""What every slide reader offers, whichever library decodes the file."""

import abc
from typing import Optional, Sequence, Tuple

import numpy as np

from whole_slide_cnn.sizes import Size, Window


class SlideReader(abc.ABC):
    """An open slide: a pyramid of images of the same area, level 0 the finest.

    Reading is safe from several threads at once; closing is not safe while another thread reads.

    Attributes:
        name: the slide's name in messages, normally its ``slide_id`` in the manifest.
        path: the file.
        level_sizes: height and width of each level in its own pixels.
        level_downsamples: per level and axis ``(y, x)``, level 0's size divided by the level's.
        mpp: µm per pixel of level 0 as ``(y, x)``, or None where the file does not state it.
        aperio_magnification: what an Aperio file states as the magnification of level 0; None for all others.
    """

    def __init__(
        self,
        name: str,
        path: str,
        level_sizes: Sequence[Size],
        mpp: Optional[Tuple[float, float]],
        aperio_magnification: Optional[float] = None,
    ):
        self.name = name
        self.path = path
        self.level_sizes: Tuple[Size, ...] = tuple(Size(*size) for size in level_sizes)
        self.mpp = mpp
        self.aperio_magnification = aperio_magnification
        full = self.level_sizes[0]
        self.level_downsamples: Tuple[Tuple[float, float], ...] = tuple(
            (full.height / size.height, full.width / size.width) for size in self.level_sizes
        )
        self._closed = False

    def read_level(self, level: int, window: Window) -> np.ndarray:
        """Pixels of a window of one level, in that level's own pixel coordinates.

        Areas that were not scanned and transparent areas are white (255).

        Returns:
            uint8 array (height, width, 3), RGB.

        Raises:
            SlideError: the file is corrupt or truncated there.
            ValueError: there is no such level, the window leaves it, or the reader is closed.
        """
        if self._closed:
            raise ValueError("slide {} is closed".format(self.name))
        if not 0 <= level < len(self.level_sizes):
            raise ValueError("slide {} has no level {}".format(self.name, level))
        require_inside(window, self.level_sizes[level])
        return self._read(level, window)

    @abc.abstractmethod
    def _read(self, level: int, window: Window) -> np.ndarray:
        """:meth:`read_level` for a window that is known to lie within the level."""

    def close(self) -> None:
        """Release the file; closing twice does no harm."""
        if not self._closed:
            self._closed = True
            self._release()

    @abc.abstractmethod
    def _release(self) -> None:
        """Let go of whatever the reader holds; called once."""

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def require_inside(window: Window, size: Size) -> None:
    """Raise ValueError unless ``window`` lies within an image of ``size``."""
    inside = 0 <= window.top <= window.bottom <= size.height and 0 <= window.left <= window.right <= size.width
    if not inside:
        raise ValueError("{} leaves the {} x {} px image".format(window, size.height, size.width))
