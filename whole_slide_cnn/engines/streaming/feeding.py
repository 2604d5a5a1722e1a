"""Reads what comes next while this is computed."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterable, Iterator, Optional, TypeVar

Job = TypeVar("Job")
Loaded = TypeVar("Loaded")


class ReadAhead:
    """Loads jobs in a thread of its own, one job ahead."""

    def __init__(self):
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="window-reader")

    def close(self):
        """End the thread."""
        self._reader.shutdown()

    def __call__(self, jobs: Iterable[Job], load: Callable[[Job], Loaded]) -> Iterator[Loaded]:
        """What ``load`` gives for each job, in order; an error that it raises comes at its job's place."""
        coming: Optional[Future] = None
        try:
            for job in jobs:
                current, coming = coming, self._reader.submit(load, job)
                if current is not None:
                    yield current.result()
            if coming is not None:
                current, coming = coming, None
                yield current.result()
        finally:
            if coming is not None:  # the caller stopped early: leave no read behind in a canvas it may close
                coming.cancel()
                if not coming.cancelled():
                    coming.exception()
