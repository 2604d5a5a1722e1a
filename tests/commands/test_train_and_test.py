"""``train`` and ``test`` on slides that are as they should be, each in a process of its own."""

import csv
import json
import math
import os
import re

import numpy as np
import pytest

from whole_slide_cnn import test as scoring
from whole_slide_cnn import train as training
from whole_slide_cnn.config import load_config, resolved_yaml
from whole_slide_cnn.evaluation.scores import read_scores

TRAINED = {"config.yaml", "provenance.json", "log.csv", "best.npz", "last.npz", "best.h5", "learning_curves.png"}
TESTED = {
    *("scores.csv", "scores.json", "cases.csv", "report.json", "roc.png", "roc_cases.png", "summary.md"),
    "provenance.json",
}


def files_in(folder):
    return {name for name in os.listdir(str(folder)) if os.path.isfile(os.path.join(str(folder), name))}


def read_json(path):
    with open(str(path), encoding="utf-8") as stream:
        return json.load(stream)


def test_train_writes_everything(trained):
    folder, outcome, _ = trained
    assert outcome.code == 0, outcome.stderr
    assert files_in(folder) == TRAINED
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("engine streaming: predicted peak memory ")
    assert [line for line in lines if line.startswith(("epoch 1/2: train loss ", "epoch 2/2: train loss "))]
    assert lines[-1] == "best checkpoint: {}".format(folder / "best.npz")
    with open(str(folder / "log.csv"), encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["epoch"], row["updates"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())


def test_train_says_nothing_on_standard_error_but_tensorflows_own(trained):
    _, outcome, _ = trained
    # Ours begin a line; TensorFlow's own notices about a missing GPU hold such words further on.
    assert not [line for line in outcome.stderr.splitlines() if line.startswith(("warning:", "error:"))]


def test_origin_is_stored(trained, slide_set):
    folder, _, _ = trained
    config = load_config(str(folder / "config.yaml"))
    assert config == slide_set.config(folder)
    for path in (folder / "provenance.json", folder / "test" / "provenance.json"):
        origin = read_json(path)
        assert origin["seed"] == 0 and origin["versions"]["python"] and origin["config"]["result_dir"] == str(folder)
        assert {name: entry["rows"] for name, entry in origin["data_lists"].items()} == {
            "train": 6,
            "val": 4,
            "test": 6,
        }


def test_test_writes_everything(trained):
    folder, _, outcome = trained
    assert outcome.code == 0, outcome.stderr
    assert files_in(folder / "test") == TESTED
    assert (folder / "test" / "roc.png").read_bytes().startswith(b"\x89PNG")
    scores, classes = read_scores(str(folder / "test" / "scores.csv"))
    assert classes == ("normal", "tumor")
    assert [(score.slide_id, score.label) for score in scores] == [("test-{}".format(i), i % 2) for i in range(6)]
    for score in scores:
        assert sum(score.probabilities) == pytest.approx(1, abs=1e-6)
    as_json = read_json(folder / "test" / "scores.json")
    assert [entry["y_true"] for entry in as_json] == [score.label for score in scores]
    assert [tuple(entry["y_pred"]) for entry in as_json] == [score.probabilities for score in scores]
    assert all(os.path.isfile(entry["slide_path"]) for entry in as_json)
    report = read_json(folder / "test" / "report.json")
    losses = [-math.log(score.probabilities[score.label]) for score in scores]
    assert report["slides"] == 6 and report["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert report["accuracy"] == pytest.approx(np.mean([score.prediction == score.label for score in scores]))
    assert "AUC (95 % interval)" in outcome.stdout and str(folder / "test") in outcome.stdout


def test_summary_shows_tables_figures_and_origin(trained):
    folder, _, _ = trained
    page = (folder / "test" / "summary.md").read_text(encoding="utf-8")
    for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert os.path.isfile(str(folder / "test" / figure)), figure
    assert "(../learning_curves.png)" in page and "(roc.png)" in page and "(roc_cases.png)" in page
    report = read_json(folder / "test" / "report.json")
    assert "6 slides, accuracy {:.3f}".format(report["accuracy"]) in page
    assert "6 cases, accuracy {:.3f}".format(report["cases"]["accuracy"]) in page
    origin = read_json(folder / "test" / "provenance.json")
    assert origin["checkpoint"]["path"] == str(folder / "best.npz")
    assert origin["checkpoint"]["sha256"] in page and origin["data_lists"]["test"]["sha256"] in page


def test_scores_of_cases(own_slides, call, trained):
    """All slides of a patient count as one: the most diseased of them decides."""
    folder, _, _ = trained
    scores, _ = read_scores(str(folder / "test" / "scores.csv"))
    rows = ["case_id,slide_id,label"] + ["p{},test-{},{}".format(i // 2, i, (i // 2) % 2) for i in range(6)]
    (own_slides / "test.csv").write_text("\n".join(rows), encoding="utf-8")
    outcome = call(scoring.main, "--config", own_slides / "config.yaml", "--checkpoint", folder / "best.npz")
    assert outcome.code == 0, outcome.stderr
    with open(str(own_slides / "results" / "test" / "cases.csv"), encoding="utf-8", newline="") as stream:
        cases = list(csv.DictReader(stream))
    assert [(case["case_id"], case["slides"], case["label"]) for case in cases] == [
        ("p0", "2", "normal"),
        ("p1", "2", "tumor"),
        ("p2", "2", "normal"),
    ]
    for index, case in enumerate(cases):
        pair = [score.probabilities for score in scores[2 * index : 2 * index + 2]]
        assert float(case["p_tumor"]) == pytest.approx(max(p[1] for p in pair), rel=1e-5)
        assert float(case["p_normal"]) == pytest.approx(min(p[0] for p in pair), rel=1e-5)
    report = read_json(own_slides / "results" / "test" / "report.json")
    assert report["slides"] == 6 and report["cases"]["cases"] == 3
    assert "3 cases, accuracy" in outcome.stdout


def test_another_split_and_checkpoint(trained, call):
    folder, _, _ = trained
    arguments = "--config", folder / "config.yaml", "--split", "val", "--checkpoint", folder / "last.npz"
    outcome = call(scoring.main, *arguments)
    assert outcome.code == 0, outcome.stderr
    assert files_in(folder / "val") == TESTED
    scores, _ = read_scores(str(folder / "val" / "scores.csv"))
    assert [score.slide_id for score in scores] == ["val-{}".format(i) for i in range(4)]


def test_validation_in_training_and_scores_afterwards_agree(trained, call):
    """The loss that ``test`` reports for the last checkpoint is the one in the last line of the log."""
    folder, _, _ = trained
    outcome = call(
        scoring.main, "--config", folder / "config.yaml", "--split", "val", "--checkpoint", folder / "last.npz"
    )
    assert outcome.code == 0, outcome.stderr
    with open(str(folder / "log.csv"), encoding="utf-8", newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    report = read_json(folder / "val" / "report.json")
    assert report["loss"] == pytest.approx(float(last["val_loss"]), rel=1e-6)
    assert report["accuracy"] == pytest.approx(float(last["val_accuracy"]))


def test_overrides_reach_the_run(call, slide_set, tmp_path):
    settings = ("result_dir={}".format(tmp_path), "train.epochs=1", "train.updates_per_epoch=1", "engine=direct")
    outcome = call(
        training.main,
        *["--config", slide_set.path("config.yaml")],
        *[word for setting in settings + ("data.val=null", "seed=7") for word in ("--set", setting)],
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.startswith("engine direct: ")
    config = load_config(str(tmp_path / "config.yaml"))
    assert (config.seed, config.train.epochs, config.data.val) == (7, 1, None)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == resolved_yaml(config)


def test_help_config_lists_keys(call):
    outcome = call(training.main, "--help-config")
    assert outcome.code == 0
    for key in ("train.learning_rate", "data.classes", "streaming.window", "memory_gb"):
        assert "\n{}: ".format(key) in outcome.stdout


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_canvas_of_a_single_pixel_is_a_canvas(call, slide_set, tmp_path):
    """Every network pads: there is no canvas too small for one. What is lost of the slides is said."""
    settings = ("result_dir={}".format(tmp_path), "data.canvas=1", "train.epochs=1", "train.updates_per_epoch=1")
    outcome = call(
        training.main,
        *["--config", slide_set.path("config.yaml")],
        *[word for setting in settings for word in ("--set", setting)],
    )
    assert outcome.code == 0, outcome.stderr
    assert "cropped to the canvas of 1 x 1 px" in outcome.stderr
