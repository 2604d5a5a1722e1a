"""The colours of a slide's two stains, as directions in the space of optical densities."""

import math
from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np

Vector = Tuple[float, float, float]


_UNIT = 1e-6  # how far from 1 the length of a unit vector may be
_APART = 1e-6  # sine of the least angle between two stains


@dataclass(frozen=True)
class StainMatrix:
    """Directions of two stains in optical densities per channel (red, green, blue): unit vectors.

    Attributes:
        haematoxylin: of the nuclei.
        eosin: of the rest.

    Raises:
        ValueError: a vector is not of three finite numbers and length 1, or both have one direction.
    """

    haematoxylin: Vector
    eosin: Vector

    def __post_init__(self) -> None:
        for name in ("haematoxylin", "eosin"):
            vector = getattr(self, name)
            if len(vector) != 3 or not abs(math.sqrt(sum(value * value for value in vector)) - 1) < _UNIT:
                raise ValueError("{} must be three numbers of length 1, not {}".format(name, vector))
        first, second = self.vectors()
        if np.linalg.norm(np.cross(first, second)) < _APART:
            raise ValueError("haematoxylin {} and eosin {} have one colour".format(self.haematoxylin, self.eosin))

    @classmethod
    def of(cls, haematoxylin: Sequence[float], eosin: Sequence[float]) -> "StainMatrix":
        """From vectors of any length but zero.

        Raises:
            ValueError: see the class.
        """
        lengths = [float(np.linalg.norm(stain)) for stain in (haematoxylin, eosin)]
        if not all(length > 0 and math.isfinite(length) for length in lengths):
            raise ValueError("stains must be finite and not zero, not {} and {}".format(haematoxylin, eosin))
        first, second = (_vector(np.array(stain) / length) for stain, length in zip((haematoxylin, eosin), lengths))
        return cls(first, second)

    def vectors(self) -> List[np.ndarray]:
        """Haematoxylin and eosin: float64 (3,) each."""
        return [np.array(self.haematoxylin), np.array(self.eosin)]

    def rest(self) -> np.ndarray:
        """The unit vector perpendicular to both, for what is neither: float64 (3,)."""
        first, second = self.vectors()
        across = np.cross(first, second)
        return across / np.linalg.norm(across)

    def colours(self) -> np.ndarray:
        """Amounts of haematoxylin, eosin and rest to optical densities: float64 (3, 3), a unit vector a column."""
        return np.stack(self.vectors() + [self.rest()], axis=1)

    def amounts(self) -> np.ndarray:
        """Optical densities to amounts, the inverse of :meth:`colours`: float64 (3, 3)."""
        return np.linalg.inv(self.colours())

    def tilted(self, angles: Tuple[float, float], directions: Tuple[float, float]) -> "StainMatrix":
        """Each vector turned by an angle towards one of the directions perpendicular to it. All in degrees.

        Args:
            angles: of haematoxylin and eosin.
            directions: likewise.
        """
        turned = (
            _tilted(stain, math.radians(angle), math.radians(direction))
            for stain, angle, direction in zip(self.vectors(), angles, directions)
        )
        return StainMatrix(*(_vector(stain) for stain in turned))


def _tilted(vector: np.ndarray, angle: float, direction: float) -> np.ndarray:
    """A unit vector turned by ``angle`` towards one of the directions perpendicular to it. All in radians."""
    across = np.cross(vector, [0.0, 0.0, 1.0])
    across = across / np.linalg.norm(across)
    towards = math.cos(direction) * across + math.sin(direction) * np.cross(vector, across)
    return math.cos(angle) * vector + math.sin(angle) * towards


def _vector(values: np.ndarray) -> Vector:
    red, green, blue = values.tolist()
    return red, green, blue


# Ruifrok and Johnston, 2001.
RUIFROK = StainMatrix.of((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
