"""Predicted and measured peak memory and time of a step on this machine: ``python benchmarks/prediction.py``.

Memory is predicted as a run states it. Time is predicted as ``python -m whole_slide_cnn.plan --measure`` does: from the
operations of the step, and from one small step that was measured first. Each measurement is a process of its own.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from memory import Peak, resident_bytes, write_slide


def work_of(options, side: int):
    """What is planned and measured."""
    from whole_slide_cnn.engines.costs import Work
    from whole_slide_cnn.engines.table import ENGINES
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.sizes import Size

    network = Network(options.backbone, options.pooling, "softmax", 3)
    given = {name: ENGINES[name].options(**keys) for name, keys in engine_keys(options).items()}
    return Work(network, Size(side, side), options.compute, True, options=given)


def engine_keys(options):
    """What engines are set to."""
    return {"streaming": {"window": options.window}, "unified": {"strip_mb": options.strip_mb}}


def predict(options) -> dict:
    """Bytes and seconds of all engines and sizes."""
    from whole_slide_cnn.planning.estimate import estimate
    from whole_slide_cnn.planning.targets import HOST, measured, target_of

    target = measured(target_of(HOST, options.compute), work_of(options, options.sizes[0]))
    found = {}
    for engine in options.engines:
        for side in options.sizes:
            (item,) = estimate(work_of(options, side), target, engines=(engine,))
            found["{} {}".format(engine, side)] = [item.host_bytes, item.seconds]
    return found


def measure(options, engine: str, side: int, slide: str) -> dict:
    """Peak bytes of two steps on a slide file, and median seconds of more steps on pixels in memory, in this process.
    Training reads slides beside its steps, and the planner leaves that out of their time."""
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.runtime import keep_freed_memory_small
    from whole_slide_cnn.engines.table import ENGINES
    from whole_slide_cnn.running.optimisers import Adam
    from whole_slide_cnn.slides.canvas import ArrayCanvas, open_canvas
    from whole_slide_cnn.slides.settings import SlideSettings

    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.matmul(tf.ones([64, 64]), tf.ones([64, 64])))
    keep_freed_memory_small()
    idle, work, seconds = resident_bytes(), work_of(options, side), []
    description = ENGINES[engine]
    given = description.options(**engine_keys(options).get(engine, {}))
    with contextlib.ExitStack() as stack:
        with Peak() as peak:
            made = stack.enter_context(
                description.make(work.network, work.canvas, work.compute, Adam(1e-4), options=given)
            )
            made.load_state(work.network.initial_weights(0))
            for _ in range(2):
                with open_canvas(slide, work.canvas, SlideSettings(mpp=1.0)) as canvas:
                    made.train_batch([canvas], [1])
        pixels = np.random.RandomState(0).randint(100, 230, work.canvas + (3,), dtype=np.uint8)
        for _ in range(options.steps):
            begin = time.perf_counter()
            made.train_batch([ArrayCanvas(pixels)], [1])
            seconds.append(time.perf_counter() - begin)
    return {"bytes": peak.bytes - idle, "seconds": statistics.median(seconds)}


def parser() -> argparse.ArgumentParser:
    from whole_slide_cnn.engines.table import ENGINES

    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    arguments.add_argument("--backbone", default="tiny")
    arguments.add_argument("--pooling", default="gap", help="with gmp, chance decides which windows are computed again")
    arguments.add_argument("--compute", default="float32")
    arguments.add_argument("--window", type=int, default=512)
    arguments.add_argument("--strip-mb", type=float, default=16)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    arguments.add_argument("--steps", type=int, default=5)
    arguments.add_argument("--json", metavar="FILE", help="write the rows here as well")
    arguments.add_argument("--one", nargs=3, metavar=("ENGINE", "SIDE", "SLIDE"), help=argparse.SUPPRESS)
    arguments.add_argument("--predict", action="store_true", help=argparse.SUPPRESS)
    return arguments


def main(arguments):
    options = parser().parse_args(arguments)
    if options.one or options.predict:
        found = (
            predict(options)
            if options.predict
            else measure(options, options.one[0], int(options.one[1]), options.one[2])
        )
        print(json.dumps(found))
        return 0

    def child(*more):
        command = [sys.executable, os.path.abspath(__file__)] + list(arguments) + list(more)
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout
        return json.loads(output.splitlines()[-1])

    predicted, rows = child("--predict"), []
    print("| engine | canvas | peak MB | predicted | | s per step | predicted | |\n" + "| --- " * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sizes:
            slide = os.path.join(folder, "slide.tiff")
            write_slide(slide, side, 0)
            for engine in options.engines:
                found = child("--one", engine, str(side), slide)
                size, seconds = predicted["{} {}".format(engine, side)]
                row = {
                    "engine": engine,
                    "side": side,
                    **found,
                    "predicted_bytes": size,
                    "predicted_seconds": seconds,
                }
                rows.append(row)
                print(
                    "| {} | {} | {:.0f} | {:.0f} | {:+.0%} | {:.2f} | {:.2f} | {:+.0%} |".format(
                        engine, side, found["bytes"] / 1e6, size / 1e6, size / found["bytes"] - 1,
                        found["seconds"], seconds, seconds / found["seconds"] - 1,
                    ),
                    flush=True,
                )  # fmt: skip
    worst = max(
        abs(row[b] / row[a] - 1)
        for row in rows
        for a, b in (("bytes", "predicted_bytes"), ("seconds", "predicted_seconds"))
    )
    print("\nlargest error: {:.0%}".format(worst))
    if options.json:
        from whole_slide_cnn.files import write_text

        write_text(options.json, json.dumps({"options": vars(options), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
