"""Slides that need no files, and processes that are none."""

import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.running.communicator import Communicator
from whole_slide_cnn.running.slides import SlideSample
from whole_slide_cnn.slides.manifest import Record


class Crash(BaseException):
    """The process is gone."""


class Optimiser:
    """What the loop sets."""

    learning_rate = None


def numbered(canvas, position):
    """What an augmentation does: the canvas depends on its position."""
    canvas.position = position
    return canvas


class FakeCanvas:
    def __init__(self, name):
        self.name, self.closed = name, 0

    def close(self):
        self.closed += 1


class FakeSource:
    """Slides in an endless fixed order, all of which can be opened."""

    def __init__(self, prefix, count):
        self.records = tuple(Record(prefix + str(i), prefix + str(i), i % 2) for i in range(count))
        self.failed, self.opened = {}, []

    def __len__(self):
        return len(self.records)

    def fail(self, error):
        self.failed[error.slide] = error.reason
        return "{}; skipped".format(error)

    def stream(self, numbered, report, prepare=None):
        for position, record in numbered:
            if len(self.failed) == len(self.records):
                raise TrainingError("none of the {} slides can be read".format(len(self)))
            if record.slide_id not in self.failed:
                self.opened.append(FakeCanvas(record.slide_id))
                canvas = self.opened[-1] if prepare is None else prepare(self.opened[-1], position)
                yield SlideSample(position, record, canvas)


class InOrder:
    """A sampler that repeats the list."""

    def __init__(self, records, seed):
        self._records = records

    def since(self, position):
        return ((number, self._records[number % len(self._records)]) for number in itertools.count(position))


class Threads:
    """Several processes that are threads of this one: what each runs gets its :class:`ThreadCommunicator`."""

    def __init__(self, size):
        self._barrier, self._values = threading.Barrier(size), [None] * size
        self.groups = [ThreadCommunicator(rank, size, self._barrier, self._values) for rank in range(size)]

    def run(self, function):
        """``function(group)`` in all of them: results or exceptions by rank. One that fails ends the others."""
        with ThreadPoolExecutor(len(self.groups)) as pool:
            futures = [pool.submit(self._run, function, group) for group in self.groups]
            return [future.result() for future in futures]

    def _run(self, function, group):
        try:
            with group:
                return function(group)
        except BaseException as error:
            return error


class ThreadCommunicator(Communicator):
    def __init__(self, rank, size, barrier, values):
        self.rank, self.size, self._barrier, self._values = rank, size, barrier, values

    def allgather(self, value):
        self._values[self.rank] = pickle.dumps(value)  # none gets hold of another's objects
        self.barrier()
        found = [pickle.loads(entry) for entry in self._values]
        self.barrier()
        return found

    def broadcast(self, value):
        return self.allgather(value)[0]

    def allreduce_mean(self, arrays):
        return [sum(each) / self.size for each in zip(*self.allgather(arrays))]

    def barrier(self):
        self._barrier.wait(timeout=60)

    def abort(self, code):
        self._barrier.abort()
