"""Data lists: which slide belongs to which case and class."""

import csv
import math
import os
from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from whole_slide_cnn.errors import ManifestError, SlideError

HEADER = ("case_id", "slide_id", "label")
MPP_COLUMN = "mpp"
SPLITS = ("train", "val", "test")
SLIDE_EXTENSIONS = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm"),
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"),
)


@dataclass(frozen=True)
class Record:
    """One slide of a data list.

    Attributes:
        case_id: the patient or case; all slides of one case belong into the same split.
        slide_id: the slide's file name, with or without its extension.
        label: index of the class.
        mpp: µm per pixel of level 0 where the list states it.
    """

    case_id: str
    slide_id: str
    label: int
    mpp: Optional[float] = None


class _Row(NamedTuple):
    line: int
    case_id: str
    slide_id: str
    label: str
    mpp: str


def load_manifest(path: str, classes: Sequence[str]) -> Tuple[Record, ...]:
    """Read a data list.

    Two forms of CSV are read: with the header ``case_id,slide_id,label[,mpp]`` in any order, further columns ignored;
    and ``slide,class`` without a header, where every slide is a case of its own. A label is a class name or, where no
    class has that name, the index of a class.

    Raises:
        ManifestError: the file cannot be read, is malformed or empty, or names a slide twice or an unknown class.
    """
    records: List[Record] = []
    lines: Dict[str, int] = {}
    for row in _rows(path):
        if row.slide_id in lines:
            raise _error(path, row.line, "slide {} is already on line {}".format(row.slide_id, lines[row.slide_id]))
        lines[row.slide_id] = row.line
        label, mpp = _label(path, row, classes), _mpp(path, row)
        records.append(Record(row.case_id, row.slide_id, label, mpp))
    return tuple(records)


def manifest_classes(path: str) -> Tuple[str, ...]:
    """The labels of a data list as class names: by number where all are whole numbers, by alphabet otherwise.

    Raises:
        ManifestError: the file cannot be read, is malformed or empty.
    """
    labels = {row.label for row in _rows(path)}
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def slide_path(record: Record, folder: str, extension: str = "") -> str:
    """The file of a slide: its ``slide_id`` in ``folder``, with ``extension`` added unless it is there already.

    Raises:
        SlideError: there is no such file.
    """
    if extension and not extension.startswith("."):
        extension = "." + extension
    plain = os.path.join(folder, record.slide_id)
    extended = plain if plain.lower().endswith(extension.lower()) else plain + extension
    for candidate in (extended, plain):
        if os.path.isfile(candidate):
            return candidate
    raise SlideError(
        record.slide_id, "there is no file {}; check the folder of the slides and their extension".format(extended)
    )


def check_disjoint(splits: Mapping[str, Sequence[Record]]) -> None:
    """Refuse splits that share a case or a slide: what was trained on must not be tested on.

    Args:
        splits: records by the name of their split, such as "train".

    Raises:
        ManifestError: names the first case or slide found in two splits.
    """
    homes: Dict[Tuple[str, str], str] = {}
    for split, records in splits.items():
        for record in records:
            for kind, name in (("case", record.case_id), ("slide", _without_extension(record.slide_id))):
                home = homes.setdefault((kind, name), split)
                if home != split:
                    raise ManifestError(
                        "{} {} is in both {} and {}; every case belongs into one split".format(kind, name, home, split)
                    )


def _rows(path: str) -> Iterator[_Row]:
    """The data rows of either form, blank lines left out, every field stripped and the first three not empty."""
    try:
        # utf-8-sig also reads files without the mark that spreadsheet programs put first
        with open(path, encoding="utf-8-sig", newline="") as stream:
            yield from _parse(path, csv.reader(stream))
    except OSError as error:
        raise ManifestError("cannot read data list {} ({})".format(path, error.strerror)) from error
    except UnicodeDecodeError as error:
        raise ManifestError("data list {} is not text in UTF-8; save it as CSV in UTF-8".format(path)) from error
    except csv.Error as error:
        raise ManifestError("data list {} is not CSV ({})".format(path, error)) from error


def _parse(path: str, reader) -> Iterator[_Row]:
    header: Optional[List[str]] = None
    first = True
    empty = True
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        line = reader.line_num
        if first and set(HEADER) & set(cells):
            header = _checked_header(path, line, cells)
        else:
            empty = False
            yield _headed_row(path, line, cells, header) if header else _bare_row(path, line, cells)
        first = False
    if empty:
        raise ManifestError("data list {} names no slide".format(path))


def _checked_header(path: str, line: int, cells: List[str]) -> List[str]:
    missing = [column for column in HEADER if column not in cells]
    if missing:
        raise _error(path, line, "the header lacks {}; it needs {}".format(", ".join(missing), ",".join(HEADER)))
    repeated = [column for column in HEADER + (MPP_COLUMN,) if cells.count(column) > 1]
    if repeated:
        raise _error(path, line, "the header names {} twice".format(repeated[0]))
    return cells


def _headed_row(path: str, line: int, cells: List[str], header: List[str]) -> _Row:
    if len(cells) != len(header):
        raise _error(path, line, "{} columns where the header has {}".format(len(cells), len(header)))
    values = dict(zip(header, cells))
    for column in HEADER:
        if not values[column]:
            raise _error(path, line, "{} is empty".format(column))
    case_id, slide_id, label = (values[column] for column in HEADER)
    return _Row(line, case_id, slide_id, label, values.get(MPP_COLUMN, ""))


def _bare_row(path: str, line: int, cells: List[str]) -> _Row:
    if len(cells) != 2 or not all(cells):
        raise _error(
            path, line, "a list without the header {} needs two columns, slide and class".format(",".join(HEADER))
        )
    slide, label = cells
    return _Row(line, slide, slide, label, "")


def _label(path: str, row: _Row, classes: Sequence[str]) -> int:
    if row.label in classes:
        return list(classes).index(row.label)
    if row.label.isdecimal() and int(row.label) < len(classes):
        return int(row.label)
    raise _error(
        path,
        row.line,
        "unknown label {!r} of slide {}; the classes are {}, or 0 to {}".format(
            row.label, row.slide_id, ", ".join(classes), len(classes) - 1
        ),
    )


def _mpp(path: str, row: _Row) -> Optional[float]:
    if not row.mpp:
        return None
    try:
        mpp = float(row.mpp)
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise _error(path, row.line, "mpp of slide {} must be a number above 0, not {!r}".format(row.slide_id, row.mpp))
    return mpp


def _without_extension(slide_id: str) -> str:
    """Identifiers may hold dots of their own, so only known extensions are taken off."""
    stem, extension = os.path.splitext(slide_id)
    return stem if extension.lower() in SLIDE_EXTENSIONS else slide_id


def _error(path: str, line: int, reason: str) -> ManifestError:
    return ManifestError("{}, line {}: {}".format(path, line, reason))
