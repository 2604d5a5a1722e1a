"""The slides of a data list, opened as canvases; what is broken is remembered and never tried again."""

from concurrent.futures import ThreadPoolExecutor
from typing import Dict, Iterable, Iterator, Sequence, Tuple

import numpy as np

from whole_slide_cnn.config import Data
from whole_slide_cnn.errors import SlideError, TrainingError
from whole_slide_cnn.slides.canvas import SlideCanvas, open_canvas
from whole_slide_cnn.slides.manifest import Record, slide_path


class SlideSource:
    """Opens the slides of one data list.

    Attributes:
        records: the slides, in the order of the list.
        failed: slide name to reason, of slides that could not be read.
    """

    def __init__(self, records: Sequence[Record], data: Data):
        self.records = tuple(records)
        self.failed: Dict[str, str] = {}
        self._data = data
        self._blank: Dict[str, Tuple[np.ndarray, Tuple[int, ...]]] = {}
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="slide-opener")

    def __len__(self) -> int:
        return len(self.records)

    def close(self):
        """End the thread that opens slides ahead."""
        self._opener.shutdown()

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
        canvas = open_canvas(
            self.path(record),
            self._data.canvas,
            self._data.mpp,
            self._data.ratio,
            record.mpp if record.mpp is not None else self._data.slide_mpp,
            record.slide_id,
            self._data.reader,
        )
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

    def canvases(self, records: Iterable[Record], report) -> Iterator[Tuple[Record, SlideCanvas]]:
        """Open slides one ahead of their use. The caller closes each canvas.

        Broken slides are passed to ``report`` as a sentence, remembered and left out.

        Raises:
            TrainingError: all slides of the list are broken.
        """
        coming = None
        try:
            for record in self._unbroken(records):
                current, coming = coming, (record, self._opener.submit(self.open, record))
                if current is not None:
                    yield from self._opened(current, report)
            if coming is not None:
                current, coming = coming, None
                yield from self._opened(current, report)
        finally:
            if coming is not None and not coming[1].cancel() and coming[1].exception() is None:
                coming[1].result().close()

    def _unbroken(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if len(self.failed) == len(self.records):
                raise TrainingError("none of the {} slides can be read".format(len(self.records)))
            if record.slide_id not in self.failed:
                yield record

    def _opened(self, entry, report):
        record, future = entry
        if record.slide_id in self.failed:  # it broke while it was being opened again
            if future.exception() is None:
                future.result().close()
            return
        try:
            canvas = future.result()
        except SlideError as error:
            report(self.fail(error))
            return
        yield record, canvas


class Sampler:
    """An endless stream of slides: each pass is a new random order of all of them, the same for a seed."""

    def __init__(self, records: Sequence[Record], seed: int):
        self._records = tuple(records)
        self._seed = seed

    def __iter__(self) -> Iterator[Record]:
        number = 0
        while True:
            order = np.random.RandomState([self._seed, number]).permutation(len(self._records))
            for index in order:
                yield self._records[index]
            number += 1
