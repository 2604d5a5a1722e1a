"""From optical densities to the amounts of two stains and back, and from one pair of stains to another."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, List, Sequence, Tuple

import numpy as np

from whole_slide_cnn.stains.density import density_table, level_table, look_up
from whole_slide_cnn.stains.matrix import StainMatrix

_MATRIX_BITS = 12


def amounts_of(density: Any, stains: StainMatrix, xp: ModuleType = np) -> Any:
    """Amounts of haematoxylin, eosin and of what is neither: float32 (..., 3). They may be negative.

    Args:
        density: float32 (..., 3), optical densities, an array of ``xp`` (:func:`~whole_slide_cnn.stains.to_density`).
        stains: whose amounts.
        xp: the array module, NumPy or CuPy.
    """
    return _product(stains.amounts(), density, xp)


def density_of(amounts: Any, stains: StainMatrix, xp: ModuleType = np) -> Any:
    """Optical densities of amounts of stains, the inverse of :func:`amounts_of`: float32 (..., 3)."""
    return _product(stains.colours(), amounts, xp)


@dataclass(frozen=True)
class Recolouring:
    """Optical densities through a matrix and back, in whole numbers: the same bits on every machine.

    Made by :func:`recolouring`.

    Attributes:
        densities: int32 (256,), density of each grey level in steps.
        matrix: int64 (3, 3), from the densities of the channels to the new ones, in 2^-12.
        levels: uint8 (steps,), grey level of each density.
    """

    densities: np.ndarray
    matrix: np.ndarray
    levels: np.ndarray

    def __call__(self, planes: Sequence[Any], xp: ModuleType = np) -> List[Any]:
        """New red, green and blue planes: uint8, of the shape of those given.

        Args:
            planes: red, green and blue, uint8, contiguous arrays of ``xp``.
            xp: the array module, NumPy or CuPy.
        """
        densities = [look_up(self.densities, plane, xp) for plane in planes]
        levels = xp.asarray(self.levels)
        changed = []
        for row in self.matrix.tolist():
            total = densities[0] * row[0]
            total += densities[1] * row[1]
            total += densities[2] * row[2]
            total += 1 << (_MATRIX_BITS - 1)
            total >>= _MATRIX_BITS
            changed.append(levels[xp.clip(total, 0, len(self.levels) - 1)])
        return changed


def recolouring(old: StainMatrix, new: StainMatrix, strengths: Tuple[float, float] = (1.0, 1.0)) -> Recolouring:
    """What gives pixels other stains, in as much of them; what is neither stain stays as it is.

    Args:
        old: stains of the pixels.
        new: stains that they are to have.
        strengths: factors of the amounts of haematoxylin and eosin.
    """
    haematoxylin, eosin = new.vectors()
    colours = np.stack([haematoxylin * strengths[0], eosin * strengths[1], old.rest()], axis=1)
    matrix = np.rint(colours.dot(old.amounts()) * (1 << _MATRIX_BITS)).astype(np.int64)
    return Recolouring(density_table(), matrix, level_table())


def _product(matrix: np.ndarray, values: Any, xp: ModuleType) -> Any:
    """``matrix @ values`` along the last axis: by single products, as the rounding of a matrix product depends on how
    many pixels there are."""
    planes = [values[..., channel] for channel in range(3)]
    rows = matrix.astype(np.float32)
    return xp.stack([planes[0] * row[0] + planes[1] * row[1] + planes[2] * row[2] for row in rows], axis=-1)
