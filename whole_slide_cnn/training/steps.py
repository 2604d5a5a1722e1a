"""One update and one validated slide of this process, whatever breaks in the middle of them."""

import math
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from whole_slide_cnn.errors import SlideError, TrainingError
from whole_slide_cnn.running.communicator import SingleCommunicator
from whole_slide_cnn.running.sharing import Sharing
from whole_slide_cnn.running.slides import SlideSample, SlideSource
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.training.learner import Learner, Measures
from whole_slide_cnn.training.progress import Tally


class Steps:
    """What a learner does with the slides of this process; every canvas that it is given is closed.

    Args:
        kept: the part of an error's sentence that says which checkpoint is left.
        sharing: what this process shares with others; None where it is alone.
    """

    def __init__(self, learner: Learner, kept: Callable[[], str], sharing: Optional[Sharing] = None):
        self._learner = learner
        self._kept = kept
        self._sharing = Sharing(SingleCommunicator()) if sharing is None else sharing

    def update(self, source: SlideSource, samples: Iterator[SlideSample], count: int) -> Tuple[int, Tally]:
        """One step on the next ``count`` readable slides: the position after them, and their tally. A slide that breaks
        in the middle of it is replaced by the next one, and its step starts again from the weights before it.

        Raises:
            TrainingError: a loss is no number, or no slide can be read any more.
        """
        batch: List[SlideSample] = []
        try:
            while True:
                while len(batch) < count:
                    batch.append(next(samples))
                if not self._sharing.settle(source, [sample.position for sample in batch]):
                    batch = _unbroken(batch, source)
                    continue
                try:
                    found = self._learner.update(batch)
                except SlideError as error:
                    self._sharing.report(source.fail(error))
                    batch = _unbroken(batch, source)
                    continue
                tally = self._learner.nothing
                for sample, measures in zip(batch, found):
                    tally = self._added(tally, sample.record, measures)
                return batch[-1].position + 1, tally
        finally:
            for sample in batch:
                sample.canvas.close()

    def validate(self, source: SlideSource, sample: Optional[SlideSample]) -> Tally:
        """The tally of one slide, or of none where there is none or it cannot be read.

        Raises:
            TrainingError: its loss is no number.
        """
        try:
            if not self._sharing.settle(source, [] if sample is None else [sample.position]) or sample is None:
                return self._learner.nothing
            return self._added(self._learner.nothing, sample.record, self._learner.predict(sample))
        except SlideError as error:
            self._sharing.report(source.fail(error))
            return self._learner.nothing
        finally:
            if sample is not None:
                sample.canvas.close()

    def _added(self, tally: Tally, record: Record, measures: Measures) -> Tally:
        loss = measures[0]
        if not math.isfinite(loss):
            raise TrainingError(
                "the loss of slide {} is {}; {}lower train.learning_rate, or check the slide".format(
                    record.slide_id, loss, self._kept()
                )
            )
        return tally.add(measures)


def _unbroken(batch: Sequence[SlideSample], source: SlideSource) -> List[SlideSample]:
    """The slides of a batch that are not known to be broken; the canvases of the others are closed."""
    for sample in batch:
        if sample.record.slide_id in source.failed:
            sample.canvas.close()
    return [sample for sample in batch if sample.record.slide_id not in source.failed]
