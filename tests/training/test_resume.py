"""A run that is cut off anywhere and goes on ends as if it never was; a learner that only counts makes that cheap."""

import csv
import glob
import os
import signal
import threading

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from fakes import NETWORK, ChainLearner, Crash, FakeSource, Fuse, numbered

from whole_slide_cnn.config import aliases
from whole_slide_cnn.errors import ConfigError, Interrupted, TrainingError, WeightsError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.running.checkpoint import load_checkpoint, save_checkpoint
from whole_slide_cnn.training import keeping, run_folder
from whole_slide_cnn.training.loop import Trainer

SETTINGS = (
    "train.epochs=9",
    "train.updates_per_epoch=3",
    "train.batch_size=2",
    "train.min_learning_rate=1.0e-4",
    "train.reduce_patience=1",
    "train.early_stop_patience=2",
    "train.on_plateau=rollback",
    "train.checkpoint_every_updates=2",
    "data.max_failed_share=1",
)
BROKEN = {"t3": "block 7 cannot be decoded", "v1": "level 0 cannot be read"}
TIMES = ("seconds", "slides_per_minute")


@pytest.fixture
def run(slide_set, monkeypatch):
    """A function (folder, fuse, *overrides, learner=ChainLearner) that begins a run, or goes on with it."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no power cut here, and it takes most of the time

    def start(folder, fuse=None, *overrides, learner=ChainLearner):
        fuse = Fuse() if fuse is None else fuse
        config = slide_set.config(folder, *(SETTINGS + overrides))
        begun = run_folder.begin(config, NETWORK, resume=True)
        made = learner(fuse, BROKEN)
        if begun is not None:
            made.load_state(begun[0])
        with monkeypatch.context() as patch:
            for module, name in (
                (keeping, "save_checkpoint"),
                (keeping, "write_text"),
                (keeping.shutil, "copyfile"),
                (keeping.Scalars, "flush"),
            ):
                patch.setattr(module, name, fuse.around(name, getattr(module, name)))
            sources = FakeSource("t", 7), FakeSource("v", 3)
            resumed = None if begun is None else begun[1]
            return Trainer(config, made, *sources, resumed=resumed, prepare=numbered).run()

    return start


def outcome(folder):
    """Everything that a run leaves, without times."""
    found = {}
    for name in ("last.npz", "best.npz"):
        arrays, values = load_checkpoint(os.path.join(str(folder), name), NETWORK)
        values["run"]["rows"] = [without_times(row) for row in values["run"]["rows"]]
        values["run"]["seconds"] = None
        found[name] = {key: value.tolist() for key, value in arrays.items()}, values
    with open(os.path.join(str(folder), "log.csv"), encoding="utf-8", newline="") as stream:
        found["log.csv"] = [without_times(row) for row in csv.DictReader(stream)]
    with open(os.path.join(str(folder), "best.h5"), encoding="utf-8") as stream:
        found["best.h5"] = stream.read()
    found["scalars"] = scalars(folder)
    return found


def without_times(row):
    return {key: value for key, value in row.items() if key not in TIMES}


def scalars(folder):
    """(tag, step, value) of all events in order of steps, without times."""
    found = []
    for path in glob.glob(os.path.join(str(folder), "tensorboard", "*")):
        for record in tf.python_io.tf_record_iterator(path):
            event = tf.Event.FromString(record)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return sorted(entry for entry in found if not entry[0].endswith(TIMES))


@pytest.fixture
def whole(run, tmp_path):
    """The outcome of a run that nothing disturbs, and its fuse."""
    fuse = Fuse()
    run(tmp_path / "whole", fuse)
    return outcome(tmp_path / "whole"), fuse


def test_the_undisturbed_run(whole):
    """It has what the tests below are about: a roll-back, a reduction, an early stop, broken slides."""
    expected, _ = whole
    rows = expected["log.csv"]
    assert [(row["epoch"], float(row["learning_rate"]), float(row["val_loss"])) for row in rows] == [
        ("1", 1e-3, 1.0),
        ("2", 1e-3, 0.5),
        ("3", 1e-3, 2.0),
        ("4", 1e-4, 2.0),
        ("5", 1e-4, 2.0),
    ]
    last, best = expected["last.npz"], expected["best.npz"]
    assert last[0]["optimiser/steps"] == 6 + 2 * 3 and best[0]["optimiser/steps"] == 6
    assert last[1]["failed"] == {
        "train": {"t3": "block 7 cannot be decoded"},
        "val": {"v1": "level 0 cannot be read"},
    }
    steps = [step for tag, step, _ in expected["scalars"] if tag == "update/loss"]
    assert steps == list(range(1, 16))
    assert [step for tag, step, _ in expected["scalars"] if tag == "epoch/val_loss"] == [1, 2, 3, 4, 5]


def test_cut_off_at_every_moment(run, whole, tmp_path):
    expected, fuse = whole
    assert {"before save_checkpoint", "after save_checkpoint", "after copyfile", "before export"} <= set(fuse.names)
    for moment in range(1, fuse.count + 1):
        folder = tmp_path / str(moment)
        with pytest.raises(Crash):
            run(folder, Fuse(moment))
        run(folder)
        assert outcome(folder) == expected, fuse.names[moment - 1]


def test_cut_off_again_and_again(run, whole, tmp_path):
    """Every attempt gets a little further than the last checkpoint, or not even that far."""
    expected, _ = whole
    random = np.random.RandomState(0)
    crashes = 0
    while True:
        try:
            run(tmp_path / "again", Fuse(random.randint(1, 25)))
            break
        except Crash:
            crashes += 1
            assert crashes < 200
    assert crashes > 5
    assert outcome(tmp_path / "again") == expected


@pytest.mark.parametrize("on_plateau, steps", [("rollback", 6), ("reduce", 9)])
def test_a_roll_back_takes_the_optimiser_along(run, tmp_path, on_plateau, steps):
    """Its running means are neither the latest nor zero: they are those of the best epoch, as the weights are."""
    run(tmp_path, None, "train.epochs=3", "train.on_plateau={}".format(on_plateau))
    last, values = load_checkpoint(str(tmp_path / "last.npz"), NETWORK)
    best, _ = load_checkpoint(str(tmp_path / "best.npz"), NETWORK)
    assert (last["optimiser/steps"], values["run"]["updates"]) == (steps, 9)
    assert best["optimiser/steps"] == 6 and best["optimiser/mean"].all()
    for name in best:
        assert np.array_equal(last[name], best[name]) == (on_plateau == "rollback"), name


def test_what_a_kill_amid_writing_leaves_is_removed(run, whole, tmp_path):
    """kill -9 lets no one tidy up: half a temporary file stays beside the checkpoint."""
    expected, fuse = whole
    moment = fuse.names.index("before save_checkpoint", 30) + 1
    with pytest.raises(Crash):
        run(tmp_path / "cut", Fuse(moment))
    left = [".last.npz.ab12_xyz.npz", ".best.npz.ab12_xyz.npz", ".best.h5.ab12_xyz.h5", ".log.csv.ab12_xyz.csv"]
    for name in left:
        (tmp_path / "cut" / name).write_bytes(b"PK\x03\x04 half a checkpoint")
    (tmp_path / "cut" / "tensorboard" / ".events.out.tfevents.1.x.ab12_xyz.x").write_bytes(b"half")
    events = sorted(glob.glob(str(tmp_path / "cut" / "tensorboard" / "events*")))
    with open(events[-1], "ab") as stream:
        stream.write(b"\x20\x00\x00\x00\x00\x00\x00\x00half a record")
    run(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == expected
    kept = os.listdir(str(tmp_path / "cut")) + os.listdir(str(tmp_path / "cut" / "tensorboard"))
    assert [name for name in kept if name.startswith(".")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["update", "prediction"])
def test_a_signal_finishes_the_step_and_saves(run, whole, tmp_path, number, moment):
    expected, _ = whole
    before = signal.getsignal(number)

    class Signalled(ChainLearner):
        def _sent(self, at):
            if at == moment and self._state["optimiser/steps"] >= 4:
                os.kill(os.getpid(), number)
                wait_for_watcher()

        def update(self, samples):
            self._sent("update")
            return super().update(samples)

        def predict(self, sample):
            self._sent("prediction")
            return super().predict(sample)

    with pytest.raises(Interrupted) as stop:
        run(tmp_path / "stopped", None, learner=Signalled)
    updates = 5 if moment == "update" else 6
    assert stop.value.signal == number
    assert str(stop.value) == "stopped by {} after {} updates, saved in {}; go on with --resume".format(
        number.name, updates, tmp_path / "stopped" / "last.npz"
    )
    progress = load_checkpoint(str(tmp_path / "stopped" / "last.npz"), NETWORK)[1]["run"]
    assert (progress["updates"], progress["val_position"]) == (updates, 0 if moment == "update" else 1)
    assert signal.getsignal(number) is before
    assert not [thread for thread in threading.enumerate() if thread.name == "signal-watcher"]
    run(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == expected


def wait_for_watcher():
    """Give the thread that notes signals a moment; the step it interrupts would take longer."""
    threading.Event().wait(0.2)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_loss_that_is_no_number_leaves_the_checkpoint_before_it(run, tmp_path, steps):
    class Diverging(ChainLearner):
        def update(self, samples):
            found = super().update(samples)
            if self._state["optimiser/steps"] == steps + 1:
                return [(float("nan"),) + found[0][1:]] + found[1:]
            return found

    with pytest.raises(TrainingError) as caught:
        run(tmp_path, None, "train.checkpoint_every_updates=1", learner=Diverging)
    assert str(caught.value).startswith("the loss of slide t")
    assert "; the checkpoint after {} updates is kept; lower train.learning_rate".format(steps) in str(caught.value)
    arrays, values = load_checkpoint(str(tmp_path / "last.npz"), NETWORK)
    assert values["run"]["updates"] == arrays["optimiser/steps"] == steps


def test_weights_that_are_no_numbers_are_not_saved(run, tmp_path):
    """An update may spoil the weights with a loss that was still fine."""

    class Spoiled(ChainLearner):
        def update(self, samples):
            found = super().update(samples)
            if self._state["optimiser/steps"] == 4:
                self._state["output/bias"][1] = np.inf
            return found

    with pytest.raises(TrainingError, match="after 4 updates output/bias holds numbers that are not finite; the check"):
        run(tmp_path, None, "train.checkpoint_every_updates=1", learner=Spoiled)
    assert load_checkpoint(str(tmp_path / "last.npz"), NETWORK)[1]["run"]["updates"] == 3


def test_checkpoints_by_the_clock(run, tmp_path):
    fuse = Fuse()
    run(tmp_path / "often", fuse, "train.checkpoint_every_minutes=1.0e-9", "train.checkpoint_every_updates=null")
    assert fuse.names.count("after save_checkpoint") == 15 + 15 + 5  # updates, the validation list, epochs
    fuse = Fuse()
    run(tmp_path / "seldom", fuse, "train.checkpoint_every_updates=null")
    assert fuse.names.count("after save_checkpoint") == 5


def test_more_epochs_than_at_first(run, tmp_path):
    """A run that has ended goes on to a later end as if that had been its end from the start."""
    plain = ("train.reduce_patience=null", "train.on_plateau=reduce", "train.early_stop_patience=null")
    run(tmp_path / "at once", None, *plain)
    run(tmp_path / "in two", None, "train.epochs=4", *plain)
    assert len(run(tmp_path / "in two", None, *plain)) == 9
    assert outcome(tmp_path / "in two") == outcome(tmp_path / "at once")


# What is refused


@pytest.fixture
def folder(run, tmp_path):
    """A folder with a run of one epoch."""
    run(tmp_path / "run", None, "train.epochs=1")
    return tmp_path / "run"


def begin(slide_set, folder, *overrides, **options):
    return run_folder.begin(slide_set.config(folder, *(SETTINGS + overrides)), NETWORK, **options)


def test_a_folder_that_holds_a_run(slide_set, folder):
    with pytest.raises(TrainingError) as caught:
        begin(slide_set, folder)
    assert str(caught.value) == (
        "{} already holds a run (last.npz, best.npz, log.csv); go on with it by --resume, replace it by --overwrite, "
        "or name another result_dir".format(folder)
    )


def test_overwriting_removes_the_run_and_nothing_else(slide_set, folder):
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert begin(slide_set, folder, overwrite=True) is None
    assert os.listdir(str(folder)) == ["notes.txt"]


def test_an_empty_folder_begins(slide_set, tmp_path):
    assert begin(slide_set, tmp_path / "none", resume=True) is None
    assert begin(slide_set, tmp_path / "none") is None


@pytest.mark.parametrize(
    "override, sentence",
    [
        (
            "train.learning_rate=0.5",
            "train.learning_rate is 0.5, but the run of {} began with 0.001; a run goes on only ",
        ),
        ("train.batch_size=3", "train.batch_size is 3, but the run of {} began with 2"),
        ("data.val=null", "data.val is null, but the run of {} began with a file"),
        ("data.canvas=256", "data.canvas is [256, 256], but the run of {} began with [192, 208]"),
        ("seed=1", "seed is 1, but the run of {} began with 0"),
        ("model.compute=tensorfloat32", 'model.compute is "tensorfloat32", but the run of {} began with "float32"'),
        ("engine=direct", 'engine is "direct", but the run of {} began with "streaming"'),
        ("model.weights=w.npz", "model.weights is a file, but the run of {} began with null"),
    ],
)
def test_other_settings(slide_set, folder, override, sentence):
    with pytest.raises(ConfigError) as caught:
        begin(slide_set, folder, override, resume=True)
    assert str(caught.value).startswith(sentence.format(folder / "last.npz"))


@pytest.mark.parametrize(
    "override",
    ["train.epochs=7", "memory_gb=99", "data.slides=elsewhere", "data.test=null", "train.tensorboard=false"],
)
def test_settings_that_may_change(slide_set, folder, override):
    assert begin(slide_set, folder, override, resume=True) is not None


def test_other_slides_in_the_list(own_list, slide_set, folder):
    with pytest.raises(ConfigError, match="data.train: the file is not the one that the run of .*last.npz began with"):
        begin(slide_set, folder, "data.train={}".format(own_list("more")), resume=True)
    assert begin(slide_set, folder, "data.train={}".format(own_list("")), resume=True) is not None


@pytest.fixture
def own_list(slide_set, tmp_path):
    """A function (text) -> copy of the train list elsewhere, with that text added."""

    def copy(text):
        with open(slide_set.path("train.csv"), "rb") as stream:
            (tmp_path / "copy.csv").write_bytes(stream.read() + text.encode("utf-8"))
        return tmp_path / "copy.csv"

    return copy


def test_another_number_of_processes(slide_set, folder):
    with pytest.raises(ConfigError, match="processes is 2, but the run of .* began with 1"):
        begin(slide_set, folder, resume=True, processes=2)


@pytest.mark.parametrize("engine", ["auto", "streaming"])
def test_what_was_left_to_the_machine_stays_as_it_was(slide_set, folder, engine):
    path = str(folder / "last.npz")
    state, values = load_checkpoint(path, NETWORK)
    values["origin"]["staged.memory_gb"] = 3.0
    save_checkpoint(path, NETWORK, state, values)
    config = slide_set.config(folder, "engine={}".format(engine))
    found = run_folder.with_choices_of_run(config, NETWORK)
    assert found.engine == "streaming" and found.staged.memory_gb == 3.0
    given = slide_set.config(folder, "staged.memory_gb=5")
    assert run_folder.with_choices_of_run(given, NETWORK).staged.memory_gb == 5.0


def test_a_checkpoint_states_keys_by_the_names_of_an_earlier_version(slide_set, folder):
    state, values = load_checkpoint(str(folder / "last.npz"), NETWORK)
    for old, present in aliases.RENAMED_KEYS.items():
        values["origin"].pop(present, None)
        values["origin"][old] = None
    values["origin"]["unified.choice"] = "remat"
    save_checkpoint(str(folder / "last.npz"), NETWORK, state, values)
    assert begin(slide_set, folder, resume=True) is not None
    with pytest.raises(ConfigError, match='unified.memory_policy is "keep", but the run of .* began with "recompute"'):
        begin(slide_set, folder, "unified.memory_policy=keep", resume=True)


def test_initial_weights_are_not_needed_any_more(slide_set, run, tmp_path):
    weights = tmp_path / "w.npz"
    weights.write_bytes(b"weights")
    setting = "model.weights={}".format(weights)
    run(tmp_path / "run", None, "train.epochs=1", setting)
    weights.write_bytes(b"others")
    with pytest.raises(ConfigError, match="model.weights: the file is not the one"):
        begin(slide_set, tmp_path / "run", setting, resume=True)
    weights.unlink()
    _, resumed = begin(slide_set, tmp_path / "run", setting, resume=True)
    assert resumed.origin["model.weights"]["sha256"]


def test_a_checkpoint_of_another_model(slide_set, folder):
    config = slide_set.config(folder, "model.pooling=gap", *SETTINGS)
    with pytest.raises(WeightsError, match="is of another model: pooling is gmp, the configuration says gap"):
        run_folder.begin(config, Network("tiny", "gap", "softmax", 2), resume=True)


def test_a_lost_checkpoint(slide_set, folder):
    os.remove(str(folder / "last.npz"))
    with pytest.raises(
        TrainingError, match="holds best.npz and log.csv, but not the checkpoint last.npz to go on from"
    ):
        begin(slide_set, folder, resume=True)


def test_a_checkpoint_that_is_none(slide_set, folder):
    (folder / "last.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(WeightsError, match="last.npz is not a checkpoint of this program, or is broken"):
        begin(slide_set, folder, resume=True)


def test_the_best_checkpoint_of_another_run(run, folder):
    """It would be rolled back to."""
    (folder / "best.npz").rename(folder / "first.npz")
    run(folder, None, "train.epochs=3")
    (folder / "best.npz").write_bytes((folder / "first.npz").read_bytes())
    with pytest.raises(TrainingError, match="best.npz is of epoch 1, but the best epoch of the run of last.npz is 2"):
        run(folder)


def test_a_checkpoint_of_another_version_is_refused(run, tmp_path):
    run(tmp_path / "run", None, "train.epochs=1")
    state, values = load_checkpoint(str(tmp_path / "run" / "last.npz"), NETWORK)
    values["run"]["position"] = values["run"].pop("positions")[0]
    save_checkpoint(str(tmp_path / "run" / "last.npz"), NETWORK, state, values)
    with pytest.raises(WeightsError, match="in the way of another version of this program; go on with that version"):
        run(tmp_path / "run")
