"""Processes that train together: alone, by MPI, and by Horovod as far as it can be tested without it."""

import os
import sys
import types

import numpy as np
import pytest
import two_processes

from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.running import communicator as module
from whole_slide_cnn.running.communicator import (
    HorovodCommunicator,
    SingleCommunicator,
    communicator,
    use_own_gpu,
)

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "two_processes.py")


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_processes_equal_one_that_averages(mpirun, tmp_path, engine):
    """Weights after three updates: one slide in each of two processes, and both slides in one."""
    code, _, errors = mpirun(SCRIPT, "train", engine, str(tmp_path / "two.npz"))
    assert code == 0, errors
    before, one = two_processes.train(engine, SingleCommunicator())
    with np.load(str(tmp_path / "two.npz")) as stream:
        two = {name.replace("__", "/"): stream[name] for name in stream.files}
    assert set(one) == set(two)
    for name in one:
        assert np.abs(one[name] - before[name]).max() > 1e-4, name
        assert np.linalg.norm(two[name] - one[name]) <= 1e-5 * np.linalg.norm(one[name]), name


def test_the_calls_of_mpi(mpirun):
    code, output, errors = mpirun(SCRIPT, "primitives")
    assert code == 0, errors
    assert all("process {} of 2 is done".format(rank) in output for rank in range(2))


@pytest.mark.parametrize(
    "kind, expected, said",
    [
        ("user", 2, "error: process 1: slide 7 is on fire"),
        ("defect", 1, "ZeroDivisionError: a defect"),
        ("exit", 3, ""),
        ("killed", None, ""),
    ],
)
def test_one_that_fails_ends_all(mpirun, kind, expected, said):
    """The other one waits in a reduction and would wait for ever."""
    code, output, errors = mpirun(SCRIPT, "fail", kind)
    assert code == expected if expected is not None else code != 0
    assert said in errors and "is done" not in output


def test_one_that_fails_ends_all_even_where_it_cannot_say_so(monkeypatch):
    class Group(SingleCommunicator):
        size = 2

        def abort(self, code):
            codes.append(code)

    class Closed:
        def write(self, text):
            raise BrokenPipeError

    codes = []
    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(WholeSlideError, match="slide 7"), Group():
        raise WholeSlideError("slide 7 is on fire")
    assert codes == [2]


def test_alone():
    group = SingleCommunicator()
    array = np.arange(3.0)
    (mean,) = group.allreduce_mean([array])
    (total,) = group.allreduce_sum([array])
    mean += 1
    total += 1
    np.testing.assert_array_equal(array, [0, 1, 2])
    assert (group.rank, group.size, group.broadcast("x"), group.allgather("x")) == (0, 1, "x", ["x"])
    group.barrier()
    with pytest.raises(ZeroDivisionError), group:
        raise ZeroDivisionError


def test_without_a_launcher_nothing_is_imported(monkeypatch):
    monkeypatch.setattr(module, "_connect", None)
    assert isinstance(communicator({"SLURM_NTASKS": "4"}), SingleCommunicator)
    assert isinstance(communicator({"OMPI_COMM_WORLD_SIZE": "1"}), SingleCommunicator)


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "started 2 processes, for which mpi4py, or Horovod on TensorFlow 1, must be"),
        ({"HOROVOD_SIZE": "3"}, "started 3 processes, for which Horovod must be installed and work"),
    ],
)
def test_processes_that_cannot_talk_are_refused(monkeypatch, environment, message):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WholeSlideError, match=message):
        communicator(environment)


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(module, "_connect", lambda launched, by_horovodrun: SingleCommunicator())
    with pytest.raises(WholeSlideError, match="started 2 processes, but Single knows of 1"):
        communicator({"PMI_SIZE": "2"})


def test_a_library_that_does_not_work_gives_way_to_the_next(monkeypatch):
    def broken():
        raise RuntimeError("built for\nanother TensorFlow")

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(module, "HorovodCommunicator", broken)
    monkeypatch.setattr(module, "MpiCommunicator", SingleCommunicator)
    assert isinstance(module._connect(2, False), SingleCommunicator)
    with pytest.raises(WholeSlideError, match="must be installed and work: built for another TensorFlow"):
        module._connect(2, True)  # horovodrun starts no MPI


@pytest.mark.parametrize(
    "visible, local_rank, size, expected",
    [
        ("0,1,2,3", 2, 4, "2"),
        ("4, 6", 3, 4, "6"),
        ("GPU-a,GPU-b", 1, 2, "GPU-b"),
        ("MIG-a,MIG-b", 3, 4, "MIG-b"),
        ("0", 1, 2, "0"),
        ("", 1, 2, ""),
        ("0,1", 0, 1, "0,1"),
    ],
)
def test_every_process_has_a_gpu(visible, local_rank, size, expected):
    group = SingleCommunicator()
    group.local_rank, group.size = local_rank, size
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    use_own_gpu(group, environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": expected}


def test_gpus_that_nobody_named(monkeypatch):
    group, environment = SingleCommunicator(), {}
    group.local_rank, group.size = 1, 2
    for there, expected in (([], {}), (["0", "1", "2"], {"CUDA_VISIBLE_DEVICES": "1"})):
        monkeypatch.setattr(module, "gpu_identifiers", lambda environment, there=there: there)
        use_own_gpu(group, environment)
        assert environment == expected


@pytest.fixture
def horovod(monkeypatch):
    """A stand-in for Horovod in which the other one of two processes has the same, but zeros to reduce; the names that
    were asked of it, in order."""
    import tensorflow.compat.v1 as tf

    asked = []

    def allreduce(tensor, name, op):
        asked.append(name)
        assert op in ("average", "sum") and tf.get_default_graph() is tensor.graph
        return tensor / tf.constant(2, tensor.dtype) if op == "average" else tensor

    def broadcast(tensor, root_rank, name):
        asked.append(name)
        assert root_rank == 0 and tensor.op.type == "Placeholder"
        return tf.identity(tensor)

    def allgather(tensor, name):
        asked.append(name)
        assert tensor.op.type == "Placeholder"
        return tf.concat([tensor, tensor], 0)

    calls = dict(
        init=lambda: None,
        rank=lambda: 0,
        size=lambda: 2,
        local_rank=lambda: 0,
        local_size=lambda: 2,
        Average="average",
        Sum="sum",
    )
    stand_in = types.ModuleType("horovod.tensorflow")
    for name, call in dict(calls, allreduce=allreduce, broadcast=broadcast, allgather=allgather).items():
        setattr(stand_in, name, call)
    package = types.ModuleType("horovod")
    package.tensorflow = stand_in
    monkeypatch.setitem(sys.modules, "horovod", package)
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", stand_in)
    monkeypatch.setenv("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
    return asked


def test_the_calls_of_horovod(horovod):
    group = HorovodCommunicator()
    assert (group.rank, group.size, group.local_rank, group.local_size) == (0, 2, 0, 2)
    for _ in range(2):
        for dtype in (np.float32, np.float64):
            means = group.allreduce_mean([np.full((2, 3), 3, dtype), np.asarray(5, dtype)])
            assert [(mean.dtype, mean.shape) for mean in means] == [(dtype, (2, 3)), (dtype, ())]
            assert (means[0] == 1.5).all() and means[1] == 2.5
    wide, narrow, empty = group.allreduce_mean([np.arange(4.0), np.arange(3, dtype=np.float32), np.zeros((0, 2))])
    assert (wide.dtype, narrow.dtype, empty.shape) == (np.float64, np.float32, (0, 2))
    np.testing.assert_array_equal(wide, np.arange(4) / 2)
    np.testing.assert_array_equal(narrow, np.arange(3) / 2)
    np.testing.assert_array_equal(group.allreduce_sum([np.arange(4.0)])[0], np.arange(4))
    assert group.broadcast({"a": 1}) == {"a": 1} and group.allgather("mine") == ["mine", "mine"]
    group.barrier()
    # built once, under names that no two share; one reduction for each type, which Horovod cannot cut in another way
    objects = ["broadcast_length", "broadcast_bytes", "gather_length", "gather_bytes"]
    reductions = ["mean_float32_7", "mean_float64_7", "mean_float32_3", "mean_float64_4", "sum_float64_4"]
    assert horovod == objects + reductions


def test_horovod_opens_no_session_before_a_gpu_is_chosen(horovod, monkeypatch):
    """TensorFlow's first one looks for GPUs, and none that is hidden afterwards stays hidden."""
    import tensorflow.compat.v1 as tf

    class Opened(Exception):
        pass

    def session(*arguments, **options):
        raise Opened

    monkeypatch.setattr(tf, "Session", session)
    group = HorovodCommunicator()
    with pytest.raises(Opened):
        group.barrier()
