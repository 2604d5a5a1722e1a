"""``train.share: windows`` in two processes of an MPI launcher: the numbers and files of one process."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from whole_slide_cnn.evaluation.scores import read_scores
from whole_slide_cnn.models.weights import METADATA_KEY

ONE_BREAKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "one_breaks.py")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(ONE_BREAKS)))
BROKEN = "train-2"
SETTINGS = (
    "engine=staged",
    "staged.tile=64",
    "model.compute=float64",
    "train.epochs=2",
    "train.lr_scaling=sqrt",
    "train.tensorboard=false",
    "data.max_failed_share=0.5",
)
WINDOWS = SETTINGS + ("train.share=windows",)


def arguments(slide_set, folder, settings):
    words = ["--config", slide_set.path("config.yaml")]
    for setting in ("result_dir={}".format(folder),) + settings:
        words += ["--set", setting]
    return words


def module(name, *words):
    return ("-m", "whole_slide_cnn." + name) + words


def weights(path):
    with np.load(str(path)) as stored:
        return {name: stored[name] for name in stored.files if name != METADATA_KEY}


def progress(folder):
    """What a checkpoint says of its run, without times."""
    with np.load(str(folder / "last.npz")) as stored:
        values = json.loads(str(stored[METADATA_KEY]))["progress"]
    values["run"]["seconds"] = None
    for row in values["run"]["rows"]:
        row["seconds"] = row["slides_per_minute"] = 0
    return values


@pytest.fixture(scope="module")
def folders(mpirun, slide_set, tmp_path_factory):
    """Folders that two processes and one trained into, with a slide that only one of the two cannot read, and what the
    two said."""
    folder = tmp_path_factory.mktemp("windows")
    code, said, errors = mpirun(ONE_BREAKS, BROKEN, *arguments(slide_set, folder / "two", WINDOWS))
    assert code == 0, errors
    command = [sys.executable, ONE_BREAKS, BROKEN] + arguments(slide_set, folder / "one", SETTINGS)
    subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=ROOT), stdout=subprocess.PIPE)
    return folder / "two", folder / "one", said


def test_two_processes_train_as_one_does(folders):
    """Weights after six updates of two slides: neither the batch nor the learning rate grows with the processes."""
    two, one, said = folders
    assert said.count("2 processes train together") == said.count("best checkpoint: ") == 1
    assert said.count("slide {}: block 7 cannot be decoded".format(BROKEN)) == 1
    found, expected = weights(two / "last.npz"), weights(one / "last.npz")
    assert set(found) == set(expected)
    for name in expected:
        # Adam divides by roots of squares: where a gradient is nearly zero, its last bits are seen
        assert np.linalg.norm(found[name] - expected[name]) <= 1e-8 * np.linalg.norm(expected[name]), name
    ran, would = progress(two), progress(one)
    assert ran["failed"] == would["failed"] == {"train": {BROKEN: "block 7 cannot be decoded"}, "val": {}}
    assert ran["run"]["positions"] == would["run"]["positions"] and ran["origin"]["processes"] == 2
    for row, other in zip(ran["run"]["rows"], would["run"]["rows"]):
        assert row == pytest.approx(other, rel=1e-9)
    with open(str(two / "provenance.json"), encoding="utf-8") as stream:
        assert json.load(stream)["config"]["train"]["share"] == "windows"


@pytest.mark.slow
def test_it_goes_on_to_the_same_bits(folders, mpirun, slide_set, tmp_path):
    command = [ONE_BREAKS, BROKEN] + arguments(slide_set, tmp_path / "run", WINDOWS) + ["--resume", "--set"]
    for epochs in (1, 2):
        code, _, errors = mpirun(*command, "train.epochs={}".format(epochs))
        assert code == 0, errors
    found, expected = weights(tmp_path / "run" / "last.npz"), weights(folders[0] / "last.npz")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], name)


def test_two_processes_score_and_draw_what_one_does(folders, mpirun, launch, slide_set, tmp_path):
    found = {}
    for name, settings in (("two", WINDOWS), ("one", SETTINGS)):
        settings += ("outputs.heatmaps={}".format(tmp_path / name / "maps"),)
        words = arguments(slide_set, tmp_path / name, settings) + ["--checkpoint", str(folders[0] / "best.npz")]
        if name == "two":
            code, said, errors = mpirun(*module("test", *words))
            assert said.count("heat maps of 6 slides: ") == said.count("scores, figures and summary.md: ") == 1
        else:
            code, _, errors = launch("test", *words)
        assert code == 0, errors
        found[name], _ = read_scores(str(tmp_path / name / "test" / "scores.csv"))
    assert [score.slide_id for score in found["two"]] == [score.slide_id for score in found["one"]]
    np.testing.assert_allclose(
        [score.probabilities for score in found["two"]], [score.probabilities for score in found["one"]], rtol=1e-9
    )
    drawn = sorted(os.listdir(str(tmp_path / "one" / "maps")))
    assert sorted(os.listdir(str(tmp_path / "two" / "maps"))) == drawn and len(drawn) == 7


@pytest.mark.slow
def test_heat_maps_are_drawn_once(folders, mpirun, slide_set, tmp_path):
    options = ("--checkpoint", folders[0] / "best.npz", "--output", tmp_path / "maps", "--split", "val")
    code, said, errors = mpirun(*module("heatmap", *arguments(slide_set, folders[0], WINDOWS), *options))
    assert code == 0, errors
    assert said.count("heat maps of 4 slides: ") == 1
    assert len(os.listdir(str(tmp_path / "maps"))) == 5


def test_another_engine_is_refused(mpirun, slide_set, tmp_path):
    settings = WINDOWS + ("engine=streaming",)
    code, _, errors = mpirun(*module("train", *arguments(slide_set, tmp_path / "run", settings)))
    assert code == 2 and errors.count("error: ") == 1
    assert "which engine streaming cannot; set engine: staged, or train.share: slides" in errors
    assert not (tmp_path / "run").exists()


def test_with_one_process_it_changes_nothing(launch, slide_set, tmp_path):
    settings = ("engine=streaming", "train.share=windows", "train.epochs=1", "train.updates_per_epoch=1")
    outcome = launch("train", *arguments(slide_set, tmp_path / "run", settings))
    assert outcome.code == 0, outcome.stderr
    with open(str(tmp_path / "run" / "log.csv"), encoding="utf-8", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 1
