"""µm per pixel from what files state about themselves."""

import math
from typing import Optional, Tuple

# Scanners lie well within these bounds. Resolution tags meant for printing (72 or 300 dots per inch) lie outside.
FINEST_MPP = 0.05
COARSEST_MPP = 50.0
HIGHEST_MAGNIFICATION = 200.0

_UNIT_MICROMETRES = {"centimeter": 1e4, "inch": 25400.0}


def plausible_mpp(mpp_y, mpp_x) -> Optional[Tuple[float, float]]:
    """``(y, x)`` µm/px as floats, or None unless both are numbers that a microscope could have produced."""
    try:
        mpp = float(mpp_y), float(mpp_x)
    except (TypeError, ValueError):
        return None
    return mpp if all(FINEST_MPP <= value <= COARSEST_MPP for value in mpp) else None


def plausible_magnification(stated) -> Optional[float]:
    """A magnification as a float, or None unless it is a number that a microscope could have."""
    try:
        magnification = float(stated)
    except (TypeError, ValueError):
        return None
    return magnification if 0 < magnification <= HIGHEST_MAGNIFICATION else None


def mpp_from_tiff_tags(y_resolution, x_resolution, unit) -> Optional[Tuple[float, float]]:
    """``(y, x)`` µm/px from TIFF's pixels per ``unit`` ("centimeter" or "inch"); None if missing or implausible."""
    if unit not in _UNIT_MICROMETRES:
        return None
    try:
        resolutions = float(y_resolution), float(x_resolution)
    except (TypeError, ValueError):
        return None
    if not all(math.isfinite(resolution) and resolution > 0 for resolution in resolutions):
        return None
    micrometres = _UNIT_MICROMETRES[unit]
    return plausible_mpp(micrometres / resolutions[0], micrometres / resolutions[1])
