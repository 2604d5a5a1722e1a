"""The first GPU through the driver, within a budget: what it is asked for is bounded, checked and given back."""

import contextlib
import ctypes
from typing import Any, Callable, List, Optional, Tuple

from tf_um_patch import driver as cuda
from tf_um_patch.driver import Driver
from tf_um_patch.errors import DriverError
from tf_um_patch.gpu_check import kernels

# Others may use the card, and the driver hangs it for all when managed memory exceeds what is free.
FREE_SHARE = 4  # a budget is at most a quarter of what is free
PAGE = 2 << 20  # of managed memory
_THREADS = 128  # of a block
_BLOCKS_TO_FILL = 16  # of so many threads on a multiprocessor: enough that memory is what limits them
_SAMPLE = 4096  # bytes that are read back at each of three places


class Card:
    """A context on the first GPU, with two streams and the kernels; everything is given back by :meth:`close`.

    Args:
        driver: the loaded one.
        budget: bytes, managed or not, that it may have allocated at one time.

    Raises:
        DriverError: a call failed.
    """

    def __init__(self, driver: Driver, budget: int):
        self.driver = driver
        self.budget = budget
        self.allocated = 0
        self._stack = contextlib.ExitStack()
        try:
            driver.cuInit(0)
            self.device = driver.value("cuDeviceGet", 0)
            self._stack.enter_context(driver.primary_context(self.device))
            self.blocks = self.attribute(cuda.MULTIPROCESSORS)
            self.compute, self.copy = self._stream(), self._stream()
            module = driver.value("cuModuleLoadData", kernels.PTX, kind=ctypes.c_void_p)
            self._stack.callback(driver.cuModuleUnload, module)
            self._spin = driver.value("cuModuleGetFunction", module, b"tfum_spin", kind=ctypes.c_void_p)
            self._add = driver.value("cuModuleGetFunction", module, b"tfum_add", kind=ctypes.c_void_p)
            self._out = self.plain(4 * self.blocks * _THREADS)
        except DriverError:
            with contextlib.suppress(DriverError):
                self.close()
            raise

    def close(self) -> None:
        """Give everything back, also where giving back something fails; raises the first DriverError of that."""
        self._stack.close()

    def attribute(self, number: int) -> int:
        """An attribute of the GPU."""
        return self.driver.value("cuDeviceGetAttribute", number, self.device)

    # ---- memory ----

    def managed(self, count: int) -> int:
        """Address of managed memory of so many bytes."""
        self._fit(count)
        return self._own(self.driver.value("cuMemAllocManaged", count, cuda.ATTACH_GLOBAL, kind=ctypes.c_uint64), count)

    def plain(self, count: int) -> int:
        """Address of plain device memory of so many bytes."""
        self._fit(count)
        return self._own(self.driver.value("cuMemAlloc_v2", count, kind=ctypes.c_uint64), count)

    def is_managed(self, address: int) -> bool:
        """Whether the driver calls it managed memory."""
        return self.driver.is_managed(address)

    def fill(self, address: int, count: int, byte: int) -> None:
        """Set all bytes, on the device."""
        self.driver.cuMemsetD8_v2(address, byte, count)
        self.driver.cuCtxSynchronize()

    def holds(self, address: int, count: int, word: int) -> bool:
        """Whether the words at the start, in the middle and at the end have a value."""
        places = [0, count // 2 // _SAMPLE * _SAMPLE, count - _SAMPLE]
        expected = word.to_bytes(4, "little") * (_SAMPLE // 4)
        return all(self._read(address + place, _SAMPLE) == expected for place in places)

    def move(self, address: int, count: int, location: int) -> None:
        """Move managed memory to the device or the host, and wait until it is there."""
        self.enqueue_move(address, count, location)
        self.driver.cuStreamSynchronize(self.copy)

    def enqueue_move(self, address: int, count: int, location: int) -> None:
        """Enqueue a move on the copy stream."""
        self.driver.cuMemPrefetchAsync(address, count, location, self.copy)

    # ---- computing ----

    def add(self, address: int, count: int, amount: int) -> None:
        """Enqueue on the compute stream: read and write every word, adding ``amount`` to each."""
        arguments = [ctypes.c_uint64(address), ctypes.c_uint64(count // 4), ctypes.c_uint32(amount)]
        self._launch(self._add, self.blocks * _BLOCKS_TO_FILL, arguments)

    def spin(self, rounds: int) -> None:
        """Enqueue on the compute stream: arithmetic that touches hardly any memory, a block per multiprocessor."""
        self._launch(self._spin, self.blocks, [ctypes.c_uint64(self._out), ctypes.c_uint32(rounds)])

    def spun(self, rounds: int) -> bool:
        """Whether the last :meth:`spin` computed what it should have, in all threads."""
        count = self.blocks * _THREADS
        expected = b"".join(value.to_bytes(4, "little") for value in kernels.spun(count, rounds))
        return self._read(self._out, 4 * count) == expected

    # ---- time ----

    def kernel_seconds(self, launch: Callable[[], None]) -> float:
        """How long the kernel took that ``launch`` enqueues on the compute stream; more than 0."""
        taken = self.seconds(launch, self.compute)
        if taken <= 0:
            raise DriverError("a kernel took {} s by CUDA's events: update the NVIDIA driver".format(taken))
        return taken

    def seconds(self, work: Callable[[], None], stream: int) -> float:
        """How long a stream took for what ``work`` enqueues on it."""
        (span,) = self.spans([(work, stream)])
        return span[1] - span[0]

    def spans(self, works: List[Tuple[Callable[[], None], int]]) -> List[Tuple[float, float]]:
        """When works of different streams began and ended, if all may begin at the same time; in seconds."""
        driver = self.driver
        driver.cuCtxSynchronize()
        with contextlib.ExitStack() as stack:
            origin = self._event(stack)
            marks = [(self._event(stack), self._event(stack)) for _ in works]
            driver.cuEventRecord(origin, works[0][1])
            for _, stream in works[1:]:
                driver.cuStreamWaitEvent(stream, origin, 0)
            for (work, stream), (start, end) in zip(works, marks):
                driver.cuEventRecord(start, stream)
                work()
                driver.cuEventRecord(end, stream)
            for _, end in marks:
                driver.cuEventSynchronize(end)
            return [(self._between(origin, start), self._between(origin, end)) for start, end in marks]

    # ---- inside ----

    def _between(self, start: int, end: int) -> float:
        return self.driver.value("cuEventElapsedTime", start, end, kind=ctypes.c_float) / 1e3

    def _event(self, stack: contextlib.ExitStack) -> int:
        event = self.driver.value("cuEventCreate", 0, kind=ctypes.c_void_p)
        stack.callback(self.driver.cuEventDestroy_v2, event)
        return event

    def _stream(self) -> int:
        stream = self.driver.value("cuStreamCreate", cuda.NON_BLOCKING, kind=ctypes.c_void_p)
        self._stack.callback(self.driver.cuStreamDestroy_v2, stream)
        return stream

    def _launch(self, function: int, blocks: int, arguments: List[Any]) -> None:
        pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(argument) for argument in arguments])
        self.driver.cuLaunchKernel(function, blocks, 1, 1, _THREADS, 1, 1, 0, self.compute, pointers, None)

    def _read(self, address: int, count: int) -> bytes:
        copy = (ctypes.c_ubyte * count)()
        self.driver.cuMemcpyDtoH_v2(copy, address, count)
        return bytes(copy)

    def _own(self, address: int, count: int) -> int:
        self.allocated += count
        self._stack.callback(self.driver.cuMemFree_v2, address)
        return address

    def _fit(self, count: int) -> None:
        wanted, free = self.allocated + count, self.driver.memory()[0]
        # What is free is asked each time: others may have filled the card meanwhile.
        if wanted > self.budget or count > free // FREE_SHARE:
            raise DriverError(
                "{} bytes are not allocated: together {} of a budget of {}, and {} are free on the card, which others "
                "may have filled meanwhile; try again with a smaller --budget".format(count, wanted, self.budget, free)
            )


def refusal(budget: int, free: int, name: str) -> Optional[str]:
    """Why a budget may not be used on a card with so many free bytes, or None where it may."""
    if budget <= free // FREE_SHARE:
        return None
    return (
        "--budget {} is more than a quarter of the {} bytes that {} has free, and a card hangs where managed memory "
        "exceeds what is free: give at most {}, or wait until others have left".format(
            budget, free, name, free // FREE_SHARE
        )
    )
