"""Medians, quartiles and whiskers, as the papers' figures have them."""

from typing import Dict, List, Sequence

import numpy as np


def summary(values: Sequence[float]) -> Dict[str, float]:
    """Median, quartiles, and the least and largest value within 1.5 times their distance of the median (2021, Fig. 6;
    2022, Fig. 3); ``number`` says of how many."""
    values = np.asarray(values, np.float64)
    first, median, third = (float(value) for value in np.percentile(values, (25, 50, 75)))
    reach = 1.5 * (third - first)
    inside = values[(values >= median - reach) & (values <= median + reach)]
    low, high = (float(inside.min()), float(inside.max())) if len(inside) else (median, median)
    return {"median": median, "q1": first, "q3": third, "low": low, "high": high, "number": len(values)}


def box(values: Sequence[float]) -> Dict[str, object]:
    """:func:`summary` as ``matplotlib``'s ``Axes.bxp`` takes it, with the values outside the whiskers."""
    found = summary(values)
    outside = [float(value) for value in values if not found["low"] <= value <= found["high"]]
    names = {"med": "median", "q1": "q1", "q3": "q3", "whislo": "low", "whishi": "high"}
    return dict({name: found[ours] for name, ours in names.items()}, fliers=outside)


def per_minute(seconds: Sequence[float]) -> List[float]:
    """Images per minute of steps of one image each."""
    return [60.0 / value for value in seconds]
