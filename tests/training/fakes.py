"""Slides that need no files."""

import itertools

from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.training.slides import Draw


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

    def draws(self, numbered, report, prepare=None):
        for position, record in numbered:
            if len(self.failed) == len(self.records):
                raise TrainingError("none of the {} slides can be read".format(len(self)))
            if record.slide_id not in self.failed:
                self.opened.append(FakeCanvas(record.slide_id))
                canvas = self.opened[-1] if prepare is None else prepare(self.opened[-1], position)
                yield Draw(position, record, canvas)


class InOrder:
    """A sampler that repeats the list."""

    def __init__(self, records, seed):
        self._records = records

    def since(self, position):
        return ((number, self._records[number % len(self._records)]) for number in itertools.count(position))
