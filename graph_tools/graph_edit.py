"""A graph as a plan edits it: with copies of recomputed operations, which later operations read.

The same on operation graphs as :mod:`graph_tools.tensorflow.apply` does on TensorFlow's.
"""

from dataclasses import replace
from typing import Dict, List, Sequence, Tuple

from graph_tools.errors import PlanError
from graph_tools.graph.opgraph import OpGraph, TensorRef
from graph_tools.plan import Recompute


def copy_name(op: str, number: int) -> str:
    """Name of the copy of an operation in the recomputation of this number in its plan."""
    return "{}/recomputed_{}".format(op, number)


def copies_by_op(recomputes: Sequence[Recompute]) -> Tuple[Dict[str, int], ...]:
    """For each recomputation the number of the one whose copy of an operation is read in it, by operation.

    Raises:
        PlanError: a recomputation reads from one that comes later, or from none.
    """
    found: List[Dict[str, int]] = []
    for number, item in enumerate(recomputes):
        copies: Dict[str, int] = {}
        for source in item.sources:
            if not 0 <= source < number:
                raise PlanError(
                    "recomputation {} reads copies of number {}, which is not made before; plan it again".format(
                        number, source
                    )
                )
            copies.update(dict.fromkeys(recomputes[source].ops, source))
        copies.update(dict.fromkeys(item.ops, number))
        if item.tensor.op not in copies:
            raise PlanError("nothing in the plan computes {} again; plan it again".format(item.tensor))
        found.append(copies)
    return tuple(found)


def copied_ref(ref: TensorRef, copies: Dict[str, int]) -> TensorRef:
    """What a copied operation reads instead of a tensor: its copy, where there is one to read."""
    return TensorRef(copy_name(ref.op, copies[ref.op]), ref.index) if ref.op in copies else ref


def with_recomputes(graph: OpGraph, recomputes: Sequence[Recompute], check: bool = True) -> OpGraph:
    """The graph with copies of the recomputed operations, which their readers read.

    Args:
        check: whether to check that this is a graph; a pass that made the recomputations itself need not.

    Raises:
        PlanError: a recomputation names an operation that the graph does not have.
    """
    if not recomputes:
        return graph
    ops = dict(graph.by_name())
    for number, (item, copies) in enumerate(zip(recomputes, copies_by_op(recomputes))):
        for name in item.ops + item.readers:
            if name not in ops:
                raise PlanError("the plan recomputes {}, which the graph does not have; plan it again".format(name))
        for name in item.ops:
            op = ops[name]
            inputs = tuple(copied_ref(ref, copies) for ref in op.inputs)
            own_name = copy_name(name, number)
            ops[own_name] = replace(op, name=own_name, inputs=inputs, control_inputs=())
        copy = copied_ref(item.tensor, copies)
        for name in item.readers:
            op = ops[name]
            ops[name] = replace(op, inputs=tuple(copy if ref == item.tensor else ref for ref in op.inputs))
    return (OpGraph if check else OpGraph.derived)(tuple(ops.values()), graph.fetches)


def insert_copies(order: Sequence[str], recomputes: Sequence[Recompute]) -> Tuple[str, ...]:
    """An order of the original graph with every copy right before the first operation, or other copy, that reads it."""
    position = {name: index for index, name in enumerate(order)}
    places = [min(position[name] for name in item.readers) for item in recomputes]
    for number in reversed(range(len(recomputes))):
        for source in recomputes[number].sources:
            places[source] = min(places[source], places[number])
    before: Dict[int, List[str]] = {}
    for number, item in enumerate(recomputes):
        before.setdefault(places[number], []).extend(copy_name(name, number) for name in item.ops)
    return tuple(other for index, name in enumerate(order) for other in before.get(index, []) + [name])
