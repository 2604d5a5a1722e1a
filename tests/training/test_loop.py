"""The training loop, with a learner that only keeps count: what it does is the loop's own doing."""

import csv
import json
import math
import os

import numpy as np
import pytest
from fakes import NETWORK, CountingLearner, FakeSource, InOrder, Outline, OutliningLearner

from whole_slide_cnn.errors import TrainingError, WeightsError
from whole_slide_cnn.models.weights import load_weights
from whole_slide_cnn.running.checkpoint import load_checkpoint
from whole_slide_cnn.training import loop, run_folder
from whole_slide_cnn.training.log import log_columns
from whole_slide_cnn.training.loop import Trainer
from whole_slide_cnn.training.progress import Progress


@pytest.fixture
def train_with(slide_set, tmp_path, monkeypatch):
    """A function (learner, *overrides, train=6, val=2) -> (rows, train source, val source); closed canvases are
    checked."""
    monkeypatch.setattr(loop, "Sampler", InOrder)

    def run(learner, *overrides, train=6, val=2):
        config = slide_set.config(tmp_path, *overrides)
        sources = FakeSource("t", train), FakeSource("v", val) if val else None
        try:
            return (Trainer(config, learner, *sources).run(),) + sources
        finally:
            for source in filter(None, sources):
                assert [canvas.closed for canvas in source.opened] == [1] * len(source.opened)

    return run


def read_log(folder):
    with open(os.path.join(str(folder), "log.csv"), encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_epochs_updates_and_batches(train_with):
    learner = CountingLearner()
    rows, _, _ = train_with(learner, "train.epochs=2", "train.updates_per_epoch=2", "train.batch_size=3")
    assert learner.steps == [["t0", "t1", "t2"], ["t3", "t4", "t5"]] * 2
    assert learner.predicted == ["v0", "v1"] * 2
    assert [(row["epoch"], row["updates"]) for row in rows] == [(1, 2), (2, 4)]


def test_log(train_with, tmp_path):
    learner = CountingLearner(train_losses=[3.0, 1.0, 0.5], val_losses=[0.25, 0.75])
    rows, _, _ = train_with(learner, "train.epochs=2", "train.updates_per_epoch=2", "train.batch_size=1")
    logged = read_log(tmp_path)
    assert tuple(logged[0]) == log_columns(learner.metrics)
    for row, line in zip(rows, logged):
        assert {key: float(value) for key, value in line.items()} == row
    assert [row["train_loss"] for row in rows] == [2.0, 0.5]
    assert [row["train_accuracy"] for row in rows] == [1.0, 1.0]
    assert [row["val_loss"] for row in rows] == [0.5, 0.75]
    assert [row["val_accuracy"] for row in rows] == [0.5, 0.5]
    assert [row["learning_rate"] for row in rows] == [1e-3] * 2
    assert all(row["seconds"] >= 0 and row["slides_per_minute"] > 0 for row in rows)


def test_without_validation(train_with, tmp_path):
    learner = CountingLearner(train_losses=[1.0, 0.25, 0.5])
    train_with(learner, "train.epochs=3", "train.updates_per_epoch=1", val=0)
    assert [(line["val_loss"], line["val_accuracy"]) for line in read_log(tmp_path)] == [("", "")] * 3
    assert load_checkpoint(str(tmp_path / "best.npz"), NETWORK)[1]["epoch"] == 2


@pytest.mark.parametrize(
    "losses, best", [([0.9, 0.7, 0.8], 2), ([0.9, 0.8, 0.7], 3), ([0.5, 0.5, 0.6], 1)], ids=["amid", "last", "equal"]
)
def test_best_checkpoint_has_the_lowest_validation_loss(train_with, tmp_path, losses, best):
    """Also where the training loss says otherwise; the last checkpoint and the exported weights are kept beside it."""
    learner = CountingLearner(train_losses=[0.1, 0.2, 0.3], val_losses=losses)
    train_with(learner, "train.epochs=3", "train.updates_per_epoch=1", val=1)
    state, progress = load_checkpoint(str(tmp_path / "best.npz"), NETWORK)
    assert (progress["epoch"], progress["best_loss"]) == (best, losses[best - 1])
    np.testing.assert_array_equal(state["output/bias"], [best, best])
    last = load_checkpoint(str(tmp_path / "last.npz"), NETWORK)[1]
    assert (last["epoch"], last["best_loss"]) == (3, losses[best - 1])
    exported, _ = load_weights(str(tmp_path / "best.h5"), NETWORK)
    np.testing.assert_array_equal(exported["output/bias"], [best, best])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_names_the_slide(train_with, tmp_path, loss):
    learner = CountingLearner(train_losses=[1.0, 1.0, loss])
    sentence = "the loss of slide t2 is {}; the checkpoint after 2 updates is kept; lower train.learning_rate"
    with pytest.raises(TrainingError, match=sentence.format(loss)):
        train_with(learner, "train.epochs=3", "train.updates_per_epoch=2", "train.batch_size=1")
    assert load_checkpoint(str(tmp_path / "last.npz"), NETWORK)[1]["epoch"] == 1
    assert len(read_log(tmp_path)) == 1


def test_a_slide_that_breaks_in_a_step_is_replaced_by_the_next(train_with, capsys):
    learner = CountingLearner(broken=["t1"])
    _, source, _ = train_with(
        learner, "train.epochs=1", "train.updates_per_epoch=5", "train.batch_size=2", "data.max_failed_share=0.5"
    )
    assert learner.steps == [["t0", "t2"], ["t3", "t4"], ["t5", "t0"], ["t2", "t3"], ["t4", "t5"]]
    assert [canvas.name for canvas in source.opened].count("t1") == 1
    output = capsys.readouterr().out
    assert output.count("slide t1: block 7 cannot be decoded") == 1
    assert "finished without 1 unreadable slides: t1" in output


def test_a_batch_that_holds_a_broken_slide_twice(train_with):
    learner = CountingLearner(broken=["t0"])
    train_with(
        learner, "train.epochs=1", "train.updates_per_epoch=2", "train.batch_size=3", "data.max_failed_share=1", train=2
    )
    assert learner.steps == [["t1"] * 3] * 2


def test_a_slide_that_breaks_in_validation_is_left_out(train_with, tmp_path):
    learner = CountingLearner(val_losses=[0.5], broken=["v0"])
    _, _, source = train_with(learner, "train.epochs=2", "train.updates_per_epoch=1", "data.max_failed_share=0.5")
    assert learner.predicted == ["v1", "v1"]
    assert [canvas.name for canvas in source.opened] == ["v0", "v1", "v1"]
    assert [float(line["val_loss"]) for line in read_log(tmp_path)] == [0.5, 0.5]


@pytest.mark.parametrize("share, fails", [(0.24, True), (0.25, False)])
def test_more_failures_than_the_set_share_end_with_an_error(train_with, tmp_path, share, fails):
    """Two of eight slides fail, one in either list. Training goes on to its end, and its results are there."""
    learner = CountingLearner(broken=["t4", "v1"])
    settings = "train.epochs=1", "train.updates_per_epoch=3", "data.max_failed_share={}".format(share)
    if fails:
        with pytest.raises(TrainingError, match=r"2 of 8 slides could not be read \(t4, v1\), more than the share"):
            train_with(learner, *settings)
    else:
        train_with(learner, *settings)
    assert len(learner.steps) == 3
    assert os.path.exists(str(tmp_path / "best.npz"))


def test_all_slides_break(train_with):
    learner = CountingLearner(broken=["t0", "t1"])
    with pytest.raises(TrainingError, match="none of the 2 slides can be read"):
        train_with(learner, train=2)


# A learner that is no engine


def test_a_learner_reports_what_it_measures(train_with, tmp_path, capsys):
    """Its own metrics, whose means are its own; its own model, which its checkpoints belong to."""
    settings = "train.epochs=1", "train.updates_per_epoch=2", "train.batch_size=3", "train.tensorboard=false"
    rows, _, _ = train_with(OutliningLearner(), *settings)
    (line,) = read_log(tmp_path)
    assert tuple(line) == log_columns(("loss", "iou")) == tuple(rows[0])
    assert [float(line[name]) for name in ("train_loss", "train_iou", "val_loss", "val_iou")] == [
        *(0.5 * 15 / 6, 15 / 36),
        *(1.5, 3 / 6),
    ]
    assert "epoch 1/1: train loss 1.2500, iou 0.417; validation loss 1.5000, iou 0.500 (best" in capsys.readouterr().out
    path = str(tmp_path / "best.npz")
    assert set(load_checkpoint(path, Outline())[0]) == {"output/bias", "generator/drawn"}
    assert not (tmp_path / "best.h5").exists()  # it exports nothing
    with pytest.raises(WeightsError, match=r"rates is \[6, 12\], the configuration says \[6\]"):
        load_checkpoint(path, Outline(rates=(6,)))
    with pytest.raises(WeightsError, match="is of another model"):
        load_checkpoint(path, NETWORK)


@pytest.mark.parametrize("at_first", ["train.epochs=1", "train.epochs=2"])
def test_a_learner_that_draws_numbers_resumes(slide_set, tmp_path, at_first):
    def train(folder, *overrides):
        settings = ("train.epochs=3", "train.updates_per_epoch=2", "train.tensorboard=false") + overrides
        config, learner = slide_set.config(folder, *settings), OutliningLearner()
        state, resumed = run_folder.begin(config, Outline(), resume=True) or (None, None)
        if state is not None:
            learner.load_state(state)
        Trainer(config, learner, FakeSource("t", 5), FakeSource("v", 2), resumed).run()
        return load_checkpoint(str(folder / "last.npz"), Outline())

    train(tmp_path / "cut", at_first)
    found, values = train(tmp_path / "cut")
    expected, _ = train(tmp_path / "whole")
    assert found == expected and expected["generator/drawn"] == 6 and expected["output/bias"]
    assert values["run"]["trained"] == values["run"]["validated"] == [0, 0.0, 0, 0]


def test_the_tally_in_a_checkpoint_is_as_it_ever_was(train_with, tmp_path):
    """A flat list of slides, loss and right ones: checkpoints of before are read, and theirs read these."""
    settings = "train.epochs=1", "train.updates_per_epoch=1", "train.checkpoint_every_minutes=1.0e-9"
    with pytest.raises(TrainingError, match="the loss of slide v0"):
        train_with(CountingLearner(val_losses=[math.nan]), *settings)
    run = load_checkpoint(str(tmp_path / "last.npz"), NETWORK)[1]["run"]
    assert (run["trained"], run["validated"]) == ([2, 2.0, 2], [0, 0.0, 0])
    assert [type(value) for value in run["trained"]] == [int, float, int]
    assert json.loads(json.dumps(Progress.from_json(run).to_json())) == run
