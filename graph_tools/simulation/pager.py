"""Unified memory's pages on one device, least recently used first out, counted in runs instead of one by one."""

from collections import OrderedDict
from typing import Dict, NamedTuple, Sequence


class Moved(NamedTuple):
    """Pages that one action moved.

    Attributes:
        taken: pages of the device that were filled, with what came in or with what was made.
        came: pages that came from the host.
        left: pages that went to the host.
    """

    taken: int
    came: int
    left: int


class Pager:
    """Which pages of which storage are on the device.

    Operations touch whole storages from the first page to the last, and the page that was not touched for longest
    leaves first. So the resident pages of a storage are always its last ones, and one number says which; the counts
    are those of moving page by page.

    Args:
        capacity: pages of the device.
        pages: pages of each storage.
    """

    def __init__(self, capacity: int, pages: Sequence[int]):
        self.capacity = capacity
        self._pages = pages
        self._resident: "OrderedDict[int, int]" = OrderedDict()  # storage -> pages on the device, oldest touch first
        self._away: Dict[int, int] = {}  # storage -> pages on the host
        self.free = capacity
        self.on_host = 0

    def make(self, storage: int) -> Moved:
        """First touch of a new storage: its pages appear on the device, nothing comes from the host."""
        return self._fill(storage, self._pages[storage], 0)

    def touch(self, storage: int) -> Moved:
        """An operation reads or writes all of a storage; absent pages come one after another."""
        return self._fill(storage, 0, self._away.get(storage, 0))

    def prefetch(self, storage: int) -> Moved:
        """An explicit copy to the device of the absent pages, or of the last of them where the device is too small."""
        room = self.capacity - self._resident.get(storage, 0)
        if storage in self._resident:
            self._resident.move_to_end(storage)  # its own pages shall not make room for it
        return self._fill(storage, 0, min(self._away.get(storage, 0), room))

    def evict(self, storage: int) -> Moved:
        """An explicit copy of all resident pages to the host."""
        pages = self._resident.pop(storage, 0)
        self._away[storage] = self._away.get(storage, 0) + pages
        self.on_host += pages
        self.free += pages
        return Moved(0, 0, pages)

    def start_on_host(self, storage: int) -> None:
        """A storage that is on the host before the step."""
        self._away[storage] = self._pages[storage]
        self.on_host += self._pages[storage]

    def drop(self, storage: int) -> int:
        """A storage that nobody needs any more; returns the pages of the device that become free."""
        pages = self._resident.pop(storage, 0)
        self.free += pages
        self.on_host -= self._away.pop(storage, 0)
        return pages

    def _fill(self, storage: int, made: int, wanted: int) -> Moved:
        """Put ``made`` new pages, or ``wanted`` absent ones, of a storage on the device, and all its pages last."""
        need, left = made + wanted, 0
        while need > self.free + left and self._resident:
            victim, pages = next(iter(self._resident.items()))
            gone = min(pages, need - self.free - left)
            self._leave(victim, gone)
            left += gone
            if victim == storage:  # its own pages leave before the sweep reaches them, and come again
                need += gone
                wanted += gone
        overflow = max(0, need - self.free - left)  # larger than the device: its first pages leave for its last ones
        self.free += left - (need - overflow)
        self.on_host += overflow
        left += overflow
        self.on_host -= wanted
        resident = self._resident.pop(storage, 0) + need - overflow
        self._resident[storage] = resident
        self._away[storage] = self._away.get(storage, 0) - wanted + overflow
        return Moved(need, wanted, left)

    def _leave(self, storage: int, pages: int) -> None:
        """Count pages as gone to the host; the caller counts the room they leave."""
        if pages == self._resident[storage]:
            del self._resident[storage]
        else:
            self._resident[storage] -= pages
        self._away[storage] = self._away.get(storage, 0) + pages
        self.on_host += pages
