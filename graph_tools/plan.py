"""A plan: which operations run together, in which order, and which tensors move or are computed again in between."""

from dataclasses import dataclass
from typing import Tuple

from graph_tools.errors import PlanError
from graph_tools.graph.opgraph import TensorRef
from graph_tools.passes.group import Group, op_order
from graph_tools.passes.prefetch import Prefetch
from graph_tools.sizes import readable

_SHOWN_GROUPS = 24


@dataclass(frozen=True)
class Eviction:
    """One explicit copy to the host.

    Attributes:
        tensor: what leaves the device.
        bytes: its size.
        during: number of the group during which the copy runs: it is issued when the group before that one is done.
        needed_by: number of the group that needs it again.
    """

    tensor: TensorRef
    bytes: int
    during: int
    needed_by: int


@dataclass(frozen=True)
class Recompute:
    """A tensor that is dropped after its last near use and computed again before its next one.

    Attributes:
        tensor: what is computed again.
        bytes: its size.
        ops: the operations to run again, in order. The tensor comes from the last of them, or from a copy that one of
            the sources made.
        readers: operations that read the copy instead of the tensor.
        sources: numbers of earlier recomputations of the plan whose copies these operations read where there are any.
    """

    tensor: TensorRef
    bytes: int
    ops: Tuple[str, ...]
    readers: Tuple[str, ...]
    sources: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How one step of a graph runs.

    Attributes:
        groups: operations in execution order; copies of recomputed ones included.
        limit_bytes: limit of a group.
        order: kind of the order, ``topological`` or ``depth-first``.
        order_reason: why this one.
        peak_bytes: the most bytes held at once, on device and host together, when operations run one after another.
        prefetches: explicit copies to the device.
        evictions: explicit copies to the host.
        recomputes: tensors that are computed again.
        choice: how evictions and recomputations were chosen, in words; empty where all tensors are kept.
    """

    groups: Tuple[Group, ...]
    limit_bytes: int
    order: str
    order_reason: str
    peak_bytes: int
    prefetches: Tuple[Prefetch, ...] = ()
    evictions: Tuple[Eviction, ...] = ()
    recomputes: Tuple[Recompute, ...] = ()
    choice: str = ""

    def __post_init__(self):
        for copy in self.prefetches + self.evictions:
            if not 0 <= copy.during < copy.needed_by < len(self.groups):
                raise PlanError(
                    "the copy of {} during group {} for group {} does not fit a plan of {} groups; plan again".format(
                        copy.tensor, copy.during, copy.needed_by, len(self.groups)
                    )
                )

    @property
    def op_order(self) -> Tuple[str, ...]:
        """Names of all operations in execution order."""
        return op_order(self.groups)

    @property
    def oversized(self) -> Tuple[Group, ...]:
        """Groups of a single operation that exceeds the limit."""
        return tuple(group for group in self.groups if group.oversized)


def plan_table(plan: Plan, most: int = _SHOWN_GROUPS) -> str:
    """A plan as text: a summary, then its groups, of which at most so many are shown."""
    lines = [
        "order      {} ({})".format(plan.order, plan.order_reason),
        "groups     {} of at most {}".format(len(plan.groups), readable(plan.limit_bytes)),
        "peak       {} held at once".format(readable(plan.peak_bytes)),
        _copies("prefetch", plan.prefetches),
        _copies("move out", plan.evictions),
        _copies("recompute", plan.recomputes),
    ]
    if plan.choice:
        lines.append("choice     " + plan.choice)
    for group in plan.oversized:
        lines.append("too large  operation {} touches {}".format(group.ops[0], readable(group.bytes)))
    lines += ["", "group     ops     bytes   carried  prefetch  move out  first operation"]
    for number, group in list(enumerate(plan.groups))[:most]:
        incoming, outgoing = (
            sum(copy.bytes for copy in copies if copy.during == number) for copies in (plan.prefetches, plan.evictions)
        )
        cells = [readable(size) for size in (group.bytes, group.carried_bytes, incoming, outgoing)]
        lines.append("{:5d} {:7d} {:>9} {:>9} {:>9} {:>9}  {}".format(number, len(group.ops), *cells, group.ops[0]))
    if len(plan.groups) > most:
        lines.append("  ... {} more groups".format(len(plan.groups) - most))
    return "\n".join(lines)


def _copies(what, copies):
    return "{:10} {} tensors, {}".format(what, len(copies), readable(sum(copy.bytes for copy in copies)))
