"""A file in the form of the 2021 reference implementation, run as it is: ``train``, ``test`` and ``heatmap``."""

import csv
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from whole_slide_cnn import heatmap
from whole_slide_cnn import test as scoring
from whole_slide_cnn import train as training
from whole_slide_cnn.config import load_config
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.evaluation.scores import read_scores
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import METADATA_KEY, load_weights, read_npz, save_weights

CONFIG = """\
RESULT_DIR: "result_wholeslide"
MODEL_PATH: "${RESULT_DIR}/model.h5"
LOAD_MODEL_BEFORE_TRAIN: True
CONFIG_RECORD_PATH: "${RESULT_DIR}/config_record.yaml"

USE_MIXED_PRECISION: False
USE_HMS: True
USE_MIL: False

TRAIN_CSV_PATH: "data_configs/train.csv"
VAL_CSV_PATH: "data_configs/val.csv"
TEST_CSV_PATH: "data_configs/val.csv"
SLIDE_DIR: "slide_data/"
SLIDE_FILE_EXTENSION: ".tif"
SLIDE_READER: "openslide"
RESIZE_RATIO: 0.5
INPUT_SIZE: [96, 112, 3]

MODEL: "tiny"
NUM_CLASSES: 2
BATCH_SIZE: 1
EPOCHS: 2
NUM_UPDATES_PER_EPOCH: 3
INIT_LEARNING_RATE: 0.001
POOL_USE: "gmp"
REDUCE_LR_FACTOR: 0.1
REDUCE_LR_PATIENCE: 24
TIME_RECORD_PATH: "${RESULT_DIR}/time_record.csv"
TEST_TIME_RECORD_PATH: "${RESULT_DIR}/test_time_record.csv"

MIL_PATCH_SIZE: NULL
MIL_INFER_BATCH_SIZE: NULL
MIL_USE_EM: False
MIL_K: NULL
MIL_SKIP_WHITE: NULL

TEST_RESULT_PATH: "${RESULT_DIR}/test_result.json"
ENABLE_VIZ: True
VIZ_SIZE: [48, 60]
VIZ_FOLDER: "${RESULT_DIR}/viz"

DEBUG_PATH: NULL
"""
NETWORK = Network("tiny", "gmp", "softmax", 2)
ARGUMENTS = ("--config", os.path.join("train_configs", "config.yaml"))


def initial_weights(network=NETWORK, seed=0):
    """Weights under which no class is favoured at the start and no convolution is zero."""
    random = np.random.RandomState(seed)
    weights = network.initial_weights(3)
    return {name: value + 0.02 * random.standard_normal(value.shape) for name, value in sorted(weights.items())}


def make_project(folder, slide_set, network=NETWORK):
    """A folder as one of the reference has it: configurations, lists without header, slides, initial weights."""
    for name in ("train_configs", "data_configs"):
        (folder / name).mkdir()
    for split in ("train", "val"):
        with open(slide_set.path(split + ".csv"), encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        lines = ["{},{}\n".format(row["slide_id"], int(row["label"] == "tumor")) for row in rows]
        (folder / "data_configs" / (split + ".csv")).write_text("".join(lines), encoding="utf-8")
    shutil.copytree(slide_set.path("slides"), str(folder / "slide_data"))
    text = CONFIG.replace('"tiny"', '"{}"'.format(network.backbone))
    (folder / "train_configs" / "config.yaml").write_text(text, encoding="utf-8")
    save_weights(str(folder / "result_wholeslide" / "model.h5"), network, initial_weights(network))
    return folder


@pytest.fixture(scope="module")
def project(launch, slide_set, tmp_path_factory):
    """Such a folder after ``train`` and ``test``, with the outcome of both."""
    folder = make_project(tmp_path_factory.mktemp("reference"), slide_set)
    return folder, launch("train", *ARGUMENTS, cwd=folder), launch("test", *ARGUMENTS, cwd=folder)


def rows_of(path):
    with open(str(path), encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_trains(project):
    folder, outcome, _ = project
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("engine auto: direct (the fastest that fits")
    assert lines[1].startswith("engine direct: predicted peak memory ")
    assert re.match(r"roughly [0-9.]+ s a slide, by the rates of this machine$", lines[2])
    assert lines[3].startswith("weights from {}: ".format(folder / "result_wholeslide" / "model.h5"))
    assert [line for line in lines if line.startswith("epoch 2/2: train loss ")]
    # the published files score the validation list: that is said, not refused
    assert "warning: case val-0 is in both val and test" in outcome.stderr


def test_it_records_what_it_did(project):
    folder, _, _ = project
    results = folder / "result_wholeslide"
    recorded = load_config(str(results / "config_record.yaml"))
    assert recorded == load_config(str(results / "config.yaml"))
    assert (recorded.engine, recorded.data.canvas, recorded.train.epochs) == ("direct", (96, 112), 2)
    rows = rows_of(results / "time_record.csv")
    assert [(row["update"], row["slides"]) for row in rows] == [(str(i + 1), "1") for i in range(6)]
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_the_trained_model_is_where_the_file_says(project):
    """With the reference's names, moved from the initial weights, and as in the best checkpoint."""
    folder, _, _ = project
    weights, found = load_weights(str(folder / "result_wholeslide" / "model.h5"), NETWORK)
    assert not found.missing and not found.unexpected and not found.mismatched
    best, _ = load_weights(str(folder / "result_wholeslide" / "best.h5"), NETWORK)
    before = initial_weights()
    for name in weights:
        np.testing.assert_array_equal(weights[name], best[name])
        assert np.abs(weights[name] - before[name]).max() > 1e-5, name


def test_it_tests(project):
    folder, _, outcome = project
    assert outcome.code == 0, outcome.stderr
    results = folder / "result_wholeslide"
    with open(str(results / "test_result.json"), encoding="utf-8") as stream:
        entries = json.load(stream)
    assert [set(entry) for entry in entries] == [{"slide_path", "y_true", "y_pred"}] * 4
    assert [entry["slide_path"] for entry in entries] == [
        str(folder / "slide_data" / "val-{}.tif".format(index)) for index in range(4)
    ]
    assert [entry["y_true"] for entry in entries] == [0, 1, 0, 1]
    for entry in entries:
        assert len(entry["y_pred"]) == 2 and sum(entry["y_pred"]) == pytest.approx(1, abs=1e-6)
    scores, classes = read_scores(str(results / "test" / "scores.csv"))
    assert classes == ("0", "1")
    assert [list(score.probabilities) for score in scores] == [entry["y_pred"] for entry in entries]
    rows = rows_of(results / "test_time_record.csv")
    assert [row["slide_id"] for row in rows] == ["val-{}".format(index) for index in range(4)]
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_testing_draws_maps_where_the_file_says(project):
    """A folder per slide, from the weights that scored it, within the size the file gives."""
    folder, _, outcome = project
    maps = folder / "result_wholeslide" / "viz"
    assert outcome.stdout.splitlines()[-1] == "heat maps of 4 slides: {}".format(maps)
    assert sorted(os.listdir(str(maps))) == ["provenance.json"] + ["val-{}".format(index) for index in range(4)]
    for index in range(4):
        described = read_json(maps / "val-{}".format(index) / "map.json")
        (overlay,) = [entry for entry in described["files"] if entry["name"] == "overlay-1.png"]
        assert overlay["size"] == [48, 54]  # of 150 x 170 px, within 48 x 60
        with Image.open(str(maps / "val-{}".format(index) / "overlay-1.png")) as image:
            assert image.width > 54 and image.height >= 48  # the colour bar is beside it
        assert described["origin"]["checkpoint"]["path"] == str(folder / "result_wholeslide" / "model.h5")
    assert read_json(maps / "provenance.json")["data_lists"]["test"]["rows"] == 4


@pytest.mark.filterwarnings("ignore:case val-0 is in both val and test")
@pytest.mark.parametrize("backbone", ["tiny", pytest.param("fixup_resnet34", marks=pytest.mark.slow)])
def test_interrupted_resumed_tested_and_drawn(backbone, slide_set, call, monkeypatch, tmp_path):
    """From a ``.h5`` file with the reference's names to heat maps, with an interruption that leaves no trace, although
    the file that the first start loaded has changed since."""
    network = Network(backbone, "gmp", "softmax", 2)
    (tmp_path / "once").mkdir()
    once = make_project(tmp_path / "once", slide_set, network)
    again = tmp_path / "again"
    shutil.copytree(str(once), str(again))
    monkeypatch.chdir(str(once))
    assert call(training.main, *ARGUMENTS).code == 0

    monkeypatch.chdir(str(again))
    with monkeypatch.context() as patch:
        stop_after_update(patch, 4)  # of 6, in the second epoch
        outcome = call(training.main, *ARGUMENTS)
    assert outcome.code == 128 + signal.SIGTERM and "stopped by SIGTERM after 4 updates" in outcome.stderr
    model = again / "result_wholeslide" / "model.h5"
    save_weights(str(model), network, initial_weights(network, seed=1))
    outcome = call(training.main, *ARGUMENTS, "--resume")
    assert outcome.code == 0 and outcome.stdout.splitlines()[0] == "going on after 4 updates", outcome.stderr
    assert "weights from" not in outcome.stdout
    for name in ("last.npz", "best.npz"):
        expected = read_npz(str(once / "result_wholeslide" / name))
        found = read_npz(str(again / "result_wholeslide" / name))
        assert found.keys() == expected.keys() and any(key.startswith("optimiser/") for key in found)
        for key in set(found) - {METADATA_KEY}:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)

    weights, report = load_weights(str(model), network)
    assert not report.missing and not report.unexpected and not report.mismatched
    best = read_npz(str(again / "result_wholeslide" / "best.npz"))
    for name in weights:
        np.testing.assert_array_equal(weights[name], best[name], err_msg=name)

    assert call(scoring.main, *ARGUMENTS).code == 0
    assert call(heatmap.main, *ARGUMENTS, "--output", "maps", "--class", "1").code == 0
    for index in range(4):
        by_test, by_heatmap = (
            np.load(str(folder / "val-{}".format(index) / "map.npy"))
            for folder in (again / "result_wholeslide" / "viz", again / "maps")
        )
        np.testing.assert_array_equal(by_test, by_heatmap)
        assert by_test.shape == (3, 4, 2) and np.ptp(by_test[..., 1]) > 0


def stop_after_update(patch, number):
    """Send this process SIGTERM during an update of a training by the direct engine."""
    direct = ENGINES["direct"].engine_class()
    step, count = direct.train_batch, []

    def train_batch(self, canvases, labels):
        count.append(1)
        if len(count) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, canvases, labels)

    patch.setattr(direct, "train_batch", train_batch)


def read_json(path):
    with open(str(path), encoding="utf-8") as stream:
        return json.load(stream)


def test_the_score_is_that_of_the_model_file(project, tmp_path, call, monkeypatch):
    """``test`` needs nothing but the file with the model: neither a checkpoint nor a training before."""
    folder, _, _ = project
    monkeypatch.chdir(str(folder))
    config = os.path.join("train_configs", "config.yaml")
    model = tmp_path / "mine.h5"
    save_weights(str(model), NETWORK, dict(initial_weights(), **{"output/bias": np.array([9.0, 0.0])}))
    settings = [
        "RESULT_DIR={}".format(tmp_path / "fresh"),
        "MODEL_PATH={}".format(model),
        "TRAIN_CSV_PATH=",
        "VAL_CSV_PATH=",
    ]
    outcome = call(scoring.main, "--config", config, *[word for text in settings for word in ("--set", text)])
    assert outcome.code == 0, outcome.stderr
    with open(str(tmp_path / "fresh" / "test_result.json"), encoding="utf-8") as stream:
        assert all(entry["y_pred"][0] > 0.9 for entry in json.load(stream))


def test_mixed_precision_computes_in_bfloat16(project, tmp_path, call, monkeypatch):
    folder, _, _ = project
    monkeypatch.chdir(str(folder))
    settings = ["RESULT_DIR={}".format(tmp_path), "USE_MIXED_PRECISION=True", "LOAD_MODEL_BEFORE_TRAIN=False"]
    settings += ["EPOCHS=1", "NUM_UPDATES_PER_EPOCH=1", "VAL_CSV_PATH=", "TEST_CSV_PATH="]
    arguments = ["--config", os.path.join("train_configs", "config.yaml")]
    outcome = call(training.main, *arguments, *[word for text in settings for word in ("--set", text)])
    assert outcome.code == 0, outcome.stderr
    assert load_config(str(tmp_path / "config_record.yaml")).model.compute == "bfloat16"
    assert "weights: random, from seed 0" in outcome.stdout


@pytest.mark.parametrize(
    "setting, message",
    [
        ("USE_MIL=True", "USE_MIL: multiple-instance learning is not there yet"),
        ("MODEL_PATH=absent.h5", "absent.h5 does not exist"),
        ("MODEL=fixup_resnet34", "is not a weight file of fixup_resnet34"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(project, call, monkeypatch, tmp_path, setting, message):
    folder, _, _ = project
    monkeypatch.chdir(str(folder))
    arguments = ["--config", os.path.join("train_configs", "config.yaml")]
    for change in (
        "TEST_CSV_PATH=",
        "RESULT_DIR={}".format(tmp_path),
        "MODEL_PATH={}".format(folder / "result_wholeslide" / "model.h5"),
        setting,
    ):
        arguments += ["--set", change]
    for main in (training.main,) if "MIL" in setting else (training.main, scoring.main):
        extra = ("--split", "val") if main is scoring.main else ()
        assert message in call(main, *arguments, *extra).sentence()
