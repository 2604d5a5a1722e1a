"""Processes that train together (data parallel; 2021 paper, Methods): what they say to each other.

One interface over a single process, MPI (mpi4py) and Horovod. All processes make the same calls in the same order.
Nothing is imported or started before :func:`communicator` finds that a launcher started several processes.
"""

import abc
import contextlib
import importlib.util
import os
import pickle
import sys
import traceback
from typing import Any, List, Mapping, Optional, Sequence

import numpy as np

from tf_um_patch.host import VISIBLE, gpu_identifiers, launched
from whole_slide_cnn.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR
from whole_slide_cnn.errors import Interrupted, WholeSlideError

_EXIT_FAILURE = 1
_STALL_SECONDS = "3600"


class Communicator(abc.ABC):
    """A group of processes, as one of them sees it.

    As a context manager it ends all processes when its block fails in one of them: the others would otherwise wait for
    that one for ever.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those on its machine.
        local_size: number of processes on its machine.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    @abc.abstractmethod
    def allreduce_mean(self, arrays: Sequence[np.ndarray]) -> List[np.ndarray]:
        """The means over all processes of arrays of float32 or float64, the same bits in each of them and whenever
        they are computed.

        Types and shapes must be the same in all processes; they stay as they are.
        """

    @abc.abstractmethod
    def allreduce_sum(self, arrays: Sequence[np.ndarray]) -> List[np.ndarray]:
        """The sums over all processes, as :meth:`allreduce_mean` gives means."""

    @abc.abstractmethod
    def broadcast(self, value: Any) -> Any:
        """What process 0 passes; the others' values are not looked at. Anything that can be pickled."""

    @abc.abstractmethod
    def allgather(self, value: Any) -> List[Any]:
        """The values of all processes, by rank. Anything that can be pickled."""

    @abc.abstractmethod
    def barrier(self):
        """Wait until all processes are here."""

    @abc.abstractmethod
    def abort(self, code: int):
        """End all processes at once; does not return where there are several."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Interrupted):  # in all of them; the first one that exits may end the others
            self.barrier()
            return
        code = 0 if error is None else _exit_code(error)
        if code and self.size > 1:
            with contextlib.suppress(Exception):  # where it cannot be said, the others shall not wait for ever either
                _report(error, self.rank)
                sys.stdout.flush()
                sys.stderr.flush()
            self.abort(code)

    @contextlib.contextmanager
    def after_first(self):
        """Process 0 does the block, and then the others do: what it finds wrong for all of them is said once."""
        if self.rank:
            self.barrier()
        yield
        if not self.rank:
            self.barrier()

    def say(self, text: str):
        """Print what all processes know: process 0 does."""
        if not self.rank:
            print(text)


class SingleCommunicator(Communicator):
    """One process."""

    def allreduce_mean(self, arrays):
        return [np.array(array) for array in arrays]

    def allreduce_sum(self, arrays):
        return [np.array(array) for array in arrays]

    def broadcast(self, value):
        return value

    def allgather(self, value):
        return [value]

    def barrier(self):
        pass

    def abort(self, code):
        sys.exit(code)


class MpiCommunicator(Communicator):
    """Processes of an MPI launcher, by mpi4py."""

    def __init__(self):
        from mpi4py import MPI

        self._mpi = MPI
        self._world = MPI.COMM_WORLD.Dup()  # so that no library's messages are taken for ours
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        machine = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = machine.Get_rank(), machine.Get_size()
        machine.Free()

    def allreduce_mean(self, arrays):
        return [self._reduced(np.asarray(array), self.size) for array in arrays]

    def allreduce_sum(self, arrays):
        return [self._reduced(np.asarray(array), 1) for array in arrays]

    def _reduced(self, array: np.ndarray, divisor: int) -> np.ndarray:
        total = np.array(array).reshape(-1)
        # Not Allreduce: it may add in another order in each process, and their weights would drift apart.
        if self.rank == 0:
            self._world.Reduce(self._mpi.IN_PLACE, total, self._mpi.SUM, 0)
            total /= divisor
        else:
            self._world.Reduce(total, None, self._mpi.SUM, 0)
        self._world.Bcast(total, 0)
        return total.reshape(array.shape)

    def broadcast(self, value):
        return self._world.bcast(value, 0)

    def allgather(self, value):
        return self._world.allgather(value)

    def barrier(self):
        self._world.Barrier()

    def abort(self, code):
        self._world.Abort(code)


class HorovodCommunicator(Communicator):
    """Processes of ``horovodrun`` or of an MPI launcher, by Horovod.

    Arrays and objects travel through a small graph of their own, on the CPU: the engines' graphs stay what they are.
    """

    def __init__(self):
        import horovod.tensorflow as hvd
        import tensorflow.compat.v1 as tf

        # It warns of a process that waits for another one for a minute, which a slide may well take.
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", _STALL_SECONDS)
        hvd.init()
        self._hvd, self._tf = hvd, tf
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self._reductions, self._session = {}, None
        with tf.Graph().as_default() as self._graph:
            # Fed, not constants as in Horovod's own functions for objects: TensorFlow would evaluate a constant's
            # broadcast while it optimises the graph, and again when it runs it, and only where the constant is: the
            # processes would wait for each other for ever.
            self._length, self._bytes = tf.placeholder(tf.int64, [1]), tf.placeholder(tf.uint8, [None])
            self._broadcasts = [
                hvd.broadcast(x, 0, name="broadcast_" + name)
                for name, x in (("length", self._length), ("bytes", self._bytes))
            ]
            self._gathers = [
                hvd.allgather(x, name="gather_" + name)
                for name, x in (("length", self._length), ("bytes", self._bytes))
            ]

    def allreduce_mean(self, arrays):
        return self._allreduce(arrays, "mean")

    def allreduce_sum(self, arrays):
        return self._allreduce(arrays, "sum")

    def _allreduce(self, arrays: Sequence[np.ndarray], kind: str) -> List[np.ndarray]:
        arrays = [np.asarray(array) for array in arrays]
        found: List[Any] = [None] * len(arrays)
        # Joined into one: Horovod would join them itself, those that happen to be ready at the same time, and how many
        # MPI libraries order a sum depends on where in a message a number is. Resumed runs would go astray (law 5).
        for dtype in sorted({array.dtype.name for array in arrays}):
            places = [place for place, array in enumerate(arrays) if array.dtype.name == dtype]
            joined = np.concatenate([arrays[place].reshape(-1) for place in places])
            entry, reduced = self._reduction(dtype, len(joined), kind)
            ends = np.cumsum([arrays[place].size for place in places])
            for place, part in zip(places, np.split(self._run(reduced, {entry: joined}), ends[:-1])):
                found[place] = part.reshape(arrays[place].shape)
        return found

    def _reduction(self, dtype: str, length: int, kind: str):
        """The input and the mean or sum for an array; the same few types and lengths come again at every step."""
        if (dtype, length, kind) not in self._reductions:
            with self._graph.as_default():
                entry = self._tf.placeholder(np.dtype(dtype), [length])
                operation = self._hvd.Average if kind == "mean" else self._hvd.Sum
                reduced = self._hvd.allreduce(entry, name="{}_{}_{}".format(kind, dtype, length), op=operation)
            self._reductions[dtype, length, kind] = entry, reduced
        return self._reductions[dtype, length, kind]

    def broadcast(self, value):
        mine = _packed(value if self.rank == 0 else None)
        (length,) = self._run(self._broadcasts[0], {self._length: [len(mine)]})
        if self.rank:
            mine = np.zeros(length, np.uint8)
        return pickle.loads(self._run(self._broadcasts[1], {self._bytes: mine}).tobytes())

    def allgather(self, value):
        mine = _packed(value)
        lengths = self._run(self._gathers[0], {self._length: [len(mine)]})
        joined = self._run(self._gathers[1], {self._bytes: mine})
        return [pickle.loads(part.tobytes()) for part in np.split(joined, np.cumsum(lengths)[:-1])]

    def barrier(self):
        self.allgather(None)

    def abort(self, code):
        # Horovod has no abort; its launchers end all processes when one ends without a farewell.
        os._exit(code)

    def _run(self, fetch, feed):
        # Not opened before it is needed: TensorFlow looks for GPUs when it opens its first session, one without any
        # included, and what it has found cannot be changed (see use_own_gpu).
        if self._session is None:
            config = self._tf.ConfigProto(device_count={"GPU": 0})
            self._session = self._tf.Session(graph=self._graph, config=config)
        return self._session.run(fetch, feed)


def _packed(value: Any) -> np.ndarray:
    return np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)


def communicator(environment: Optional[Mapping[str, str]] = None) -> Communicator:
    """How this process talks to those it was launched with: Horovod where it is installed, else MPI, else alone.

    Args:
        environment: by default that of the process.

    Raises:
        WholeSlideError: a launcher started several processes that cannot find each other.
    """
    environment = os.environ if environment is None else environment
    launch = launched(environment)
    if launch.size == 1:
        return SingleCommunicator()
    found = _connect(launch.size, launch.launcher == "horovodrun")
    if found.size != launch.size:
        # Going on would train as many times over, each process alone, into the same folder.
        raise WholeSlideError(
            "the launcher started {} processes, but {} knows of {}; it was built for the MPI of another "
            "launcher".format(launch.size, type(found).__name__.replace("Communicator", ""), found.size)
        )
    return found


def _connect(processes: int, by_horovodrun: bool) -> Communicator:
    choices: List[Any] = []
    if importlib.util.find_spec("horovod") is not None:
        choices.append(HorovodCommunicator)
    if not by_horovodrun and importlib.util.find_spec("mpi4py") is not None:
        choices.append(MpiCommunicator)
    reasons = []
    for choice in choices:
        try:
            return choice()
        except Exception as error:  # built for another TensorFlow, no MPI library, ...: they raise almost anything
            reasons.append(" ".join(str(error).split()))
    needed = "Horovod" if by_horovodrun else "mpi4py, or Horovod on TensorFlow 1,"
    raise WholeSlideError(
        "the launcher started {} processes, for which {} must be installed and work{}".format(
            processes, needed, ": " + "; ".join(reasons) if reasons else ""
        )
    )


def use_own_gpu(group: Communicator, environment=None):
    """Let a process see one GPU of its machine, its own, where several processes share a machine.

    Must come before TensorFlow opens its first session. GPUs that ``CUDA_VISIBLE_DEVICES`` leaves out stay out;
    slices of a GPU (MIG) count as GPUs.
    """
    environment = os.environ if environment is None else environment
    if group.size == 1:
        return
    devices = gpu_identifiers(environment)
    if len(devices) > 1:
        environment[VISIBLE] = devices[group.local_rank % len(devices)]


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else _EXIT_FAILURE if error.code else 0
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_USER_ERROR if isinstance(error, WholeSlideError) else _EXIT_FAILURE


def _report(error: BaseException, rank: int):
    """Say what ends all processes, since none of them will return to say it."""
    if isinstance(error, WholeSlideError):
        print("error: process {}: {}".format(rank, error), file=sys.stderr)
    elif isinstance(error, Exception):
        print("error: process {} failed".format(rank), file=sys.stderr)
        traceback.print_exception(type(error), error, error.__traceback__)
