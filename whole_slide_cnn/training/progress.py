"""How far a run is: everything but weights and optimiser state that it needs to go on as if it had never stopped."""

import dataclasses
import math
from typing import Any, Dict, NamedTuple, Tuple

import numpy as np

from whole_slide_cnn.engines.interface import Prediction
from whole_slide_cnn.training.schedule import ScheduleState


class Means(NamedTuple):
    """Mean loss and accuracy over slides; nan where there were none."""

    loss: float
    accuracy: float


class Tally(NamedTuple):
    """Sums over slides, from which :class:`Means` come."""

    slides: int = 0
    loss: float = 0.0
    right: int = 0

    def add(self, prediction: Prediction, label: int) -> "Tally":
        """The tally with one more slide."""
        right = int(np.argmax(prediction.probabilities)) == label
        return Tally(self.slides + 1, self.loss + float(prediction.loss), self.right + right)

    def join(self, other: "Tally") -> "Tally":
        """The tally of the slides of both."""
        return Tally(self.slides + other.slides, self.loss + other.loss, self.right + other.right)

    def means(self) -> Means:
        """Means over the slides so far."""
        if not self.slides:
            return Means(math.nan, math.nan)
        return Means(self.loss / self.slides, self.right / self.slides)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is, between two updates or two validated slides.

    Attributes:
        schedule: epochs that have ended, the learning rate, the best epoch.
        updates: optimiser updates of the whole run.
        positions: in the stream of training slides, for each process, up to which it has trained on those dealt to it.
        trained: the slides of the epoch that has not ended.
        seconds: that its updates took.
        val_position: in the validation list, of the next slide of this epoch's validation.
        validated: the slides before it.
        rows: of the log, one per epoch that has ended.
    """

    schedule: ScheduleState
    updates: int = 0
    positions: Tuple[int, ...] = (0,)
    trained: Tally = Tally()
    seconds: float = 0.0
    val_position: int = 0
    validated: Tally = Tally()
    rows: Tuple[Dict[str, Any], ...] = ()

    @property
    def epoch(self) -> int:
        """Epochs that have ended."""
        return self.schedule.epoch

    def after_update(self, positions: Tuple[int, ...], trained: Tally, seconds: float) -> "Progress":
        """One update further."""
        return dataclasses.replace(
            self, updates=self.updates + 1, positions=positions, trained=trained, seconds=self.seconds + seconds
        )

    def after_validated(self, val_position: int, validated: Tally) -> "Progress":
        """One validated slide of each process further."""
        return dataclasses.replace(self, val_position=val_position, validated=validated)

    def after_epoch(self, schedule: ScheduleState, row: Dict[str, Any]) -> "Progress":
        """One epoch further."""
        return Progress(schedule, self.updates, self.positions, rows=self.rows + (row,))

    def to_json(self) -> Dict[str, Any]:
        """In types that JSON can hold without loss."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Dict[str, Any]) -> "Progress":
        """Back from :meth:`to_json`."""
        return cls(
            **dict(
                values,
                schedule=ScheduleState(**values["schedule"]),
                positions=tuple(values["positions"]),
                trained=Tally(*values["trained"]),
                validated=Tally(*values["validated"]),
                rows=tuple(values["rows"]),
            )
        )
