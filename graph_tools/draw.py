"""A plan as a picture: bytes over the order of operations, groups as bands."""

from typing import Any, Dict, List, Optional, Tuple

from matplotlib.figure import Figure  # no pyplot: it keeps figures alive and needs a display's toolkit

from graph_tools.arrays import Array
from graph_tools.files import write_with
from graph_tools.graph.lifetimes import lifetimes, live_bytes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.graph_edit import with_recomputes
from graph_tools.plan import Plan

_MOST_BANDS = 400  # more are thinner than a pixel
_GB = 1e9


def draw_plan(graph: OpGraph, plan: Plan, path: str) -> None:
    """Write a picture of a plan: what is held while each operation runs, and over each group what it touches, with the
    copies that run meanwhile. The ending of the path says which format, such as ``.png`` or ``.svg``.

    Raises:
        FileError: the picture cannot be written.
        PlanError: the plan is not one of this graph.
    """
    changed = with_recomputes(graph, plan.recomputes)
    held = live_bytes(changed, lifetimes(changed, plan.op_order)) / _GB
    figure = Figure(figsize=(12, 5))
    axes = figure.subplots()
    axes.plot(range(len(held)), held, color="black", linewidth=1, label="held at once")
    _draw_groups(axes, plan)
    axes.axhline(plan.limit_bytes / _GB, color="tab:red", linestyle=":", label="limit of a group")
    axes.set_xlim(0, max(len(held), 1))
    axes.set_ylim(0, _top(held, plan))
    axes.set_xlabel("operations in execution order ({})".format(plan.order))
    axes.set_ylabel("GB")
    axes.set_title("{} groups, {} prefetches, {} evicted, {} recomputed".format(*_counts(plan)))
    axes.legend(loc="upper right")
    figure.tight_layout()
    write_with(path, lambda temporary: figure.savefig(temporary, dpi=120, metadata=_undated(path)))


def _draw_groups(axes: Any, plan: Plan) -> None:
    start, labels = 0, {"touched by a group": "tab:blue", "prefetched meanwhile": "tab:green"}
    labels["evicted meanwhile"] = "tab:orange"
    bars: Dict[str, Tuple[List[float], List[float], List[float]]] = {label: ([], [], []) for label in labels}
    incoming, outgoing = [0] * len(plan.groups), [0] * len(plan.groups)
    for prefetch in plan.prefetches:
        incoming[prefetch.during] += prefetch.bytes
    for eviction in plan.evictions:
        outgoing[eviction.during] += eviction.bytes
    for number, group in enumerate(plan.groups):
        width = len(group.ops)
        if number % 2 == 0 and len(plan.groups) <= _MOST_BANDS:
            axes.axvspan(start, start + width, color="0.92", zorder=0)
        for label, size in zip(labels, (group.bytes, incoming[number], outgoing[number])):
            for values, value in zip(bars[label], (start, size / _GB, width)):
                values.append(value)
        start += width
    for label, (lefts, heights, widths) in bars.items():
        axes.bar(lefts, heights, widths, align="edge", color=labels[label], alpha=0.4, label=label)


def _top(held: Array, plan: Plan) -> float:
    """Upper end of the scale; a limit far above everything is left out of the picture."""
    highest = max([float(held.max(initial=0))] + [group.bytes / _GB for group in plan.groups])
    limit = plan.limit_bytes / _GB
    return 1.1 * (max(highest, limit) if limit < 2 * highest else highest) or 1.0


def _counts(plan: Plan) -> Tuple[int, ...]:
    return tuple(len(part) for part in (plan.groups, plan.prefetches, plan.evictions, plan.recomputes))


def _undated(path: str) -> Optional[Dict[str, None]]:
    """Keep the date out of SVG files, so that one plan gives one file."""
    return {"Date": None} if path.lower().endswith(".svg") else None
