"""How well heat maps localise, as tables: one line per slide, and the mean IoU at every threshold."""

import csv
import io
import math
from typing import Any, Iterable, List, Sequence, Tuple

from whole_slide_cnn.files import write_text
from whole_slide_cnn.heatmaps import localisation
from whole_slide_cnn.heatmaps.localisation import Localisation
from whole_slide_cnn.slides.manifest import Record

LOCALISATION, THRESHOLDS = "localisation.csv", "thresholds.csv"

Found = Tuple[Record, Localisation]

_COLUMNS = ("iou", "pixel_auc", "threshold", "lesion_pixels", "tissue_pixels")


def write_localisation(path: str, found: Sequence[Found]) -> None:
    """Write one line per slide with a lesion, atomically; what is undefined is empty.

    Raises:
        WholeSlideError: the file cannot be written.
    """
    rows: List[Sequence[Any]] = [("slide_id", "label") + _COLUMNS]
    for record, result in found:
        values = (getattr(result, column) for column in _COLUMNS)
        rows.append([record.slide_id, record.label] + ["" if value != value else value for value in values])
    _write(path, rows)


def write_thresholds(path: str, results: Sequence[Localisation]) -> None:
    """Write the mean IoU at every threshold, atomically: one is chosen on validation slides and given for others.

    Raises:
        WholeSlideError: the file cannot be written.
    """
    rows: List[Sequence[Any]] = [("threshold", "mean_iou")]
    for threshold, ious in zip(localisation.THRESHOLDS, zip(*(result.ious for result in results))):
        rows.append((threshold, sum(ious) / len(ious)))
    _write(path, rows)


def localisation_sentence(found: Sequence[Found]) -> str:
    """The means in one sentence."""
    if not found:
        return "no slide has a mask with a lesion"
    means = []
    for column in ("iou", "pixel_auc"):
        values = [getattr(result, column) for _, result in found if not math.isnan(getattr(result, column))]
        means.append("{:.3f}".format(sum(values) / len(values)) if values else "undefined")
    return "lesions of {} slides: mean IoU {}, mean pixel AUC {}".format(len(found), *means)


def _write(path: str, rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
