"""How well a heat map agrees with a mask of the lesion: IoU and AUC over pixels (2022, Results)."""

import dataclasses
import math
from typing import List, Optional, Sequence, Tuple

import numpy as np
from sklearn.metrics import roc_auc_score

THRESHOLD = 0.5  # of contours, and from which on a pixel counts as highlighted
THRESHOLDS = tuple(step / 20.0 for step in range(1, 20))  # among which one may be chosen on a validation list


@dataclasses.dataclass(frozen=True)
class Localisation:
    """Agreement of a heat map with a mask."""

    iou: float  # intersection over union of the pixels at or above the threshold with the lesion
    pixel_auc: float
    threshold: float
    lesion_pixels: int
    tissue_pixels: int
    ious: Tuple[float, ...]  # at each of THRESHOLDS
    note: str = ""  # why a number is undefined (nan); empty otherwise


def localise(
    heat: np.ndarray, lesion: np.ndarray, tissue: Optional[np.ndarray] = None, threshold: float = THRESHOLD
) -> Localisation:
    """Compare a heat map with a mask, pixel by pixel, on tissue only: glass is all too easily told from a lesion.

    Args:
        heat: (height, width) probabilities; what is not a number counts as 0, since it is highlighted nowhere.
        lesion: bool (height, width).
        tissue: bool (height, width); the lesion always belongs to it. All pixels where not given.
        threshold: from which on a pixel counts as highlighted.

    Raises:
        ValueError: shapes differ.
    """
    lesion = np.asarray(lesion, bool)
    tissue = np.ones_like(lesion) if tissue is None else np.asarray(tissue, bool) | lesion
    if not heat.shape == lesion.shape == tissue.shape:
        raise ValueError("heat {}, lesion {} and tissue {} differ".format(heat.shape, lesion.shape, tissue.shape))
    values, truth = np.nan_to_num(np.asarray(heat, np.float64)[tissue]), lesion[tissue]
    iou, *ious = _ious(values, truth, (threshold,) + THRESHOLDS)
    count = int(truth.sum())
    note = ""
    if not 0 < count < len(truth):
        note = "no {}, so the pixel AUC is undefined".format("tissue beside the lesion" if count else "lesion")
    return Localisation(
        iou=iou,
        pixel_auc=math.nan if note else float(roc_auc_score(truth, values)),
        threshold=threshold,
        lesion_pixels=count,
        tissue_pixels=len(truth),
        ious=tuple(ious),
        note=note,
    )


def _ious(values: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> List[float]:
    """Intersection over union at every threshold; nan where neither map nor mask marks a pixel."""
    inside, outside = (np.sort(part) for part in (values[truth], values[~truth]))
    common, beside = (len(part) - np.searchsorted(part, thresholds) for part in (inside, outside))
    return [float(hit) / (len(inside) + miss) if len(inside) + miss else math.nan for hit, miss in zip(common, beside)]
