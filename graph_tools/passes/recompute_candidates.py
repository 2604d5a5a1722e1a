"""Tensors of an ordered graph that can be recomputed after the time when most is held, and from what."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from graph_tools.graph.lifetimes import lifetimes, touched_bytes
from graph_tools.graph.opgraph import OpGraph, TensorRef
from graph_tools.graph.optypes import FED
from graph_tools.plan import Group, group_of, op_order
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.pages import held_pages

_LONGEST_CHAIN = 64  # operations that make one tensor from what is there; each strip of a layer takes a few


@dataclass(frozen=True)
class Candidate:
    """A tensor that can be recomputed.

    Attributes:
        tensor: what later operations read.
        bytes: its size.
        last: position of the last operation that touches it before the time when most is held.
        first: position of the next one.
        ops: positions of the operations that make it from what is there then, in order.
        sources: numbers of other candidates that those operations read then.
        readers: operations that read the copy.
    """

    tensor: TensorRef
    bytes: int
    last: int
    first: int
    ops: Tuple[int, ...]
    sources: Tuple[int, ...]
    readers: Tuple[str, ...]


class _Gap(NamedTuple):
    """Bytes of a tensor, and the positions between which nothing touches it."""

    bytes: int
    last: int
    first: int


class _Chain(NamedTuple):
    """Positions of operations that make a tensor, in order, and the tensors that they read."""

    ops: Tuple[int, ...]
    read: Tuple[TensorRef, ...]


class Candidates:
    """What can be recomputed in one order of a graph, and what holding and computing cost there.

    Attributes:
        order: names of the operations.
        ops: the operations, in this order.
        position: of each operation in the order, by name.
        seconds: of each operation, by position.
        clock: when each operation starts if none waits, and last when all are done (float64, one more than there are
            operations).
        held_bytes: bytes held while each operation runs, in whole pages (int64).
        items: the candidates.

    Args:
        groups: the order; a tensor is a candidate only where a whole group passes over it.
        smallest: smaller tensors, in bytes, are none.
    """

    def __init__(self, graph: OpGraph, groups: Sequence[Group], machine: Machine, smallest: int):
        self._named = graph.by_name()
        self.order = op_order(groups)
        self._life = life = lifetimes(graph, self.order)
        self.position = {name: position for position, name in enumerate(self.order)}
        self.ops = [self._named[name] for name in self.order]
        touched = touched_bytes(graph, life)
        self.seconds = [machine.seconds(op, size) for op, size in zip(self.ops, touched)]
        self.clock = np.concatenate([[0.0], np.cumsum(self.seconds)])
        self.held_bytes = held_pages(graph, life, machine) * machine.page_bytes
        self._find_readers()
        self.items = self._find(groups, max(smallest, 1))

    def there(self, ref: TensorRef, position: int) -> bool:
        """Whether a tensor, or its copy, can be read at a position without being kept for that alone."""
        storage = self._life.holder[ref]
        if self._life.storages[storage].made < 0:
            return self._first_write.get(storage, len(self.order)) > position
        return self._named[ref.op].type in FED or self._read_from(ref, position)

    def _find_readers(self) -> None:
        self._readers: Dict[TensorRef, List[int]] = defaultdict(list)
        self._first_write: Dict[int, int] = {}  # storage -> position of the first operation that may change it
        for position, op in enumerate(self.ops):
            for ref in dict.fromkeys(op.inputs):
                self._readers[ref].append(position)
            if not op.pure:
                for storage in self._life.touches[position]:
                    self._first_write.setdefault(storage, position)

    def _find(self, groups: Sequence[Group], smallest: int) -> Tuple[Candidate, ...]:
        gaps = self._tensor_gaps(groups, smallest)
        chains: Dict[TensorRef, _Chain] = {}
        for ref, gap in gaps.items():
            chain = self._chain(ref, gap.first)
            # what takes longer to make than it is gone saves nothing: it would only be made twice
            if chain is not None and self._time(chain) < self.clock[gap.first] - self.clock[gap.last + 1]:
                chains[ref] = chain
        number_of = {ref: number for number, ref in enumerate(chains)}
        found = []
        for ref, (ops, read) in chains.items():
            size, last, first = gaps[ref]
            sources = sorted(number_of[other] for other in read if other in number_of and gaps[other].last < first)
            readers = tuple(self.order[position] for position in self._readers[ref] if position >= first)
            found.append(Candidate(ref, size, last, first, ops, tuple(sources), readers))
        return tuple(found)

    def _time(self, chain: _Chain) -> float:
        return sum(self.seconds[position] for position in chain.ops)

    def _tensor_gaps(self, groups: Sequence[Group], smallest: int) -> Dict[TensorRef, _Gap]:
        """Of storages that a group passes over, and of whose tensors one alone is read after that, this tensor."""
        number_of = group_of(groups)
        group = [number_of[name] for name in self.order]
        members: Dict[int, List[TensorRef]] = defaultdict(list)
        for ref, storage in self._life.holder.items():
            members[storage].append(ref)
        gaps = {}
        for storage, (last, first) in self._storage_gaps().items():
            size = self._life.storages[storage].bytes
            if size < smallest or group[first] - group[last] < 2:
                continue
            refs = members[storage]
            late = [ref for ref in refs if self.position[ref.op] <= last and self._read_from(ref, first)]
            if len(late) == 1:
                gaps[late[0]] = _Gap(size, last, first)
        return gaps

    def _storage_gaps(self) -> Dict[int, Tuple[int, int]]:
        """For each storage that ends within the step the uses before and after the time when most is held.

        Other times in which nothing touches a storage are left out: a copy that is made within the forward pass would
        have to be kept for what is made from it in the backward pass.
        """
        turn = int(np.argmax(self.held_bytes)) if self.order else 0
        before: Dict[int, int] = {}
        gaps: Dict[int, Tuple[int, int]] = {}
        for position, touched in enumerate(self._life.touches):
            for storage in touched:
                if position < turn:
                    before[storage] = position
                elif storage in before and storage not in gaps:
                    gaps[storage] = before[storage], position
        storages, end = self._life.storages, len(self.order)
        return {
            number: gap for number, gap in gaps.items() if storages[number].made >= 0 and storages[number].last < end
        }

    def _read_from(self, ref: TensorRef, position: int) -> bool:
        """Whether an operation at a position, or later, reads a tensor."""
        readers = self._readers.get(ref, ())
        return len(readers) > 0 and readers[-1] >= position

    def _chain(self, tensor: TensorRef, first: int) -> Optional[_Chain]:
        """What makes a tensor from what can be read at a position; None where nothing short and pure does."""
        ops: Set[int] = set()
        read: Dict[TensorRef, None] = {}
        open_refs = [tensor]
        while open_refs:
            ref = open_refs.pop()
            if ref != tensor and self.there(ref, first):
                read[ref] = None
                continue
            op, position = self._named[ref.op], self.position[ref.op]
            if position in ops:
                continue
            if not op.pure or op.persistent or len(ops) == _LONGEST_CHAIN:
                return None
            ops.add(position)
            open_refs.extend(op.inputs)
        return _Chain(tuple(sorted(ops)), tuple(read))
