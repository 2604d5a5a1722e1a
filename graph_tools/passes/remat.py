"""What is dropped after the forward pass and computed again: each operation at most once, its copy shared by all.

A dropped tensor's copy is made right before the first operation that reads it, which may be the copy of another one. It
is made from what is there at that time, and from copies: so a whole run of layers can be dropped, and all of it
together costs at most one forward pass. Which tensors are dropped is decided greedily, by the seconds that a choice
adds per byte that it takes away where memory is short.
"""

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

from graph_tools.graph.lifetimes import lifetimes, touched_bytes
from graph_tools.graph.opgraph import OpGraph, TensorRef
from graph_tools.graph.optypes import FED
from graph_tools.passes.group import Group, group_of, op_order
from graph_tools.plan import Recompute
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.pages import held_pages

_LONGEST_CHAIN = 64  # operations that make one tensor from what is there; each strip of a layer takes a few
_BINS = 512  # times between which nothing is told apart


@dataclass(frozen=True)
class Droppable:
    """A tensor that can be computed again.

    Attributes:
        tensor: what later operations read.
        bytes: its size.
        last: position of the last operation that touches it before the time when most is held.
        first: position of the next one.
        ops: positions of the operations that make it from what is there then, in order.
        sources: numbers of other droppable tensors that those operations read then.
        readers: operations that read the copy.
    """

    tensor: TensorRef
    bytes: int
    last: int
    first: int
    ops: Tuple[int, ...]
    sources: Tuple[int, ...]
    readers: Tuple[str, ...]


class Rematerialiser:
    """Chooses, for one order of a graph, which tensors to drop.

    Args:
        groups: the order; a tensor is dropped only where a whole group passes over it.
        smallest: smaller tensors, in bytes, are kept.
    """

    def __init__(self, graph: OpGraph, groups: Sequence[Group], machine: Machine, smallest: int):
        self._machine, self._named = machine, graph.by_name()
        self._order = op_order(groups)
        self._life = life = lifetimes(graph, self._order)
        self._position = {name: position for position, name in enumerate(self._order)}
        self._ops = [self._named[name] for name in self._order]
        touched = touched_bytes(graph, life)
        self._seconds = [machine.seconds(op, size) for op, size in zip(self._ops, touched)]
        self._clock = np.concatenate([[0.0], np.cumsum(self._seconds)])
        self._live = held_pages(graph, life, machine) * machine.page_bytes
        self._find_readers()
        self.items = self._find(groups, max(smallest, 1))
        self._number_of = {item.tensor: number for number, item in enumerate(self.items)}

    def _find_readers(self):
        self._readers: Dict[TensorRef, List[int]] = defaultdict(list)
        self._first_write: Dict[int, int] = {}
        for position, op in enumerate(self._ops):
            for ref in dict.fromkeys(op.inputs):
                self._readers[ref].append(position)
            if not op.pure:
                for storage in self._life.touches[position]:
                    self._first_write.setdefault(storage, position)

    def _find(self, groups, smallest) -> Tuple[Droppable, ...]:
        number_of, where = group_of(groups), {}
        group = [number_of[name] for name in self._order]
        members = defaultdict(list)
        for ref, storage in self._life.holder.items():
            members[storage].append(ref)
        for storage, (last, first) in self._gaps().items():
            what = self._life.storages[storage]
            if what.bytes < smallest or group[first] - group[last] < 2:
                continue
            refs = members[storage]
            late = [ref for ref in refs if self._position[ref.op] <= last and self._read_from(ref, first)]
            if len(late) == 1:
                where[late[0]] = (what.bytes, last, first)
        found = []
        for ref, (size, last, first) in where.items():
            chain = self._chain(ref, first, where)
            # what takes longer to make than it is gone saves nothing: it would only be made twice
            if (
                chain is not None
                and sum(self._seconds[p] for p in chain[0]) < self._clock[first] - self._clock[last + 1]
            ):
                found.append((ref, size, last, first) + chain)
        number_of = {item[0]: number for number, item in enumerate(found)}
        return tuple(
            Droppable(
                ref,
                size,
                last,
                first,
                ops,
                tuple(sorted(number_of[other] for other in read if other in number_of and where[other][1] < first)),
                tuple(self._order[position] for position in self._readers[ref] if position >= first),
            )
            for ref, size, last, first, ops, read in found
        )

    def _gaps(self) -> Dict[int, Tuple[int, int]]:
        """For each storage that ends within the step the uses before and after the time when most is held.

        Other times in which nothing touches a storage are left out: a copy that is made within the forward pass would
        have to be kept for what is made from it in the backward pass.
        """
        turn, before, gaps = int(np.argmax(self._live)) if self._order else 0, {}, {}
        for position, touched in enumerate(self._life.touches):
            for storage in touched:
                if position < turn:
                    before[storage] = position
                elif storage in before and storage not in gaps:
                    gaps[storage] = before[storage], position
        storages, end = self._life.storages, len(self._order)
        return {
            number: gap for number, gap in gaps.items() if storages[number].made >= 0 and storages[number].last < end
        }

    def _read_from(self, ref, position):
        readers = self._readers.get(ref)
        return bool(readers) and readers[-1] >= position

    def _chain(self, tensor, first, where):
        """Positions of operations that make a tensor from what can be read then, and what they read."""
        ops, read, open_refs = set(), {}, [tensor]
        while open_refs:
            ref = open_refs.pop()
            if ref != tensor and self._there(ref, first):
                read[ref] = None
                continue
            op, position = self._named[ref.op], self._position[ref.op]
            if position in ops:
                continue
            if not op.pure or op.persistent or len(ops) == _LONGEST_CHAIN:
                return None
            ops.add(position)
            open_refs.extend(op.inputs)
        return tuple(sorted(ops)), tuple(read)

    def _there(self, ref, position):
        """Whether a tensor, or its copy, can be read then without being kept for that alone."""
        storage = self._life.holder[ref]
        if self._life.storages[storage].made < 0:
            return self._first_write.get(storage, len(self._order)) > position
        return self._named[ref.op].type in FED or self._read_from(ref, position)

    def target(self, link_share: float) -> np.ndarray:
        """Bytes to hold at most at each position: what the device has room for, and what the link, used to some share,
        can have carried away by then and can still bring back."""
        machine = self._machine
        room = machine.device_bytes // machine.page_bytes * machine.page_bytes
        return room + np.minimum(self._clock[:-1], self._clock[-1] - self._clock[1:]) * machine.copy_rate * link_share

    def by_original(self, names: Sequence[str], values: np.ndarray) -> np.ndarray:
        """The highest value of each operation of the order and of the copies right before it."""
        starts = np.array([name in self._position for name in names], bool)
        first = np.concatenate([[0], np.flatnonzero(starts)[:-1] + 1])
        return np.maximum.reduceat(values, first)

    def choose(self, target: np.ndarray, ahead: float = 1.0) -> Tuple[int, ...]:
        """Numbers of the tensors to drop so that, as far as it goes, each position holds no more than its target.

        Args:
            target: bytes.
            ahead: part of the step's time that a copy may be made earlier than what reads its tensor in the graph,
                for the sake of other copies. With less, runs of layers are shorter and their copies live shorter.
        """
        return _Greedy(self.items, self._seconds, self._live, self._clock, target, ahead).run()

    def recomputes(self, dropped: Sequence[int]) -> Tuple[Recompute, ...]:
        """The copies, in the order in which they are made."""
        return _Copies(self, set(dropped)).run()


class _Greedy:
    """Takes, again and again, the tensor that costs least time per square byte second above the target."""

    def __init__(self, items, seconds, live, clock, target, ahead):
        self._clock, self._ahead = clock, ahead * clock[-1]
        self._items, self._seconds = items, seconds
        count = len(live)
        self._bins = min(_BINS, max(count, 1))
        edges = np.arange(count) * self._bins // max(count, 1)
        starts = np.searchsorted(edges, np.arange(self._bins))
        self._over = np.maximum.reduceat(live - target, starts).astype(float) / 1e9
        self._width = np.diff(np.append(clock[starts], clock[count])) + 1e-12
        self._bin = edges
        self._start = [item.first for item in items]  # where the copy begins to live
        self._dropped = [False] * len(items)
        self._copied = set()
        self._users = defaultdict(list)  # operation -> items whose copies include it
        for number, item in enumerate(items):
            for position in item.ops:
                self._users[position].append(number)

    def run(self):
        heap = []
        for number in range(len(self._items)):
            self._push(heap, number)
        while heap and (self._over > 0).any():
            key, number = heapq.heappop(heap)
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

    def _push(self, heap, number):
        key = self._key(number)
        if key is not None:
            heapq.heappush(heap, (key, number))

    def _key(self, number):
        gain = self._gain(number)
        if gain <= 0:
            return None
        return self._added(number) / gain

    def _added(self, number):
        return sum(self._seconds[position] for position in self._items[number].ops if position not in self._copied)

    def _gain(self, number):
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

    def _too_early(self, item, start):
        return self._clock[item.first] - self._clock[start] > self._ahead

    def _earlier(self, number):
        """Dropped tensors whose copies would be needed earlier, and when."""
        start, found, open_numbers = self._start[number], {}, list(self._items[number].sources)
        while open_numbers:
            source = open_numbers.pop()
            if source not in found and self._start[source] > start > self._items[source].last:
                found[source] = start
                if self._dropped[source]:  # else what it is made from is not needed for it
                    open_numbers.extend(self._items[source].sources)
        return found

    def _range(self, last, start):
        return (int(self._bin[last]) + 1, int(self._bin[start])) if last >= 0 else (0, int(self._bin[start]))

    def _change(self, lower, upper, size):
        """By how much the excess falls where so many bytes more are held."""
        if lower >= upper:
            return 0.0
        over, width = self._over[lower:upper], self._width[lower:upper]
        before, after = np.maximum(over, 0.0), np.maximum(over + size, 0.0)
        return float((width * (before * before - after * after)).sum())

    def _take(self, heap, number):
        item = self._items[number]
        self._dropped[number] = True
        for source, start in self._earlier(number).items():
            if self._dropped[source]:
                lower, upper = self._range(start - 1, self._start[source])
                self._over[lower:upper] += self._items[source].bytes / 1e9
            self._start[source] = start
        lower, upper = self._range(item.last, self._start[number])
        self._over[lower:upper] -= item.bytes / 1e9
        again = set()
        for position in item.ops:
            if position not in self._copied:
                self._copied.add(position)
                again.update(self._users[position])
        for other in sorted(again):
            if not self._dropped[other]:
                self._push(heap, other)


class _Copies:
    """Walks through the order and makes each copy where it is first read."""

    def __init__(self, owner: Rematerialiser, dropped):
        self._owner, self._dropped = owner, dropped
        self._numbers = {owner.items[number].tensor: number for number in dropped}
        self._item_of: Dict[str, int] = {}  # operation -> recomputation that copies it
        self._made: Dict[TensorRef, int] = {}
        self._items: List[Recompute] = []

    def run(self):
        owner = self._owner
        for position, op in enumerate(owner._ops):
            for ref in op.inputs:
                number = self._numbers.get(ref)
                if number is not None and position >= owner.items[number].first and ref not in self._made:
                    self._make(ref, position)
        return tuple(self._items)

    def _make(self, tensor, anchor):
        """Copies of what makes a tensor, those of other dropped tensors first."""
        owner = self._owner
        ops, sources, open_ops = set(), set(), [tensor.op]
        while open_ops:
            name = open_ops.pop()
            if name in ops:
                continue
            ops.add(name)
            for ref in owner._named[name].inputs:
                if ref.op in ops:
                    continue
                if ref.op in self._item_of:
                    sources.add(self._item_of[ref.op])
                    continue
                number = self._numbers.get(ref)
                if number is not None and owner.items[number].last < anchor:
                    self._make(ref, anchor)
                    sources.add(self._item_of[ref.op])
                elif not owner._there(ref, anchor):
                    open_ops.append(ref.op)
        # what a copy of another tensor took along meanwhile is not copied twice
        sources |= {self._item_of[name] for name in ops if name in self._item_of}
        ops = [name for name in ops if name not in self._item_of]
        item = owner.items[self._numbers[tensor]]
        for name in ops:
            self._item_of[name] = len(self._items)
        self._made[tensor] = len(self._items)
        ordered = tuple(sorted(ops, key=owner._position.__getitem__))
        self._items.append(Recompute(tensor, item.bytes, ordered, item.readers, tuple(sorted(sources))))
