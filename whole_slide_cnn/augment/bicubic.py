"""Bicubic sampling in integers: no result depends on where in a window, or in which window, a pixel lies.

The weights are multiples of 2^-15 for each of 32 x 32 positions between pixels and sum to one exactly, so that an area
of one colour keeps it. OpenCV's ``remap`` with fixed-point maps does this on the CPU; :func:`gather` does the same with
any array module and gives the same pixels.
"""

import functools

import cv2
import numpy as np

from whole_slide_cnn.augment.affine import PHASES

_SLOPE = -0.75  # of the kernel at distance 1, as OpenCV has it
_BITS = 15
_TAPS = 4
_MARGIN = 3  # source pixels beyond the border that may be told apart: further out, all four taps are outside


def remap(source: np.ndarray, rows: np.ndarray, columns: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Sample an image by OpenCV.

    Args:
        source: uint8 (height, width, 3).
        rows: int32 (out height, out width), positions in ``source`` in 32nds of a pixel, below 2^15 px.
        columns: likewise.
        outside: uint8 (3,), the colour around ``source``.

    Returns:
        uint8 (out height, out width, 3).
    """
    pixels = np.empty(rows.shape + (2,), np.int16)
    np.right_shift(columns, 5, out=pixels[..., 0], casting="unsafe")
    np.right_shift(rows, 5, out=pixels[..., 1], casting="unsafe")
    phases = (((rows & (PHASES - 1)) << 5) | (columns & (PHASES - 1))).astype(np.uint16)
    colour = tuple(int(value) for value in outside)
    return cv2.remap(source, pixels, phases, cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=colour)


def gather(source, rows, columns, outside, xp=np):
    """Sample an image by tables of indices; arguments and result are those of :func:`remap`, as arrays of ``xp``."""
    height, width = source.shape[:2]
    border = _MARGIN + 2
    padded = xp.empty((height + 2 * border, width + 2 * border, 3), np.uint8)
    padded[...] = xp.asarray(outside)
    padded[border:-border, border:-border] = source
    top = xp.clip(rows >> 5, -_MARGIN, height + _MARGIN - 1) + (border - 1)
    left = xp.clip(columns >> 5, -_MARGIN, width + _MARGIN - 1) + (border - 1)
    phases = (rows & (PHASES - 1)) * PHASES + (columns & (PHASES - 1))
    flat, first = padded.reshape(-1, 3), top * padded.shape[1] + left
    table = xp.asarray(weights())
    total = xp.full(rows.shape + (3,), 1 << (_BITS - 1), np.int32)
    for tap in range(_TAPS * _TAPS):
        offset = tap // _TAPS * padded.shape[1] + tap % _TAPS
        total += table[tap][phases][..., None] * flat[first + offset].astype(np.int32)
    return xp.clip(total >> _BITS, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def weights() -> np.ndarray:
    """Weights of the 4 x 4 pixels around a position: int32 (16, 32 * 32), taps and phases in raster order.

    Products of the two axes' weights, rounded. What the sum then lacks of 2^15 is added to the largest of the four taps
    from the third row and column on; what it has too much is taken from the smallest of them.
    """
    distance = np.arange(PHASES, dtype=np.float32)[:, None] / np.float32(PHASES)
    axis = np.concatenate([_kernel(distance + 1), _kernel(distance), _kernel(1 - distance)], axis=1)
    axis = np.concatenate([axis, 1 - axis[:, :1] - axis[:, 1:2] - axis[:, 2:3]], axis=1)
    product = axis[:, None, :, None] * axis[None, :, None, :]  # (row phase, column phase, row tap, column tap)
    limits = np.iinfo(np.int16)
    table = np.clip(np.rint(product * np.float32(1 << _BITS)), limits.min, limits.max).astype(np.int32)
    table = table.reshape(-1, _TAPS, _TAPS)
    missing = (1 << _BITS) - table.sum(axis=(1, 2))
    for phase in np.flatnonzero(missing):
        inner = table[phase, 2:, 2:]
        chosen = np.argmax(inner) if missing[phase] > 0 else np.argmin(inner)
        inner[chosen // 2, chosen % 2] += missing[phase]
    table = np.ascontiguousarray(table.reshape(PHASES * PHASES, -1).T)
    table.setflags(write=False)
    return table


def _kernel(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel at distances from 0 to 2, in float32."""
    slope = np.float32(_SLOPE)
    near = ((slope + 2) * distance - (slope + 3)) * distance * distance + 1
    far = ((slope * distance - 5 * slope) * distance + 8 * slope) * distance - 4 * slope
    return np.where(distance <= 1, near, far)
