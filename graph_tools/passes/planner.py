"""From a graph to a plan: order, groups, what is evicted or recomputed, what is fetched ahead."""

import warnings
from typing import NamedTuple, Optional

from graph_tools.errors import PlanError
from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.group import group_ops
from graph_tools.passes.order import choose_order
from graph_tools.passes.prefetch import plan_prefetches
from graph_tools.passes.recompute_plan import plan_recomputation
from graph_tools.plan import Plan
from graph_tools.simulation.machine import Machine

MEMORY_POLICIES = ("keep", "recompute")
# Names of before, which are still read: one that was renamed, and those that are gone since recompute plans better.
_RENAMED = "remat"
_DROPPED = ("greedy", "integer", "best")
FORMER_POLICIES = (_RENAMED,) + _DROPPED


class Policy(NamedTuple):
    """What a name of a memory policy means.

    Attributes:
        name: one of ``MEMORY_POLICIES``.
        note: a sentence where it is not what was asked for; else empty.
    """

    name: str
    note: str = ""


def resolve_policy(name: str) -> Policy:
    """The memory policy that a name means, be it one of before.

    Raises:
        PlanError: the name is unknown.
    """
    if name in MEMORY_POLICIES:
        return Policy(name)
    if name == _RENAMED:
        return Policy("recompute")
    if name in _DROPPED:
        return Policy("recompute", "the memory policy '{}' is gone; recompute is planned instead".format(name))
    raise PlanError("unknown memory policy '{}'; use one of {}".format(name, ", ".join(MEMORY_POLICIES)))


def make_plan(
    graph: OpGraph,
    limit: int,
    order: str = "auto",
    depth: int = 1,
    memory_policy: str = "keep",
    machine: Optional[Machine] = None,
    smallest: int = 0,
) -> Plan:
    """Plan one step of a graph. One graph and the same arguments always give the same plan.

    Args:
        limit: bytes that the operations of a group may touch together.
        order: see :func:`graph_tools.passes.order.choose_order`; with ``recompute`` ``auto`` means ``demand``, since
            what is dropped no longer counts for the memory that the other orders are compared by.
        depth: groups ahead that a prefetch may run; 0 plans none, 1 is the paper's. ``recompute`` decides by itself.
        memory_policy: ``keep`` leaves all tensors to the device's own paging, as the paper does; ``recompute`` drops
            whole runs of layers, recomputes them from shared copies and spreads evictions over the step. Names
            of before are read, with a warning where they mean another policy now (:func:`resolve_policy`).
        machine: budgets and rates; needed for ``recompute``. With ``keep`` no more is fetched ahead than its device
            has room for.
        smallest: smaller tensors, in bytes, are neither fetched ahead, evicted nor recomputed.

    Raises:
        GraphToolsError: the arguments contradict each other, or memory does not suffice.
    """
    policy = resolve_policy(memory_policy)
    if policy.note:
        warnings.warn(policy.note, stacklevel=2)
    if policy.name == "recompute":
        if machine is None:
            raise PlanError("the memory policy 'recompute' needs budgets and rates; give a machine")
        return plan_recomputation(graph, order, limit, machine, smallest)
    ordered = choose_order(graph, order)
    groups = group_ops(graph, ordered.names, limit)
    capacity = None if machine is None else machine.device_bytes
    prefetches = plan_prefetches(graph, groups, depth, smallest, capacity)
    return Plan(groups, limit, ordered.kind, ordered.reason, ordered.peak_bytes, prefetches)


def unplanned(graph: OpGraph, order: str = "topological") -> Plan:
    """Plain unified memory: all operations in one group, nothing fetched ahead."""
    ordered = choose_order(graph, order)
    groups = group_ops(graph, ordered.names, 2**62)
    return Plan(groups, 2**62, ordered.kind, ordered.reason, ordered.peak_bytes)
