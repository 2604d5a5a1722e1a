"""Tensors that a plan may take off the device between two of their uses, and what it takes to compute them again."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from graph_tools.graph.lifetimes import lifetimes, touched_bytes
from graph_tools.graph.opgraph import OpGraph, TensorRef
from graph_tools.passes.group import Group, group_of, op_order
from graph_tools.passes.prefetch import GroupUse, group_uses
from graph_tools.simulation.machine import Machine

_LONGEST_CHAIN = 8  # operations; longer ones keep more than they free while they run


@dataclass(frozen=True)
class Candidate:
    """A large tensor and the longest time in which no group touches it.

    Attributes:
        tensor: as the group that needs it reads it.
        bytes: its size.
        last: number of the group that touches it last before.
        needed: number of the group that needs it next.
        ops: operations that compute it again, in order; empty where nothing can.
        sources: numbers, among the candidates, of tensors that those operations read.
        seconds: time of those operations.
        readers: operations that would read the copy.
    """

    tensor: TensorRef
    bytes: int
    last: int
    needed: int
    ops: Tuple[str, ...] = ()
    sources: Tuple[int, ...] = ()
    seconds: float = 0.0
    readers: Tuple[str, ...] = ()


def find_candidates(graph: OpGraph, groups: Sequence[Group], machine: Machine, smallest: int) -> Tuple[Candidate, ...]:
    """Tensors of at least so many bytes that one group or more passes over, in the order of their first use.

    A tensor can be computed again where at most eight pure operations make it from tensors that are read then, or
    later, anyway, and from variables that nothing has written by then.
    """
    finder = _Finder(graph, groups, machine)
    uses = [use for use in finder.longest_gaps() if finder.life.storages[use.storage].bytes >= smallest]
    number_of = {use.storage: number for number, use in enumerate(uses)}
    return tuple(finder.candidate(use, number_of) for use in uses)


class _Finder:
    def __init__(self, graph: OpGraph, groups: Sequence[Group], machine: Machine):
        self._graph, self._groups, self._machine = graph, groups, machine
        self._named, self._group_of = graph.by_name(), group_of(groups)
        self.life = lifetimes(graph, op_order(groups))
        self._position = {name: position for position, name in enumerate(self.life.order)}
        self._touched = touched_bytes(graph, self.life)
        self._readers: Dict[TensorRef, List[str]] = defaultdict(list)
        for name in self.life.order:
            for ref in dict.fromkeys(self._named[name].inputs):
                self._readers[ref].append(name)
        self._members: Dict[int, List[TensorRef]] = defaultdict(list)
        for ref, storage in self.life.holder.items():
            self._members[storage].append(ref)
        self._first_write: Dict[int, int] = {}  # variable -> first group that may change it
        for position, name in enumerate(self.life.order):
            if not self._named[name].pure:
                for storage in self.life.touches[position]:
                    self._first_write.setdefault(storage, self._group_of[name])

    def longest_gaps(self) -> List[GroupUse]:
        """For each storage the use before which most groups pass over it, of storages that end within the step."""
        best: Dict[int, GroupUse] = {}
        for use in group_uses(self._graph, self.life, self._groups):
            gap = use.group - use.last
            ends = self.life.storages[use.storage].last < len(self.life.order)
            known = best.get(use.storage)
            if ends and gap >= 2 and (known is None or gap > known.group - known.last):
                best[use.storage] = use
        return [best[storage] for storage in sorted(best)]

    def candidate(self, use: GroupUse, number_of: Dict[int, int]) -> Candidate:
        size = self.life.storages[use.storage].bytes
        plain = Candidate(use.tensor, size, use.last, use.group)
        late = [ref for ref in self._members[use.storage] if self._read_from(ref, use.group)]
        chain = self._chain(use.tensor, use.group) if late == [use.tensor] else None
        if chain is None:
            return plain
        ops, read = chain
        storages = sorted({self.life.holder[ref] for ref in read})
        sources = tuple(number_of[storage] for storage in storages if storage in number_of)
        readers = [name for name in self._readers[use.tensor] if self._group_of[name] >= use.group]
        seconds = sum(self._seconds(name) for name in ops)
        return Candidate(use.tensor, size, use.last, use.group, ops, sources, seconds, tuple(readers))

    def _read_from(self, ref, group):
        """Whether an operation of this group, or of a later one, reads a tensor."""
        readers = self._readers[ref]
        return bool(readers) and self._group_of[readers[-1]] >= group

    def _chain(self, tensor: TensorRef, group: int) -> Optional[Tuple[Tuple[str, ...], Tuple[TensorRef, ...]]]:
        """Operations that make a tensor from what a group can read, and what they read; None where nothing can."""
        ops, read, open_refs = set(), [], [tensor]
        while open_refs:
            ref = open_refs.pop()
            op = self._named[ref.op]
            if ref != tensor and self._readable(ref, group):
                read.append(ref)
            elif op.pure and not op.persistent and len(ops) < _LONGEST_CHAIN:
                if ref.op not in ops:
                    ops.add(ref.op)
                    open_refs.extend(op.inputs)
            elif ref.op not in ops:
                return None
        return tuple(sorted(ops, key=self._position.__getitem__)), tuple(dict.fromkeys(read))

    def _readable(self, ref: TensorRef, group: int) -> bool:
        """Whether a tensor can be read in a group without keeping it for that."""
        number = self.life.holder[ref]
        if self.life.storages[number].made < 0:
            unchanged = self._first_write.get(number, len(self._groups)) > group
            return unchanged and (self._named[ref.op].persistent or self._read_from(ref, group))
        return self._read_from(ref, group)

    def _seconds(self, name):
        return self._machine.seconds(self._named[name], self._touched[self._position[name]])
