"""Seeded random streams and smooth random fields, the same on every machine and NumPy version."""

import zlib

import numpy as np

_MEAN_SQUARE_WEIGHT = 0.4794  # of the four weights of a cubic B-spline, averaged over a lattice cell


def random_stream(*keys):
    """A ``RandomState`` that depends on nothing but the keys (numbers and strings)."""
    return np.random.RandomState([zlib.crc32(repr(key).encode("utf-8")) for key in keys])


class SmoothNoise:
    """A random field of mean 0 and variance about 1 whose value at a pixel depends on no window.

    Args:
        stream: RandomState the field is drawn from.
        size: side of the square the field covers, in pixels.
        wavelength: distance of the independent values in pixels; the field is smooth below it.
    """

    def __init__(self, stream, size, wavelength):
        self._wavelength = float(wavelength)
        count = int(np.ceil(size / self._wavelength)) + 4
        self._lattice = stream.standard_normal((count, count)).astype(np.float32) / np.float32(_MEAN_SQUARE_WEIGHT)

    def window(self, window):
        """Values in a Window: float32 (height, width)."""
        rows, row_weights = self._taps(window.top, window.height)
        columns, column_weights = self._taps(window.left, window.width)
        lines = sum(row_weights[k][:, None] * self._lattice[rows + k] for k in range(4))
        lines = np.ascontiguousarray(lines.T)
        return np.ascontiguousarray(sum(column_weights[k][:, None] * lines[columns + k] for k in range(4)).T)

    def _taps(self, start, count):
        position = (np.arange(start, start + count) + 0.5) / self._wavelength
        index = position.astype(np.int64)
        t = (position - index).astype(np.float32)
        weights = ((1 - t) ** 3 / 6, (3 * t * t * (t - 2) + 4) / 6, (3 * t * (1 + t - t * t) + 1) / 6, t * t * t / 6)
        return index, weights


def fractal_noise(stream, window, longest, octaves, falloff=0.5):
    """Sum of ``octaves`` smooth fields, each of half the wavelength and ``falloff`` times the amplitude of the last."""
    size = max(window.bottom, window.right)
    return sum(
        np.float32(falloff**octave) * SmoothNoise(stream, size, longest / 2.0**octave).window(window)
        for octave in range(octaves)
    )
