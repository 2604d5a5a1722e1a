"""The order in which operations run: as the graph has it, or depth first so that less memory is held at once."""

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import DefaultDict, Dict, List, Set, Tuple

from graph_tools.errors import PlanError
from graph_tools.graph.lifetimes import lifetimes, live_bytes
from graph_tools.graph.opgraph import OpGraph, TensorRef, dependencies, stable_order
from graph_tools.units import readable

ORDERS = ("auto", "topological", "depth-first", "demand")

_FAR_LESS = 8  # times
_SOON = 2  # operations
_SMALL = 256  # times smaller than the largest


@dataclass(frozen=True)
class Order:
    """An order of all operations.

    Attributes:
        kind: ``topological`` (the paper's), ``depth-first`` or ``demand``.
        reason: one sentence: why this one.
        names: the operations.
        peak_bytes: the most memory held at once when they run one after another, workspaces included.
    """

    kind: str
    reason: str
    names: Tuple[str, ...]
    peak_bytes: int


def choose_order(graph: OpGraph, kind: str = "auto") -> Order:
    """Order the operations of a graph.

    Args:
        kind: ``topological``, ``depth-first``, ``demand`` (see :func:`demand_order`), or ``auto`` for that of the first
            two that holds less memory at its peak; the topological order where both hold the same. ``demand`` serves
            plans that recompute, and is not among those that ``auto`` compares.

    Raises:
        PlanError: the kind is unknown.
    """
    if kind not in ORDERS:
        raise PlanError("unknown order '{}'; use one of {}".format(kind, ", ".join(ORDERS)))
    makers = {"topological": stable_order, "depth-first": depth_first_order, "demand": demand_order}
    if kind != "auto":
        names = makers[kind](graph)
        return Order(kind, "asked for", names, peak_bytes(graph, names))
    best, other = "topological", "depth-first"
    orders = {name: makers[name](graph) for name in (best, other)}
    peaks = {name: peak_bytes(graph, order) for name, order in orders.items()}
    if peaks[other] < peaks[best]:
        best, other = other, best
    reason = "holds {} at its peak, the {} order {}".format(readable(peaks[best]), other, readable(peaks[other]))
    return Order(best, reason, orders[best], peaks[best])


def peak_bytes(graph: OpGraph, names: Tuple[str, ...]) -> int:
    """The most bytes held at once when the operations run one after another in an order."""
    return int(live_bytes(graph, lifetimes(graph, names)).max(initial=0))


def depth_first_order(graph: OpGraph) -> Tuple[str, ...]:
    """A topological order that goes on with what was just computed and frees memory as early as it can.

    Of the operations that can run, those that lower the bytes held come first, the one that lowers them most before
    others; then those that became ready last, so that a chain is followed to its end before another begins.
    """
    return _DepthFirst(graph).run()


def demand_order(graph: OpGraph) -> Tuple[str, ...]:
    """A topological order that goes back from the operation furthest from the start and runs what it needs, one input
    after the other; then the next furthest.

    Where maps are cut into strips the strips of many layers follow each other, instead of all strips of a layer. An
    operation that gives out far less than it reads, such as the gradient of a kernel, runs as soon as it can, since it
    lets go of what it reads; what depends on small tensors alone runs first, so that nothing large waits for it.
    """
    return _Demand(graph).run()


class _Demand:
    def __init__(self, graph: OpGraph):
        self._ops = graph.ops
        position = {op.name: index for index, op in enumerate(graph.ops)}
        self._needs = [[position[name] for name in dependencies(op)] for op in graph.ops]
        self._followers: List[List[int]] = [[] for _ in graph.ops]
        for index, needs in enumerate(self._needs):
            for other in needs:
                self._followers[other].append(index)
        self._forward = [position[name] for name in stable_order(graph)]
        self._made = [sum(out.bytes for out in op.outputs if out.alias is None) for op in graph.ops]
        self._read = [
            sum(graph.ops[position[ref.op]].outputs[ref.index].bytes for ref in op.inputs) for op in graph.ops
        ]
        self._level = self._levels()
        self._waits = [len(needs) for needs in self._needs]
        self._done = [False] * len(graph.ops)
        self._names: List[str] = []

    def run(self) -> Tuple[str, ...]:
        self._run_small()
        depth = [0] * len(self._ops)
        for index in self._forward:
            depth[index] = 1 + max((depth[other] for other in self._needs[index]), default=0)
        for start in sorted(range(len(self._ops)), key=lambda index: (-depth[index], index)):
            self._run_for(start)
        return tuple(self._names)

    def _levels(self) -> List[int]:
        """How many operations there are, at most, from each until all that follows gives out far less."""
        far = len(self._ops)
        level = [0 if _FAR_LESS * made <= read else far for made, read in zip(self._made, self._read)]
        for index in reversed(self._forward):
            if level[index] and self._followers[index]:
                level[index] = 1 + max(level[other] for other in self._followers[index])
        return level

    def _run_small(self) -> None:
        """Run what reads and makes little, and depends on nothing else."""
        most = max(self._made, default=0) // _SMALL
        for index in self._forward:
            if max(self._made[index], self._read[index]) <= most and not self._waits[index]:
                self._finish(index, False)

    def _run_for(self, start: int) -> None:
        """Run an operation, and before it what it needs."""
        path = [start]
        while path:
            index = path[-1]
            missing = None if self._done[index] else next((n for n in self._needs[index] if not self._done[n]), None)
            if missing is not None:
                path.append(missing)
                continue
            path.pop()
            if not self._done[index]:
                self._finish(index, True)

    def _finish(self, index: int, follow: bool) -> None:
        """Run an operation, and after it what can run now and soon lets go of what it made."""
        open_ops = [index]
        while open_ops:
            index = open_ops.pop()
            self._done[index] = True
            self._names.append(self._ops[index].name)
            for follower in reversed(self._followers[index]):
                self._waits[follower] -= 1
                if follow and not self._waits[follower] and self._level[follower] <= _SOON:
                    open_ops.append(follower)


class _DepthFirst:
    """List scheduling; an operation's key is pushed again whenever what it would free changes."""

    def __init__(self, graph: OpGraph):
        self._ops = graph.ops
        self._position = {op.name: index for index, op in enumerate(graph.ops)}
        self._root, self._bytes = _roots(graph)
        self._readers: DefaultDict[TensorRef, Set[int]] = defaultdict(
            set
        )  # storage -> operations that have yet to read it
        self._followers: List[List[int]] = [[] for _ in graph.ops]
        self._waits = [0] * len(graph.ops)
        for index, op in enumerate(graph.ops):
            for name in dependencies(op):
                self._followers[self._position[name]].append(index)
                self._waits[index] += 1
            for ref in op.inputs:
                self._readers[self._root[ref]].add(index)
        self._kept = {self._root[ref] for ref in graph.fetches}
        self._kept |= {TensorRef(op.name, i) for op in graph.ops if op.persistent for i in range(len(op.outputs))}
        self._ready_at: Dict[int, int] = {}  # operation -> time, as a count
        self._heap: List[Tuple[int, int, int]] = []  # keys, operation last
        self._clock = 0

    def run(self) -> Tuple[str, ...]:
        for index in reversed(range(len(self._ops))):  # the first of the graph became ready last
            if not self._waits[index]:
                self._make_ready(index)
        names: List[str] = []
        done: Set[int] = set()
        while self._heap:
            index = heapq.heappop(self._heap)[-1]
            if index not in done:
                done.add(index)
                names.append(self._ops[index].name)
                self._finish(index)
        return tuple(names)

    def _make_ready(self, index: int) -> None:
        self._ready_at[index] = self._clock
        self._clock += 1
        self._push(index)

    def _push(self, index: int) -> None:
        grows = self._growth(index)
        key = (grows, index) if grows < 0 else (0, -self._ready_at[index])
        heapq.heappush(self._heap, (*key, index))

    def _growth(self, index: int) -> int:
        """Bytes held after an operation less those held before it; outputs that nothing reads count as freed.

        Readers of an alias are readers of its storage, so that an alias with readers keeps it.
        """
        op = self._ops[index]
        own = [TensorRef(op.name, i) for i in range(0 if op.persistent else len(op.outputs))]
        made = [ref for ref in own if self._root[ref] == ref and (self._readers[ref] or ref in self._kept)]
        read = {self._root[ref] for ref in op.inputs} - self._kept
        freed = [root for root in read if self._readers[root] <= {index}]
        return sum(self._bytes[ref] for ref in made) - sum(self._bytes[root] for root in freed)

    def _finish(self, index: int) -> None:
        for root in {self._root[ref] for ref in self._ops[index].inputs}:
            readers = self._readers[root]
            readers.discard(index)
            if len(readers) == 1:
                (other,) = readers
                if other in self._ready_at:  # it now frees this storage
                    self._push(other)
        for follower in reversed(self._followers[index]):
            self._waits[follower] -= 1
            if not self._waits[follower]:
                self._make_ready(follower)


def _roots(graph: OpGraph) -> Tuple[Dict[TensorRef, TensorRef], Dict[TensorRef, int]]:
    """The tensor whose memory each tensor is, aliases followed, and the bytes of those that have their own."""
    named = graph.by_name()
    root: Dict[TensorRef, TensorRef] = {}
    size: Dict[TensorRef, int] = {}
    for name in stable_order(graph):
        op = named[name]
        for index, output in enumerate(op.outputs):
            ref = TensorRef(name, index)
            if output.alias is None or op.persistent:
                root[ref], size[ref] = ref, output.bytes
            else:
                root[ref] = root[op.inputs[output.alias]]
    return root, size
