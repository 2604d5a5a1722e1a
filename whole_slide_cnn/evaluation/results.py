"""What follows from the scores of a data list, as files: scores, reports, figures and a summary."""

import json
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.evaluation import cases, plots, scores
from whole_slide_cnn.evaluation.scores import Report, SlideScore
from whole_slide_cnn.evaluation.summary import summary_markdown
from whole_slide_cnn.files import write_text
from whole_slide_cnn.provenance import write_provenance
from whole_slide_cnn.running.slides import SlideSource
from whole_slide_cnn.running.times import SLIDE_COLUMNS, TimeRecord

SUMMARY = "summary.md"

_FIGURES = (("ROC curves over slides", "roc.png"), ("ROC curves over cases", "roc_cases.png"))
_CURVES = "learning_curves.png"


def write_joined(
    config: TrainConfig,
    split: str,
    checkpoint: str,
    source: SlideSource,
    parts: Sequence[Tuple[List[SlideScore], Dict[str, float]]],
    failed: Mapping[str, str],
) -> Report:
    """Join what the processes scored, write it to ``<result folder>/<split>`` and print it.

    Args:
        config: the resolved configuration.
        split: name of the data list.
        checkpoint: file of the weights that scored.
        source: of the slides.
        parts: scores and seconds of every process (:func:`whole_slide_cnn.evaluation.scoring.score_slides`).
        failed: slides that could not be read, with the reason.

    Returns:
        The report on slides.

    Raises:
        TrainingError: no slide was scored.
        WholeSlideError: a file cannot be written, or processes disagree on a slide.
    """
    scored = scores.merge_scores([part for part, _ in parts], [record.slide_id for record in source.records])
    if not scored:
        raise TrainingError("none of the {} slides of the {} list can be read".format(len(source), split))
    if split == "test":
        _write_times(config.outputs.test_times, scored, {slide: s for _, part in parts for slide, s in part.items()})
    folder = os.path.join(config.result_dir, split)
    paths = {record.slide_id: source.path(record) for record in source.records if record.slide_id not in failed}
    report, by_case = write_results(folder, config, split, checkpoint, scored, paths, failed, len(parts))
    print(report.to_text())
    print(by_case.to_text())
    print("scores, figures and {}: {}".format(SUMMARY, folder))
    return report


def write_results(
    folder: str,
    config: TrainConfig,
    split: str,
    checkpoint: str,
    scored: Sequence[SlideScore],
    paths: Mapping[str, str],
    failed: Mapping[str, str],
    processes: int = 1,
) -> Tuple[Report, Report]:
    """Write everything that follows from the scores of slides.

    Args:
        folder: where to.
        config: the resolved configuration.
        split: name of the data list.
        checkpoint: file of the weights that scored.
        scored: score of every slide that could be read.
        paths: slide file by slide name.
        failed: slides that could not be read, with the reason.
        processes: how many scored them together.

    Returns:
        The reports on slides and on cases.

    Raises:
        WholeSlideError: a file cannot be written, or a score is not finite.
    """
    classes = config.data.classes
    by_case = cases.case_scores(scored)
    report = scores.evaluate_scores(scored, classes, scores.mean_loss(scored))
    case_report = cases.evaluate_cases(by_case, classes)
    _write_scores(folder, config, split, scored, [paths[score.slide_id] for score in scored])
    cases.write_case_scores(os.path.join(folder, "cases.csv"), by_case, classes)
    write_text(os.path.join(folder, "report.json"), report.to_json(case_report))
    figures = _draw_figures(folder, config, checkpoint, scored, by_case)
    path = write_provenance(folder, config, checkpoint=checkpoint, processes=processes)
    with open(path, encoding="utf-8") as stream:
        origin: Dict[str, Any] = json.load(stream)
    title = "Scores of the {} list, {}".format(split, os.path.basename(config.result_dir))
    page = summary_markdown(title, report, case_report, figures, failed, origin)
    write_text(os.path.join(folder, SUMMARY), page)
    return report, case_report


def _write_scores(
    folder: str, config: TrainConfig, split: str, scored: Sequence[SlideScore], files: Sequence[str]
) -> None:
    scores.write_scores(os.path.join(folder, "scores.csv"), scored, config.data.classes)
    scores.write_scores_json(os.path.join(folder, "scores.json"), scored, files)
    if split == "test" and config.outputs.test_scores is not None:
        scores.write_scores_json(config.outputs.test_scores, scored, files)


def _draw_figures(
    folder: str,
    config: TrainConfig,
    checkpoint: str,
    scored: Sequence[SlideScore],
    by_case: Sequence[cases.CaseScore],
) -> List[Tuple[str, str]]:
    """Draw ROC curves; captions and files of these and of the learning curves, where the training left any."""
    classes = config.data.classes
    labels, probabilities = zip(*((score.label, score.probabilities) for score in scored))
    count = len(classes)
    plots.plot_roc(os.path.join(folder, _FIGURES[0][1]), labels, probabilities, classes)
    of_cases = cases.positives(by_case, count), cases.probabilities(by_case, count)
    plots.plot_roc(os.path.join(folder, _FIGURES[1][1]), *of_cases, classes)
    curves = _learning_curves(config, checkpoint)
    if curves is None:
        return list(_FIGURES)
    return list(_FIGURES) + [("Learning curves", os.path.relpath(curves, folder).replace(os.sep, "/"))]


def _learning_curves(config: TrainConfig, checkpoint: str) -> Optional[str]:
    """The learning curves beside the checkpoint, or else in the result folder."""
    folders = (os.path.dirname(os.path.abspath(checkpoint)), os.path.abspath(config.result_dir))
    return next(filter(os.path.isfile, (os.path.join(trained, _CURVES) for trained in folders)), None)


def _write_times(path: Optional[str], scored: Sequence[SlideScore], seconds: Mapping[str, float]) -> None:
    times = TimeRecord(path, SLIDE_COLUMNS)
    for score in scored:
        times.add(score.slide_id, seconds[score.slide_id])
    times.write()
