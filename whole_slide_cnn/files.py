"""Files that are either wholly there or not there at all."""

import contextlib
import glob
import os
import tempfile

from whole_slide_cnn.errors import WholeSlideError

_RANDOM_CHARACTERS = 8  # that mkstemp puts into a name


@contextlib.contextmanager
def replacing(path):
    """Yield the name of a temporary file beside ``path`` that replaces ``path`` when the block succeeds.

    A reader sees the old file or the new one, never half of either, also after a crash.

    Raises:
        WholeSlideError: the folder cannot be created or written.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    make_folder(folder)
    try:
        handle, temporary = tempfile.mkstemp(
            prefix="." + os.path.basename(path) + ".", suffix=os.path.splitext(path)[1], dir=folder
        )
    except OSError as error:
        raise WholeSlideError("cannot write to {}: {}".format(folder, error.strerror)) from error
    os.close(handle)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives 0600, which hides results from colleagues
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise WholeSlideError("cannot write {}: {}".format(path, error.strerror)) from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def remove_leftovers(path):
    """Remove what a killed process left behind of :func:`replacing` ``path``; nobody else may be writing it."""
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    pattern = ".{}.{}{}".format(glob.escape(name), "?" * _RANDOM_CHARACTERS, glob.escape(os.path.splitext(name)[1]))
    for leftover in glob.glob(os.path.join(glob.escape(folder), pattern)):
        os.remove(leftover)


def _sync_folder(folder):
    """Put a renamed file's entry on the disk, so that a power cut cannot undo this file and keep a later one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path):
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


def write_text(path, text):
    """Replace ``path`` by ``text`` in UTF-8, atomically."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
