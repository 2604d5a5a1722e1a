"""How far a run is: everything but weights and optimiser state that it needs to go on as if it had never stopped."""

import dataclasses
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from whole_slide_cnn.training.schedule import ScheduleState


class Tally(NamedTuple):
    """Sums over slides, of whatever a learner measures; see :class:`whole_slide_cnn.training.learner.Learner`.

    Attributes:
        slides: how many.
        sums: over them.
    """

    slides: int
    sums: Tuple[float, ...]

    def add(self, measures: Sequence[float]) -> "Tally":
        """The tally with one more slide."""
        return self.join(Tally(1, tuple(measures)))

    def join(self, other: "Tally") -> "Tally":
        """The tally of the slides of both."""
        assert len(self.sums) == len(other.sums), "{} and {} are not of the same learner".format(self, other)
        return Tally(self.slides + other.slides, tuple(mine + its for mine, its in zip(self.sums, other.sums)))

    def cleared(self) -> "Tally":
        """The tally of no slides."""
        return Tally(0, tuple(type(value)() for value in self.sums))

    def to_json(self) -> List[float]:
        """A flat list; :meth:`from_json` reads it back."""
        return [self.slides, *self.sums]

    @classmethod
    def from_json(cls, values: Sequence[float]) -> "Tally":
        """Back from :meth:`to_json`."""
        return cls(int(values[0]), tuple(values[1:]))


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
    trained: Tally = Tally(0, ())
    seconds: float = 0.0
    val_position: int = 0
    validated: Tally = Tally(0, ())
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
        trained, validated = self.trained.cleared(), self.validated.cleared()
        return Progress(schedule, self.updates, self.positions, trained, 0.0, 0, validated, self.rows + (row,))

    def to_json(self) -> Dict[str, Any]:
        """In types that JSON can hold without loss."""
        values = dataclasses.asdict(self)
        return dict(values, trained=self.trained.to_json(), validated=self.validated.to_json())

    @classmethod
    def from_json(cls, values: Dict[str, Any]) -> "Progress":
        """Back from :meth:`to_json`."""
        return cls(
            **dict(
                values,
                schedule=ScheduleState(**values["schedule"]),
                positions=tuple(values["positions"]),
                trained=Tally.from_json(values["trained"]),
                validated=Tally.from_json(values["validated"]),
                rows=tuple(values["rows"]),
            )
        )
