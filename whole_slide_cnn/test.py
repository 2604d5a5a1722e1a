"""Score the slides of a data list: ``python -m whole_slide_cnn.test --config FILE``."""

import argparse
import os
import sys

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import load_config
from whole_slide_cnn.errors import SlideError, TrainingError
from whole_slide_cnn.files import write_text


def parser() -> argparse.ArgumentParser:
    """The command line of ``test``."""
    arguments = argparse.ArgumentParser(prog="python -m whole_slide_cnn.test", description=__doc__.splitlines()[0])
    arguments.add_argument("--config", metavar="FILE", required=True, help="configuration (YAML)")
    arguments.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    arguments.add_argument("--checkpoint", metavar="FILE", help="default: best.npz in the result folder")
    arguments.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="data list to score (default: test)"
    )
    return arguments


def test(config, checkpoint=None, split="test"):
    """Score a data list. Scores, report and figure go to the folder ``<result folder>/<split>``.

    Returns:
        The report (:class:`whole_slide_cnn.evaluation.scores.Report`) and the slides that could not be read.
    """
    from whole_slide_cnn.evaluation import plots, scores
    from whole_slide_cnn.provenance import write_provenance
    from whole_slide_cnn.training import setup
    from whole_slide_cnn.training.checkpoint import load_checkpoint
    from whole_slide_cnn.training.run_folder import BEST

    source = setup.open_splits(config, split)[split]
    network = setup.make_network(config)
    state, _ = load_checkpoint(checkpoint or os.path.join(config.result_dir, BEST), network)
    weights = {spec.name: state[spec.name] for spec in network.variables}
    with setup.make_engine(config, network) as engine:
        engine.load_state(weights)
        scored, losses = score_slides(engine, source)
    source.close()
    if not scored:
        raise TrainingError("none of the {} slides of the {} list can be read".format(len(source), split))
    classes, folder = config.data.classes, os.path.join(config.result_dir, split)
    report = scores.evaluate_scores(scored, classes, sum(losses) / len(losses))
    scores.write_scores(os.path.join(folder, "scores.csv"), scored, classes)
    by_id = {record.slide_id: source.path(record) for record in source.records if record.slide_id not in source.failed}
    scores.write_scores_json(os.path.join(folder, "scores.json"), scored, [by_id[score.slide_id] for score in scored])
    write_text(os.path.join(folder, "report.json"), report.to_json())
    plots.plot_roc(
        os.path.join(folder, "roc.png"),
        [score.label for score in scored],
        [score.probabilities for score in scored],
        classes,
    )
    write_provenance(folder, config)
    print(report.to_text())
    print("scores and figure: {}".format(folder))
    return report, source.failed


def score_slides(engine, source):
    """Scores and losses of the readable slides of a source, in the order of its list."""
    from tqdm import tqdm

    from whole_slide_cnn.evaluation.scores import SlideScore
    from whole_slide_cnn.training.loop import slide_bar

    scored, losses = [], []
    with slide_bar("testing", len(source)) as bar:
        for record, canvas in source.canvases(source.records, tqdm.write):
            try:
                prediction = engine.predict(canvas, record.label)
            except SlideError as error:
                tqdm.write(source.fail(error))
                continue
            finally:
                canvas.close()
                bar.update()
            scored.append(
                SlideScore(record.case_id, record.slide_id, record.label, tuple(map(float, prediction.probabilities)))
            )
            losses.append(prediction.loss)
    return scored, losses


def main(arguments):
    """Parse, load the configuration, score; exit code 1 where slides could not be read."""
    options = parser().parse_args(arguments)
    config = load_config(options.config, options.set)
    _, failed = test(config, options.checkpoint, options.split)
    for slide, reason in failed.items():
        print("not scored: slide {}: {}".format(slide, reason), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
