"""Say in one sentence what this machine lacks to install the package for the Python that runs this file.

``make`` calls it before it makes a virtual environment. Any Python, also one that is not supported, can run it.
"""

import os
import sys

CLASSIC = (3, 7)
CURRENT = ((3, 10), (3, 11), (3, 12), (3, 13))


def supported(version):
    """Whether one of the two runtimes has this (major, minor)."""
    return version == CLASSIC or version in CURRENT


def missing(version):
    """The first reason why a runtime cannot be installed, with its remedy, or None.

    Args:
        version: (major, minor) of the running Python.
    """
    if not supported(version):
        return (
            "Python %d.%d is not supported; name a Python 3.10 to 3.13, or 3.7 for TensorFlow 1.15, "
            "as in: make test PYTHON=python3.11" % version
        )
    for module, remedy in (
        ("ssl", "install libssl-dev and build this Python again"),
        ("ctypes", "install libffi-dev and build this Python again"),
        ("ensurepip", "install it with: apt-get install python3-venv"),
        ("venv", "install it with: apt-get install python3-venv"),
    ):
        if not importable(module):
            return "%s has no module %s; %s" % (sys.executable, module, remedy)
    return missing_for_classic() if version == CLASSIC else None


def missing_for_classic():
    """The first thing missing to build and load the OpenSlide binding, which has no wheel for Python 3.7."""
    import ctypes
    import shutil
    import sysconfig

    try:
        ctypes.CDLL("libopenslide.so.0")
    except OSError:
        return "the library OpenSlide 3 is missing; install it with: apt-get install libopenslide0"
    if shutil.which("gcc") is None:
        return "the compiler gcc is missing; install it with: apt-get install gcc libc6-dev"
    headers = sysconfig.get_paths()["include"]
    if not os.path.exists(os.path.join(headers, "Python.h")):
        return (
            "%s/Python.h is missing; install it with: apt-get install python3.7-dev, "
            "or use a Python 3.7 from pyenv, which has it" % headers
        )
    return None


def importable(module):
    """Whether a module of the standard library was built or packaged with this Python."""
    try:
        __import__(module)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    reason = missing(sys.version_info[:2])
    if reason is not None:
        sys.exit("error: " + reason)
