"""What is dropped after the forward pass and recomputed: each operation at most once, its copy shared by all.

A dropped tensor's copy is made right before the first operation that reads it, which may be the copy of another one. It
is made from what is there at that time, and from copies: so a whole run of layers can be dropped, and all of it
together costs at most one forward pass. Which tensors are dropped is decided greedily, by the seconds that a choice
adds per byte that it takes away where memory is short.
"""

import heapq
from collections import defaultdict
from typing import Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from graph_tools.arrays import Array
from graph_tools.graph.opgraph import TensorRef
from graph_tools.passes.recompute_candidates import Candidate, Candidates
from graph_tools.plan import Recompute

_BINS = 512  # times between which nothing is told apart


def choose_recomputed(candidates: Candidates, most_held: Array, ahead: float = 1.0) -> Tuple[int, ...]:
    """Numbers of the tensors to drop so that, as far as it goes, each position holds no more than is given for it.

    Args:
        most_held: bytes to hold at most while each operation runs.
        ahead: part of the step's time that a copy may be made earlier than what reads its tensor in the graph, for the
            sake of other copies. With less, runs of layers are shorter and their copies live shorter.
    """
    return _Greedy(candidates, most_held, ahead).run()


def recomputes_of(candidates: Candidates, dropped: Sequence[int]) -> Tuple[Recompute, ...]:
    """The copies that some dropped tensors take, in the order in which they are made."""
    return _Copies(candidates, dropped).run()


class _Greedy:
    """Takes, again and again, the tensor that costs least time per square byte second above what shall be held."""

    def __init__(self, candidates: Candidates, most_held: Array, ahead: float):
        self._items, self._seconds, self._clock = candidates.items, candidates.seconds, candidates.clock
        self._ahead = ahead * self._clock[-1]
        count = len(candidates.order)
        self._bins = min(_BINS, max(count, 1))
        edges = np.arange(count) * self._bins // max(count, 1)
        starts = np.searchsorted(edges, np.arange(self._bins))
        self._over = np.maximum.reduceat(candidates.held_bytes - most_held, starts).astype(float) / 1e9
        self._width = np.diff(np.append(self._clock[starts], self._clock[count])) + 1e-12
        self._bin = edges
        self._start = [item.first for item in self._items]  # where the copy begins to live
        self._dropped = [False] * len(self._items)
        self._copied: Set[int] = set()
        self._users: Dict[int, List[int]] = defaultdict(list)  # operation -> candidates whose copies include it
        for number, item in enumerate(self._items):
            for position in item.ops:
                self._users[position].append(number)

    def run(self) -> Tuple[int, ...]:
        heap: List[Tuple[float, int]] = []
        for number in range(len(self._items)):
            self._push(heap, number)
        while heap and (self._over > 0).any():
            _, number = heapq.heappop(heap)
            if self._dropped[number]:
                continue
            now = self._key(number)
            if now is None:
                continue
            if heap and now > heap[0][0] * (1 + 1e-9):
                heapq.heappush(heap, (now, number))
                continue
            self._take(heap, number)
        return tuple(number for number, is_dropped in enumerate(self._dropped) if is_dropped)

    def _push(self, heap: List[Tuple[float, int]], number: int) -> None:
        key = self._key(number)
        if key is not None:
            heapq.heappush(heap, (key, number))

    def _key(self, number: int) -> Optional[float]:
        """Seconds per gain; None where nothing is gained."""
        gain = self._gain(number)
        if gain <= 0:
            return None
        return self._added(number) / gain

    def _added(self, number: int) -> float:
        return sum(self._seconds[position] for position in self._items[number].ops if position not in self._copied)

    def _gain(self, number: int) -> float:
        item = self._items[number]
        if self._too_early(item, self._start[number]):
            return 0.0
        lower, upper = self._range(item.last, self._start[number])
        gain = self._change(lower, upper, -item.bytes / 1e9)
        for source, start in self._earlier(number).items():
            if not self._dropped[source]:
                continue
            if self._too_early(self._items[source], start):
                return 0.0
            lower, upper = self._range(start - 1, self._start[source])
            gain += self._change(lower, upper, self._items[source].bytes / 1e9)
        return gain

    def _too_early(self, item: Candidate, start: int) -> bool:
        return bool(self._clock[item.first] - self._clock[start] > self._ahead)

    def _earlier(self, number: int) -> Dict[int, int]:
        """Dropped tensors whose copies would be needed earlier, and when."""
        start = self._start[number]
        found: Dict[int, int] = {}
        open_numbers = list(self._items[number].sources)
        while open_numbers:
            source = open_numbers.pop()
            if source not in found and self._start[source] > start > self._items[source].last:
                found[source] = start
                if self._dropped[source]:  # else what it is made from is not needed for it
                    open_numbers.extend(self._items[source].sources)
        return found

    def _range(self, last: int, start: int) -> Tuple[int, int]:
        return (int(self._bin[last]) + 1, int(self._bin[start])) if last >= 0 else (0, int(self._bin[start]))

    def _change(self, lower: int, upper: int, size: float) -> float:
        """By how much the excess falls where so many gigabytes more are held."""
        if lower >= upper:
            return 0.0
        over, width = self._over[lower:upper], self._width[lower:upper]
        before, after = np.maximum(over, 0.0), np.maximum(over + size, 0.0)
        return float((width * (before * before - after * after)).sum())

    def _take(self, heap: List[Tuple[float, int]], number: int) -> None:
        item = self._items[number]
        self._dropped[number] = True
        for source, start in self._earlier(number).items():
            if self._dropped[source]:
                lower, upper = self._range(start - 1, self._start[source])
                self._over[lower:upper] += self._items[source].bytes / 1e9
            self._start[source] = start
        lower, upper = self._range(item.last, self._start[number])
        self._over[lower:upper] -= item.bytes / 1e9
        cheaper: Set[int] = set()  # candidates of whose operations some are copied now
        for position in item.ops:
            if position not in self._copied:
                self._copied.add(position)
                cheaper.update(self._users[position])
        for other in sorted(cheaper):
            if not self._dropped[other]:
                self._push(heap, other)


class _Copies:
    """Walks through the order and makes each copy where it is first read."""

    def __init__(self, candidates: Candidates, dropped: Sequence[int]):
        self._candidates = candidates
        self._numbers = {candidates.items[number].tensor: number for number in dropped}
        self._item_of: Dict[str, int] = {}  # operation -> recomputation that copies it
        self._made: Dict[TensorRef, int] = {}
        self._items: List[Recompute] = []

    def run(self) -> Tuple[Recompute, ...]:
        for position, op in enumerate(self._candidates.ops):
            for ref in op.inputs:
                number = self._numbers.get(ref)
                if number is None or position < self._candidates.items[number].first or ref in self._made:
                    continue
                self._make(ref, position)
        return tuple(self._items)

    def _make(self, tensor: TensorRef, anchor: int) -> None:
        """Copies of what makes a tensor, those of other dropped tensors first."""
        ops, sources = self._walk(tensor, anchor)
        # what a copy of another tensor took along meanwhile is not copied twice
        sources |= {self._item_of[name] for name in ops if name in self._item_of}
        own = [name for name in ops if name not in self._item_of]
        item = self._candidates.items[self._numbers[tensor]]
        for name in own:
            self._item_of[name] = len(self._items)
        self._made[tensor] = len(self._items)
        ordered = tuple(sorted(own, key=self._candidates.position.__getitem__))
        self._items.append(Recompute(tensor, item.bytes, ordered, item.readers, tuple(sorted(sources))))

    def _walk(self, tensor: TensorRef, anchor: int) -> Tuple[Set[str], Set[int]]:
        """Operations that make a tensor from what is there and from copies, and the recomputations of these copies."""
        candidates = self._candidates
        ops: Set[str] = set()
        sources: Set[int] = set()
        open_ops = [tensor.op]
        while open_ops:
            name = open_ops.pop()
            if name in ops:
                continue
            ops.add(name)
            for ref in candidates.ops[candidates.position[name]].inputs:
                if ref.op in ops:
                    continue
                if ref.op in self._item_of:
                    sources.add(self._item_of[ref.op])
                    continue
                number = self._numbers.get(ref)
                if number is not None and candidates.items[number].last < anchor:
                    self._make(ref, anchor)
                    sources.add(self._item_of[ref.op])
                elif not candidates.there(ref, anchor):
                    open_ops.append(ref.op)
        return ops, sources
