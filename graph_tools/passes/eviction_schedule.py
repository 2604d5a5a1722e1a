"""When tensors leave the device and come back, so that it always has room and its link is never idle for long.

Both directions of the link are scheduled against the clock of the step. A tensor leaves as early as the link is free,
those that are needed last before others, as long as some later group would not fit. It comes back as early as there is
room for it until it is needed, those that are needed first before others. So copies spread over the whole step instead
of the groups next to their uses.
"""

import heapq
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from graph_tools.arrays import Array
from graph_tools.graph.lifetimes import Lifetimes, lifetimes, touched_bytes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.group import GroupUse, group_uses
from graph_tools.plan import Eviction, Group, Prefetch, group_of, op_order
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.pages import held_pages


@dataclass(frozen=True)
class EvictionSchedule:
    """What leaves and comes back.

    Attributes:
        evictions: copies to the host, by the group during which they run.
        prefetches: copies back.
    """

    evictions: Tuple[Eviction, ...]
    prefetches: Tuple[Prefetch, ...]


def schedule_evictions(
    graph: OpGraph,
    groups: Sequence[Group],
    machine: Machine,
    smallest: int = 0,
    ends: Optional[Sequence[float]] = None,
    life: Optional[Lifetimes] = None,
) -> EvictionSchedule:
    """Schedule evictions so that no group holds more than the device has, where the host and the gaps between uses
    allow.

    Args:
        graph: with the copies of recomputed operations.
        smallest: smaller tensors, in bytes, stay.
        ends: when each group is done; by default as long as its operations take on tensors that are there.
        life: of the order of these groups, where it is known.
    """
    life = life or lifetimes(graph, op_order(groups))
    return _Scheduler(graph, groups, machine, max(smallest, machine.page_bytes), ends, life).run()


class _Scheduler:
    def __init__(
        self,
        graph: OpGraph,
        groups: Sequence[Group],
        machine: Machine,
        smallest: int,
        ends: Optional[Sequence[float]],
        life: Lifetimes,
    ):
        self._machine = machine
        self._count = len(groups)
        starts = np.cumsum([0] + [len(group.ops) for group in groups[:-1]])
        held: Array = np.maximum.reduceat(held_pages(graph, life, machine), starts)
        self._short = held - machine.device_bytes // machine.page_bytes  # pages that each group lacks
        self._begin = np.concatenate([[0.0], _ends(graph, life, groups, machine) if ends is None else ends])
        self._uses: List[GroupUse] = []
        self._pages: List[int] = []
        self._free_at: List[List[int]] = [[] for _ in groups]  # gaps by the first group that they pass over
        for use in group_uses(graph, life, groups):
            size = life.storages[use.storage].bytes
            if use.group - use.last >= 3 and size >= smallest:
                self._free_at[use.last + 1].append(len(self._uses))
                self._uses.append(use)
                self._pages.append(machine.pages(size))
        self._bytes = [life.storages[use.storage].bytes for use in self._uses]
        self._waiting: List[Tuple[int, int]] = []  # gaps that may leave, the one that ends last first
        self._away: List[Tuple[int, int]] = []  # gaps that are to come back, the one that ends first first
        self._left: Dict[int, Tuple[int, float]] = {}  # gap -> group during which it leaves, and when it has left
        self._out_free = self._in_free = 0.0
        self._host = machine.host_bytes // machine.page_bytes
        self._evictions: List[Eviction] = []
        self._prefetches: List[Prefetch] = []

    def run(self) -> EvictionSchedule:
        for group in range(self._count):
            for number in self._free_at[group]:
                heapq.heappush(self._waiting, (-self._uses[number].group, number))
            self._evict(group)
            self._prefetch(group)
        return EvictionSchedule(tuple(self._evictions), tuple(self._prefetches))

    def _seconds(self, number: int) -> float:
        machine = self._machine
        return self._pages[number] * machine.page_bytes / machine.copy_rate

    def _evict(self, group: int) -> None:
        """Start copies to the host while the link is free before the next group, or this one has no room."""
        while self._waiting:
            late = self._out_free >= self._begin[group + 1]
            ahead = np.flatnonzero(self._short[group : group + 1 if late else None] > 0)
            if not len(ahead):
                return
            needed, number = self._waiting[0]
            if -needed < group + 3 or -needed - 1 <= group + ahead[0]:
                # it ends before memory is short: nothing that may leave now ends later
                return
            heapq.heappop(self._waiting)
            if self._pages[number] > self._host:
                continue
            self._leave(number, group)

    def _leave(self, number: int, group: int) -> None:
        use = self._uses[number]
        self._host -= self._pages[number]
        self._out_free = max(self._out_free, self._begin[group]) + self._seconds(number)
        self._short[group : use.group] -= self._pages[number]
        self._left[number] = group, self._out_free
        heapq.heappush(self._away, (use.group, number))
        self._evictions.append(Eviction(use.tensor, self._bytes[number], group, use.group))

    def _prefetch(self, group: int) -> None:
        """Start copies back while the link is free before the next group and there is room until they are needed."""
        while self._away:
            needed, number = self._away[0]
            during, left = self._left[number]
            due = needed == group + 1
            if not due and (
                during == group
                or left > self._begin[group + 1]
                or self._in_free >= self._begin[group + 1]
                or (self._short[group:needed] + self._pages[number] > 0).any()
            ):
                return
            heapq.heappop(self._away)
            use = self._uses[number]
            self._host += self._pages[number]
            self._in_free = max(self._in_free, self._begin[group], left) + self._seconds(number)
            self._short[group:needed] += self._pages[number]
            self._prefetches.append(Prefetch(use.tensor, self._bytes[number], group, needed))


def _ends(graph: OpGraph, life: Lifetimes, groups: Sequence[Group], machine: Machine) -> Array:
    """When each group is done, in seconds, if it never waits."""
    named, number_of = graph.by_name(), group_of(groups)
    seconds = np.zeros(len(groups))
    for name, touched in zip(life.order, touched_bytes(graph, life)):
        seconds[number_of[name]] += machine.seconds(named[name], touched)
    ends: Array = np.cumsum(seconds)
    return ends
