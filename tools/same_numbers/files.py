"""The files of a record, and values of files that are recorded."""

import csv
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
from typing import Dict, Sequence, Tuple

import numpy as np

ENVIRONMENT, SECONDS, INPUTS = "environment.json", "seconds.json", "inputs"
METADATA_KEY = "metadata"  # of a checkpoint; what it says of paths and times is not compared


class NumbersError(Exception):
    """What keeps numbers from being recorded or compared, in one sentence."""


class Item:
    """The folder of one item of a record; an earlier one is replaced."""

    def __init__(self, folder: str):
        self.folder = folder
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.makedirs(folder)

    def text(self, name: str, text: str):
        """Write a text."""
        with open(os.path.join(self.folder, name), "w", encoding="utf-8", newline="") as stream:
            stream.write(text)

    def values(self, name: str, value):
        """Write plain values as JSON; floats keep all digits."""
        self.text(name, json.dumps(value, indent=1, sort_keys=True) + "\n")

    def arrays(self, name: str, arrays: Dict[str, np.ndarray]):
        """Write arrays, and beside them their digests."""
        np.savez(os.path.join(self.folder, name + ".npz"), **arrays)
        self.values(name + ".sha256.json", {key: digest(value) for key, value in arrays.items()})

    def table(self, name: str, path: str, without: Sequence[str] = ()):
        """Copy a CSV file, without some columns."""
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
        kept = [index for index, title in enumerate(rows[0]) if title not in without]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[row[index] for index in kept] for row in rows])
        self.text(name, text.getvalue())


def write(path: str, text: str):
    """Write a text file, and the folder that it is in."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)


def digest(values: np.ndarray) -> str:
    """SHA-256 of an array: of its type, shape and every bit."""
    values = np.asarray(values)
    found = hashlib.sha256("{} {} ".format(values.dtype.str, values.shape).encode("ascii"))
    found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def file_digest(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def read_json(path: str):
    """The value of a JSON file."""
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def checkpoint_arrays(path: str) -> Dict[str, np.ndarray]:
    """Weights and optimiser state of a checkpoint."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if not name.strip("_").startswith(METADATA_KEY)}
    return {name: value for name, value in arrays.items() if value.dtype.kind != "U"}


def weight_arrays(path: str) -> Dict[str, np.ndarray]:
    """Arrays of a Keras file, by their path in it."""
    import h5py

    found: Dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as stored:
        stored.visititems(lambda name, value: found.update({name: value[()]}) if hasattr(value, "dtype") else None)
    return found


_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")


def numbers_of(text: str, containing: str = "") -> str:
    """The numbers of a text, a line for each line that has some: they stay where words change.

    Args:
        containing: only lines that contain it.
    """
    lines = (" ".join(_NUMBER.findall(line)) for line in text.splitlines() if containing in line)
    return "".join(line + "\n" for line in lines if line)


def tree_digests(folder: str, endings: Tuple[str, ...]) -> Dict[str, str]:
    """Digests of the files below a folder, by their path in it."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(endings):
                path = os.path.join(parent, name)
                found[os.path.relpath(path, folder).replace(os.sep, "/")] = file_digest(path)
    return found


def without(value, *keys: str):
    """A JSON value without some keys, wherever they are."""
    if isinstance(value, dict):
        return {key: without(part, *keys) for key, part in value.items() if key not in keys}
    return [without(part, *keys) for part in value] if isinstance(value, list) else value


def matches(name: str, pattern: str) -> bool:
    """Whether the name of an item, or the folder that it is in, is meant by a pattern."""
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + "/")
