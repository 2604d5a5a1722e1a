"""How much memory this process may use on the host."""

import os
from typing import Iterator, Optional, Tuple

# What stays for everything else: the page cache that feeds training, and the processes' own memory.
HOST_SHARE = 0.9


def available_host_memory(root: str = "/") -> int:
    """Bytes that can be allocated on the host now: what is available, or less where a control group limits it.

    Args:
        root: folder that holds ``proc`` and ``sys``; other than ``/`` in tests.
    """
    left = [_meminfo(root, "MemAvailable")]
    for limit, usage, reclaimable in _group_limits(root):
        left.append(max(0, limit - usage + reclaimable))
    return min(left)


def host_budget(available: int, processes: int = 1) -> int:
    """The share of the available bytes that each of ``processes`` may use as if it were device memory."""
    return int(available * HOST_SHARE) // processes


def _meminfo(root: str, field: str) -> int:
    with open(os.path.join(root, "proc", "meminfo"), encoding="ascii") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    raise ValueError("/proc/meminfo has no " + field)  # every Linux since 3.14 has it


def _group_limits(root: str) -> Iterator[Tuple[int, int, int]]:
    """(limit, usage, file pages that can be dropped) of the control groups around this process, in both versions."""
    for line in (_read(root, "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount, names = "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # Limits hold for all groups below; in a container the path may be that of the host, which is not mounted.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([mount] + parts[:depth])
            limit, usage = (_number(_read(root, folder + "/" + name)) for name in names)
            if limit is not None and usage is not None:
                yield limit, usage, _inactive_file(_read(root, folder + "/memory.stat"))


def _inactive_file(text: Optional[str]) -> int:
    fields = dict(line.split(" ", 1) for line in (text or "").splitlines() if " " in line)
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and text.strip().isdigit() else None  # "max" is no limit


def _read(root: str, path: str) -> Optional[str]:
    try:
        with open(os.path.join(root, path), encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return None
