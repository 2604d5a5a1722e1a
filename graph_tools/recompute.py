"""Graphs in which some tensors are computed again instead of being kept."""

from dataclasses import replace
from typing import Dict, Sequence, Tuple

from graph_tools.errors import PlanError
from graph_tools.opgraph import OpGraph, TensorRef
from graph_tools.plan import Recompute


def copy_name(op: str, number: int) -> str:
    """Name of the copy of an operation in the recomputation of this number in its plan."""
    return "{}/recomputed_{}".format(op, number)


def copied_ref(ref: TensorRef, ops: Sequence[str], number: int) -> TensorRef:
    """What a copied operation reads instead of a tensor: its copy, where its operation is copied as well."""
    return TensorRef(copy_name(ref.op, number), ref.index) if ref.op in ops else ref


def with_recomputes(graph: OpGraph, recomputes: Sequence[Recompute]) -> OpGraph:
    """The graph with copies of the recomputed operations, which their readers read.

    Raises:
        PlanError: a recomputation names an operation that the graph does not have.
    """
    ops = graph.by_name()
    for number, item in enumerate(recomputes):
        for name in item.ops + item.readers:
            if name not in ops:
                raise PlanError("the plan recomputes {}, which the graph does not have; plan it again".format(name))
        for name in item.ops:
            op = ops[name]
            inputs = tuple(copied_ref(ref, item.ops, number) for ref in op.inputs)
            copy = copy_name(name, number)
            ops[copy] = replace(op, name=copy, inputs=inputs, control_inputs=())
        again = copied_ref(item.tensor, item.ops, number)
        for name in item.readers:
            op = ops[name]
            ops[name] = replace(op, inputs=tuple(again if ref == item.tensor else ref for ref in op.inputs))
    return OpGraph(tuple(ops.values()), graph.fetches)


def insert_copies(order: Sequence[str], recomputes: Sequence[Recompute]) -> Tuple[str, ...]:
    """An order of the original graph with every copy right before the first of its readers."""
    position = {name: index for index, name in enumerate(order)}
    before: Dict[str, list] = {}
    for number, item in enumerate(recomputes):
        first = min(item.readers, key=position.__getitem__)
        before.setdefault(first, []).extend(copy_name(name, number) for name in item.ops)
    return tuple(other for name in order for other in before.get(name, []) + [name])
