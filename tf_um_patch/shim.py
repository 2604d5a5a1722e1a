"""The shim in this process, as Python sees it."""

import ctypes
from typing import Dict, Optional


def statistics() -> Optional[Dict[str, int]]:
    """The shim's statistics so far, or None where this process was started without it.

    ``used_bytes``, ``peak_bytes``, ``managed_bytes`` and ``device_bytes`` are of live allocations;
    ``managed_allocations``, ``device_allocations``, ``frees``, ``refused_by_ceiling``, ``failed_calls``,
    ``fallen_back_to_device``, ``unknown_frees`` and ``unwritten_trace_lines`` count since the start; and so does
    ``<function>.<route>`` for every function and each of the routes ``symbol``, ``dlsym`` and ``proc_address``.
    """
    own = ctypes.CDLL(None)
    if not hasattr(own, "tfum_statistic"):
        return None
    own.tfum_statistic_name.restype = ctypes.c_char_p
    own.tfum_statistic.restype = ctypes.c_uint64
    found: Dict[str, int] = {}
    while True:
        name = own.tfum_statistic_name(len(found))
        if name is None:
            return found
        found[name.decode("ascii")] = own.tfum_statistic(len(found))
