"""Colour changes as a function of one pixel's three bytes, so that no window matters (architecture, law 2).

Whole numbers, tables of 256 entries and single float32 products: operations that give the same bits on every machine,
in every version of NumPy, and wherever in an array a pixel lies. (Powers and exponentials do not: vectorised code and
the code for the last few elements differ.)
"""

from types import ModuleType
from typing import Any, List, NamedTuple, Optional

import numpy as np

from whole_slide_cnn.augment.parameters import TransformParameters
from whole_slide_cnn.stains.density import look_up, to_bytes
from whole_slide_cnn.stains.matrix import RUIFROK
from whole_slide_cnn.stains.recolour import Recolouring, recolouring

CONTRAST_CENTRE = 127

_SEXTANT = 256  # steps of hue
_CIRCLE = 6 * _SEXTANT


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
    """The colour changes of some parameters: stains, then contrast and brightness, then hue, saturation and value.

    Args:
        xp: the array module of the pixels, NumPy or CuPy.

    Attributes:
        is_identity: whether it changes nothing.
    """

    def __init__(self, parameters: TransformParameters, xp: ModuleType = np):
        self._xp = xp
        self._stain = _stain_change(parameters)
        self._levels = _level_table(parameters)
        self._hue = _hue_tables(parameters)
        self.is_identity = self._stain is None and self._levels is None and self._hue is None

    def __call__(self, pixels: Any) -> Any:
        """New colours of uint8 (height, width, 3), as an array of the same kind."""
        if self.is_identity or not pixels.size:
            return pixels
        planes = [self._xp.ascontiguousarray(pixels[..., channel]) for channel in range(3)]
        if self._stain is not None:
            planes = self._stain(planes, self._xp)
        if self._levels is not None:
            planes = [self._look_up(self._levels, plane) for plane in planes]
        if self._hue is not None:
            planes = self._turn(planes, self._hue)
        return self._xp.stack(planes, axis=-1)

    def _turn(self, planes: List[Any], tables: HueTables) -> List[Any]:
        """Hue, saturation and value of the hexagonal cone. A pixel without colour has the hue of red."""
        xp = self._xp
        red, green, blue = planes
        value = xp.maximum(xp.maximum(red, green), blue)
        difference = value - xp.minimum(xp.minimum(red, green), blue)
        hue = self._hue_of(planes, value, difference, tables)
        chroma = self._look_up(tables.saturation, value)
        chroma *= difference
        chroma += tables.added
        xp.clip(chroma, np.float32(0), np.float32(255), out=chroma)
        chroma *= self._look_up(tables.chroma, value)
        chroma = xp.rint(chroma, out=chroma).astype(np.uint16)
        value = self._look_up(tables.value, value)
        return [self._channel(hue, chroma, value, turn * _SEXTANT) for turn in (5, 3, 1)]

    def _hue_of(self, planes: List[Any], value: Any, difference: Any, tables: HueTables) -> Any:
        """New hue in steps from 0 to _CIRCLE: int16."""
        xp = self._xp
        red, green, blue = (plane.astype(np.int16) for plane in planes)
        is_red, is_green = planes[0] == value, planes[1] == value
        part = xp.where(is_red, green - blue, xp.where(is_green, blue - red, red - green)).astype(np.float32)
        part *= self._look_up(tables.inverse, difference)
        hue = xp.rint(part, out=part).astype(np.int16)
        hue += xp.where(
            is_red,
            np.int16(tables.hue),
            xp.where(is_green, np.int16(2 * _SEXTANT + tables.hue), np.int16(4 * _SEXTANT + tables.hue)),
        )
        return _wrapped(hue)

    def _channel(self, hue: Any, chroma: Any, value: Any, turn: int) -> Any:
        """One channel: the value, less the chroma times a trapezium of the hue."""
        xp = self._xp
        place = _wrapped(hue + turn)
        weight = xp.clip(xp.minimum(place, 4 * _SEXTANT - place), 0, _SEXTANT).astype(np.uint16)
        weight *= chroma
        weight += _SEXTANT // 2
        weight >>= 8
        return value - weight.astype(np.uint8)

    def _look_up(self, table: np.ndarray, plane: Any) -> Any:
        return look_up(table, plane, self._xp)


def _level_table(parameters: TransformParameters) -> Optional[np.ndarray]:
    """Contrast and brightness, each rounded to bytes."""
    if parameters.contrast == 1.0 and parameters.brightness == 1.0:
        return None
    levels = to_bytes(CONTRAST_CENTRE + parameters.contrast * (np.arange(256) - CONTRAST_CENTRE))
    return to_bytes(parameters.brightness * levels)


def _hue_tables(parameters: TransformParameters) -> Optional[HueTables]:
    if parameters.hue == 0.0 and parameters.saturation == 0.0 and parameters.value == 0.0:
        return None
    levels = np.arange(256)
    divisor = np.maximum(levels, 1)
    value = to_bytes(levels + parameters.value)
    return HueTables(
        inverse=(_SEXTANT / divisor).astype(np.float32),
        saturation=np.where(levels > 0, 255.0 / divisor, 0.0).astype(np.float32),
        chroma=(value / 255.0).astype(np.float32),
        value=value,
        hue=int(round(parameters.hue * _CIRCLE / 256.0)) % _CIRCLE,
        added=np.float32(parameters.saturation),
    )


def _stain_change(parameters: TransformParameters) -> Optional[Recolouring]:
    angles, strengths = parameters.stain_angles, parameters.stain_strengths
    if angles == (0.0, 0.0) and strengths == (1.0, 1.0):
        return None
    return recolouring(RUIFROK, RUIFROK.tilted(angles, parameters.stain_directions), strengths)


def _wrapped(hue: Any) -> Any:
    """Hue from -_CIRCLE to 2 * _CIRCLE brought to one turn, in place: int16."""
    hue += (hue < 0).astype(np.int16) * _CIRCLE
    hue -= (hue >= _CIRCLE).astype(np.int16) * _CIRCLE
    return hue
