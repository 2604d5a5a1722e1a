"""Files of graphs and plans: read with one clear error, written wholly or not at all."""

import os
import tempfile
from typing import Callable

from graph_tools.errors import FileError


def read_text(path: str) -> str:
    """A text file in UTF-8.

    Raises:
        FileError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError("cannot read {}: {}".format(path, getattr(error, "strerror", None) or error)) from error


def write_text(path: str, text: str) -> None:
    """Replace a file by a text in UTF-8.

    Raises:
        FileError: it cannot be written.
    """
    write_with(path, lambda temporary: _write(temporary, text))


def write_with(path: str, write: Callable[[str], None]) -> None:
    """Replace a file by what ``write(temporary path)`` writes; a reader never sees half of it.

    Raises:
        FileError: it cannot be written.
    """
    folder, name = os.path.split(os.path.abspath(path))
    try:
        with tempfile.TemporaryDirectory(prefix="." + name + ".", dir=folder) as scratch:
            temporary = os.path.join(scratch, name)
            write(temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise FileError("cannot write {}: {}".format(path, error.strerror or error)) from error


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
