"""Seconds of updates and of scored slides, as CSV files."""

import csv
import io
import os
from typing import List, Optional, Sequence

from whole_slide_cnn.files import write_text

UPDATE_COLUMNS = ("update", "slides", "seconds")
SLIDE_COLUMNS = ("slide_id", "seconds")


class TimeRecord:
    """Rows of one file, which is replaced as a whole whenever it is written.

    Args:
        path: the file, or None to record nothing.
        columns: its header.
        done: rows of an existing file that are kept: those of an interrupted run that goes on. A file that is missing,
            or that has another header, has none.
    """

    def __init__(self, path: Optional[str], columns: Sequence[str], done: int = 0):
        self._path = path
        self._columns = tuple(columns)
        self._rows: List[Sequence] = self._read()[:done] if path is not None and done else []

    def add(self, *row):
        """Add a row, its values in the order of the columns; seconds come last."""
        assert len(row) == len(self._columns)
        if self._path is not None:
            self._rows.append(row[:-1] + ("{:.6f}".format(row[-1]),))

    def write(self):
        """Write all rows.

        Raises:
            WholeSlideError: the file cannot be written.
        """
        if self._path is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._columns)
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())

    def _read(self) -> List[Sequence]:
        if self._path is None or not os.path.isfile(self._path):
            return []
        with open(self._path, encoding="utf-8", newline="") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
        return [tuple(row) for row in rows] if tuple(header) == self._columns else []
