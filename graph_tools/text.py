"""Graphs, plans and results as text for people."""

from collections import Counter
from typing import Sequence, Union

from graph_tools.graph.opgraph import OpGraph
from graph_tools.plan import Eviction, Plan, PrecisionPlan, Prefetch, Recompute
from graph_tools.simulation.simulate import Simulation
from graph_tools.units import readable

SHOWN_GROUPS = 24


def graph_summary(graph: OpGraph) -> str:
    """A graph in a few lines: how many operations, what they hold and compute."""
    largest = max(graph.ops, key=lambda op: sum(out.bytes for out in op.outputs), default=None)
    lines = [
        "operations {}".format(len(graph.ops)),
        "variables  {}".format(readable(graph.persistent_bytes)),
        "arithmetic {:.4g} operations".format(sum(op.flops for op in graph.ops)),
    ]
    if largest is not None:
        size = sum(out.bytes for out in largest.outputs)
        lines.append("largest    {} makes {}".format(largest.name, readable(size)))
    return "\n".join(lines)


def plan_table(plan: Plan, most: int = SHOWN_GROUPS) -> str:
    """A plan as text: a summary, then its groups, of which at most so many are shown."""
    lines = [
        "order      {} ({})".format(plan.order, plan.order_reason),
        "groups     {} of at most {}".format(len(plan.groups), readable(plan.limit_bytes)),
        "peak       {} held at once".format(readable(plan.peak_bytes)),
        _tensors("prefetch", plan.prefetches),
        _tensors("evict", plan.evictions),
        _tensors("recompute", plan.recomputes),
    ]
    if plan.memory_policy:
        lines.append("policy     " + plan.memory_policy)
    for group in plan.oversized:
        lines.append("too large  operation {} touches {}".format(group.ops[0], readable(group.bytes)))
    lines += ["", "group     ops     bytes   carried  prefetch     evict  first operation"]
    for number, group in list(enumerate(plan.groups))[:most]:
        copied = [sum(copy.bytes for copy in copies if copy.during == number) for copies in _copies(plan)]
        cells = [readable(size) for size in [group.bytes, group.carried_bytes] + copied]
        lines.append("{:5d} {:7d} {:>9} {:>9} {:>9} {:>9}  {}".format(number, len(group.ops), *cells, group.ops[0]))
    if len(plan.groups) > most:
        lines.append("  ... {} more groups".format(len(plan.groups) - most))
    return "\n".join(lines)


def _copies(plan: Plan) -> Sequence[Sequence[Union[Prefetch, Eviction]]]:
    return plan.prefetches, plan.evictions


def _tensors(what: str, items: Sequence[Union[Prefetch, Eviction, Recompute]]) -> str:
    return "{:10} {} tensors, {}".format(what, len(items), readable(sum(item.bytes for item in items)))


def precision_table(graph: OpGraph, plan: PrecisionPlan) -> str:
    """Which operations compute in half precision: how many, what they make, and how many of each type."""
    named, half = graph.by_name(), set(plan.half)
    made = {op.name: sum(out.bytes for out in op.outputs if out.alias is None) for op in graph.ops if not op.persistent}
    lowered = sum(named[ref.op].outputs[ref.index].bytes for ref in plan.lowered)
    types = Counter(op.type for op in graph.ops)
    counts = Counter(named[name].type for name in plan.half)
    lines = [
        "type       {}".format(plan.dtype),
        "half       {} of {} operations".format(len(plan.half), len(graph.ops)),
        "arithmetic {:.4g} of {:.4g} operations".format(
            sum(op.flops for op in graph.ops if op.name in half), sum(op.flops for op in graph.ops)
        ),
        "outputs    {} of {} take half the bytes".format(
            readable(sum(made[name] for name in plan.half)), readable(sum(made.values()))
        ),
        "casts      {} float32 tensors to half ({}), {} outputs back".format(
            len(plan.lowered), readable(lowered), len(plan.raised)
        ),
        "",
        "   half  of all  type of operation",
    ]
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        lines.append("{:7d} {:7d}  {}".format(count, types[name], name))
    return "\n".join(lines)


def simulation_table(result: Simulation) -> str:
    """A simulated step in a few lines."""
    return "\n".join(
        (
            "step       {:.4g} s: {:.4g} s computing, {:.4g} s waiting for pages".format(
                result.seconds, result.compute_seconds, result.stall_seconds
            ),
            "to device  {}, of it {} by page faults".format(
                readable(result.bytes_in), readable(result.on_demand_bytes)
            ),
            "to host    {}".format(readable(result.bytes_out)),
            "peak       {} on the device, {} on the host".format(
                readable(result.peak_device_bytes), readable(result.peak_host_bytes)
            ),
        )
    )
