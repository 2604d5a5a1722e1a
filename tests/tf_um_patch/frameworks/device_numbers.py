"""Numbers in the memory of the stand-in driver, for the stand-ins for frameworks beside this file.

The environment variable FAKE_FRAMEWORK says how one may fail: ``absent`` (it sees no GPU), ``small`` (what it allocates
stays below the shim's threshold), ``greedy`` (it allocates more than any budget first), ``wrong`` (it computes
something else), ``crash`` and ``hang``.
"""

import ctypes
import os
import time

FAULT = os.environ.get("FAKE_FRAMEWORK", "")
LIMIT = int(os.environ["FAKE_CUDA_LIMIT"])
_GREEDY = 1 << 40
_driver = ctypes.CDLL("libcuda.so.1")  # finds its functions by dlsym


def _call(name, *arguments):
    result = getattr(_driver, name)(*arguments)
    if result != 0:
        raise RuntimeError("{} returned {}".format(name, result))


def _allocate(count):
    address = ctypes.c_uint64()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(count))
    return address.value


def start():
    """Whether there is a GPU; makes its context current."""
    if FAULT == "absent":
        return False
    context = ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    _call("cuCtxSetCurrent", context)
    return True


class Numbers:
    """So many zeros in single precision."""

    def __init__(self, count):
        if FAULT == "greedy":
            _allocate(_GREEDY)
        if FAULT == "crash":
            os.abort()
        if FAULT == "hang":
            time.sleep(600)
        self.pieces = 1 if FAULT != "small" else count * 4 // (1 << 20)
        self.addresses = [_allocate(count * 4 // self.pieces) for _ in range(self.pieces)]
        self.count = count // self.pieces

    def add(self, amount):
        """Add to each."""
        for address in self.addresses:
            view = (ctypes.c_float * self.count).from_address(address)
            view[:] = [value + amount for value in view]

    def average(self):
        """The mean of the first piece."""
        view = (ctypes.c_float * self.count).from_address(self.addresses[0])
        _call("cuCtxSetCurrent", None)  # it keeps no context current between calls
        return 7.0 if FAULT == "wrong" else sum(view) / self.count
