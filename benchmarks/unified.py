"""Memory and time of the unified engine with and without its parts: ``python benchmarks/unified.py``.

Each row is a process of its own: the peak of its resident set above what it held with TensorFlow loaded and a trivial
session run, and the median seconds of a training step, the first one left out. On a machine without a GPU nothing can
be gained by order or prefetches; what is measured is what groups touch, and what recomputation saves and costs.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np
from memory import Peak, resident_bytes

PLAIN_GROUP_MB = 1e9  # all operations in one group


def measure(options, row: dict) -> dict:
    """One way of running the engine, in this process."""
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.memory import engine_memory
    from whole_slide_cnn.engines.runtime import keep_freed_memory_small
    from whole_slide_cnn.engines.unified.engine import UnifiedEngine
    from whole_slide_cnn.engines.unified.steps import held_bytes
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.running.optimisers import Adam
    from whole_slide_cnn.sizes import Size
    from whole_slide_cnn.slides.canvas import ArrayCanvas

    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.matmul(tf.ones([64, 64]), tf.ones([64, 64])))
    size = Size(options.side, options.side)
    image = np.random.RandomState(0).randint(100, 230, size + (3,), dtype=np.uint8)
    network, canvas, compute = Network(options.backbone, "gmp", "softmax", 3), ArrayCanvas(image), row.pop("compute")
    keep_freed_memory_small()
    idle = resident_bytes()
    predicted = engine_memory("unified", network, size, compute, True, **row)
    started, seconds = time.time(), []
    with Peak() as peak, UnifiedEngine(network, size, compute, Adam(1e-4), **row) as engine:
        engine.load_state(network.initial_weights(0))
        built = time.time() - started
        for _ in range(options.steps + 1):
            started = time.time()
            engine.train_batch([canvas], [1])
            seconds.append(time.time() - started)
    plan = engine.plan
    return {
        "peak": peak.bytes - idle,
        "predicted": predicted.total - dict(predicted.parts)["slide reading"],  # the slide is in memory here
        "feature_maps": held_bytes(plan) if row.get("eviction_dir") else plan.peak_bytes,
        "groups": len(plan.groups),
        "largest_group": max(group.bytes for group in plan.groups),
        "moved": sum(copy.bytes for copy in plan.evictions),
        "recomputed": sum(len(item.ops) for item in plan.recomputes),
        "seconds": float(np.median(seconds[1:])),
        "build_seconds": built,
    }


def rows_of(options):
    """Titles and engine options of the rows."""
    plain = {"strip_mb": options.strip_mb, "group_mb": PLAIN_GROUP_MB, "compute": "float32"}
    grouped = dict(plain, group_mb=options.group_mb)
    yield "one group", plain
    yield "groups", grouped
    for budget in options.device_gb:
        yield "groups, {:g} GB".format(budget), dict(grouped, device_gb=budget)
    if options.eviction_dir:
        for budget in options.eviction_gb:
            evicting = dict(grouped, device_gb=budget, eviction_dir=options.eviction_dir)
            yield "groups, {:g} GB, files".format(budget), evicting
    for compute in options.compute:
        yield "groups, " + compute, dict(grouped, compute=compute)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=2048, metavar="PX", help="side of the canvas, full of tissue")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--strip-mb", type=float, default=4)
    parser.add_argument("--group-mb", type=float, default=40)
    parser.add_argument(
        "--device-gb", type=float, nargs="*", default=[0.38, 0.33, 0.3], help="budgets to recompute for"
    )
    # the second names are those of earlier versions
    parser.add_argument("--eviction-dir", "--spill-dir", metavar="FOLDER", help="also evict tensors to files there")
    parser.add_argument(
        "--eviction-gb", "--spill-gb", type=float, nargs="*", default=[0.3, 0.2, 0.1], help="budgets to evict for"
    )
    parser.add_argument("--compute", nargs="*", default=["bfloat16"], help="other types to measure")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    parser.add_argument("--one", metavar="OPTIONS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options, json.loads(options.one))))
        return 0
    form = "{:<22} {:>6} {:>10} {:>10} {:>8} {:>7} {:>9} {:>7} {:>10} {:>7}"
    heads = "groups,largest MB,recomputed,moved MB,maps MB,predicted,peak MB,s per step,s built"
    print(form.format("", *heads.split(",")))
    rows = []
    for title, row in rows_of(options):
        command = [sys.executable, os.path.abspath(__file__), "--one", json.dumps(row)] + list(arguments)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        if done.returncode:
            print("{:<22} {}".format(title, done.stderr.strip().splitlines()[-1]), flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append(dict(found, title=title, options=row))
        numbers = [found[name] for name in ("largest_group", "moved", "feature_maps", "predicted", "peak")]
        largest, moved, maps, predicted, peak = ("{:.0f}".format(number / 1e6) for number in numbers)
        times = ["{:.2f}".format(found[name]) for name in ("seconds", "build_seconds")]
        cells = [found["groups"], largest, found["recomputed"], moved, maps, predicted, peak] + times
        print(form.format(title, *cells), flush=True)
    if options.json:
        from whole_slide_cnn.files import write_text

        write_text(options.json, json.dumps({"options": vars(options), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
