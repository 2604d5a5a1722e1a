"""Time to plan a training step of the paper's network: ``python benchmarks/plan_time.py``.

The graph of the whole step is built, never run, and planned for the machine of ``graph_tools.simulation.machine``.
Strips are so large that there are some 34,000 operations. On a machine that is busy otherwise, ``processor`` tells the
seconds of computing apart from those of waiting for it.
"""

import argparse
import json
import os
import sys
import time

from graph_tools.passes.planner import MEMORY_POLICIES, make_plan
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import simulate

MB = 10**6
SMALLEST = 2 * 2**20  # bytes: a page
STRIPS_MB = {"float32": 768.0, "bfloat16": 384.0}  # some 34,000 operations at 21,500 px


def measure(backbone: str, side: int, compute: str, strip_mb: float, policy: str, group_mb: int) -> dict:
    """Seconds of each phase, and how large the graph and the plan are."""
    from graph_tools.tensorflow.extract import extract
    from whole_slide_cnn.engines.unified.options import UnifiedOptions
    from whole_slide_cnn.engines.unified.steps import planning_graph
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.sizes import Size

    busy, started, seconds = time.process_time(), time.time(), {}
    network, options = Network(backbone, "gmp", "softmax", 3), UnifiedOptions(strip_mb=strip_mb)
    built = planning_graph(network, Size(side, side), compute, options)
    seconds["build"], started = time.time() - started, time.time()
    graph = extract(*built)
    seconds["extract"] = time.time() - started
    machine, started = Machine(), time.time()
    plan = make_plan(graph, group_mb * MB, memory_policy=policy, machine=machine, smallest=SMALLEST)
    seconds["plan"], started = time.time() - started, time.time()
    result = simulate(graph, plan, machine)
    seconds["simulate"] = time.time() - started
    busy = time.process_time() - busy
    return {
        "compute": compute,
        "side": side,
        "strip_mb": strip_mb,
        "ops": len(graph.ops),
        "planned_ops": len(plan.op_order),
        "groups": len(plan.groups),
        "seconds": {**seconds, "total": sum(seconds.values()), "processor": busy},
        "step_s": result.seconds,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="fixup_resnet50")
    parser.add_argument("--side", type=int, default=21500, help="of the canvas, in px (default: %(default)s)")
    parser.add_argument("--compute", nargs="+", default=list(STRIPS_MB), help="default: %(default)s")
    parser.add_argument("--strip-mb", type=float, help="default: {}".format(STRIPS_MB))
    parser.add_argument("--group-mb", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--memory-policy", choices=MEMORY_POLICIES, default="recompute", help="default: %(default)s")
    parser.add_argument("--most", type=float, default=60.0, metavar="S", help="fail where a total exceeds this")
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = []
    for compute in options.compute:
        strip_mb = options.strip_mb or STRIPS_MB.get(compute, 512.0)
        row = measure(options.backbone, options.side, compute, strip_mb, options.memory_policy, options.group_mb)
        rows.append(row)
        print("{compute} at {side} px: {ops} operations, {planned_ops} planned in {groups} groups".format(**row))
        for phase, seconds in row["seconds"].items():
            print("  {:14} {:6.1f} s".format(phase, seconds), flush=True)
    if options.json:
        from whole_slide_cnn.files import write_text

        write_text(options.json, json.dumps(rows, indent=2) + "\n")
    return int(max(row["seconds"]["total"] for row in rows) > options.most)


if __name__ == "__main__":
    sys.exit(main())
