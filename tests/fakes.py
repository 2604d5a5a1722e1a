"""Slides that need no files, learners that need no graph, and processes that are none."""

import dataclasses
import itertools
import math
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Tuple

import numpy as np

from whole_slide_cnn.errors import SlideError, TrainingError, WeightsError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import save_weights
from whole_slide_cnn.running.communicator import Communicator, SingleCommunicator
from whole_slide_cnn.running.slides import SlideSample
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.training.learner import Learner
from whole_slide_cnn.training.progress import Tally

NETWORK = Network("tiny", "gmp", "softmax", 2)
INITIAL = NETWORK.initial_weights(0)


class Crash(BaseException):
    """The process is gone."""


def numbered(canvas, position):
    """What an augmentation does: the canvas depends on its position."""
    canvas.position = position
    return canvas


class FakeCanvas:
    def __init__(self, name, position=None):
        self.name, self.position, self.closed = name, position, 0

    def close(self):
        self.closed += 1


class FakeSource:
    """Slides in an endless fixed order, all of which can be opened but for those that are named."""

    def __init__(self, prefix, count, unopened=()):
        self.records = tuple(Record(prefix + str(i), prefix + str(i), i % 2) for i in range(count))
        self.failed, self.opened = {}, []
        self._unopened = unopened

    def __len__(self):
        return len(self.records)

    def fail(self, error):
        self.failed[error.slide] = error.reason
        return "{}; skipped".format(error)

    def stream(self, numbered, report, prepare=None):
        for position, record in numbered:
            if len(self.failed) == len(self.records):
                raise TrainingError("none of the {} slides can be read".format(len(self)))
            if record.slide_id not in self.failed and record.slide_id in self._unopened:
                report(self.fail(SlideError(record.slide_id, "cannot be opened")))
            if record.slide_id not in self.failed:
                self.opened.append(FakeCanvas(record.slide_id))
                canvas = self.opened[-1] if prepare is None else prepare(self.opened[-1], position)
                yield SlideSample(position, record, canvas)


class FakeLearner(Learner):
    """A state that is a few arrays, and slides that break.

    Args:
        state: to begin with.
        broken: slides that break in the middle of an update or of a prediction, with what is wrong with them.
    """

    model = NETWORK
    metrics = ("loss", "accuracy")
    nothing = Tally(0, (0.0, 0))
    learning_rate = 0.0

    def __init__(self, state, broken=()):
        self._state = {name: np.array(value) for name, value in state.items()}
        self._broken = dict.fromkeys(broken, "block 7 cannot be decoded") if not hasattr(broken, "keys") else broken
        self._group = SingleCommunicator()

    def state(self):
        return {name: np.array(value) for name, value in self._state.items()}

    def load_state(self, values):
        unknown = sorted(set(values) - set(self._state))
        if unknown:
            raise WeightsError("there is no variable '{}' in this model".format(unknown[0]))
        self._state.update((name, np.array(value)) for name, value in values.items())

    def reduce_over(self, group):
        self._group = group

    def _check(self, canvases):
        for canvas in canvases:
            assert not canvas.closed
            if canvas.name in self._broken:
                raise SlideError(canvas.name, self._broken[canvas.name])


class CountingLearner(FakeLearner):
    """Losses as scripted; its weights are the number of steps done.

    Args:
        train_losses, val_losses: losses by call, the last repeated.
        broken: slides that break in the middle of a step or of a prediction.
    """

    def __init__(self, train_losses=(1.0,), val_losses=(1.0,), broken=()):
        super().__init__(dict(INITIAL, **{"output/bias": np.zeros(2, np.float32)}), broken)
        self.steps, self.predicted = [], []
        self._train_losses, self._val_losses = train_losses, val_losses

    def update(self, samples):
        self._check([sample.canvas for sample in samples])
        self.steps.append([sample.canvas.name for sample in samples])
        self._state["output/bias"] += np.float32(1)
        return [(self._train_losses[min(len(self.steps), len(self._train_losses)) - 1], 1)] * len(samples)

    def predict(self, sample):
        self._check([sample.canvas])
        self.predicted.append(sample.canvas.name)
        loss = self._val_losses[min(len(self.predicted), len(self._val_losses)) - 1]
        return loss, int(sample.record.label == 0)

    def export(self, folder, state):
        save_weights(os.path.join(folder, "best.h5"), self.model, state)


class MeanLearner(FakeLearner):
    """Its weights follow the mean of numbers that all slides, their labels and their positions decide; exactly, so that
    the order of sums does not matter.

    Args:
        broken: slides that break in the middle of a step or of a prediction.
        ends_after: steps and predictions after which the process ends.
    """

    def __init__(self, broken=(), ends_after=None):
        super().__init__({"output/bias": np.zeros(2), "optimiser/steps": np.zeros(())}, broken)
        self.trained, self.calls, self._ends_after = [], 0, ends_after

    def update(self, samples):
        self._call(samples)
        numbers = [[int(s.canvas.name[1:]) + 16 * s.record.label, s.canvas.position] for s in samples]
        (gradient,) = self._group.allreduce_mean([np.mean(numbers, axis=0)])
        self._state["output/bias"] = self._state["output/bias"] + self.learning_rate * gradient
        self._state["optimiser/steps"] = self._state["optimiser/steps"] + 1
        self.trained += [sample.canvas.name for sample in samples]
        return [(float(sample.record.label), int(sample.record.label == 0)) for sample in samples]

    def predict(self, sample):
        self._call([sample])
        steps = int(self._state["optimiser/steps"])
        return {3: 2.0, 6: 1.0}.get(steps, 4.0) + 8 * int(sample.canvas.name[1:]), 1

    def _call(self, samples):
        self._check([sample.canvas for sample in samples])
        self.calls += 1
        if self.calls == self._ends_after:
            raise Crash


class Fuse:
    """Counts what a run does, and ends it at one of these moments."""

    def __init__(self, moment=None):
        self.count, self.names = 0, []
        self._moment = moment

    def __call__(self, name):
        self.count += 1
        self.names.append(name)
        if self.count == self._moment:
            raise Crash(name)

    def around(self, name, function):
        """The function, with a moment before and one after it."""

        def call(*arguments):
            self("before " + name)
            result = function(*arguments)
            self("after " + name)
            return result

        return call


class ChainLearner(FakeLearner):
    """Its weights depend on every slide, its position, what came before and the learning rate.

    Args:
        fuse: burns at every state that is taken, before and after every update, and at every prediction.
    """

    VAL_LOSSES = {3: 1.0, 6: 0.5}  # by steps that the weights have had; all others are worse

    def __init__(self, fuse=None, broken=()):
        super().__init__(
            {"output/bias": np.zeros(2), "optimiser/mean": np.zeros(2), "optimiser/steps": np.float32(0)}, broken
        )
        self._fuse = Fuse() if fuse is None else fuse

    def state(self):
        self._fuse("state")
        return super().state()

    def update(self, samples):
        self._fuse("before update")
        self._check([sample.canvas for sample in samples])
        numbers = [(int(s.canvas.name[1:]), s.canvas.position) for s in samples]
        gradients = [[number * (1 + position), number + 3 * position] for number, position in numbers]
        (gradient,) = self._group.allreduce_mean([np.mean(gradients, axis=0)])
        mean = self._state["optimiser/mean"] * 0.9 + 0.1 * gradient
        bias = self._state["output/bias"] * 0.99 + self.learning_rate * mean
        steps = self._state["optimiser/steps"] + np.float32(1)
        self._state = {"output/bias": bias, "optimiser/mean": mean, "optimiser/steps": steps}
        self._fuse("after update")
        return [(float(bias[0]) + i, int(sample.record.label == 0)) for i, sample in enumerate(samples)]

    def predict(self, sample):
        self._fuse("prediction")
        self._check([sample.canvas])
        return self.VAL_LOSSES.get(int(self._state["optimiser/steps"]), 2.0), int(sample.record.label == 0)

    def export(self, folder, state):
        self._fuse.around("export", np.savetxt)(os.path.join(folder, "best.h5"), state["output/bias"])


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a learner learns that is no network of this package's engines."""

    stride: int = 16
    rates: Tuple[int, ...] = (6, 12)


class OutliningLearner(FakeLearner):
    """Has a model, metrics and sums of its own: the share of an area that was found is no mean over slides. It draws
    numbers, by a generator that is part of its state."""

    model = Outline()
    metrics = ("loss", "iou")
    nothing = Tally(0, (0.0, 0, 0))

    def __init__(self, broken=()):
        super().__init__({"output/bias": np.zeros(1), "generator/drawn": np.int64(0)}, broken)

    def update(self, samples):
        self._check([sample.canvas for sample in samples])
        drawn = np.random.RandomState(int(self._state["generator/drawn"])).standard_normal()
        numbers = [int(sample.canvas.name[1:]) for sample in samples]
        (step,) = self._group.allreduce_mean([np.mean(numbers, keepdims=True) * drawn])
        self._state["output/bias"] = self._state["output/bias"] - self.learning_rate * step
        self._state["generator/drawn"] = self._state["generator/drawn"] + np.int64(1)
        return [(0.5 * number, number, 2 * number + 1) for number in numbers]

    def predict(self, sample):
        self._check([sample.canvas])
        number = int(sample.canvas.name[1:])
        return 1.0 + number, 3 * number, 4 * number + 1

    def means(self, tally):
        loss, both, either = tally.sums
        return (loss / tally.slides, both / either) if tally.slides else (math.nan, math.nan)


LEARNERS = (CountingLearner, MeanLearner, ChainLearner, OutliningLearner)


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

    def allreduce_sum(self, arrays):
        return [sum(each) for each in zip(*self.allgather(arrays))]

    def barrier(self):
        self._barrier.wait(timeout=60)

    def abort(self, code):
        self._barrier.abort()
