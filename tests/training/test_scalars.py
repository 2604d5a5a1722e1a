"""Scalars for TensorBoard: they are read back, and none is there twice."""

import glob
import math
import os

import pytest
import tensorflow.compat.v1 as tf

from whole_slide_cnn.training.scalars import Scalars


def read(folder):
    """(tag, step, value) of every event, file by file."""
    found = []
    for path in sorted(glob.glob(os.path.join(str(folder), "*"))):
        for record in tf.python_io.tf_record_iterator(path):
            event = tf.Event.FromString(record)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return sorted(found)


def write(folder, updates, first_update, last_update, epochs=(), first_epoch=0):
    with Scalars(str(folder), updates, first_epoch) as scalars:
        for number in range(first_update, last_update + 1):
            scalars.update(number, {"loss": number / 4})
        for number in epochs:
            scalars.epoch(number, {"val_loss": number / 8, "val_accuracy": math.nan})


def updates_of(*numbers):
    return [("update/loss", number, number / 4) for number in numbers]


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path, 0, 1, 3, epochs=[1])
    assert read(tmp_path) == [("epoch/val_loss", 1, 0.125)] + updates_of(1, 2, 3)


def test_what_lies_beyond_the_checkpoint_is_forgotten(tmp_path):
    """Epochs and updates are counted apart: an epoch's end lies between two checkpoints after the same update."""
    write(tmp_path, 0, 1, 6, epochs=[1, 2])
    write(tmp_path, 6, 7, 8, first_epoch=1)
    assert read(tmp_path) == [("epoch/val_loss", 1, 0.125)] + updates_of(1, 2, 3, 4, 5, 6, 7, 8)
    write(tmp_path, 5, 6, 6, epochs=[2], first_epoch=1)
    assert read(tmp_path) == [("epoch/val_loss", 1, 0.125), ("epoch/val_loss", 2, 0.25)] + updates_of(*range(1, 7))


def test_a_run_that_begins_forgets_everything(tmp_path):
    write(tmp_path, 0, 1, 6, epochs=[1, 2])
    write(tmp_path, 0, 1, 2)
    assert read(tmp_path) == updates_of(1, 2)


@pytest.mark.parametrize("lost", [1, 20, 60])
def test_a_file_that_a_kill_cut_off(tmp_path, lost):
    write(tmp_path, 0, 1, 6)
    (path,) = glob.glob(str(tmp_path / "*"))
    os.truncate(path, os.path.getsize(path) - lost)
    write(tmp_path, 4, 5, 6)
    assert read(tmp_path) == updates_of(1, 2, 3, 4, 5, 6)


def test_a_kill_amid_the_tidying_leaves_nothing(tmp_path):
    write(tmp_path, 0, 1, 2)
    (tmp_path / ".events.out.tfevents.12.host.ab12_xyz.host").write_bytes(b"half")
    write(tmp_path, 2, 3, 3)
    assert read(tmp_path) == updates_of(1, 2, 3)
    assert not [name for name in os.listdir(str(tmp_path)) if name.startswith(".")]


def test_flushed_scalars_are_in_the_file(tmp_path):
    with Scalars(str(tmp_path), 0, 0) as scalars:
        scalars.update(1, {"loss": 0.25})
        scalars.flush()
        assert read(tmp_path) == updates_of(1)


def test_nothing_is_written_where_nothing_shall(tmp_path):
    with Scalars(None, 0, 0) as scalars:
        scalars.update(1, {"loss": 0.25})
        scalars.epoch(1, {"loss": 0.25})
        scalars.flush()
    assert os.listdir(str(tmp_path)) == []


def test_tensorboard_shows_every_step_once(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, 0, 1, 6, epochs=[1, 2])
    write(tmp_path, 4, 5, 8, epochs=[2, 3], first_epoch=1)
    accumulator = accumulators.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert sorted(accumulator.Tags()["scalars"]) == ["epoch/val_loss", "update/loss"]
    shown = accumulator.Scalars("update/loss")
    assert [(event.step, event.value) for event in shown] == [(number, number / 4) for number in range(1, 9)]
    assert [event.step for event in accumulator.Scalars("epoch/val_loss")] == [1, 2, 3]
