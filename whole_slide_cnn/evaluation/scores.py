"""Scores of slides: their files, and the report made from them."""

import csv
import dataclasses
import json
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.delong import Auc, auc_interval
from whole_slide_cnn.files import replacing, write_text

_LEADING = ("case_id", "slide_id", "label")
_PREFIX, _LAST = "p_", "prediction"
_AGREEMENT = 1e-3  # between probabilities of one slide from two processes; rounding may flip choices of the network


@dataclasses.dataclass(frozen=True)
class SlideScore:
    """One slide with its label (a class index), the model's probability of each class, and the loss where known, which
    no file holds and which makes no two scores differ."""

    case_id: str
    slide_id: str
    label: int
    probabilities: Tuple[float, ...]
    loss: Optional[float] = dataclasses.field(default=None, compare=False)

    @property
    def prediction(self) -> int:
        """The class with the highest probability; the first of equals."""
        return int(np.argmax(self.probabilities))


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """One class against the rest."""

    name: str
    slides: int  # labelled with this class
    predicted: int  # predicted as this class
    correct: int  # both
    auc: Auc


@dataclasses.dataclass(frozen=True)
class Report:
    """How well slides were classified, or cases: ``unit`` says which of them all numbers count."""

    slides: int
    accuracy: float
    loss: Optional[float]
    classes: Tuple[ClassReport, ...]
    unit: str = "slides"

    def to_dict(self) -> Dict[str, Any]:
        """JSON types; undefined numbers are None, and counts are called what they count."""
        return _renamed(without_nan(dataclasses.asdict(self)), "slides", self.unit)

    def to_json(self, cases: Optional["Report"] = None) -> str:
        """Indented JSON; undefined numbers are null. The report on cases, if given, stands under ``cases``."""
        document = self.to_dict()
        if cases is not None:
            document["cases"] = cases.to_dict()
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """A table for a terminal, with one line per class and the notes below."""
        return _table(self)


def evaluate(
    labels: Any, probabilities: Any, classes: Sequence[str], loss: Optional[float] = None, unit: str = "slides"
) -> Report:
    """Accuracy, and one-vs-rest AUC of each class with DeLong's 95 % interval.

    Args:
        labels: (slides,) class indices, or bool (slides, classes) where a slide or case may belong to several; it is
            then correctly predicted as any of them.
        probabilities: (slides, classes) higher for the more likely class; rows need not sum to 1.
        classes: class names.
        loss: mean loss of the slides where the caller has it.
        unit: what is counted, ``slides`` or ``cases``.

    Raises:
        WholeSlideError: there is no slide, or a probability is not finite.
        ValueError: shapes do not fit, or a label is no class index.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if len(labels) == 0:
        raise WholeSlideError("no slide was scored, so there is nothing to evaluate")
    if probabilities.shape != (len(labels), len(classes)):
        raise ValueError("probabilities of shape {} do not fit {} labels".format(probabilities.shape, len(labels)))
    positives = positives_of(labels, len(classes))
    if not np.isfinite(probabilities).all():
        row = int(np.argmin(np.isfinite(probabilities).all(axis=1)))
        raise WholeSlideError("the score of slide number {} is not a finite number".format(row + 1))
    predictions = np.argmax(probabilities, axis=1)
    return Report(
        slides=len(labels),
        accuracy=float(np.mean(positives[np.arange(len(labels)), predictions])),
        loss=None if loss is None else float(loss),
        classes=tuple(
            ClassReport(
                name=name,
                slides=int(np.sum(positives[:, index])),
                predicted=int(np.sum(predictions == index)),
                correct=int(np.sum(positives[:, index] & (predictions == index))),
                auc=auc_interval(positives[:, index], probabilities[:, index]),
            )
            for index, name in enumerate(classes)
        ),
        unit=unit,
    )


def positives_of(labels: Any, classes: int) -> np.ndarray:
    """Which classes each slide or case belongs to: bool (n, classes).

    Args:
        labels: (n,) class indices, or already bool (n, classes).
        classes: how many there are.

    Raises:
        ValueError: a label is no class index, or shapes do not fit.
    """
    labels = np.asarray(labels)
    if labels.dtype == bool and labels.shape[1:] == (classes,):
        return labels
    if labels.ndim != 1 or not np.isin(labels, np.arange(classes)).all():
        raise ValueError("labels must be class indices from 0 to {}".format(classes - 1))
    return labels[:, np.newaxis] == np.arange(classes)


def evaluate_scores(scores: Sequence[SlideScore], classes: Sequence[str], loss: Optional[float] = None) -> Report:
    """:func:`evaluate` on :class:`SlideScore` objects; an unusable score is reported with the slide's name.

    Raises:
        WholeSlideError: as :func:`evaluate`.
    """
    for score in scores:
        if not all(map(math.isfinite, score.probabilities)):
            raise WholeSlideError("slide {}: its score is not a finite number".format(score.slide_id))
    probabilities = np.array([score.probabilities for score in scores]).reshape(-1, len(classes))
    return evaluate([score.label for score in scores], probabilities, classes, loss)


def merge_scores(parts: Sequence[Sequence[SlideScore]], slide_ids: Optional[Sequence[str]] = None) -> List[SlideScore]:
    """Join the scores of several processes, each of which scored a share of the slides.

    A slide that several of them scored counts once.

    Args:
        parts: the scores of each process, in the order of their ranks.
        slide_ids: the data list; the result is in its order, without slides that nobody scored. Not given: in the
            order of ``parts``.

    Raises:
        WholeSlideError: processes disagree on a slide, so that they cannot have had the same weights and data list.
        ValueError: a score is of no slide of the list.
    """
    found: Dict[str, SlideScore] = {}
    for score in (score for part in parts for score in part):
        first = found.setdefault(score.slide_id, score)
        same = (first.case_id, first.label) == (score.case_id, score.label)
        if not same or not np.allclose(first.probabilities, score.probabilities, atol=_AGREEMENT, equal_nan=True):
            raise WholeSlideError(
                "slide {}: two processes scored it differently, {} and {}".format(
                    score.slide_id, first.probabilities, score.probabilities
                )
            )
    if slide_ids is None:
        return list(found.values())
    strange = set(found) - set(slide_ids)
    if strange:
        raise ValueError("slide {} is not in the data list".format(min(strange)))
    return [found[name] for name in slide_ids if name in found]


def mean_loss(scores: Sequence[SlideScore]) -> Optional[float]:
    """Mean loss of scores, or None where one has none."""
    losses = [score.loss for score in scores if score.loss is not None]
    return float(np.mean(losses)) if losses and len(losses) == len(scores) else None


def write_scores(path: str, scores: Sequence[SlideScore], classes: Sequence[str]) -> None:
    """Write ``case_id,slide_id,label,p_<class>...,prediction``, one line per slide, atomically.

    Labels and predictions are class names; probabilities are written so that reading them gives the same floats.

    Raises:
        WholeSlideError: the file cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_header(classes))
        for score in scores:
            numbers = [repr(float(p)) for p in score.probabilities]
            row = [score.case_id, score.slide_id, classes[score.label]] + numbers + [classes[score.prediction]]
            writer.writerow(row)


def read_scores(path: str) -> Tuple[List[SlideScore], Tuple[str, ...]]:
    """Read what :func:`write_scores` wrote.

    Returns:
        ``(scores, classes)``: a list of :class:`SlideScore` and the tuple of class names.

    Raises:
        WholeSlideError: the file is missing or has another form; the message names the line.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            classes = _classes_of(next(reader, []), path)
            scores = [_parse_row(row, classes, path, reader.line_num) for row in reader]
    except OSError as error:
        raise WholeSlideError("{}: cannot read scores: {}".format(path, error.strerror)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise WholeSlideError("{}: not a file of scores: {}".format(path, error)) from error
    return scores, classes


def write_scores_json(path: str, scores: Sequence[SlideScore], slide_paths: Sequence[str]) -> None:
    """Write a JSON list of ``{"slide_path", "y_true", "y_pred"}``, atomically.

    ``y_true`` is the class index and ``y_pred`` the list of probabilities: the form of the 2021 reference's results.

    Args:
        scores: :class:`SlideScore` objects.
        slide_paths: their slide files, in the same order.

    Raises:
        WholeSlideError: the file cannot be written.
    """
    if len(scores) != len(slide_paths):
        raise ValueError("{} scores but {} slide paths".format(len(scores), len(slide_paths)))
    rows = [
        {"slide_path": str(slide), "y_true": int(score.label), "y_pred": [float(p) for p in score.probabilities]}
        for score, slide in zip(scores, slide_paths)
    ]
    write_text(path, json.dumps(rows, indent=4, ensure_ascii=False) + "\n")


def format_auc(auc: Auc) -> str:
    """An AUC with its interval in a few characters, such as ``0.931 (0.884 to 0.978)``."""
    if math.isnan(auc.value):
        return "undefined"
    if math.isnan(auc.low):
        return "{:.3f} (no interval)".format(auc.value)
    return "{:.3f} ({:.3f} to {:.3f})".format(auc.value, auc.low, auc.high)


def without_nan(value: Any) -> Any:
    """JSON types, nested, with None in the place of numbers that are not defined (nan)."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _header(classes: Sequence[str]) -> List[str]:
    return list(_LEADING) + [_PREFIX + name for name in classes] + [_LAST]


def _classes_of(header: List[str], path: str) -> Tuple[str, ...]:
    classes = tuple(column[len(_PREFIX) :] for column in header[len(_LEADING) : -1])
    if not classes or header != _header(classes):
        raise WholeSlideError("{}: expected the header {}".format(path, ",".join(_header(("<class>...",)))))
    return classes


def _parse_row(row: Sequence[str], classes: Tuple[str, ...], path: str, line: int) -> SlideScore:
    where = "{}: line {}".format(path, line)
    if len(row) != len(classes) + len(_LEADING) + 1:
        raise WholeSlideError("{} has {} columns instead of {}".format(where, len(row), len(_header(classes))))
    if row[2] not in classes:
        raise WholeSlideError("{} has the label {}, which is no class of the header".format(where, row[2]))
    try:
        probabilities = tuple(float(text) for text in row[len(_LEADING) : -1])
    except ValueError as error:
        raise WholeSlideError("{} has a score that is not a number".format(where)) from error
    return SlideScore(row[0], row[1], classes.index(row[2]), probabilities)


def _table(report: Report) -> str:
    width = max([len("class")] + [len(entry.name) for entry in report.classes])
    percent = "{:.0f} %".format(100 * report.classes[0].auc.confidence)
    lines = ["{} {}, accuracy {:.3f}".format(report.slides, report.unit, report.accuracy)]
    if report.loss is not None:
        lines[0] += ", loss {:.4f}".format(report.loss)
    row = "{:{width}}  {:>6}  {:>9}  {:>7}  {}".format
    lines.append(row("class", report.unit, "predicted", "correct", "AUC ({} interval)".format(percent), width=width))
    for entry in report.classes:
        cells = (entry.name, entry.slides, entry.predicted, entry.correct, format_auc(entry.auc))
        lines.append(row(*cells, width=width))
    lines += ["{}: {}".format(entry.name, entry.auc.note) for entry in report.classes if entry.auc.note]
    return "\n".join(lines) + "\n"


def _renamed(value: Any, old: str, new: str) -> Any:
    """Nested dictionaries and lists with a key renamed, and without the key ``unit``."""
    if isinstance(value, dict):
        return {new if key == old else key: _renamed(item, old, new) for key, item in value.items() if key != "unit"}
    return [_renamed(item, old, new) for item in value] if isinstance(value, list) else value
