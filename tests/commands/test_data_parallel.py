"""``train`` and ``test`` in two processes of an MPI launcher: by Horovod on TensorFlow 1, by mpi4py on TensorFlow 2."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from whole_slide_cnn.evaluation.scores import read_scores
from whole_slide_cnn.models.weights import METADATA_KEY

SETTINGS = ("train.epochs=1", "train.updates_per_epoch=3", "augment.preset=paper_2021", "train.tensorboard=false")


def arguments(module, slide_set, folder, *settings):
    """The words after python."""
    words = ["-m", "whole_slide_cnn." + module, "--config", slide_set.path("config.yaml")]
    for setting in ("result_dir={}".format(folder),) + settings:
        words += ["--set", setting]
    return words


def weights(path):
    with np.load(str(path)) as stored:
        return {name: stored[name] for name in stored.files if name != METADATA_KEY}


def first_line(text, beginning):
    return next(line for line in text.splitlines() if line.startswith(beginning))


@pytest.fixture(scope="module")
def together(mpirun, slide_set, tmp_path_factory):
    """A folder that two processes trained and tested into, and what they said."""
    folder = tmp_path_factory.mktemp("together") / "results"
    trained = mpirun(*arguments("train", slide_set, folder, "train.batch_size=1", *SETTINGS))
    assert trained[0] == 0, trained[2]
    maps = "outputs.heatmaps={}".format(folder / "maps")
    tested = mpirun(*arguments("test", slide_set, folder, maps, *SETTINGS))
    assert tested[0] == 0, tested[2]
    return folder, trained[1], tested[1]


def test_two_processes_equal_one_that_averages(together, launch, slide_set, tmp_path):
    """Weights after three updates with augmentation, of one slide from each of two processes or both from one."""
    folder, said, _ = together
    settings = arguments("train", slide_set, tmp_path, "train.batch_size=2", *SETTINGS)[2:]
    alone = launch("train", *settings)
    assert alone.code == 0, alone.stderr
    assert said.count("2 processes train together") == said.count("best checkpoint: ") == 1
    two, one = weights(folder / "last.npz"), weights(tmp_path / "last.npz")
    assert set(two) == set(one)
    for name in one:
        assert np.linalg.norm(two[name] - one[name]) <= 1e-5 * np.linalg.norm(one[name]), name
    for part in ("", "test", "maps"):
        with open(str(folder / part / "provenance.json"), encoding="utf-8") as stream:
            assert json.load(stream)["processes"] == 2
    rows = []
    for log in (folder / "log.csv", tmp_path / "log.csv"):
        with open(str(log), encoding="utf-8", newline="") as stream:
            rows += list(csv.DictReader(stream))
    for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        assert float(rows[0][name]) == pytest.approx(float(rows[1][name]), rel=1e-4)


def test_two_processes_score_what_one_does(together, launch, slide_set, tmp_path):
    folder, _, said = together
    settings = arguments("test", slide_set, tmp_path, *SETTINGS)[2:]
    alone = launch("test", *settings, "--checkpoint", folder / "best.npz")
    assert alone.code == 0, alone.stderr
    two, _ = read_scores(str(folder / "test" / "scores.csv"))
    one, _ = read_scores(str(tmp_path / "test" / "scores.csv"))
    assert [score.slide_id for score in two] == [score.slide_id for score in one] and len(one) == 6
    np.testing.assert_allclose(
        [score.probabilities for score in two], [score.probabilities for score in one], rtol=1e-5
    )
    assert said.count("scores, figures and summary.md: ") == 1
    assert set(os.listdir(str(folder / "test"))) == set(os.listdir(str(tmp_path / "test")))
    assert said.count("heat maps of 6 slides: ") == 1
    assert set(os.listdir(str(folder / "maps"))) == {"provenance.json"} | {score.slide_id for score in one}


@pytest.mark.parametrize("module", ["train", "test"])
def test_a_mistake_is_told_once(mpirun, slide_set, tmp_path, module):
    code, _, errors = mpirun(*arguments(module, slide_set, tmp_path, "data.{}=nowhere.csv".format(module)))
    assert code == 2
    assert errors.count("error: ") == 1 and "nowhere.csv" in first_line(errors, "error: process 0: ")
    assert not os.listdir(str(tmp_path))


def test_a_mistake_in_the_command_line_is_told_once(mpirun, together, slide_set, tmp_path):
    folder, _, _ = together
    options = ("--output", tmp_path, "--threshold", "2")
    code, _, errors = mpirun(*arguments("heatmap", slide_set, folder), *options)
    assert code == 2
    assert errors.count("error: ") == 1 and "--threshold must be " in first_line(errors, "error: process 0: ")


@pytest.mark.slow
def test_a_signal_stops_both_and_they_go_on(mpi_launcher, mpirun, slide_set, tmp_path):
    """The one that Open MPI's launcher passes on."""
    words, environment = mpi_launcher
    settings = SETTINGS + ("train.epochs=3", "train.checkpoint_every_updates=1")
    command = arguments("train", slide_set, tmp_path / "stopped", *settings) + ["--resume"]
    with subprocess.Popen(
        words + (sys.executable,) + tuple(command),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    ) as launcher:
        end = time.monotonic() + 120
        while not (tmp_path / "stopped" / "last.npz").exists():
            assert launcher.poll() is None and time.monotonic() < end, launcher.stderr.read()
            time.sleep(0.01)
        launcher.send_signal(signal.SIGUSR1)
        _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGUSR1
    assert first_line(errors, "stopped by SIGUSR1 after ").endswith("go on with --resume")
    code, _, errors = mpirun(*command)
    assert code == 0, errors
    command[command.index("result_dir={}".format(tmp_path / "stopped"))] = "result_dir={}".format(tmp_path / "whole")
    code, _, errors = mpirun(*command)
    assert code == 0, errors
    stopped, whole = weights(tmp_path / "stopped" / "last.npz"), weights(tmp_path / "whole" / "last.npz")
    for name in whole:
        np.testing.assert_array_equal(stopped[name], whole[name], name)
