"""What learns: the interface that the training loop drives, whatever is behind it.

The loop knows slides, epochs, schedules, checkpoints, signals and processes; a learner knows its model, its step and
what is worth reporting of it. Every learner passes ``tests/training/test_learner_contract.py``.
"""

import abc
import math
from typing import Any, Dict, Sequence, Tuple

import numpy as np

from whole_slide_cnn.running.communicator import Communicator
from whole_slide_cnn.running.slides import SlideSample
from whole_slide_cnn.training.progress import Tally

State = Dict[str, np.ndarray]
# What is summed over slides: one slide's share of it, in the order of a learner's sums. The first is its loss.
Measures = Tuple[float, ...]


class Learner(abc.ABC):
    """A model with its optimiser.

    A context manager that is closed at its end.

    Attributes:
        model: a frozen dataclass that says what the weights are of. Checkpoints hold it, and are refused where another
            one is asked for (:mod:`whole_slide_cnn.running.checkpoint`).
        learning_rate: of the next update; the loop sets it before every epoch.
        metrics: names of what is reported of an epoch: columns ``train_<name>`` and ``val_<name>`` of the log, scalars
            of an update. The first is ``loss``, which chooses the best epoch and moves the schedule.
        nothing: the tally of no slides, a zero of each sum's type; integers stay integers in checkpoints.
    """

    model: Any
    learning_rate: float
    metrics: Tuple[str, ...] = ("loss",)
    nothing: Tally = Tally(0, (0.0,))

    @abc.abstractmethod
    def update(self, samples: Sequence[SlideSample]) -> Sequence[Measures]:
        """One step on some slides, each with its record, position in the stream and open canvas.

        The same state, slides, positions and learning rate give the same state, bit for bit: that is what lets a run
        resume. What a learner draws at random therefore follows from positions, or from a state of its own.

        Returns:
            The measures of every slide before the step.

        Raises:
            SlideError: a slide cannot be read. The state is what it was: the loop calls again without that slide.
        """

    @abc.abstractmethod
    def predict(self, sample: SlideSample) -> Measures:
        """The measures of a slide that is validated; changes nothing that an update, or the state, depends on.

        Raises:
            SlideError: the slide cannot be read.
        """

    @abc.abstractmethod
    def state(self) -> State:
        """Everything that :meth:`update` changes (weights, optimiser, generators), by name; copies."""

    @abc.abstractmethod
    def load_state(self, values: State):
        """Take a state back, bit for bit. Names that are missing stay as they are.

        Raises:
            WeightsError: a name is unknown, or a shape differs; nothing has changed then.
        """

    @abc.abstractmethod
    def reduce_over(self, group: Communicator):
        """From now on every update steps by the mean over the updates that all processes of a group make at the same
        time; all of them hold the same state, and do so after every step. Where they compute every slide together,
        the mean is that of equal updates, and the learner may share the work."""

    def export(self, folder: str, state: State):  # noqa: B027
        """Write the weights of a state, which is the best epoch's, in forms for other programs.

        Args:
            folder: the result folder, for files whose place no one has chosen.
        """

    def means(self, tally: Tally) -> Tuple[float, ...]:
        """The metrics of some slides, nan where there are none: here the sums divided by the number of slides."""
        if not tally.slides:
            return (math.nan,) * len(self.metrics)
        return tuple(total / tally.slides for total in tally.sums)

    def close(self):  # noqa: B027
        """Give back what the learner holds."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
