"""The slides of a data list, opened as canvases; what is broken is remembered and never tried again."""

import contextlib
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from whole_slide_cnn.config import Data
from whole_slide_cnn.errors import ConfigError, ManifestError, SlideError, TrainingError
from whole_slide_cnn.slides.canvas import Canvas, SlideCanvas, open_canvas
from whole_slide_cnn.slides.manifest import SPLITS, Record, check_disjoint, load_manifest, slide_path
from whole_slide_cnn.slides.settings import SlideSettings

# From a slide's canvas and the position in its stream to the canvas that is trained on. What it does may depend on
# nothing else, so that a resumed run repeats it. Closing its result closes what it was given; where it raises, the
# caller does so.
Prepare = Callable[[Canvas, int], Canvas]
Report = Callable[[str], Any]
_Coming = Tuple[int, Record, "Future[Canvas]"]


class SlideSample(NamedTuple):
    """One slide of a stream.

    Attributes:
        position: its number in the stream from 0; slides that are left out because they are broken count as well.
        canvas: its canvas, which the receiver closes.
    """

    position: int
    record: Record
    canvas: Canvas


class SlideSource:
    """Opens the slides of one data list; a context manager that is closed at its end.

    Attributes:
        records: the slides, in the order of the list.
        failed: slide name to reason, of slides that could not be read.
    """

    def __init__(self, records: Sequence[Record], data: Data):
        self.records = tuple(records)
        self.failed: Dict[str, str] = {}
        self._data = data
        self._settings = SlideSettings.of(data)
        self._blank: Dict[str, Tuple[np.ndarray, Tuple[int, ...]]] = {}
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="slide-opener")

    def __len__(self) -> int:
        return len(self.records)

    def close(self):
        """End the thread that opens slides ahead."""
        self._opener.shutdown()

    def __enter__(self) -> "SlideSource":
        return self

    def __exit__(self, *exception):
        self.close()

    def path(self, record: Record) -> str:
        """The file of a slide.

        Raises:
            SlideError: there is none.
        """
        return slide_path(record, self._data.slides, self._data.extension)

    def open(self, record: Record) -> SlideCanvas:
        """A slide's canvas, with its blank blocks known; finding them reads the slide once in a run.

        Raises:
            SlideError: the slide cannot be read.
        """
        settings = self._settings.for_record(record)
        canvas = open_canvas(self.path(record), self._data.canvas, settings, record.slide_id)
        try:
            if record.slide_id in self._blank:
                bits, shape = self._blank[record.slide_id]
                canvas.set_blank_blocks(np.unpackbits(bits)[: shape[0] * shape[1]].reshape(shape).astype(bool))
            else:
                blocks = canvas.blank_blocks()
                self._blank[record.slide_id] = np.packbits(blocks), blocks.shape
        except Exception:
            canvas.close()
            raise
        return canvas

    def fail(self, error: SlideError) -> str:
        """Remember a broken slide; returns the sentence to report."""
        self.failed[error.slide] = error.reason
        return "{}; skipped for the rest of this run".format(error)

    def canvases(self, records: Iterable[Record], report: Report) -> Iterator[Tuple[Record, Canvas]]:
        """:meth:`stream` without numbers and preparation."""
        with contextlib.closing(self.stream(enumerate(records), report)) as samples:
            for sample in samples:
                yield sample.record, sample.canvas

    def stream(
        self, numbered: Iterable[Tuple[int, Record]], report: Report, prepare: Optional[Prepare] = None
    ) -> Generator[SlideSample, None, None]:
        """Open slides one ahead of their use. The caller closes each canvas.

        Broken slides are passed to ``report`` as a sentence, remembered and left out; the others keep their positions.

        Args:
            numbered: positions and slides.
            prepare: applied to every canvas in the thread that opens it.

        Raises:
            TrainingError: all slides of the list are broken.
        """
        coming: Optional[_Coming] = None
        try:
            for position, record in self._unbroken(numbered):
                future = self._opener.submit(self._open_prepared, record, position, prepare)
                current, coming = coming, (position, record, future)
                if current is not None:
                    yield from self._opened(current, report)
            if coming is not None:
                current, coming = coming, None
                yield from self._opened(current, report)
        finally:
            if coming is not None and not coming[2].cancel() and coming[2].exception() is None:
                coming[2].result().close()

    def _open_prepared(self, record: Record, position: int, prepare: Optional[Prepare]) -> Canvas:
        canvas = self.open(record)
        if prepare is None:
            return canvas
        try:
            return prepare(canvas, position)
        except Exception:
            canvas.close()
            raise

    def _unbroken(self, numbered: Iterable[Tuple[int, Record]]) -> Iterator[Tuple[int, Record]]:
        for position, record in numbered:
            if len(self.failed) == len(self.records):
                raise TrainingError("none of the {} slides can be read".format(len(self.records)))
            if record.slide_id not in self.failed:
                yield position, record

    def _opened(self, entry: _Coming, report: Report) -> Iterator[SlideSample]:
        position, record, future = entry
        if record.slide_id in self.failed:  # it broke while it was being opened again
            if future.exception() is None:
                future.result().close()
            return
        try:
            canvas = future.result()
        except SlideError as error:
            report(self.fail(error))
            return
        yield SlideSample(position, record, canvas)


def load_splits(data: Data, *required: str) -> Dict[str, Tuple[Record, ...]]:
    """The data lists that a configuration names, checked against each other.

    Raises:
        ConfigError: a required list is not named.
        ManifestError: a list is malformed, or a case is in two of them and ``data.allow_shared_cases`` is not set.
    """
    for name in required:
        if getattr(data, name) is None:
            raise ConfigError("data.{} must name a data list for this command".format(name))
    splits = {
        name: load_manifest(getattr(data, name), data.classes) for name in SPLITS if getattr(data, name) is not None
    }
    try:
        check_disjoint(splits)
    except ManifestError as error:
        if not data.allow_shared_cases:
            raise
        warnings.warn("{}; data.allow_shared_cases lets it pass".format(error), stacklevel=2)
    return splits


def shard(numbered: Iterable[Tuple[int, Record]], rank: int, size: int) -> Iterator[Tuple[int, Record]]:
    """Of a stream of positions and slides those that fall to one of several processes: each takes every size-th."""
    return ((position, record) for position, record in numbered if position % size == rank)


class InTurn:
    """A stream of slides that gives one only when its position has come."""

    def __init__(self, samples: Generator[SlideSample, None, None]):
        self._samples = samples
        self._next: Optional[SlideSample] = None

    def before(self, end: int) -> Optional[SlideSample]:
        """The next slide, if its position is lower than this; the receiver closes its canvas."""
        if self._next is None:
            self._next = next(self._samples, None)
        if self._next is None or self._next.position >= end:
            return None
        sample, self._next = self._next, None
        return sample

    def close(self):
        """Close what was not given."""
        self._samples.close()
        if self._next is not None:
            self._next.canvas.close()


class Sampler:
    """An endless stream of slides: each pass is a new random order of all of them, the same for a seed."""

    def __init__(self, records: Sequence[Record], seed: int):
        self._records = tuple(records)
        self._seed = seed

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self.since(0))

    def since(self, position: int) -> Iterator[Tuple[int, Record]]:
        """The stream from a position on, with positions; any part of it can be had without what comes before."""
        number, index = divmod(position, len(self._records))
        while True:
            order = np.random.RandomState([self._seed, number]).permutation(len(self._records))
            for place in range(index, len(order)):
                yield number * len(order) + place, self._records[order[place]]
            number, index = number + 1, 0
