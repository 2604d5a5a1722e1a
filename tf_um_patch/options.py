"""The shim's options: the same table as in csrc/shim/options.c, with what each one means."""

import difflib
import os
import re
from typing import Dict, NamedTuple, Optional

from tf_um_patch.errors import OptionError

PREFIX = "TFUM_"
_UNITS = {"": 1}
_UNITS.update({letter + "B": 1000**power for power, letter in enumerate("KMGT", 1)})
_UNITS.update({letter + "iB": 1024**power for power, letter in enumerate("KMGT", 1)})
_LARGEST = 2**63 - 1


class Option(NamedTuple):
    """One environment variable that the shim reads.

    Attributes:
        variable: its name.
        kind: ``bytes``, ``switch`` (0 or 1) or ``file``.
        initial: what holds where it is not set, in words.
        meaning: what it does, in words.
    """

    variable: str
    kind: str
    initial: str
    meaning: str


OPTIONS = (
    Option(
        "TFUM_CEILING",
        "bytes",
        "free device memory + TFUM_HOST_BUDGET",
        "bytes that a process may have allocated at one time; what would pass it is refused as out of memory",
    ),
    Option(
        "TFUM_HOST_BUDGET",
        "bytes",
        "0",
        "bytes of host memory that count as device memory, in the ceiling and in what cuMemGetInfo reports",
    ),
    Option("TFUM_THRESHOLD", "bytes", "2097152", "allocations smaller than this stay plain device memory"),
    Option("TFUM_SHOW", "switch", "0", "1: every process says on standard error that the shim is active in it"),
    Option("TFUM_REPORT", "file", "none", "statistics are written there at exit; - is standard error, %p the process"),
    Option("TFUM_TRACE", "file", "none", "every allocation and every free is written there; %p is the process"),
)


def parse_size(text: str) -> int:
    """Bytes from ``1073741824``, ``1GiB`` (1024^3) or ``1.5GB`` (10^9 each).

    Raises:
        OptionError: the text is no size, or negative, or 2^63 bytes or more.
    """
    match = re.match(r"^(\d+(?:\.\d+)?) ?([KMGT]i?B|)$", text.strip())
    if match is None:
        raise OptionError(
            "{!r} is no size: give 0 or more bytes, with the unit KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, "
            "TiB (powers of 1024) if you like".format(text)
        )
    number, unit = match.groups()
    size = float(number) * _UNITS[unit] if "." in number else int(number) * _UNITS[unit]
    if size > _LARGEST:
        raise OptionError("{} bytes are more than any address space: give fewer".format(text))
    return int(size)


def settings(
    ceiling: Optional[int] = None,
    host_budget: Optional[int] = None,
    threshold: Optional[int] = None,
    show: bool = False,
    report: Optional[str] = None,
    trace: Optional[str] = None,
) -> Dict[str, str]:
    """The environment variables of the shim for these values; None leaves the shim's own default.

    Files get absolute paths, since the command may change its folder.
    """
    given = {
        "TFUM_CEILING": ceiling,
        "TFUM_HOST_BUDGET": host_budget,
        "TFUM_THRESHOLD": threshold,
        "TFUM_SHOW": 1 if show else None,
        "TFUM_REPORT": report if report in (None, "-") else os.path.abspath(report),
        "TFUM_TRACE": trace if trace in (None, "-") else os.path.abspath(trace),
    }
    return {variable: str(value) for variable, value in given.items() if value is not None}


def check_environment(environment: Dict[str, str]) -> None:
    """Refuse what the shim would refuse, before anything is started.

    Raises:
        OptionError: a variable that begins with ``TFUM_`` is unknown, or its value cannot be used.
    """
    kinds = {option.variable: option.kind for option in OPTIONS}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX):
            continue
        if variable not in kinds:
            (nearest,) = difflib.get_close_matches(variable, kinds, 1, 0.0)
            raise OptionError("{} is no variable of the shim: unset it, or did you mean {}?".format(variable, nearest))
        if kinds[variable] == "switch" and text not in ("0", "1"):
            raise OptionError("{}={} cannot be used: set it to 0 or 1, or unset it".format(variable, text))
        if kinds[variable] == "bytes" and not (re.match(r"^[0-9]+$", text) and int(text) <= _LARGEST):
            raise OptionError(
                "{}={} cannot be used: set it to a whole number of bytes, 0 or more, or unset it".format(variable, text)
            )
