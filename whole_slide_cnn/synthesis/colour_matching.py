"""The staining of pixels, measured and imposed on others.

A staining is the mean and the covariance of red, green and blue. Mean and deviation per channel alone are not enough
to hide which tissue is which: the correlation of the channels differs between red cells and tumour cells.
"""

from typing import NamedTuple

import numpy as np

BRIGHTEST = 225  # tissue stays below this, so that no usual threshold takes part of it for background
_REACH = 1.6  # a target keeps this many deviations between its mean and either end of the scale
_FLAT = 1.0  # variance added to that of the pixels to be matched: flat ones do not become pure noise
_ROUNDS = 12
_TOLERANCE = 0.05  # grey levels


class Colour(NamedTuple):
    """Mean (3,) and covariance (3, 3) of red, green and blue on the 0 to 255 scale: float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def deviation(self):
        """Standard deviation per channel (3,)."""
        return np.sqrt(np.diag(self.covariance))


class ColourMap(NamedTuple):
    """An affine map of colours: ``row @ matrix + shift``, float32 (3, 3) and (3,)."""

    matrix: np.ndarray
    shift: np.ndarray

    def apply(self, pixels):
        """Map pixels (count, 3), of any type: float32, not clipped."""
        # Channel by channel and not by a matrix product, whose rounding differs between linear algebra libraries.
        red, green, blue = (pixels[:, c].astype(np.float32) for c in range(3))
        mapped = np.empty((len(pixels), 3), np.float32)
        for c in range(3):
            column = self.matrix[:, c]
            mapped[:, c] = red * column[0] + green * column[1] + blue * column[2] + self.shift[c]
        return mapped


def measure(pixels, weights=None):
    """The Colour of pixels (count, 3), each weighted by ``weights`` (count,); None weighs all alike."""
    channels = [pixels[:, c].astype(np.float64) for c in range(3)]
    total = float(len(pixels) if weights is None else weights.sum(dtype=np.float64))
    share = 1.0 / total if weights is None else weights / total
    mean = np.array([(channel * share).sum() for channel in channels])
    centred = [channel - middle for channel, middle in zip(channels, mean)]
    covariance = np.empty((3, 3))
    for row in range(3):
        weighted = centred[row] * share
        for column in range(row, 3):
            covariance[row, column] = covariance[column, row] = (weighted * centred[column]).sum()
    return Colour(mean, covariance)


def reachable(target):
    """The target moved just far enough from 0 and ``BRIGHTEST`` for any photograph to meet it without much clipping."""
    deviation = np.maximum(target.deviation, 1e-6)
    allowed = np.clip(deviation, 1.0, BRIGHTEST / 2.0 / _REACH)
    scale = allowed / deviation
    mean = np.clip(target.mean, _REACH * allowed, BRIGHTEST - _REACH * allowed)
    return Colour(mean, target.covariance * np.outer(scale, scale))


def map_between(colour, target):
    """The ColourMap that turns pixels of one Colour into those of another and changes them least on the way."""
    root = _power(colour.covariance + _FLAT * np.eye(3), 0.5)
    inverse = _power(colour.covariance + _FLAT * np.eye(3), -0.5)
    matrix = inverse @ _power(root @ target.covariance @ root, 0.5) @ inverse
    return _rounded(matrix, target.mean - colour.mean @ matrix)


def map_within_scale(pixels, weights, target):
    """The ColourMap after which pixels, clipped to 0..BRIGHTEST, have the target's mean and covariance.

    Args:
        pixels: (count, 3), all or an even sample of those to be mapped.
        weights: weight of each (count,).
        target: Colour to meet, best a ``reachable`` one. Where no map meets it, the nearest one found is returned.
    """
    total = best = ColourMap(np.eye(3, dtype=np.float32), np.zeros(3, np.float32))
    least = np.inf
    for _ in range(_ROUNDS):
        now = measure(np.clip(total.apply(pixels), 0, BRIGHTEST), weights)
        error = max(np.abs(now.mean - target.mean).max(), np.abs(now.deviation - target.deviation).max())
        if error < least:  # the rounds need not converge where most pixels lie at the ends of the scale
            best, least = total, error
        if error < _TOLERANCE:
            break
        step = map_between(now, target)
        total = _rounded(total.matrix @ step.matrix, total.shift @ step.matrix + step.shift)
    return best


def _power(matrix, exponent):
    """A power of a symmetric positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-9) ** exponent) @ vectors.T


def _rounded(matrix, shift):
    # The last bits of sums and roots differ between NumPy versions; they must not decide about any pixel.
    return ColourMap(np.round(matrix, 5).astype(np.float32), np.round(shift, 3).astype(np.float32))
