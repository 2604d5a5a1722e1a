"""A bounded cache of decoded image blocks, shared by the threads that read one slide."""

import collections
import threading
from typing import Any, Hashable, Optional

import numpy as np


class BlockCache:
    """Keeps the most recently used arrays, up to ``limit_bytes`` in all.

    A limit smaller than one block keeps nothing, which is correct, only slow.
    """

    def __init__(self, limit_bytes: int):
        if limit_bytes < 0:
            raise ValueError("limit_bytes must not be negative")
        self._limit = limit_bytes
        self._bytes = 0
        self._blocks: "collections.OrderedDict[Any, Any]" = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of all arrays held now."""
        return self._bytes

    def get(self, key: Hashable) -> Optional[np.ndarray]:
        """The array stored under ``key``, or None."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: Hashable, block: np.ndarray) -> None:
        """Store ``block``, which becomes read-only, and drop the least recently used ones above the limit."""
        block.setflags(write=False)
        with self._lock:
            old = self._blocks.pop(key, None)
            if old is not None:
                self._bytes -= old.nbytes
            self._blocks[key] = block
            self._bytes += block.nbytes
            while self._bytes > self._limit:
                _, dropped = self._blocks.popitem(last=False)
                self._bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._blocks.clear()
            self._bytes = 0
