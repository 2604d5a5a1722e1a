"""The CUDA driver's functions that the probe and the checks on a GPU call, as a table.

What a driver lacks becomes a stand-in. A name is that of the form whose parameters stand here, which later drivers keep
beside newer forms (as cuMemPrefetchAsync beside cuMemPrefetchAsync_v2).
"""

import contextlib
import ctypes
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Tuple

from tf_um_patch.errors import DriverError

LIBRARY = "libcuda.so.1"

_INT = ctypes.c_int
_SIZE = ctypes.c_size_t
_ADDRESS = ctypes.c_uint64
_INT_OUT = ctypes.POINTER(ctypes.c_int)
_SIZE_OUT = ctypes.POINTER(ctypes.c_size_t)
_ADDRESS_OUT = ctypes.POINTER(ctypes.c_uint64)
_POINTER_OUT = ctypes.POINTER(ctypes.c_void_p)
_HANDLE = ctypes.c_void_p  # a stream, an event, a module or a function
_COUNT = ctypes.c_uint


class Function(NamedTuple):
    """A function of the driver; all return a CUresult.

    Attributes:
        name: in the library.
        arguments: ctypes types.
        since: the CUDA version that brought it.
    """

    name: str
    arguments: Tuple[Any, ...]
    since: str


FUNCTIONS = (
    Function("cuInit", (ctypes.c_uint,), "2.0"),
    Function("cuDriverGetVersion", (_INT_OUT,), "2.2"),
    Function("cuDeviceGetCount", (_INT_OUT,), "2.0"),
    Function("cuDeviceGet", (_INT_OUT, _INT), "2.0"),
    Function("cuDeviceGetName", (ctypes.c_char_p, _INT, _INT), "2.0"),
    Function("cuDeviceGetAttribute", (_INT_OUT, _INT, _INT), "2.0"),
    Function("cuDevicePrimaryCtxRetain", (_POINTER_OUT, _INT), "7.0"),
    Function("cuDevicePrimaryCtxRelease", (_INT,), "7.0"),
    Function("cuDevicePrimaryCtxRelease_v2", (_INT,), "11.0"),
    Function("cuCtxGetCurrent", (_POINTER_OUT,), "4.0"),
    Function("cuCtxSetCurrent", (ctypes.c_void_p,), "4.0"),
    Function("cuCtxSynchronize", (), "2.0"),
    Function("cuMemGetInfo_v2", (_SIZE_OUT, _SIZE_OUT), "3.2"),
    Function("cuMemAlloc_v2", (_ADDRESS_OUT, _SIZE), "3.2"),
    Function("cuMemFree_v2", (_ADDRESS,), "3.2"),
    Function("cuMemsetD8_v2", (_ADDRESS, ctypes.c_ubyte, _SIZE), "3.2"),
    Function("cuMemcpyDtoH_v2", (ctypes.c_void_p, _ADDRESS, _SIZE), "3.2"),
    Function("cuMemcpyDtoDAsync_v2", (_ADDRESS, _ADDRESS, _SIZE, _HANDLE), "3.2"),
    Function("cuMemcpyDtoHAsync_v2", (ctypes.c_void_p, _ADDRESS, _SIZE, _HANDLE), "3.2"),
    Function("cuMemcpyHtoDAsync_v2", (_ADDRESS, ctypes.c_void_p, _SIZE, _HANDLE), "3.2"),
    Function("cuMemHostAlloc", (_POINTER_OUT, _SIZE, _COUNT), "2.2"),
    Function("cuMemFreeHost", (ctypes.c_void_p,), "2.0"),
    Function("cuPointerGetAttribute", (ctypes.c_void_p, _INT, _ADDRESS), "4.0"),
    Function("cuMemAllocManaged", (_ADDRESS_OUT, _SIZE, _COUNT), "6.0"),
    Function("cuMemPrefetchAsync", (_ADDRESS, _SIZE, _INT, _HANDLE), "8.0"),
    Function("cuMemDiscardBatchAsync", (_ADDRESS_OUT, _SIZE_OUT, _SIZE, ctypes.c_ulonglong, _HANDLE), "13.0"),
    Function(
        "cuMemDiscardAndPrefetchBatchAsync",
        (_ADDRESS_OUT, _SIZE_OUT, _SIZE, ctypes.c_void_p, _SIZE_OUT, _SIZE, ctypes.c_ulonglong, _HANDLE),
        "13.0",
    ),
    Function("cuMemRangeGetAttribute", (ctypes.c_void_p, _SIZE, _INT, _ADDRESS, _SIZE), "8.0"),
    Function("cuStreamCreate", (_POINTER_OUT, _COUNT), "2.0"),
    Function("cuStreamDestroy_v2", (_HANDLE,), "4.0"),
    Function("cuStreamSynchronize", (_HANDLE,), "2.0"),
    Function("cuStreamWaitEvent", (_HANDLE, _HANDLE, _COUNT), "3.2"),
    Function("cuEventCreate", (_POINTER_OUT, _COUNT), "2.0"),
    Function("cuEventDestroy_v2", (_HANDLE,), "4.0"),
    Function("cuEventRecord", (_HANDLE, _HANDLE), "2.0"),
    Function("cuEventSynchronize", (_HANDLE,), "2.0"),
    Function("cuEventElapsedTime", (ctypes.POINTER(ctypes.c_float), _HANDLE, _HANDLE), "2.0"),
    Function("cuModuleLoadData", (_POINTER_OUT, ctypes.c_char_p), "2.0"),
    Function("cuModuleUnload", (_HANDLE,), "2.0"),
    Function("cuModuleGetFunction", (_POINTER_OUT, _HANDLE, ctypes.c_char_p), "2.0"),
    Function(
        "cuLaunchKernel",
        (_HANDLE,) + (_COUNT,) * 7 + (_HANDLE, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_void_p)),
        "4.0",
    ),
)

# Numbers of attributes: they are part of CUDA's binary interface.
MULTIPROCESSORS = 16
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
MANAGED_MEMORY, CONCURRENT_MANAGED_ACCESS = 83, 89
POINTER_IS_MANAGED = 8
LAST_PREFETCH_LOCATION = 4

# Locations of managed memory other than a device's number, and flags.
HOST, NOWHERE = -1, -2
ATTACH_GLOBAL = 1
NON_BLOCKING = 1

NO_DEVICE = 100  # a CUresult


class Missing:
    """Stands for a function that this machine's driver lacks; calling it raises DriverError."""

    available = False

    def __init__(self, function: Function):
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        """Raises DriverError."""
        raise DriverError(
            "this driver has no {}, which came with CUDA {}: install a newer NVIDIA driver".format(
                self._function.name, self._function.since
            )
        )


class Bound:
    """A function of the driver; calling it raises DriverError where it returns an error."""

    available = True

    def __init__(self, function: Function, native: Any):
        native.argtypes = list(function.arguments)
        native.restype = _INT
        self._name = function.name
        self._native = native

    def __call__(self, *arguments: Any) -> None:
        """Call it with the arguments of its row."""
        result = self._native(*arguments)
        if result != 0:
            message = "{} returned {}: see CUresult in CUDA's documentation".format(self._name, result)
            raise DriverError(message, result)


class Driver:
    """The loaded driver, with an attribute per row of FUNCTIONS.

    Raises:
        DriverError: the library cannot be loaded.
    """

    def __init__(self, library: str = LIBRARY):
        try:
            native = ctypes.CDLL(library)
        except OSError as error:
            raise DriverError(
                "{} cannot be loaded ({}): this machine has no NVIDIA driver, or it is not visible here".format(
                    library, error
                )
            ) from error
        for function in FUNCTIONS:
            found = getattr(native, function.name, None)
            setattr(self, function.name, Missing(function) if found is None else Bound(function, found))

    if TYPE_CHECKING:  # the rows of the table

        def __getattr__(self, name: str) -> Any: ...

    def value(self, name: str, *arguments: Any, kind: Any = ctypes.c_int) -> Any:
        """The value that a function writes to its first parameter."""
        out = kind()
        getattr(self, name)(ctypes.byref(out), *arguments)
        return out.value

    def memory(self) -> Tuple[int, int]:
        """Free and total bytes of the current context's device."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def is_managed(self, address: int) -> bool:
        """Whether memory of the driver's is managed memory."""
        # A whole number that is 0 before: CUDA calls the attribute a boolean, and does not say of how many bytes.
        return self.value("cuPointerGetAttribute", POINTER_IS_MANAGED, address, kind=ctypes.c_uint) != 0

    def last_prefetch_location(self, address: int, bytes_: int) -> int:
        """Where all pages of a range of managed memory were last told to move: a device's number, HOST, or NOWHERE.

        It is what was asked for last, also where the pages have not arrived, or have moved on by themselves.
        """
        found = ctypes.c_int()
        self.cuMemRangeGetAttribute(ctypes.byref(found), ctypes.sizeof(found), LAST_PREFETCH_LOCATION, address, bytes_)
        return found.value

    @contextlib.contextmanager
    def primary_context(self, device: int) -> Iterator[None]:
        """The context that a device's CUDA runtime uses too, current in this thread; then the one that was before."""
        before = self.value("cuCtxGetCurrent", kind=ctypes.c_void_p)
        context = self.value("cuDevicePrimaryCtxRetain", device, kind=ctypes.c_void_p)
        try:
            self.cuCtxSetCurrent(context)
            yield
        finally:
            self.cuCtxSetCurrent(before)
            newer = self.cuDevicePrimaryCtxRelease_v2
            (newer if newer.available else self.cuDevicePrimaryCtxRelease)(device)
