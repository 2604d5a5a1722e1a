"""Group Prefetch: what a group needs comes by explicit copy while the group before it runs (paper of 2021)."""

from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

from graph_tools.errors import PlanError
from graph_tools.graph.lifetimes import Lifetimes, lifetimes
from graph_tools.graph.opgraph import OpGraph, TensorRef
from graph_tools.passes.group import Group, op_order


@dataclass(frozen=True)
class Prefetch:
    """One explicit copy to the device.

    Attributes:
        tensor: what to copy, as the first operation that needs it reads it.
        bytes: its size.
        during: number of the group during which the copy runs: it is issued when the group before that one is done.
        needed_by: number of the group that needs it.
    """

    tensor: TensorRef
    bytes: int
    during: int
    needed_by: int


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


def group_uses(graph: OpGraph, life: Lifetimes, groups: Sequence[Group]) -> Tuple[GroupUse, ...]:
    """Every use, by a group, of a storage that an earlier group made, in order; variables and constants left out."""
    named, holder, uses = graph.by_name(), life.holder, []
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
                seen[holder[name, index]] = number
    return tuple(uses)


def plan_prefetches(
    graph: OpGraph,
    groups: Sequence[Group],
    depth: int = 1,
    smallest: int = 0,
    capacity: Optional[int] = None,
) -> Tuple[Prefetch, ...]:
    """Tensors to copy ahead: with a depth of 1, as in the paper, for each group *g* those made before group *g-1* and
    not touched in it, copied during *g-1*; with a greater depth up to so many groups ahead of *g*, but not before the
    group after the last one that touched them. Variables and constants stay where they are.

    Args:
        depth: how many groups ahead a copy may be issued; 0 plans none.
        smallest: smaller tensors, in bytes, are left to on-demand access.
        capacity: bytes of the device: what would not fit beside the groups that run meanwhile is left out, since it
            would drive out what they need.

    Raises:
        PlanError: the depth is negative.
    """
    if depth < 0:
        raise PlanError("a prefetch depth of {} looks back; give 0 or more groups".format(depth))
    life = lifetimes(graph, op_order(groups))
    room = None if capacity is None else {number: capacity - group.bytes for number, group in enumerate(groups)}
    found = []
    for use in group_uses(graph, life, groups):
        size, during = life.storages[use.storage].bytes, max(use.group - depth, use.last + 1)
        if during < use.group and size >= max(smallest, 1) and _take(room, size, during, use.group):
            found.append(Prefetch(use.tensor, size, during, use.group))
    return tuple(sorted(found, key=lambda item: item.during))


def _take(room: Optional[Dict[int, int]], size: int, during: int, needed_by: int) -> bool:
    """Whether a copy fits beside every group until it is used; if so its bytes are taken."""
    if room is None:
        return True
    if any(room[number] < size for number in range(during, needed_by)):
        return False
    for number in range(during, needed_by):
        room[number] -= size
    return True
