"""From scores of slides to scores of cases: what a pathologist signs out is a patient, not a slide.

A case has as much of a disease as the slide that shows most of it: its probability of each class but the first is the
maximum over its slides, as the 2022 paper aggregates lymph nodes to slides (Results) and as both papers pool within a
slide; a mean would drown one small lesion in many normal slides. The first class is what is left, normally the normal
one, and a case belongs to it only where all its slides do: its probability is the minimum.
"""

import csv
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

from whole_slide_cnn.evaluation.scores import Report, SlideScore, evaluate
from whole_slide_cnn.files import replacing

RULE = (
    "A case's probability of a class is the highest of its slides; of the first class, {}, the lowest. It belongs to "
    "every other class that one of its slides has, and to the first only if all slides do."
)


@dataclass(frozen=True)
class CaseScore:
    """One case: its slides, the classes it belongs to (one, unless its slides differ) and its probabilities."""

    case_id: str
    slides: int
    labels: Tuple[int, ...]
    probabilities: Tuple[float, ...]

    @property
    def prediction(self) -> int:
        """The class with the highest probability; the first of equals."""
        return int(np.argmax(self.probabilities))


def case_scores(scores: Sequence[SlideScore]) -> List[CaseScore]:
    """Scores of cases, in the order of their first slides."""
    groups: Dict[str, List[SlideScore]] = {}
    for score in scores:
        groups.setdefault(score.case_id, []).append(score)
    return [_case_score(case, slides) for case, slides in groups.items()]


def evaluate_cases(cases: Sequence[CaseScore], classes: Sequence[str]) -> Report:
    """Accuracy and AUC over cases. One that belongs to several classes is a positive of each, and correct as any.

    Raises:
        WholeSlideError: there is no case, or a probability is not finite.
    """
    return evaluate(positives(cases, len(classes)), probabilities(cases, len(classes)), classes, unit="cases")


def positives(cases: Sequence[CaseScore], classes: int) -> np.ndarray:
    """Which classes each case belongs to: bool (cases, classes)."""
    found = np.zeros((len(cases), classes), bool)
    for row, case in zip(found, cases):
        row[list(case.labels)] = True
    return found


def probabilities(cases: Sequence[CaseScore], classes: int) -> np.ndarray:
    """float64 (cases, classes)."""
    return np.array([case.probabilities for case in cases], np.float64).reshape(-1, classes)


def write_case_scores(path: str, cases: Sequence[CaseScore], classes: Sequence[str]) -> None:
    """Write ``case_id,slides,label,p_<class>...,prediction``, one line per case, atomically; several labels are
    separated by semicolons.

    Raises:
        WholeSlideError: the file cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["case_id", "slides", "label"] + ["p_" + name for name in classes] + ["prediction"])
        for case in cases:
            labels = ";".join(classes[label] for label in case.labels)
            numbers = [repr(float(value)) for value in case.probabilities]
            writer.writerow([case.case_id, case.slides, labels] + numbers + [classes[case.prediction]])


def _case_score(case: str, slides: Sequence[SlideScore]) -> CaseScore:
    values = np.array([score.probabilities for score in slides], np.float64)
    combined = values.max(axis=0)
    combined[0] = values[:, 0].min()
    labels = sorted({score.label for score in slides} - {0}) or [0]
    return CaseScore(case, len(slides), tuple(labels), tuple(map(float, combined)))
