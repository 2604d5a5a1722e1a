"""Colour changes as a function of one pixel's three bytes, so that no window matters (design, law 2).

Whole numbers, tables of 256 entries and single float32 products: operations that give the same bits on every machine,
in every version of NumPy, and wherever in an array a pixel lies. (Powers and exponentials do not: vectorised code and
the code for the last few elements differ.)
"""

import math
from typing import NamedTuple, Optional

import cv2
import numpy as np

from whole_slide_cnn.augment.draws import Draw

CONTRAST_CENTRE = 127

_SEXTANT = 256  # steps of hue
_CIRCLE = 6 * _SEXTANT

# Optical densities per channel of haematoxylin and eosin (Ruifrok and Johnston, 2001), the colours that are perturbed.
_STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
_DENSITY_STEPS = 1024  # per unit of optical density, natural logarithm
_MATRIX_BITS = 12
_LARGEST_DENSITY = 8 * _DENSITY_STEPS  # exp(-8) of 255 is black


class StainTables(NamedTuple):
    """Optical densities through a matrix and back.

    Attributes:
        densities: int32 (256,), density of each grey level in steps.
        matrix: int (3, 3), from the densities of the channels to the new ones, in 2^-12.
        levels: uint8 (steps,), grey level of each density.
    """

    densities: np.ndarray
    matrix: np.ndarray
    levels: np.ndarray


class HueTables(NamedTuple):
    """Hue, saturation and value.

    Attributes:
        inverse: float32 (256,), a sextant over the difference between the strongest and the weakest channel.
        saturation: float32 (256,), 255 over the value.
        chroma: float32 (256,), the new value over 255.
        value: uint8 (256,), the new value.
        hue: what is added to the hue, in steps.
        added: what is added to the saturation.
    """

    inverse: np.ndarray
    saturation: np.ndarray
    chroma: np.ndarray
    value: np.ndarray
    hue: int
    added: np.float32


class ColourMap:
    """The colour changes of a draw: stains, then contrast and brightness, then hue, saturation and value.

    Args:
        xp: the array module of the pixels, NumPy or CuPy.

    Attributes:
        is_identity: whether it changes nothing.
    """

    def __init__(self, draw: Draw, xp=np):
        self._xp = xp
        self._stain = _stain_tables(draw)
        self._levels = _level_table(draw)
        self._hue = _hue_tables(draw)
        self.is_identity = self._stain is None and self._levels is None and self._hue is None

    def __call__(self, pixels):
        """New colours of uint8 (height, width, 3), as an array of the same kind."""
        if self.is_identity or not pixels.size:
            return pixels
        planes = [self._xp.ascontiguousarray(pixels[..., channel]) for channel in range(3)]
        if self._stain is not None:
            planes = self._restain(planes)
        if self._levels is not None:
            planes = [self._look_up(self._levels, plane) for plane in planes]
        if self._hue is not None:
            planes = self._turn(planes)
        return self._xp.stack(planes, axis=-1)

    def _restain(self, planes):
        """Beer-Lambert: light falls exponentially with the amount of each stain; what is neither stays as it is."""
        tables = self._stain
        densities = [self._look_up(tables.densities, plane) for plane in planes]
        levels = self._xp.asarray(tables.levels)
        changed = []
        for row in tables.matrix.tolist():
            total = densities[0] * row[0]
            total += densities[1] * row[1]
            total += densities[2] * row[2]
            total += 1 << (_MATRIX_BITS - 1)
            total >>= _MATRIX_BITS
            changed.append(levels[self._xp.clip(total, 0, len(tables.levels) - 1)])
        return changed

    def _turn(self, planes):
        """Hue, saturation and value of the hexagonal cone. A pixel without colour has the hue of red."""
        xp, tables = self._xp, self._hue
        red, green, blue = planes
        value = xp.maximum(xp.maximum(red, green), blue)
        spread = value - xp.minimum(xp.minimum(red, green), blue)
        hue = self._hue_of(planes, value, spread)
        chroma = self._look_up(tables.saturation, value)
        chroma *= spread
        chroma += tables.added
        xp.clip(chroma, np.float32(0), np.float32(255), out=chroma)
        chroma *= self._look_up(tables.chroma, value)
        chroma = xp.rint(chroma, out=chroma).astype(np.uint16)
        value = self._look_up(tables.value, value)
        return [self._channel(hue, chroma, value, turn * _SEXTANT) for turn in (5, 3, 1)]

    def _hue_of(self, planes, value, spread):
        """New hue in steps from 0 to _CIRCLE: int16."""
        xp, tables = self._xp, self._hue
        red, green, blue = (plane.astype(np.int16) for plane in planes)
        is_red, is_green = planes[0] == value, planes[1] == value
        part = xp.where(is_red, green - blue, xp.where(is_green, blue - red, red - green)).astype(np.float32)
        part *= self._look_up(tables.inverse, spread)
        hue = xp.rint(part, out=part).astype(np.int16)
        hue += xp.where(
            is_red,
            np.int16(tables.hue),
            xp.where(is_green, np.int16(2 * _SEXTANT + tables.hue), np.int16(4 * _SEXTANT + tables.hue)),
        )
        return _wrapped(hue)

    def _channel(self, hue, chroma, value, turn: int):
        """One channel: the value, less the chroma times a trapezium of the hue."""
        xp = self._xp
        place = _wrapped(hue + turn)
        weight = xp.clip(xp.minimum(place, 4 * _SEXTANT - place), 0, _SEXTANT).astype(np.uint16)
        weight *= chroma
        weight += _SEXTANT // 2
        weight >>= 8
        return value - weight.astype(np.uint8)

    def _look_up(self, table: np.ndarray, plane):
        """``table[plane]`` for uint8; OpenCV's is ten times faster."""
        if self._xp is np:
            return cv2.LUT(plane, table)
        return self._xp.asarray(table)[plane]


def _level_table(draw: Draw) -> Optional[np.ndarray]:
    """Contrast and brightness, each rounded to bytes."""
    if draw.contrast == 1.0 and draw.brightness == 1.0:
        return None
    levels = _to_bytes(CONTRAST_CENTRE + draw.contrast * (np.arange(256) - CONTRAST_CENTRE))
    return _to_bytes(draw.brightness * levels)


def _hue_tables(draw: Draw) -> Optional[HueTables]:
    if draw.hue == 0.0 and draw.saturation == 0.0 and draw.value == 0.0:
        return None
    levels = np.arange(256)
    divisor = np.maximum(levels, 1)
    value = _to_bytes(levels + draw.value)
    return HueTables(
        inverse=(_SEXTANT / divisor).astype(np.float32),
        saturation=np.where(levels > 0, 255.0 / divisor, 0.0).astype(np.float32),
        chroma=(value / 255.0).astype(np.float32),
        value=value,
        hue=int(round(draw.hue * _CIRCLE / 256.0)) % _CIRCLE,
        added=np.float32(draw.saturation),
    )


def _stain_tables(draw: Draw) -> Optional[StainTables]:
    if draw.stain_angles == (0.0, 0.0) and draw.stain_strengths == (1.0, 1.0):
        return None
    old = [np.array(stain) / np.linalg.norm(stain) for stain in _STAINS]
    new = [
        _tilted(stain, math.radians(angle), math.radians(direction))
        for stain, angle, direction in zip(old, draw.stain_angles, draw.stain_directions)
    ]
    rest = np.cross(old[0], old[1])
    rest = rest / np.linalg.norm(rest)
    amounts = np.linalg.inv(np.stack(old + [rest], axis=1))
    colours = np.stack([new[0] * draw.stain_strengths[0], new[1] * draw.stain_strengths[1], rest], axis=1)
    densities = np.rint(-np.log(np.maximum(np.arange(256), 1) / 255.0) * _DENSITY_STEPS)
    return StainTables(
        densities.astype(np.int32),
        np.rint(colours.dot(amounts) * (1 << _MATRIX_BITS)).astype(np.int64),
        _to_bytes(255.0 * np.exp(-np.arange(_LARGEST_DENSITY) / _DENSITY_STEPS)),
    )


def _tilted(vector: np.ndarray, angle: float, direction: float) -> np.ndarray:
    """A unit vector turned by ``angle`` towards one of the directions perpendicular to it. All in radians."""
    across = np.cross(vector, [0.0, 0.0, 1.0])
    across = across / np.linalg.norm(across)
    towards = math.cos(direction) * across + math.sin(direction) * np.cross(vector, across)
    return math.cos(angle) * vector + math.sin(angle) * towards


def _wrapped(hue):
    """Hue from -_CIRCLE to 2 * _CIRCLE brought to one turn, in place: int16."""
    hue += (hue < 0).astype(np.int16) * _CIRCLE
    hue -= (hue >= _CIRCLE).astype(np.int16) * _CIRCLE
    return hue


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
