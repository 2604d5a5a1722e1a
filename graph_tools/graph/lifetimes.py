"""Which piece of memory holds which tensor, and from when to when, for one order of execution."""

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from graph_tools.arrays import Array
from graph_tools.errors import PlanError
from graph_tools.graph.opgraph import Op, OpGraph, TensorRef


@dataclass(frozen=True)
class Storage:
    """One piece of memory; several tensors share it one after another, or as aliases.

    Attributes:
        tensor: the first tensor that it holds.
        bytes: its size.
        made: position of the operation that makes it, or -1 where it is there before the step.
        last: position of the last operation that touches it, or the number of operations where it outlives the step.
    """

    tensor: TensorRef
    bytes: int
    made: int
    last: int


@dataclass(frozen=True)
class Lifetimes:
    """All storages of a graph in one order.

    Attributes:
        order: names of the operations.
        storages: by number, in the order in which they are made.
        touches: for each position the numbers of the storages that the operation reads or writes, each once, inputs
            before outputs.
        holder: number of the storage that holds a tensor.
    """

    order: Tuple[str, ...]
    storages: Tuple[Storage, ...]
    touches: Tuple[Tuple[int, ...], ...]
    holder: Dict[TensorRef, int]


_Made = Tuple[TensorRef, int, int]  # first tensor of a storage, its bytes, and where it is made


def lifetimes(graph: OpGraph, order: Sequence[str]) -> Lifetimes:
    """Assign tensors to storages.

    An alias adds nothing. An output that can be computed in place takes over an input's storage where both have the
    same size, nothing later in the order reads it, and it does not outlive the step.

    Raises:
        PlanError: the order is not a topological order of the graph.
    """
    named = graph.by_name()
    check_order(graph, order)
    last_use = _last_uses(graph, named, order)
    holder: Dict[TensorRef, int] = {}
    tensors: List[_Made] = []
    touches: List[Tuple[int, ...]] = []
    last: List[int] = []  # of each storage: the last position that touches it
    for position, name in enumerate(order):
        op = named[name]
        touched = [holder[ref] for ref in op.inputs]
        for index, output in enumerate(op.outputs):
            ref, number = TensorRef(name, index), None
            if output.alias is not None or output.in_place:
                number = _shared(op, index, holder, tensors, last, position)
            if number is None:
                number = len(tensors)
                tensors.append((ref, output.bytes, -1 if op.persistent else position))
                last.append(len(order) if op.persistent else position)
            holder[ref] = number
            last[number] = max(last[number], position, last_use.get(ref, -1))
            touched.append(number)
        touches.append(tuple(dict.fromkeys(touched)) if len(touched) > 1 else tuple(touched))
    storages = tuple(Storage(*what, last=until) for what, until in zip(tensors, last))
    return Lifetimes(tuple(order), storages, tuple(touches), holder)


def check_order(graph: OpGraph, order: Sequence[str]) -> None:
    """Refuse what is not a topological order of the whole graph.

    Raises:
        PlanError: names an operation that is missing, unknown, there twice, or too early.
    """
    named, position = graph.by_name(), {name: index for index, name in enumerate(order)}
    odd = sorted(set(named) ^ set(position))
    if odd or len(position) != len(order):
        name = odd[0] if odd else next(name for index, name in enumerate(order) if position[name] != index)
        raise PlanError("operation {} is not exactly once in the order; plan this graph again".format(name))
    for place, name in enumerate(order):
        op = named[name]
        for other in [ref[0] for ref in op.inputs] + list(op.control_inputs):
            if position[other] > place:
                raise PlanError("the order has {} before {}, which it needs; plan this graph again".format(name, other))


def _last_uses(graph: OpGraph, named: Mapping[str, Op], order: Sequence[str]) -> Dict[TensorRef, int]:
    """Position of the last reader of each tensor that has one, the number of operations for fetches."""
    uses: Dict[TensorRef, int] = {}
    for position, name in enumerate(order):
        for ref in named[name].inputs:
            uses[ref] = position
    for ref in graph.fetches:
        uses[ref] = len(order)
    return uses


def _shared(
    op: Op, index: int, holder: Dict[TensorRef, int], tensors: List[_Made], last: List[int], position: int
) -> Optional[int]:
    """The storage of an input that an output takes, or None where it gets its own."""
    output = op.outputs[index]
    if op.persistent:
        return None
    if output.alias is not None:
        return holder[op.inputs[output.alias]]
    taken = {holder[TensorRef(op.name, other)] for other in range(index)}
    for place in output.in_place:
        number = holder[op.inputs[place]]
        if tensors[number][1] == output.bytes and last[number] == position and number not in taken:
            return number
    return None


def live_bytes(graph: OpGraph, life: Lifetimes) -> Array:
    """Bytes that must be held while each operation runs, in order, its workspace included (int64)."""
    steps = len(life.order)
    change = np.zeros(steps + 1, np.int64)
    for storage in life.storages:
        change[max(storage.made, 0)] += storage.bytes
        change[min(storage.last, steps - 1) + 1] -= storage.bytes
    named = graph.by_name()
    workspaces = np.array([named[name].workspace_bytes for name in life.order], np.int64)
    held: Array = np.cumsum(change)[:-1] + workspaces
    return held


def touched_bytes(graph: OpGraph, life: Lifetimes) -> Tuple[int, ...]:
    """Bytes that each operation reads and writes, in order: its storages, each once, and its workspace."""
    named = graph.by_name()
    sizes = [storage.bytes for storage in life.storages]
    return tuple(
        sum([sizes[number] for number in touched]) + named[name].workspace_bytes
        for name, touched in zip(life.order, life.touches)
    )
