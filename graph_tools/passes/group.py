"""Group Execution: neighbouring operations run together as long as what they touch fits (paper of 2021)."""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Set, Tuple

import numpy as np

from graph_tools.errors import BudgetError
from graph_tools.graph.lifetimes import Lifetimes, lifetimes
from graph_tools.graph.opgraph import OpGraph, TensorRef
from graph_tools.plan import Group


@dataclass(frozen=True)
class GroupUse:
    """One use of a storage by a group.

    Attributes:
        storage: its number in the lifetimes.
        tensor: the tensor of the storage that the group's first operation on it reads, which an earlier group made.
        last: number of the group that touched the storage last before.
        group: number of the group that uses it now.
    """

    storage: int
    tensor: TensorRef
    last: int
    group: int


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
    starts: List[int] = []
    sizes: List[int] = []
    held: Set[int] = set()
    total = workspace = 0
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
    carried: List[int] = []
    for start, end in zip(starts, list(starts[1:]) + [len(life.order)]):
        touched = {number for position in range(start, end) for number in life.touches[position]}
        before = (life.storages[number] for number in touched if life.storages[number].made < start)
        carried.append(int(held[start]) - sum(storage.bytes for storage in before))
    return tuple(carried)


def group_uses(graph: OpGraph, life: Lifetimes, groups: Sequence[Group]) -> Tuple[GroupUse, ...]:
    """Every use, by a group, of a storage that an earlier group made, in order; variables and constants left out."""
    named, holder = graph.by_name(), life.holder
    uses: List[GroupUse] = []
    seen = [-1] * len(life.storages)
    made = [storage.made >= 0 for storage in life.storages]
    for number, group in enumerate(groups):
        for name in group.ops:
            op = named[name]
            for ref in op.inputs:
                storage = holder[ref]
                last = seen[storage]
                if last != number:
                    if last >= 0 and made[storage]:
                        uses.append(GroupUse(storage, ref, last, number))
                    seen[storage] = number
            for index in range(len(op.outputs)):
                seen[holder[TensorRef(name, index)]] = number
    return tuple(uses)
