"""What is fed to a stage, read while the batch before is computed, and what it gives, written behind."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np

from whole_slide_cnn.engines.staged.pages import Make

_ALIGNMENT = 64  # bytes; TensorFlow copies an array that begins elsewhere (EIGEN_MAX_ALIGN_BYTES)


class Buffers:
    """Memory for the arrays that are fed for one stage, two of each by turns: what one batch is computed from stays
    while that of the next is read. They are used again and again, because to get new memory from the system costs as
    much as to write it."""

    def __init__(self) -> None:
        self._buffers: Dict[Tuple[str, int], np.ndarray] = {}
        self._turn = 0

    def turn(self) -> None:
        """Begin the arrays of another batch."""
        self._turn = 1 - self._turn

    def maker(self, name: str) -> Make:
        """What makes the array of this name of the batch, from its shape and type; its values are yet to be set."""

        def make(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            key = (name, self._turn)
            if key not in self._buffers or self._buffers[key].nbytes < size:
                self._buffers.pop(key, None)  # before the new one is there
                memory = np.empty(size + _ALIGNMENT, np.uint8)
                start = -memory.ctypes.data % _ALIGNMENT
                self._buffers[key] = memory[start : start + size]
            return self._buffers[key][:size].view(dtype).reshape(shape)

        return make


class WriteBehind:
    """Does jobs in a thread of its own, in order, one at a time, while the caller goes on."""

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="map-writer")
        self._last: Optional[Future] = None

    def close(self) -> None:
        """End the thread."""
        self._writer.shutdown()

    def submit(self, job: Callable[..., None], *arguments: Any) -> None:
        """Do a job once the last one is done, which is waited for; raises what that raised."""
        self.wait()
        self._last = self._writer.submit(job, *arguments)

    def wait(self) -> None:
        """Until all is done; raises what the last job raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
