"""Make synthetic slides, train on them, test, and say how it went: ``python -m whole_slide_cnn.demo``."""

import argparse
import json
import os
import shutil
import time
from typing import Sequence

from whole_slide_cnn import synthesize
from whole_slide_cnn import test as scoring
from whole_slide_cnn import train as training
from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import load_config
from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.scores import format_auc
from whole_slide_cnn.files import make_folder, write_text
from whole_slide_cnn.synthesis.colour_baseline import RESULT_FILE

NORMAL, LESION = CLASSES = ("normal", "adenocarcinoma")
SLIDES = {"train": 120, "val": 20, "test": 30}  # per class
SYNTHESIS = ("--size", "512", "--mpp", "1.0", "--tissue", "0.4", "0.7", "--lesion", "0.5", "0.8")

# Chosen by the validation loss over several seeds.
CONFIG = """\
# Train again:  python -m whole_slide_cnn.train --config {path} --overwrite
# Test again:   python -m whole_slide_cnn.test --config {path}
# All keys:     python -m whole_slide_cnn.train --help-config
result_dir: results
seed: {seed}
engine: streaming

data:
  classes: [{classes}]
  train: data/train.csv
  val: data/val.csv
  test: data/test.csv
  slides: data/slides
  mpp: 2.0       # half the resolution of the slides
  canvas: 256

model:
  backbone: tiny
  pooling: gmp

streaming:
  window: 256    # on so small a canvas, one window at most; the receptive field would make more of them wasteful

train:
  optimizer: adam
  learning_rate: 5.0e-4
  epochs: 14
  updates_per_epoch: 100
  batch_size: 2
"""

SUMMARY = """
{slides} synthetic slides of two classes, made in {made:.0f} s: {data}
  They differ in the texture of a part of their tissue. Each has one label; where that part is was not told.
A small network trained end to end on whole slides in {trained:.0f} s, tested on {tested} others in {scored:.0f} s.
  AUC of the network:                            {auc}
  AUC of a regression on colour and tissue area: {baseline}
Look at:
  {config}  the configuration, to change and run again
  {results}/best.npz  the checkpoint, and its weights as best.h5
  {results}/learning_curves.png  loss and accuracy by epoch
  {results}/test/summary.md  scores, figures and where they come from, on one page
  {results}/test/scores.csv  the score of each test slide
  {results}/test/roc.png  the ROC curve
  {data}/slides, {data}/masks  the slides, and where their lesions are
The whole took {minutes:.1f} minutes."""


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns 0, or raises what stopped it."""
    options = _parse(arguments)
    started = time.monotonic()
    folder = options.output
    data, results = os.path.join(folder, "data"), os.path.join(folder, "results")
    _prepare_folder(folder, data, results)
    slides = _synthesize(data, options.seed)
    made = time.monotonic()
    config = load_config(_write_config(folder, options.seed))
    training.train(config)
    trained = time.monotonic()
    report, failed, _ = scoring.test(config)
    if failed:
        raise WholeSlideError("slides that were just made cannot be read: {}".format(", ".join(sorted(failed))))
    assert report is not None, "a single process has the report"
    tested = time.monotonic()
    print(
        SUMMARY.format(
            slides=slides,
            data=data,
            results=results,
            config=os.path.join(folder, "config.yaml"),
            tested=report.slides,
            auc=format_auc(report.classes[CLASSES.index(LESION)].auc),
            baseline=_baseline_text(data),
            made=made - started,
            trained=trained - made,
            scored=tested - trained,
            minutes=(time.monotonic() - started) / 60,
        )
    )
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m whole_slide_cnn.demo", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--output", default=os.path.join("results", "demo"), metavar="FOLDER",
                        help="folder to write; an earlier demo in it is replaced (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of slides, weights and order (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 2**32:
        raise WholeSlideError("--seed must be from 0 to {}, not {}".format(2**32 - 1, options.seed))
    return options


def _prepare_folder(folder: str, data: str, results: str) -> None:
    """Make the folder, and remove the results of an earlier demo; the slides are replaced by those who make them."""
    make_folder(folder)
    if os.listdir(folder) and not os.path.isfile(os.path.join(data, synthesize.DESCRIPTION)):
        raise WholeSlideError("{} is not empty and holds no earlier demo; name a new folder".format(folder))
    try:
        if os.path.isdir(results):
            shutil.rmtree(results)
    except OSError as error:
        raise WholeSlideError("cannot remove the old results in {}: {}".format(results, error.strerror)) from error


def _synthesize(data: str, seed: int) -> int:
    """Make the slides; returns how many."""
    arguments = ["--output", data, "--overwrite", "--seed", str(seed), "--classes"] + list(CLASSES)
    arguments += [text for split, count in SLIDES.items() for text in ("--" + split, str(count))]
    if synthesize.main(arguments + list(SYNTHESIS)):
        raise WholeSlideError("the colours of these slides tell the classes apart, by chance; use another --seed")
    return len(CLASSES) * sum(SLIDES.values())


def _write_config(folder: str, seed: int) -> str:
    path = os.path.join(folder, "config.yaml")
    write_text(path, CONFIG.format(path=path, seed=seed, classes=", ".join(CLASSES)))
    return path


def _baseline_text(data: str) -> str:
    with open(os.path.join(data, RESULT_FILE), encoding="utf-8") as stream:
        found = json.load(stream)["splits"]["test"][LESION]
    return "{auc:.3f} ({low:.3f} to {high:.3f})".format(**found)


if __name__ == "__main__":
    run_command(main)
