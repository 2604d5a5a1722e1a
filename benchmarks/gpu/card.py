"""The card of gpu-check, with what measuring takes beside checking: streams by direction, and time on the host."""

import contextlib
import ctypes
import statistics
import struct
import time
from typing import Callable, Iterator, List, Optional, Tuple

from gpu import kernels
from tf_um_patch import driver as cuda
from tf_um_patch.driver import Driver
from tf_um_patch.gpu_check.card import PAGE, Card

UNITS = 4  # of memory, that the largest part takes
LEAST_BUDGET = 32 * PAGE  # less is moved in no time
MOST_BUDGET = 8 * 10**9
BASE_PAGE = 4096  # bytes, of the host
_FILL = 16  # blocks for each multiprocessor: enough that memory is what limits a kernel
_THREADS = 128  # of a block


def unit_of(budget: int) -> int:
    """Bytes that a part allocates once, twice or four times at one time: whole pages, a quarter of a budget."""
    return (budget - 2 * PAGE) // UNITS // PAGE * PAGE  # two are for what kernels leave


class ProbeCard(Card):
    """The first GPU within a budget (see Card): kernels on ``compute``, moves on ``up`` and ``down``."""

    def __init__(self, driver: Driver, budget: int):
        super().__init__(driver, budget)
        try:
            self.up, self.down = self.copy, self._stream()
            module = driver.value("cuModuleLoadData", kernels.PTX, kind=ctypes.c_void_p)
            self._stack.callback(driver.cuModuleUnload, module)
            self._reading, self._writing = (
                driver.value("cuModuleGetFunction", module, name, kind=ctypes.c_void_p)
                for name in (b"probe_read", b"probe_write")
            )
            self._sums = self.plain(4 * self.blocks * _FILL * _THREADS)
        except Exception:
            self.close()
            raise

    # ---- memory ----

    @contextlib.contextmanager
    def lent(self, count: int) -> Iterator[int]:
        """Address of managed memory that is given back where the block ends."""
        self._fit(count)
        address = self.driver.value("cuMemAllocManaged", count, cuda.ATTACH_GLOBAL, kind=ctypes.c_uint64)
        self.allocated += count
        try:
            yield address
        finally:
            self.driver.cuMemFree_v2(address)
            self.allocated -= count

    def put(self, address: int, count: int, location: int) -> None:
        """Move a range when all is done, and wait until it is there."""
        self.synchronise()
        self.move(address, count, location)

    def enqueue(self, address: int, count: int, location: int, stream: int) -> None:
        """Enqueue a move on a stream."""
        self.driver.cuMemPrefetchAsync(address, count, location, stream)

    def word(self, address: int) -> int:
        """The word at an address."""
        return struct.unpack("<I", self._read(address, 4))[0]

    # ---- computing ----

    def read(self, address: int, count: int, blocks: Optional[int] = None) -> None:
        """Enqueue a kernel that reads every word."""
        self._access(self._reading, address, count, 0, blocks)

    def write(self, address: int, count: int, value: int) -> None:
        """Enqueue a kernel that sets every word."""
        self._access(self._writing, address, count, value, None)

    def _access(self, kernel: int, address: int, count: int, value: int, blocks: Optional[int]) -> None:
        words, number = ctypes.c_uint64(address), ctypes.c_uint64(count // 4)
        arguments = [words, number, ctypes.c_uint32(value), ctypes.c_uint64(self._sums)]
        self._launch(kernel, blocks or self.blocks * _FILL, arguments)

    # ---- order and time ----

    def synchronise(self) -> None:
        """Wait until all is done."""
        self.driver.cuCtxSynchronize()

    def wait(self, stream: int, event: Optional[int]) -> None:
        """Let a stream wait for an event, where there is one."""
        if event is not None:
            self.driver.cuStreamWaitEvent(stream, event, 0)

    def reached(self, stream: int, stack: contextlib.ExitStack) -> int:
        """An event for what a stream was given so far."""
        event = self._event(stack)
        self.driver.cuEventRecord(event, stream)
        return event

    def timed(self, work: Callable[[], None], stream: Optional[int] = None) -> Tuple[float, float]:
        """Seconds that a stream (of the kernels) took for what is enqueued, and that enqueueing took."""
        host: List[float] = []

        def clocked():
            begin = time.perf_counter()
            work()
            host.append(time.perf_counter() - begin)

        return self.seconds(clocked, stream or self.compute), host[0]

    def wall(self, work: Callable[[], None]) -> Tuple[float, float]:
        """Seconds until what is enqueued is done, and that enqueueing took, by the host's clock."""
        self.synchronise()
        begin = time.perf_counter()
        work()
        enqueued = time.perf_counter() - begin
        self.synchronise()
        return time.perf_counter() - begin, enqueued


def rate(count: int, seconds: float) -> Optional[float]:
    """10^9 bytes per second; None where it took no time."""
    return round(count / seconds / 1e9, 2) if seconds > 0 else None


def middle(pairs: List[Tuple[float, float]]) -> Tuple[float, float]:
    """Medians of both columns."""
    first, second = zip(*pairs)
    return statistics.median(first), statistics.median(second)


def runs(flags: List[bool]) -> List[Tuple[int, int]]:
    """Ranges of indices in which flags are set, from the first to behind the last."""
    found: List[Tuple[int, int]] = []
    for index, flag in enumerate(flags):
        if flag and found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        elif flag:
            found.append((index, index + 1))
    return found


def on_host(address: int, count: int) -> Optional[List[Tuple[int, int]]]:
    """KiB of a range of managed memory, from and to, that lie on the host; None where the system does not tell.

    Pages are mapped in the host's page table exactly while they are there, which no attribute of the driver says.
    """
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as stream:
            stream.seek(address // BASE_PAGE * 8)
            entries = stream.read(count // BASE_PAGE * 8)
    except OSError:
        return None
    present = [bool(entry >> 63) for (entry,) in struct.iter_unpack("<Q", entries)]
    return [(start * BASE_PAGE // 1024, end * BASE_PAGE // 1024) for start, end in runs(present)]
