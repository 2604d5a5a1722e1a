"""Group Prefetch: what a group needs comes by explicit copy while the group before it runs (paper of 2021)."""

from typing import Dict, List, Optional, Sequence, Tuple

from graph_tools.errors import PlanError
from graph_tools.graph.lifetimes import lifetimes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.group import group_uses
from graph_tools.plan import Group, Prefetch, op_order


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
    found: List[Prefetch] = []
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
