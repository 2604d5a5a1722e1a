"""Processes that train together: they equal one, agree on everything, and lose nothing when they are cut off."""

import functools
import math
import os
import signal
import threading

import pytest
from fakes import NETWORK, Crash, FakeSource, MeanLearner, Threads, numbered

from whole_slide_cnn.errors import Interrupted
from whole_slide_cnn.running.checkpoint import load_checkpoint
from whole_slide_cnn.running.communicator import SingleCommunicator
from whole_slide_cnn.training import keeping, loop, run_folder
from whole_slide_cnn.training.loop import Trainer

SETTINGS = (
    "train.epochs=4",
    "train.updates_per_epoch=3",
    "train.batch_size=1",
    "train.learning_rate=0.5",
    "train.min_learning_rate=0.125",
    "train.reduce_factor=0.5",
    "train.reduce_patience=1",
    "train.on_plateau=rollback",
    "train.checkpoint_every_updates=2",
    "train.tensorboard=false",
    "data.max_failed_share=1",
)
WINDOWS = ("train.share=windows",)


@pytest.fixture
def run(slide_set, tmp_path, monkeypatch):
    """A function (folder, processes, *overrides, broken=(), ends_after={}, unopened={}, train=7, val=5,
    shared=False) -> per process, what its trainer returned or raised, its learner, its learning rate and its sources.
    Only where the folder is shared do the others see that of the first."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def start(folder, processes, *overrides, broken=(), ends_after=None, unopened=None, train=7, val=5, shared=False):
        def process(group):
            own = tmp_path / folder if shared or group.rank == 0 else tmp_path / "of-nobody"
            config = slide_set.config(own, *(SETTINGS + overrides))
            learner = MeanLearner(broken, (ends_after or {}).get(group.rank))
            learners[group.rank] = learner
            begun = run_folder.begin(config, NETWORK, True, processes=group.size) if group.rank == 0 else None
            state, resumed = group.broadcast(begun) or (None, None)
            if state is not None:
                learner.load_state(state)
            lost = (unopened or {}).get(group.rank, ())
            sources = FakeSource("t", train, lost), FakeSource("v", val, lost)
            trainer = Trainer(config, learner, *sources, resumed=resumed, group=group, prepare=numbered)
            try:
                return trainer.run(), sources
            finally:
                for source in sources:
                    assert [canvas.closed for canvas in source.opened] == [1] * len(source.opened)

        learners = {}
        if processes == 1:
            results = [process(SingleCommunicator())]
        else:
            results = Threads(processes).run(process)
        assert not (tmp_path / "of-nobody").exists()
        return results, [learners[rank] for rank in range(processes)]

    return start


def checkpoint(path, forget=("seconds", "slides_per_minute")):
    """State and progress of a run, without times."""
    state, values = load_checkpoint(str(path), NETWORK)
    values["run"]["seconds"] = None
    for row in values["run"]["rows"]:
        for name in forget:
            row[name] = None
    return {name: value.tolist() for name, value in state.items()}, values


def rows_of(result):
    return [{key: row[key] for key in row if key not in ("seconds", "slides_per_minute")} for row in result[0]]


def _with_windows(run, folder, processes, **options):
    return run(folder, processes, *WINDOWS, **options)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_equal_one_with_a_larger_batch(run, tmp_path, processes):
    results, learners = run("several", processes)
    (one,), _ = run("one", 1, "train.batch_size={}".format(processes))
    assert all(rows_of(result) == rows_of(one) for result in results)
    assert [row["learning_rate"] for row in one[0]] == [0.5, 0.5, 0.5, 0.25]  # epoch 3 is rolled back
    expected, _ = checkpoint(tmp_path / "one" / "last.npz")
    for learner in learners:
        assert {name: value.tolist() for name, value in learner.state().items()} == expected
    assert checkpoint(tmp_path / "several" / "last.npz")[0] == expected
    assert checkpoint(tmp_path / "several" / "best.npz")[0] == checkpoint(tmp_path / "one" / "best.npz")[0]
    taken = [learner.trained for learner in learners]
    assert len({tuple(names) for names in taken}) == processes


def test_the_learning_rate_follows_the_number_of_processes(run):
    for scaling, factor in (("sqrt", math.sqrt(3)), ("none", 1.0)):
        results, _ = run(scaling, 3, "train.lr_scaling={}".format(scaling))
        for rows, _ in results:
            assert [row["learning_rate"] for row in rows] == [0.5 * factor] * 3 + [0.25 * factor]


def test_a_broken_slide_is_skipped_by_all(run, tmp_path):
    """One process finds it, and the other one never opens it again."""
    results, learners = run("run", 2, broken=("t2", "v3"))
    for rows, (train, val) in results:
        assert train.failed == {"t2": "block 7 cannot be decoded"} and val.failed == {"v3": "block 7 cannot be decoded"}
        assert len(rows) == 4
    finders = [[canvas.name for canvas in train.opened].count("t2") for _, (train, _) in results]
    assert sum(finders) == 1
    assert [len(learner.trained) for learner in learners] == [12, 12] and "t2" not in sum(
        (each.trained for each in learners), []
    )
    left = [0, 1, 2, 4]
    assert results[0][0][0]["val_loss"] == 2.0 + 8 * sum(left) / len(left)
    assert checkpoint(tmp_path / "run" / "last.npz")[1]["failed"] == {
        "train": {"t2": "block 7 cannot be decoded"},
        "val": {"v3": "block 7 cannot be decoded"},
    }


@pytest.mark.parametrize("processes", [2, 3])
def test_several_that_compute_every_slide_together_equal_one(run, tmp_path, processes, capsys):
    """Slides count once; one that breaks, or that one process cannot open, is skipped by all and told once."""
    several = WINDOWS + ("train.lr_scaling=sqrt",)
    unopened = {processes - 1: ("t5", "v1"), 0: ("t3",)}
    results, learners = run("several", processes, *several, broken=("t2", "v3"), unopened=unopened)
    said = capsys.readouterr().out
    (one,), (alone,) = run("one", 1, broken=("t2", "v3", "t5", "v1", "t3"))
    assert all(rows_of(result) == rows_of(one) for result in results)
    expected, progress = checkpoint(tmp_path / "one" / "last.npz")
    for learner in learners:
        assert {name: value.tolist() for name, value in learner.state().items()} == expected
        assert learner.trained == alone.trained
    state, values = checkpoint(tmp_path / "several" / "last.npz")
    assert state == expected and values["run"] == progress["run"]
    for name in ("t2", "t3", "t5", "v1", "v3"):
        assert said.count("slide {}: ".format(name)) == 1
    for _, sources in results:
        assert [sorted(source.failed) for source in sources] == [["t2", "t3", "t5"], ["v1", "v3"]]


@pytest.mark.parametrize("broken", [(), ("t2", "v3"), "windows"])
@pytest.mark.parametrize("rank", [0, 1])
def test_cut_off_anywhere_and_resumed(run, tmp_path, rank, broken):
    if broken == "windows":
        broken, run = ("t2", "v3"), functools.partial(_with_windows, run)
    run("whole", 2, broken=broken)
    expected = checkpoint(tmp_path / "whole" / "last.npz"), checkpoint(tmp_path / "whole" / "best.npz")
    moment = 1
    while True:
        results, learners = run("cut", 2, broken=broken, ends_after={rank: moment})
        if not isinstance(results[rank], Crash):
            break
        assert isinstance(results[1 - rank], Exception)
        run("cut", 2, broken=broken)
        found = checkpoint(tmp_path / "cut" / "last.npz"), checkpoint(tmp_path / "cut" / "best.npz")
        assert found == expected, moment
        for path in (tmp_path / "cut").iterdir():
            path.unlink()
        moment += 1
    assert moment > 15


@pytest.mark.parametrize("moment", [2, 4, 6, 11])
def test_a_signal_to_one_stops_all(run, tmp_path, monkeypatch, moment):
    """The launcher's signal may reach them at different times, or only one of them."""
    run("whole", 2)

    class Signals:
        def __init__(self, report):
            self.asked = 0

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        @property
        def received(self):
            self.asked += 1
            return signal.SIGTERM if made.index(self) == 1 and self.asked >= moment else None

    made = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopSignals", lambda report: made.append(Signals(report)) or made[-1])
        results, learners = run("stopped", 2)
    assert all(isinstance(result, Interrupted) and result.signal == signal.SIGTERM for result in results)
    assert sorted(bool(str(result)) for result in results) == [False, True] and str(results[0])
    assert len({len(learner.trained) for learner in learners}) == 1
    run("stopped", 2)
    assert checkpoint(tmp_path / "stopped" / "last.npz") == checkpoint(tmp_path / "whole" / "last.npz")


@pytest.mark.parametrize("rank, kept", [(0, "the checkpoint after 3 updates"), (1, "the last checkpoint")])
def test_a_loss_that_is_no_number_ends_all(run, monkeypatch, rank, kept):
    """Only the first process knows which checkpoint there is."""
    update = MeanLearner.update

    def broken(self, samples):
        found = update(self, samples)
        if int(self._state["optimiser/steps"]) == 5 and samples[0].position % 2 == rank:
            return [(math.nan,) + measures[1:] for measures in found]
        return found

    monkeypatch.setattr(MeanLearner, "update", broken)
    results, _ = run("run", 2, shared=True)
    assert "is nan; {} is kept; lower".format(kept) in str(results[rank])
    assert isinstance(results[1 - rank], threading.BrokenBarrierError)


def test_only_the_first_process_reads_and_writes_times(run, tmp_path, monkeypatch):
    settings = "train.checkpoint_every_updates=1", "outputs.train_times={}".format(tmp_path / "times.csv")
    run("run", 2, *settings, ends_after={0: 3})
    paths, record = [], keeping.TimeRecord
    monkeypatch.setattr(keeping, "TimeRecord", lambda path, *others: paths.append(path) or record(path, *others))
    run("run", 2, *settings)
    assert sorted(paths, key=str) == [str(tmp_path / "times.csv"), None]
    with open(str(tmp_path / "times.csv"), encoding="utf-8") as stream:
        assert [line.split(",")[0] for line in stream] == ["update"] + [str(update) for update in range(1, 13)]


def test_a_run_goes_on_with_as_many_processes_as_it_began_with(run):
    run("run", 2, "train.epochs=1")
    with pytest.raises(Exception, match="processes is 1, but the run of .* began with 2"):
        run("run", 1)
