"""Group Execution: neighbouring operations run together as long as what they touch fits (paper of 2021)."""

from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from graph_tools.errors import BudgetError
from graph_tools.graph.lifetimes import Lifetimes, lifetimes
from graph_tools.graph.opgraph import OpGraph


@dataclass(frozen=True)
class Group:
    """Operations that may run at the same time, one group after another.

    Attributes:
        ops: names, in order.
        bytes: everything they touch, each storage once, and their largest workspace: what must be on the device
            together.
        carried_bytes: what earlier groups, or variables, hold meanwhile and this group does not touch.
        oversized: whether this is a single operation that exceeds the limit alone.
    """

    ops: Tuple[str, ...]
    bytes: int
    carried_bytes: int = 0
    oversized: bool = False


def group_ops(graph: OpGraph, order: Sequence[str], limit: int, life: Optional[Lifetimes] = None) -> Tuple[Group, ...]:
    """Cut an order into groups: the longest prefix whose memory does not exceed the limit, again and again.

    Memory is what the paper bounds, the total of what the operations of a group touch: tensors that die within the
    group count in full, since its operations may run in any order. A workspace is given back when its operation ends,
    and a device runs one large operation at a time, so that the largest counts. An operation that exceeds the limit by
    itself becomes an ``oversized`` group of its own.

    Args:
        limit: bytes.
        life: of this order, where it is known.

    Raises:
        BudgetError: the limit is not positive.
        PlanError: the order is not a topological order of the graph.
    """
    if limit <= 0:
        raise BudgetError("a group limit of {} bytes holds nothing; give a positive one".format(limit))
    life, named = life or lifetimes(graph, order), graph.by_name()
    starts, sizes, held, total, workspace = [], [], set(), 0, 0
    for position, name in enumerate(order):
        touched, own = life.touches[position], named[name].workspace_bytes
        added = sum(life.storages[number].bytes for number in touched if number not in held)
        if not starts or total + added + max(workspace, own) > limit:
            starts.append(position)
            sizes.append(0)
            held, total, workspace = set(), 0, 0
            added = sum(life.storages[number].bytes for number in touched)
        held.update(touched)
        total += added
        workspace = max(workspace, own)
        sizes[-1] = total + workspace
    carried = _carried(life, starts)
    ends = starts[1:] + [len(order)]
    return tuple(
        Group(tuple(order[start:end]), size, other, size > limit)
        for start, end, size, other in zip(starts, ends, sizes, carried)
    )


def _carried(life: Lifetimes, starts: Sequence[int]) -> Tuple[int, ...]:
    """For each group the bytes that are held when it begins, are needed later, and are not touched in it."""
    change = np.zeros(len(life.order) + 2, np.int64)
    for storage in life.storages:
        change[storage.made + 1] += storage.bytes
        change[storage.last + 1] -= storage.bytes
    held = np.cumsum(change)
    carried = []
    for start, end in zip(starts, list(starts[1:]) + [len(life.order)]):
        touched = {number for position in range(start, end) for number in life.touches[position]}
        before = (life.storages[number] for number in touched if life.storages[number].made < start)
        carried.append(int(held[start]) - sum(storage.bytes for storage in before))
    return tuple(carried)


def op_order(groups: Sequence[Group]) -> Tuple[str, ...]:
    """Names of all operations in execution order."""
    return tuple(name for group in groups for name in group.ops)


def group_of(groups: Sequence[Group]) -> Dict[str, int]:
    """Number of the group of each operation, by name."""
    return {name: number for number, group in enumerate(groups) for name in group.ops}
