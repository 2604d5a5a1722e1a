"""What is kept of a run, when, and by whom."""

import os

import pytest
from fakes import NETWORK, CountingLearner, FakeSource

from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.running.checkpoint import load_checkpoint
from whole_slide_cnn.training import schedule
from whole_slide_cnn.training.keeping import Keeper
from whole_slide_cnn.training.progress import Progress


@pytest.fixture
def keep(slide_set, tmp_path):
    """A function (*overrides, updates=0, leads=True) -> a keeper of a run that is so far, and its progress."""

    def make(*overrides, updates=0, leads=True):
        config, learner = slide_set.config(tmp_path / "run", "train.tensorboard=false", *overrides), CountingLearner()
        state, nothing = schedule.first_state(schedule.make_rules(config.train)), learner.nothing
        progress = Progress(state, updates, trained=nothing, validated=nothing)
        sources = {"train": FakeSource("t", 2), "val": FakeSource("v", 1)}
        sources["val"].failed["v0"] = "no slide"
        return Keeper(config, learner, sources, progress, {"seed": 0}, leads), progress

    return make


def test_saved_where_updates_or_the_clock_ask_for_it(keep, tmp_path):
    keeper, progress = keep("train.checkpoint_every_updates=3")
    with keeper:
        for updates, saved in ((1, None), (2, None), (3, 3), (4, 3), (5, 3), (6, 6)):
            progress = progress.after_update((updates,), progress.trained, 1.0)
            keeper.save_if_due(progress)
            found = None
            if (tmp_path / "run" / "last.npz").exists():
                found = load_checkpoint(keeper.path("last.npz"), NETWORK)[1]
            assert (found and found["run"]["updates"]) == saved
    assert found["failed"] == {"train": {}, "val": {"v0": "no slide"}} and found["origin"] == {"seed": 0}


def test_which_checkpoint_is_kept(keep):
    keeper, progress = keep(updates=7)
    assert keeper.kept() == ""
    keeper.save(progress)
    assert keeper.kept() == "the checkpoint after 7 updates is kept; "
    follower, _ = keep(leads=False)
    assert follower.kept() == "the last checkpoint is kept; "


def test_those_that_do_not_lead_write_nothing(keep, tmp_path):
    keeper, progress = keep("train.tensorboard=true", "train.checkpoint_every_updates=1", leads=False)
    with keeper:
        further = progress.after_update((1,), progress.trained, 1.0)
        keeper.record_update(further, further.trained, 1.0)
        keeper.save_if_due(further)
        keeper.publish_best()
        keeper.write_log(further)
        keeper.catch_up(further)
    assert not (tmp_path / "run").exists()


def test_the_best_state_must_be_that_of_the_best_epoch(keep):
    keeper, progress = keep(updates=1)
    turn = schedule.advance(schedule.Rules(1e-3), progress.schedule, 0.5)
    first = progress.after_epoch(turn.state, {"epoch": 1})
    keeper.save(first)
    keeper.publish_best()
    assert os.path.exists(keeper.path("best.h5"))
    assert set(keeper.best_state(first)) == set(CountingLearner().state())
    second = first.after_epoch(schedule.advance(schedule.Rules(1e-3), turn.state, 0.25).state, {"epoch": 2})
    with pytest.raises(TrainingError, match="best.npz is of epoch 1, but the best epoch of the run of last.npz is 2"):
        keeper.best_state(second)
