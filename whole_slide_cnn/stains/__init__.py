"""Stains of a slide: their colours, optical densities, and the amounts of each in a pixel (Beer-Lambert).

Everything is a pure function of single pixels on arrays of NumPy or CuPy, so that a canvas that applies it gives a
pixel the same value through every window (architecture, law 2).
"""

from whole_slide_cnn.stains.density import to_density, to_pixels
from whole_slide_cnn.stains.matrix import RUIFROK, StainMatrix
from whole_slide_cnn.stains.recolour import Recolouring, amounts_of, density_of, recolouring

__all__ = [
    "RUIFROK",
    "Recolouring",
    "StainMatrix",
    "amounts_of",
    "density_of",
    "recolouring",
    "to_density",
    "to_pixels",
]
