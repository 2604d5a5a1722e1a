"""The graph that all passes work on: operations, what they read, and what memory and time each needs."""

import heapq
from dataclasses import dataclass
from typing import Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

from graph_tools.errors import CycleError, DanglingInputError, UnknownSizeError

_SHOWN = 6  # operations of a cycle that its error names


class TensorRef(NamedTuple):
    """One output of one operation."""

    op: str
    index: int  # type: ignore[assignment]  # tuple has a method of this name, which nobody calls

    def __str__(self) -> str:
        return "{}:{}".format(self.op, self.index)


@dataclass(frozen=True)
class Output:
    """What an operation gives out.

    Attributes:
        bytes: size in memory; for the handle of a variable that of the variable. A graph refuses None, which says that
            nobody knows it.
        dtype: name of the type of its elements.
        alias: position of the input whose memory it is (``Identity``, ``Reshape``), or None where it has its own.
        in_place: positions of inputs whose memory it takes over where nothing later reads them (``Relu``, ``Add``).
    """

    bytes: int
    dtype: str = "float32"
    alias: Optional[int] = None
    in_place: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: unique in the graph.
        type: what it computes, such as ``Conv2D``.
        inputs: tensors it reads, in order.
        outputs: what it gives out.
        control_inputs: names of operations that must be done before it starts.
        workspace_bytes: memory it needs only while it runs.
        flops: multiplications and additions.
        persistent: whether its outputs outlive a step: variables and constants.
        pure: whether it always gives the same outputs for the same inputs and changes nothing, so that it can be
            recomputed.
    """

    name: str
    type: str
    inputs: Tuple[TensorRef, ...] = ()
    outputs: Tuple[Output, ...] = ()
    control_inputs: Tuple[str, ...] = ()
    workspace_bytes: int = 0
    flops: int = 0
    persistent: bool = False
    pure: bool = True


@dataclass(frozen=True)
class OpGraph:
    """Operations and the tensors asked of them. A graph that exists is valid: the constructor checks it.

    Attributes:
        ops: in any order; their position decides wherever a pass is free to choose, so that one graph gives one plan.
        fetches: tensors that must survive until the end of the step.

    Raises:
        DanglingInputError: an input, control input or fetch does not exist, or two operations have one name.
        UnknownSizeError: an output has no size.
        CycleError: no order of execution exists.
    """

    ops: Tuple[Op, ...]
    fetches: Tuple[TensorRef, ...] = ()

    def __post_init__(self) -> None:
        named = self.by_name()
        if len(named) < len(self.ops):
            names = [op.name for op in self.ops]
            double = next(name for number, name in enumerate(names) if name in names[:number])
            raise DanglingInputError("two operations are called {}; give each its own name".format(double))
        for op in self.ops:
            _check_op(op, named)
        for ref in self.fetches:
            _check_ref(ref, named, "the fetches name")
        stable_order(self)

    @classmethod
    def derived(cls, ops: Tuple[Op, ...], fetches: Tuple[TensorRef, ...]) -> "OpGraph":
        """A graph that a pass made from a valid one in a way that keeps it valid: it is not checked again."""
        graph = object.__new__(cls)
        graph.__dict__.update(ops=ops, fetches=fetches)
        return graph

    def by_name(self) -> Mapping[str, Op]:
        """Operations by name; the same mapping each time, since passes ask for it often: not to be changed."""
        named: Optional[Dict[str, Op]] = self.__dict__.get("_named")
        if named is None:
            named = self.__dict__["_named"] = {op.name: op for op in self.ops}
        return named

    @property
    def persistent_bytes(self) -> int:
        """Bytes of variables and constants."""
        return sum(out.bytes for op in self.ops if op.persistent for out in op.outputs)


def dependencies(op: Op) -> Tuple[str, ...]:
    """Names of the operations that must be done before one starts, each once, in order."""
    return tuple(dict.fromkeys([ref.op for ref in op.inputs] + list(op.control_inputs)))


def stable_order(graph: OpGraph) -> Tuple[str, ...]:
    """The topological order in which, of all operations that can run, the first of the graph runs first.

    Raises:
        CycleError: names operations of a cycle.
    """
    position = {op.name: index for index, op in enumerate(graph.ops)}
    waits = [0] * len(graph.ops)
    followers: List[List[int]] = [[] for _ in graph.ops]
    for index, op in enumerate(graph.ops):
        for name in dependencies(op):
            followers[position[name]].append(index)
            waits[index] += 1
    ready = [index for index, count in enumerate(waits) if not count]  # ascending, and so a heap
    done: List[str] = []
    while ready:
        index = heapq.heappop(ready)
        done.append(graph.ops[index].name)
        for follower in followers[index]:
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, follower)
    if len(done) < len(graph.ops):
        cycle = _find_cycle(graph, set(done))
        shown = ", ".join(cycle[:_SHOWN]) + (" and {} more".format(len(cycle) - _SHOWN) if len(cycle) > _SHOWN else "")
        raise CycleError("operations wait for each other in a circle: {}; remove one of these edges".format(shown))
    return tuple(done)


def _find_cycle(graph: OpGraph, done: Set[str]) -> List[str]:
    """A cycle among the operations that cannot run: each has such an operation among its dependencies."""
    named = graph.by_name()
    name = next(op.name for op in graph.ops if op.name not in done)
    path: Dict[str, int] = {}
    while name not in path:
        path[name] = len(path)
        name = next(other for other in dependencies(named[name]) if other not in done)
    return list(path)[path[name] :][::-1]


def _check_op(op: Op, named: Mapping[str, Op]) -> None:
    for ref in op.inputs:
        _check_ref(ref, named, "operation {} reads".format(op.name))
    for name in op.control_inputs:
        if name not in named:
            raise DanglingInputError(
                "operation {} waits for {}, which the graph does not have; add it".format(op.name, name)
            )
    for index, output in enumerate(op.outputs):
        if output.bytes is None:
            raise UnknownSizeError(
                "the size of tensor {}:{} ({}) is not known before the run; give its inputs static shapes".format(
                    op.name, index, op.type
                )
            )
        if output.bytes < 0:
            raise UnknownSizeError("tensor {}:{} has a negative size; give its bytes".format(op.name, index))
        for position in output.in_place + (() if output.alias is None else (output.alias,)):
            if not 0 <= position < len(op.inputs):
                raise DanglingInputError(
                    "output {} of operation {} shares the memory of input {}, which does not exist; name one of its "
                    "{} inputs".format(index, op.name, position, len(op.inputs))
                )


def _check_ref(ref: TensorRef, named: Mapping[str, Op], who: str) -> None:
    op = named.get(ref.op)
    if op is None or not 0 <= ref.index < len(op.outputs):
        raise DanglingInputError("{} tensor {}, which the graph does not have; add it".format(who, ref))
