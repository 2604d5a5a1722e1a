"""Comparing two records, value by value."""

import csv
import os
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .files import ENVIRONMENT, INPUTS, NumbersError, digest, matches, read_json


class Difference(NamedTuple):
    """Where two records differ.

    Attributes:
        place: file, and where in it.
        what: in words.
        relative: of two numbers or arrays, the difference over the larger; None for what is no number.
    """

    place: str
    what: str
    relative: Optional[float] = None


def compare(options) -> int:
    """Print a table of all items; exit code 1 where anything differs or is missing."""
    renamed = dict(renaming(text) for text in options.rename)
    before, after = (names_in(folder) for folder in (options.before, options.after))
    wanted = [name for name in sorted(set(before) | set(after)) if matches_any(name, options.only)]
    if not wanted:
        raise NumbersError("there is nothing to compare in {} and {}".format(options.before, options.after))
    for line in notes(options.before, options.after):
        print("note: " + line)
    different = 0
    for name in wanted:
        if name not in before or name not in after:
            said = "missing " + ("before" if name not in before else "after")
        else:
            folders = [os.path.join(folder, *name.split("/")) for folder in (options.before, options.after)]
            count, found = compare_items(folders[0], folders[1], renamed, options.added)
            said = summary(count, found)
        different += not said.startswith(SAME)
        print("{:<34} {}".format(name, said))
    print(
        "{} items: {}".format(len(wanted), "{} differ".format(different) if different else "all the same, bit for bit")
    )
    return 1 if different else 0


SAME = "same"


def matches_any(name: str, patterns: Optional[Sequence[str]]) -> bool:
    """Whether a name is meant by one of some patterns; all are where there are none."""
    return not patterns or any(matches(name, pattern) for pattern in patterns)


def renaming(text: str) -> Tuple[str, str]:
    """The two names of ``old=new``."""
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise NumbersError("'{}' renames nothing; write it as in old=new".format(text))
    return old, new


def names_in(folder: str) -> List[str]:
    """The items of a record: folders that hold files.

    Raises:
        NumbersError: it is none.
    """
    if not os.path.isfile(os.path.join(folder, ENVIRONMENT)):
        raise NumbersError("{} is no record; make one by: same_numbers.py record".format(folder))
    found = []
    for parent, folders, names in os.walk(folder):
        if parent == folder:
            folders[:] = [name for name in folders if name != INPUTS]
        elif names:
            found.append(os.path.relpath(parent, folder).replace(os.sep, "/"))
    return found


def notes(before: str, after: str) -> Iterator[str]:
    """What else differs between two records."""
    old, new = (read_json(os.path.join(folder, ENVIRONMENT)) for folder in (before, after))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            yield "{} was {} before and is {} after".format(key, old.get(key), new.get(key))


def compare_items(
    before: str, after: str, renamed: Dict[str, str], added: Sequence[str] = ()
) -> Tuple[int, List[Difference]]:
    """How many values two items have together, and where they differ. Values only the later one has are left out where
    a key that they are below is named as added."""
    old, new = flat(before, renamed), flat(after, {})
    for place in [place for place in new if place not in old]:
        if set(place.partition(": ")[2].split("/")) & set(added):
            del new[place]
    found = []
    for place in list(old) + [place for place in new if place not in old]:
        if place not in new or place not in old:
            found.append(Difference(place, "missing " + ("after" if place not in new else "before")))
        else:
            found += differences(place, old[place], new[place])
    return len(set(old) | set(new)), found


def flat(folder: str, renamed: Dict[str, str]) -> Dict[str, Any]:
    """All values of an item by their places: numbers, texts and arrays."""
    found: Dict[str, Any] = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(".npz"):
            with np.load(path) as stored:
                parts = {renamed.get(key, key): stored[key] for key in stored.files}
        elif name.endswith(".json"):
            parts = dict(leaves(read_json(path), renamed))
        else:
            with open(path, encoding="utf-8", newline="") as stream:
                rows = csv.reader(stream) if name.endswith(".csv") else (line.split() for line in stream)
                cells = [
                    ("{}/{}".format(r + 1, c + 1), cell) for r, row in enumerate(rows) for c, cell in enumerate(row)
                ]
            parts = {place: reworded(cell, renamed) for place, cell in cells}
        found.update({"{}: {}".format(name, place): value for place, value in parts.items()})
    return found


def leaves(value, renamed: Dict[str, str], place: str = "") -> Iterator[Tuple[str, Any]]:
    """Numbers and texts of a JSON value, by their places; keys, and words of texts, renamed."""
    if isinstance(value, (dict, list)) and not value:
        yield place, "empty"
    elif isinstance(value, dict):
        for key, part in value.items():
            for leaf in leaves(part, renamed, "/".join(filter(None, (place, renamed.get(key, key))))):
                yield leaf
    elif isinstance(value, list):
        for index, part in enumerate(value):
            for leaf in leaves(part, renamed, "/".join(filter(None, (place, str(index))))):
                yield leaf
    else:
        yield place, reworded(value, renamed) if isinstance(value, str) else value


def reworded(text: str, renamed: Dict[str, str]) -> str:
    """A text with some of its words replaced."""
    for old, new in renamed.items():
        text = re.sub(r"(?<!\w){}(?!\w)".format(re.escape(old)), lambda _, new=new: new, text)
    return text


def differences(place: str, old, new) -> Iterator[Difference]:
    """The difference of two values, if there is one."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        if digest(old) != digest(new):
            alike = old.dtype == new.dtype and old.shape == new.shape and old.dtype.kind in "fiub"
            what = "array" if alike else "{} {} became {} {}".format(old.dtype, old.shape, new.dtype, new.shape)
            yield Difference(place, what, array_difference(old, new) if alike else None)
        return
    numbers = [as_number(old), as_number(new)]
    if None in numbers:
        if old != new or type(old) is not type(new):
            yield Difference(place, "'{}' became '{}'".format(old, new))
    elif repr(numbers[0]) != repr(numbers[1]):
        yield Difference(place, "{} became {}".format(old, new), array_difference(*map(np.array, numbers)))


def as_number(value) -> Optional[float]:
    """A number, or the number that a text states; None for anything else. Whole numbers stay whole: they may have more
    digits than a float."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, float) or abs(value) > 2**53 else float(value)


def array_difference(old: np.ndarray, new: np.ndarray) -> float:
    """The largest difference of two arrays of one shape over the largest magnitude in either; infinite where only one
    of two values is finite."""
    old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
    if (np.isfinite(old) != np.isfinite(new)).any():
        return float("inf")
    old, new = (np.where(np.isfinite(values), values, 0.0) for values in (old, new))
    largest = max(np.abs(old).max(), np.abs(new).max())
    return float(np.abs(old - new).max() / largest) if largest else 0.0


def summary(count: int, found: List[Difference]) -> str:
    """What is said of an item in the table."""
    if not found:
        return "{}, {} values".format(SAME, count)
    numbers = [difference for difference in found if difference.relative is not None]
    others = [difference for difference in found if difference.relative is None]
    parts = []
    if numbers:
        worst = max(numbers, key=lambda difference: difference.relative)
        parts.append("largest relative difference {:.1e} ({}; {})".format(worst.relative, worst.place, worst.what))
    if others:
        parts.append("{} ({}{})".format(others[0].what, others[0].place, "; and others" if len(others) > 1 else ""))
    return "{} of {} values differ: {}".format(len(found), count, "; ".join(parts))
