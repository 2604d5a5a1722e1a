"""Figures of what was measured."""

import importlib.util
import os
from typing import Any, Callable, Dict, List

from tf_um_patch.gpu_check.result import Check

TIMELINE, MEMORY = "timeline.png", "memory.png"


def draw(checks: List[Check], title: str, folder: str) -> List[str]:
    """Write the figures for which there are values, and return their paths; those of an earlier run are removed.

    Without matplotlib there are none.
    """
    drawable = importlib.util.find_spec("matplotlib") is not None
    values = {check.name: check.values for check in checks if check.values}
    paths = []
    for name, needed, plot in ((TIMELINE, {"overlap"}, _timeline), (MEMORY, {"pages", "managed_cost"}, _memory)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            os.remove(path)
        if drawable and needed <= set(values):
            _save(plot, values, title, path)
            paths.append(path)
    return paths


def _save(plot: Callable[[Any, Dict[str, Any]], None], values: Dict[str, Any], title: str, path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only here: it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), constrained_layout=True)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    plot(figure, values)
    figure.savefig(path, dpi=120)


def _timeline(figure: Any, values: Dict[str, Any]) -> None:
    """Kernel and prefetch, each alone and both at once."""
    overlap = values["overlap"]
    kernel, prefetch = (overlap[name]["value"] for name in ("kernel_time", "prefetch_time"))
    rows = [("kernel alone", (0, kernel)), ("prefetch alone", (0, prefetch))]
    rows += zip(("kernel, both", "prefetch, both"), overlap["timeline"]["value"])
    axes = figure.add_subplot(1, 1, 1)
    for row, (_, (start, end)) in enumerate(rows):
        axes.barh(row, end - start, left=start, color=("tab:blue", "tab:orange")[row % 2])
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms; {:.0%} of the shorter one overlaps".format(overlap["overlap"]["value"]))


def _memory(figure: Any, values: Dict[str, Any]) -> None:
    """Times of a kernel by where its memory is, and rates at which pages move."""
    cost, pages, prefetch = values["managed_cost"], values["pages"], values.get("prefetch", {})
    times = [
        ("plain", cost["plain_time"]),
        ("managed,\non the device", cost["managed_time"]),
        ("managed,\non the host", pages["on_demand_time"]),
    ]
    rates = [("on demand", pages["on_demand"])]
    rates += [
        (text, prefetch[name]) for text, name in (("prefetch", "to_device"), ("evict", "to_host")) if name in prefetch
    ]
    for position, (bars, label) in enumerate(
        ((times, "time of a kernel (ms)"), (rates, "rate of moving pages (GB/s)"))
    ):
        axes = figure.add_subplot(1, 2, position + 1)
        axes.bar([name for name, _ in bars], [entry["value"] for _, entry in bars], color="tab:blue")
        axes.set_ylabel(label)
        for index, (_, entry) in enumerate(bars):
            axes.annotate("{:.3g}".format(entry["value"]), (index, entry["value"]), ha="center", va="bottom")
        axes.margins(y=0.15)
    shortest = min(entry["value"] for _, entry in times)
    if shortest > 0:
        figure.axes[0].set_yscale("log")
        figure.axes[0].set_ylim(bottom=shortest / 3)
