"""What several processes share: the slides of a data list, or the windows of every slide."""

import contextlib
from typing import Any, Iterable, Iterator, List, Sequence, Tuple

from tqdm import tqdm

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.running.communicator import Communicator
from whole_slide_cnn.running.slides import InTurn, SlideSource, shard
from whole_slide_cnn.slides.canvas import Canvas
from whole_slide_cnn.slides.manifest import Record


class Sharing:
    """How a group of processes shares the slides of its data lists.

    Args:
        group: the processes.
        windows: whether all of them compute every slide together, by an engine that can; else each takes slides of its
            own.

    Attributes:
        size: number of shares that slides are dealt into.
        rank: the one of them that this process takes.
        leads: whether this process is the one that does what is done once for each of its slides, such as to draw it.
    """

    def __init__(self, group: Communicator, windows: bool = False):
        self._group = group
        self._windows = windows and group.size > 1
        self.size, self.rank = (1, 0) if self._windows else (group.size, group.rank)
        self.leads = not self._windows or group.rank == 0

    def take(self, records: Sequence[Record]) -> Sequence[Record]:
        """Of some slides those that fall to this process."""
        return records[self.rank :: self.size]

    def shard(self, numbered: Iterable[Tuple[int, Record]]) -> Iterator[Tuple[int, Record]]:
        """Of positions and slides those that fall to this process."""
        return shard(numbered, self.rank, self.size)

    def report(self, text: str) -> None:
        """Say what has happened to a slide of this process."""
        if self.leads:
            tqdm.write(text)

    def settle(self, source: SlideSource, positions: Sequence[int]) -> bool:
        """Whether all processes that are to compute some slides together have opened the same ones. All of them ask
        before they begin: a file may fail to open in one of them alone. What any of them found broken counts as broken
        in all.

        Args:
            source: of the slides.
            positions: of those that this process has open.
        """
        if not self._windows:
            return True
        found = self._group.allgather((list(positions), dict(source.failed)))
        for _, failed in found:
            for slide, reason in failed.items():
                if slide not in source.failed:
                    self.report(source.fail(SlideError(slide, reason)))
        return all(theirs == found[0][0] for theirs, _ in found)

    def canvases(self, source: SlideSource, records: Sequence[Record]) -> Iterator[Tuple[Record, Canvas]]:
        """Slides that this process computes, and their canvases, opened one ahead of their use; broken ones are
        reported, remembered and left out. The receiver closes each canvas.

        Raises:
            TrainingError: all slides of the list are broken.
        """
        samples = InTurn(source.stream(enumerate(records), self.report))
        with contextlib.closing(samples):
            for position in range(len(records)):
                sample = samples.before(position + 1)
                opened: List[Any] = [] if sample is None else [sample]
                if not self.settle(source, [one.position for one in opened]):
                    for one in opened:
                        one.canvas.close()
                elif sample is not None:
                    yield sample.record, sample.canvas
