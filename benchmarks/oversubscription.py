"""Simulated time of a training step whose feature maps exceed the device: ``python benchmarks/oversubscription.py``.

For each canvas: the rate on a device that holds everything (the same graph in the graph's own order), the 2021 paper's
schedule (groups, each fetched during the one before), the plan that recomputes and evicts, and the bound of a schedule
that only evicts: the larger of computing and of carrying once what the device cannot hold.

Assumptions, all in ``graph_tools.simulation.machine.Machine``: arithmetic and memory run at the V100's peak, the link
as the paper measured it. Real convolutions sustain less: computing and recomputing then take longer, evicting does not,
and the shares change little where nothing waits for the link.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, replace

from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.planner import make_plan
from graph_tools.plan import Plan
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import simulate
from graph_tools.units import parse_bytes, readable

MB = 10**6
SMALLEST = 2 * 2**20  # bytes: a page
LARGE = 10**15  # bytes: everything fits
PAPER_GROUPS_MB = (2000, 4000, 8000)
# Of these the fastest is taken. Small strips let copies of neighbouring layers follow each other closely, small groups
# let evictions start at the right time; both cost operations, and so time to plan.
STRIPS_MB = (64.0, 128.0, 256.0)
GROUPS_MB = (1000,)


def keeps(network, compute: str, factor: float, machine: Machine) -> int:
    """Side of a square canvas, in px, whose step holds about so many times the device's memory at its peak."""
    from whole_slide_cnn.engines.unified.description import strips_graph
    from whole_slide_cnn.sizes import Size

    side = 4096
    graph = strips_graph(network, Size(side, side), compute, 256.0, True)
    held = make_plan(graph, LARGE, "topological").peak_bytes
    return int(round(side * math.sqrt(factor * machine.device_bytes / held) / 32)) * 32


def measure(graph: OpGraph, machine: Machine, groups_mb=GROUPS_MB) -> dict:
    """Seconds of a step of one graph under each schedule."""
    host = replace(machine, host_bytes=LARGE)  # what the paper's schedule needs is stated, not refused
    plain = make_plan(graph, max(groups_mb) * MB, "topological", depth=0)
    in_memory = simulate(graph, plain, replace(machine, device_bytes=LARGE)).seconds
    paper = min(
        (simulate(graph, paper_plan(graph, limit, machine), host) for limit in PAPER_GROUPS_MB),
        key=lambda result: result.seconds,
    )
    started = time.time()
    plans = [
        make_plan(graph, limit * MB, memory_policy="recompute", machine=machine, smallest=SMALLEST)
        for limit in groups_mb
    ]
    planning = time.time() - started
    results = [simulate(graph, plan, machine) for plan in plans]
    result, plan = min(zip(results, plans), key=lambda pair: pair[0].seconds)
    excess = max(0, plain.peak_bytes - machine.device_bytes)
    return {
        "ops": len(graph.ops),
        "held_bytes": plain.peak_bytes,
        "in_memory_s": in_memory,
        "bound_s": max(in_memory, excess / machine.copy_rate),
        "paper_s": paper.seconds,
        "paper_host_bytes": paper.peak_host_bytes,
        "plan_s": result.seconds,
        "recompute_s": result.compute_seconds - in_memory,
        "stall_s": result.stall_seconds,
        "evicted_bytes": result.bytes_out,
        "on_demand_bytes": result.on_demand_bytes,
        "peak_device_bytes": result.peak_device_bytes,
        "groups": len(plan.groups),
        "planning_s": planning,
        "share": in_memory / result.seconds,
    }


def paper_plan(graph: OpGraph, limit_mb: int, machine: Machine) -> Plan:
    """Groups in the graph's order, what a group needs fetched during the one before."""
    return make_plan(graph, limit_mb * MB, "topological", depth=1, machine=machine, smallest=SMALLEST)


def fastest(network, side: int, compute: str, machine: Machine, strips_mb) -> dict:
    """The row of the strip size whose plan simulates fastest."""
    from whole_slide_cnn.engines.unified.description import strips_graph
    from whole_slide_cnn.errors import TensorTooLargeError
    from whole_slide_cnn.sizes import Size

    rows = []
    for strip_mb in strips_mb:
        try:
            graph = strips_graph(network, Size(side, side), compute, strip_mb, True)
        except TensorTooLargeError:  # a single row is larger
            continue
        rows.append({"side": side, "compute": compute, "strip_mb": strip_mb, **measure(graph, machine)})
    return min(rows, key=lambda row: row["plan_s"])


COLUMNS = (
    ("compute", "compute", "{}"),
    ("side", "side", "{}"),
    ("held", "held_bytes", "{:.0f} GB"),
    ("beyond", "beyond", "{:.2f}x"),
    ("in memory", "in_memory_s", "{:.3f} s"),
    ("paper", "paper_s", "{:.2f} s"),
    ("bound", "bound_s", "{:.3f} s"),
    ("ours", "plan_s", "{:.3f} s"),
    ("share", "share", "{:.1%}"),
    ("recompute", "recompute_s", "{:.3f} s"),
    ("stall", "stall_s", "{:.3f} s"),
    ("evicted", "evicted_bytes", "{:.1f} GB"),
    ("faults", "on_demand_bytes", "{:.1f} GB"),
    ("img/min", "per_minute", "{:.2f}"),
    ("paper's", "paper_per_minute", "{:.3f}"),
    ("strip", "strip_mb", "{:.0f} MB"),
    ("ops", "ops", "{}"),
    ("planning", "planning_s", "{:.0f} s"),
)


def show(row: dict) -> str:
    """One row of the table."""
    values = []
    for _, key, text in COLUMNS:
        value = row[key] / 1e9 if key.endswith("_bytes") else row[key]
        values.append("{:>10}".format(text.format(value)))
    return " ".join(values)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="fixup_resnet50")
    parser.add_argument("--compute", nargs="+", default=["float32", "bfloat16"], help="default: %(default)s")
    parser.add_argument("--factors", type=float, nargs="*", default=[2, 4], help="times the device's memory")
    parser.add_argument("--sides", type=int, nargs="*", default=[11000, 21500], help="canvases, in px")
    parser.add_argument("--strips", type=float, nargs="+", default=STRIPS_MB, metavar="MB", help="default: %(default)s")
    parser.add_argument("--device-memory", default="32GB", metavar="SIZE")
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from whole_slide_cnn.models.network import Network

    machine = replace(Machine(), device_bytes=parse_bytes(options.device_memory))
    network = Network(options.backbone, "gmp", "softmax", 3)
    print("device {}, {}".format(readable(machine.device_bytes), machine))
    print(" ".join("{:>10}".format(title) for title, _, _ in COLUMNS), flush=True)
    rows = []
    for compute in options.compute:
        sides = [keeps(network, compute, factor, machine) for factor in options.factors] + options.sides
        for side in sides:
            row = fastest(network, side, compute, machine, options.strips)
            row["beyond"] = row["held_bytes"] / machine.device_bytes
            row["per_minute"], row["paper_per_minute"] = 60 / row["plan_s"], 60 / row["paper_s"]
            rows.append(row)
            print(show(row), flush=True)
    if options.json:
        from whole_slide_cnn.files import write_text

        write_text(options.json, json.dumps({"machine": asdict(machine), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
