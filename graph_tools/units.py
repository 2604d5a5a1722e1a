"""Bytes as people write them: powers of ten, or with an ``i`` of two."""

import re

from graph_tools.errors import GraphToolsError

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_FACTORS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def readable(size: float) -> str:
    """Bytes in the largest decimal unit that leaves a number of 1 or more, such as ``12.3 GB``."""
    for unit, factor in _UNITS:
        if abs(size) >= factor:
            return "{:.3g} {}".format(size / factor, unit)
    return "{:.0f} B".format(size)


def parse_bytes(text: str, least: int = 1) -> int:
    """Bytes of a text such as ``32GB`` (10^9), ``512 MiB`` or ``1000``.

    Args:
        least: 0 where there may be none.

    Raises:
        GraphToolsError: it is no size, or less than that.
    """
    match = re.match(r"^\s*([0-9.]+)\s*([A-Za-z]*)\s*$", text)
    size = -1
    if match is not None and match.group(2).upper() in _FACTORS:
        try:
            size = int(float(match.group(1)) * _FACTORS[match.group(2).upper()])
        except (ValueError, OverflowError):
            size = -1
    if size < least:
        raise GraphToolsError("'{}' is not a size in bytes; write it as in 32GB, 512MiB or 1000".format(text))
    return size
