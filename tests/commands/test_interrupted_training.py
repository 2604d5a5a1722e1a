"""``train`` as real processes that are killed or stopped, and go on with ``--resume`` to the same weights."""

import csv
import glob
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from whole_slide_cnn import train as training
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.models.weights import METADATA_KEY

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OFTEN = ("train.checkpoint_every_updates=1",)
DEADLINE = 300  # seconds for a process to come to its next checkpoint


class Attempt:
    """``train --resume`` in a process of its own, into a folder."""

    def __init__(self, config, folder, settings):
        self._checkpoint = os.path.join(str(folder), "last.npz")
        words = [word for setting in ("result_dir={}".format(folder),) + settings for word in ("--set", setting)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "whole_slide_cnn.train", "--config", config, "--resume"] + words,
            cwd=ROOT,
            env=dict(os.environ, PYTHONPATH=ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )

    def wait_for_checkpoints(self, count):
        """Until that many have been written, or the process has ended; whether it still runs."""
        seen, end = self._identity(), time.monotonic() + DEADLINE
        while count and self.process.poll() is None:
            assert time.monotonic() < end, "no checkpoint in time"
            found = self._identity()
            if found != seen:
                seen, count = found, count - 1
            time.sleep(0.002)
        return self.process.poll() is None

    def end(self, number=None):
        """Exit code, standard output and error, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=DEADLINE)
        assert "Traceback" not in errors, errors
        return self.process.returncode, output, errors

    def _identity(self):
        """Of a checkpoint: replaced by another file, it has another one."""
        try:
            status = os.stat(self._checkpoint)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def arrays(path):
    """Weights and optimiser state."""
    with np.load(str(path)) as stored:
        return {name: stored[name] for name in stored.files if name != METADATA_KEY}


def progress(folder):
    """What the checkpoint says about the run."""
    with np.load(str(folder / "last.npz")) as stored:
        return json.loads(str(stored[METADATA_KEY]))["progress"]["run"]


def log(folder):
    with open(str(folder / "log.csv"), encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{key: row[key] for key in row if key not in ("seconds", "slides_per_minute")} for row in rows]


def logged_steps(folder):
    """Steps of the loss of updates, and of the validation loss of epochs."""
    import tensorflow.compat.v1 as tf

    steps = {"update/loss": [], "epoch/val_loss": []}
    for path in glob.glob(str(folder / "tensorboard" / "*")):
        for record in tf.python_io.tf_record_iterator(path):
            event = tf.Event.FromString(record)
            for value in event.summary.value:
                steps.get(value.tag, []).append(event.step)
    return [sorted(found) for found in steps.values()]


def assert_same_run(folder, expected):
    """Bit for bit: weights, optimiser, the best epoch, and what was logged."""
    for name in ("last.npz", "best.npz"):
        found, wanted = arrays(folder / name), arrays(expected / name)
        assert found.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(found[key], wanted[key], err_msg="{} of {}".format(key, name))
    assert log(folder) == log(expected)
    rows = log(expected)
    updates = int(rows[-1]["updates"])
    assert logged_steps(folder) == [list(range(1, updates + 1)), list(range(1, len(rows) + 1))]
    assert not [name for name in os.listdir(str(folder)) if name.startswith(".")]


def test_killed_and_stopped_and_resumed(trained, slide_set, tmp_path):
    """Amid the first epoch by kill -9, amid the second by SIGTERM: the run ends as one that nothing disturbed."""
    expected, _, _ = trained
    config, folder = slide_set.path("config.yaml"), tmp_path / "run"

    first = Attempt(config, folder, OFTEN)
    assert first.wait_for_checkpoints(2)
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert 2 <= progress(folder)["updates"] <= 5

    second = Attempt(config, folder, OFTEN)
    assert second.wait_for_checkpoints(1)
    code, output, errors = second.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, errors
    updates = progress(folder)["updates"]
    assert "going on after " in output and "SIGTERM: stopping after this update or slide" in output
    assert errors.splitlines()[-1] == "stopped by SIGTERM after {} updates, saved in {}; go on with --resume".format(
        updates, folder / "last.npz"
    )

    code, output, errors = Attempt(config, folder, ()).end()
    assert code == 0, errors
    assert output.splitlines()[0] == "going on after {} updates".format(updates)
    assert_same_run(folder, expected)
    with open(str(folder / "provenance.json"), encoding="utf-8") as stream:
        origin = json.load(stream)
    assert [entry["updates"] for entry in origin["resumed"]][-1] == updates and len(origin["resumed"]) == 2
    assert origin["resumed"][0]["versions"] == origin["versions"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_killed_twenty_times(slide_set, tmp_path, engine):
    """At random moments: amid updates, validations, and the writing of checkpoints."""
    settings = OFTEN + (
        "engine={}".format(engine),
        "augment.preset=paper_2021",
        "train.epochs=16",
        "train.updates_per_epoch=6",
        "train.learning_rate=2.0e-3",
        "train.min_learning_rate=1.0e-5",
        "train.reduce_patience=1",
        "train.on_plateau=rollback",
    )
    config, random = slide_set.path("config.yaml"), np.random.RandomState(0)
    code, _, errors = Attempt(config, tmp_path / "whole", settings).end()
    assert code == 0, errors
    kills, reached = 0, []
    while kills < 20:
        attempt = Attempt(config, tmp_path / "killed", settings)
        running = attempt.wait_for_checkpoints(random.randint(1, 4))
        time.sleep(random.uniform(0, 0.4))
        assert running and attempt.process.poll() is None, "the run ended before it was killed 20 times"
        assert attempt.end(signal.SIGKILL)[0] == -signal.SIGKILL
        kills += 1
        reached.append(progress(tmp_path / "killed")["updates"])
    code, _, errors = Attempt(config, tmp_path / "killed", settings).end()
    assert code == 0, errors
    assert reached == sorted(reached) and reached[-1] < 96
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.fixture
def train(call, slide_set, tmp_path):
    """A function (*arguments) -> Outcome of a run of two updates in this process."""

    def run(*arguments):
        settings = ("result_dir={}".format(tmp_path / "run"), "train.epochs=1", "train.updates_per_epoch=2")
        words = [word for setting in settings + ("data.val=null",) for word in ("--set", setting)]
        return call(training.main, "--config", slide_set.path("config.yaml"), *(words + list(arguments)))

    return run


def test_an_old_run_is_neither_mixed_up_nor_lost(train, tmp_path):
    """One folder, one run: it goes on, or it is replaced where that is asked for."""
    outcome = train("--resume")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.startswith("no checkpoint in {} yet: starting from the beginning\n".format(tmp_path / "run"))
    before = (tmp_path / "run" / "last.npz").read_bytes()

    folder = tmp_path / "run"
    assert train().sentence().startswith("{} already holds a run (last.npz, best.npz, log.csv); ".format(folder))
    assert train("--resume", "--set", "seed=5").sentence().startswith("seed is 5, but the run of {}".format(folder))
    assert (folder / "last.npz").read_bytes() == before

    outcome = train("--overwrite", "--set", "seed=5", "--set", "train.tensorboard=false")
    assert outcome.code == 0, outcome.stderr
    assert [row["epoch"] for row in log(folder)] == ["1"] and not (folder / "tensorboard").exists()
    assert (folder / "last.npz").read_bytes() != before


def test_a_run_that_is_complete(train, tmp_path):
    assert train().code == 0
    before = arrays(tmp_path / "run" / "last.npz")
    outcome = train("--resume")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[0] == "going on after 2 updates"
    for name, value in arrays(tmp_path / "run" / "last.npz").items():
        np.testing.assert_array_equal(value, before[name])


def test_resume_and_overwrite_exclude_each_other(call):
    outcome = call(training.main, "--resume", "--overwrite")
    assert outcome.code == 2 and "not allowed with argument" in outcome.stderr
