"""Optical density of grey levels and back, by tables.

The density of a grey level is ``-log(level / 255)``, natural logarithm; that of level 0 is taken as level 1's. Powers
and exponentials are computed once, for tables: vectorised code and the code for the last few elements of an array
differ in their last bits, and with them a pixel's value would depend on the window that it is read through
(architecture, law 2).
"""

from types import ModuleType
from typing import Any

import cv2
import numpy as np

STEPS = 1024  # per unit of optical density, in tables of whole numbers
LARGEST = 8 * STEPS  # exp(-8) of 255 is black


def density_table() -> np.ndarray:
    """Optical density of each grey level in steps of ``1 / STEPS``: int32 (256,)."""
    return np.rint(-np.log(np.maximum(np.arange(256), 1) / 255.0) * STEPS).astype(np.int32)


def level_table() -> np.ndarray:
    """Grey level of each optical density in steps of ``1 / STEPS``, from 0 up: uint8 (LARGEST,)."""
    return to_bytes(255.0 * np.exp(-np.arange(LARGEST) / STEPS))


def to_density(pixels: Any, xp: ModuleType = np) -> Any:
    """Optical densities of pixels: float32, of the shape of ``pixels``, exact to half a step.

    Args:
        pixels: uint8, an array of ``xp``, such as (height, width, 3).
        xp: the array module, NumPy or CuPy.
    """
    return look_up((density_table() / np.float32(STEPS)).astype(np.float32), pixels, xp)


def to_pixels(density: Any, xp: ModuleType = np) -> Any:
    """Grey levels of optical densities: uint8, of the shape of ``density``. Negative densities are white.

    Args:
        density: float32, an array of ``xp``.
        xp: the array module, NumPy or CuPy.
    """
    steps = xp.rint(density * np.float32(STEPS)).astype(np.int32)
    return xp.asarray(level_table())[xp.clip(steps, 0, LARGEST - 1)]


def look_up(table: np.ndarray, plane: Any, xp: ModuleType = np) -> Any:
    """``table[plane]`` for uint8 ``plane``, an array of ``xp``; OpenCV's is ten times faster than NumPy's."""
    if xp is np:
        return cv2.LUT(plane, table).reshape(plane.shape) if plane.size else table[plane]
    return xp.asarray(table)[plane]


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values rounded to the nearest byte, halves up: uint8."""
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
