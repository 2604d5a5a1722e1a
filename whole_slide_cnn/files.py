"""Files that are either wholly there or not there at all."""

import contextlib
import glob
import os
import secrets
from typing import Iterator

from whole_slide_cnn.errors import WholeSlideError

_RANDOM_BYTES = 4  # in a temporary file's name, as hexadecimal digits


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield the name of a temporary file beside ``path`` that replaces ``path`` when the block succeeds.

    A reader sees the old file or the new one, never half of either, also after a crash.

    Raises:
        WholeSlideError: the folder cannot be created or written.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    make_folder(folder)
    try:
        temporary = _create_beside(path)
    except OSError as error:
        raise WholeSlideError("cannot write to {}: {}".format(folder, error.strerror)) from error
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise WholeSlideError("cannot write {}: {}".format(path, error.strerror)) from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _create_beside(path: str) -> str:
    """Create an empty file of a new name in the folder of ``path``; returns its path.

    Not by mkstemp: its files can be read by their owner alone, and to widen that as the umask allows one has to set the
    umask, which is the whole process's, while other threads may be creating files.
    """
    while True:
        found = "{}.{}{}".format(_temporary_stem(path), secrets.token_hex(_RANDOM_BYTES), os.path.splitext(path)[1])
        with contextlib.suppress(FileExistsError):
            os.close(os.open(found, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return found


def _temporary_stem(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, "." + name)


def remove_leftovers(path: str):
    """Remove what a killed process left behind of :func:`replacing` ``path``; nobody else may be writing it."""
    path = os.path.abspath(path)
    stem, extension = glob.escape(_temporary_stem(path)), glob.escape(os.path.splitext(path)[1])
    for leftover in glob.glob("{}.{}{}".format(stem, "?" * 2 * _RANDOM_BYTES, extension)):
        os.remove(leftover)


def _sync_folder(folder: str):
    """Put a renamed file's entry on the disk, so that a power cut cannot undo this file and keep a later one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: str):
    """Create a folder with its parents.

    Raises:
        WholeSlideError: it cannot be created or written.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise WholeSlideError("cannot create folder {}: {}".format(path, error.strerror)) from error
    if not os.access(path, os.W_OK):
        raise WholeSlideError("cannot write to folder {}".format(path))


def write_text(path: str, text: str):
    """Replace ``path`` by ``text`` in UTF-8, atomically."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
