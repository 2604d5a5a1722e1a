"""Score the slides of a data list: ``python -m whole_slide_cnn.test --config FILE``."""

import argparse
import json
import os
import sys
import time

from whole_slide_cnn import heatmap
from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import load_config
from whole_slide_cnn.errors import SlideError, TrainingError
from whole_slide_cnn.files import make_folder, write_text

SUMMARY = "summary.md"


def parser() -> argparse.ArgumentParser:
    """The command line of ``test``."""
    arguments = argparse.ArgumentParser(prog="python -m whole_slide_cnn.test", description=__doc__.splitlines()[0])
    arguments.add_argument("--config", metavar="FILE", required=True, help="configuration (YAML)")
    arguments.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    arguments.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="checkpoint (.npz) or weights (.h5); default: outputs.weights, or best.npz in the result folder",
    )
    arguments.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="data list to score (default: test)"
    )
    return arguments


def test(config, checkpoint=None, split="test", group=None):
    """Score a data list. Scores, reports, figures and a summary go to the folder ``<result folder>/<split>``; then heat
    maps of the test list to where the configuration wants them.

    Args:
        checkpoint: file of weights; None: those that the configuration trains.
        split: name of the data list.
        group: the processes that share the slides (:class:`whole_slide_cnn.running.communicator.Communicator`), all of
            which make this call; None for one process. Process 0 alone writes scores.

    Returns:
        The report on slides (:class:`whole_slide_cnn.evaluation.scores.Report`; None in processes other than 0), the
        slides that could not be scored, and those that were but could not be drawn: their names, with the reasons.
    """
    from whole_slide_cnn.models.network import make_network
    from whole_slide_cnn.running import assembly
    from whole_slide_cnn.running.communicator import SingleCommunicator

    group = SingleCommunicator() if group is None else group
    maps = config.outputs.heatmaps if split == "test" else None
    with group.after_first():
        source = assembly.open_splits(config, split)[split]
        network = make_network(config)
        checkpoint = assembly.trained_path(config, checkpoint)
        weights, progress = assembly.trained_weights(network, checkpoint)
        if maps is not None:
            make_folder(maps)  # what cannot be written is said before hours of work
    resolved = assembly.resolve(config, training=False, processes=group.local_size) if group.rank == 0 else None
    config = group.broadcast(resolved)
    extra_memory = () if maps is None else heatmap.extra_memory(config, network)
    with assembly.make_engine(config, network, None, group.say, weights, extra_memory, group) as engine:
        mine = source.records[group.rank :: group.size]
        parts = group.allgather(score_slides(engine, source, mine, group.rank == 0) + (source.failed,))
        failed = {slide: reason for _, _, found in parts for slide, reason in found.items()}
        report = None
        if group.rank == 0:
            report = _write_scores(config, split, checkpoint, source, parts, failed)
        undrawn = {}
        if maps is not None:  # last: no score is lost where a map cannot be written
            drawn = [record for record in mine if record.slide_id not in failed]
            undrawn = heatmap.draw_scored(engine, source, drawn, maps, config, checkpoint, progress, group)
    source.close()
    return report, failed, undrawn


def _write_scores(config, split, checkpoint, source, parts, failed):
    """Join what the processes scored, write it and print it; returns the report on slides.

    Args:
        parts: scores and seconds of every process, as from :func:`score_slides`, and what else it told.
    """
    from whole_slide_cnn.evaluation.scores import merge_scores

    scored = merge_scores([part[0] for part in parts], [record.slide_id for record in source.records])
    if not scored:
        raise TrainingError("none of the {} slides of the {} list can be read".format(len(source), split))
    if split == "test":
        _write_times(config.outputs.test_times, scored, {slide: s for part in parts for slide, s in part[1].items()})
    folder = os.path.join(config.result_dir, split)
    paths = {record.slide_id: source.path(record) for record in source.records if record.slide_id not in failed}
    report, cases = write_results(folder, config, split, checkpoint, scored, paths, failed, len(parts))
    print(report.to_text())
    print(cases.to_text())
    print("scores, figures and {}: {}".format(SUMMARY, folder))
    return report


def _write_times(path, scored, seconds):
    from whole_slide_cnn.running.times import SLIDE_COLUMNS, TimeRecord

    times = TimeRecord(path, SLIDE_COLUMNS)
    for score in scored:
        times.add(score.slide_id, seconds[score.slide_id])
    times.write()


def write_results(folder, config, split, checkpoint, scored, paths, failed, processes=1):
    """Write everything that follows from the scores of slides.

    Args:
        folder: where to.
        split: name of the data list.
        checkpoint: file of the weights that scored.
        scored: :class:`~whole_slide_cnn.evaluation.scores.SlideScore` of every slide that could be read.
        paths: slide file by slide name.
        failed: slides that could not be read, with the reason.
        processes: how many scored them together.

    Returns:
        The reports on slides and on cases.
    """
    from whole_slide_cnn.evaluation import cases, plots, scores
    from whole_slide_cnn.evaluation.summary import summary_markdown
    from whole_slide_cnn.provenance import write_provenance

    classes = config.data.classes
    report = scores.evaluate_scores(scored, classes, scores.mean_loss(scored))
    by_case = cases.case_scores(scored)
    case_report = cases.evaluate_cases(by_case, classes)
    scores.write_scores(os.path.join(folder, "scores.csv"), scored, classes)
    files = [paths[score.slide_id] for score in scored]
    scores.write_scores_json(os.path.join(folder, "scores.json"), scored, files)
    if split == "test" and config.outputs.test_scores is not None:
        scores.write_scores_json(config.outputs.test_scores, scored, files)
    cases.write_case_scores(os.path.join(folder, "cases.csv"), by_case, classes)
    write_text(os.path.join(folder, "report.json"), report.to_json(case_report))
    labels, probabilities = zip(*((score.label, score.probabilities) for score in scored))
    plots.plot_roc(os.path.join(folder, "roc.png"), labels, probabilities, classes)
    plots.plot_roc(
        os.path.join(folder, "roc_cases.png"),
        cases.positives(by_case, len(classes)),
        cases.probabilities(by_case, len(classes)),
        classes,
    )
    figures = [("ROC curves over slides", "roc.png"), ("ROC curves over cases", "roc_cases.png")]
    folders = (os.path.dirname(os.path.abspath(checkpoint)), os.path.abspath(config.result_dir))
    curves = [os.path.join(trained, "learning_curves.png") for trained in folders]
    curves = next(filter(os.path.isfile, curves), None)
    if curves is not None:
        figures.append(("Learning curves", os.path.relpath(curves, folder).replace(os.sep, "/")))
    path = write_provenance(folder, config, checkpoint=checkpoint, processes=processes)
    with open(path, encoding="utf-8") as stream:
        origin = json.load(stream)
    title = "Scores of the {} list, {}".format(split, os.path.basename(config.result_dir))
    page = summary_markdown(title, report, case_report, figures, failed, origin)
    write_text(os.path.join(folder, SUMMARY), page)
    return report, case_report


def score_slides(engine, source, records, shown=True):
    """Score those slides of a source that can be read.

    Args:
        records: the slides, of the source.
        shown: whether to show a progress bar.

    Returns:
        Scores in the order of the slides, and the seconds that each took, by name.
    """
    from tqdm import tqdm

    from whole_slide_cnn.evaluation.scores import SlideScore
    from whole_slide_cnn.running.bars import slide_bar

    scored, seconds = [], {}
    with slide_bar("testing", len(records), shown=shown) as bar:
        for record, canvas in source.canvases(records, tqdm.write):
            started = time.monotonic()
            try:
                prediction = engine.predict(canvas, record.label)
            except SlideError as error:
                tqdm.write(source.fail(error))
                continue
            finally:
                canvas.close()
                bar.update()
            seconds[record.slide_id] = time.monotonic() - started
            probabilities = tuple(map(float, prediction.probabilities))
            scored.append(
                SlideScore(record.case_id, record.slide_id, record.label, probabilities, float(prediction.loss))
            )
    return scored, seconds


def main(arguments):
    """Parse, load the configuration, score and draw, together with the other processes that a launcher started; exit
    code 1 where slides could not be read."""
    options = parser().parse_args(arguments)
    from whole_slide_cnn.running.communicator import communicator, use_own_gpu

    with communicator() as group:
        use_own_gpu(group)
        with group.after_first():
            config = load_config(options.config, options.set)
        report, failed, undrawn = test(config, options.checkpoint, options.split, group)
    if report is None:  # process 0 says it, and the launcher may end the others when one exits with an error
        return 0
    for what, slides in (("scored", failed), ("drawn", undrawn)):
        for slide, reason in slides.items():
            print("not {}: slide {}: {}".format(what, slide, reason), file=sys.stderr)
    return 1 if failed or undrawn else 0


if __name__ == "__main__":
    run_command(main)
