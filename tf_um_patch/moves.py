"""The code by which the operations move memory (csrc/operations/migrate.c), as Python calls it."""

import ctypes
from typing import Dict, Optional, Tuple

from tf_um_patch.build import build_moves

_PREFETCH, _EVICT = 0, 1  # enum tfum_verb


class Moves:
    """A library that holds that code: that of the operations, or one without TensorFlow.

    Args:
        library: its path; None builds the one without TensorFlow at the first use on a machine.

    Raises:
        BuildError: it cannot be built.
    """

    def __init__(self, library: Optional[str] = None):
        self._native = ctypes.CDLL(library or build_moves())
        self._native.tfum_counter_name.restype = ctypes.c_char_p
        self._native.tfum_counter.restype = ctypes.c_uint64
        self._native.tfum_move.restype = None
        self._native.tfum_move.argtypes = [
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_void_p,
        ]

    def prefetch(self, address: int, bytes_: int) -> None:
        """Start to move managed memory to the current device, as UmPrefetch does behind the default stream."""
        self._native.tfum_move(_PREFETCH, address, bytes_, 0, 0, None)

    def evict(self, address: int, bytes_: int) -> None:
        """Start to move managed memory to the host, as UmEvict does behind the default stream."""
        self._native.tfum_move(_EVICT, address, bytes_, 0, 0, None)

    def last_move(self) -> Tuple[int, int]:
        """Address and bytes of the latest move that the driver took in this process; (0, 0) before the first."""
        address, bytes_ = ctypes.c_uint64(), ctypes.c_uint64()
        self._native.tfum_last_move(ctypes.byref(address), ctypes.byref(bytes_))
        return address.value, bytes_.value

    def counters(self) -> Dict[str, int]:
        """What became of all calls so far; see :meth:`tf_um_patch.ops.UmOps.counters`."""
        values: Dict[str, int] = {}
        while True:
            name = self._native.tfum_counter_name(len(values))
            if name is None:
                return values
            values[name.decode("ascii")] = self._native.tfum_counter(len(values))

    def reset_counters(self) -> None:
        """Sets all counters to 0."""
        self._native.tfum_reset_counters()
