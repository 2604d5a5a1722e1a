"""Peak memory of a training step against the prediction: ``python benchmarks/memory.py``.

Each measurement is a process of its own: the peak of its resident set above what it held with TensorFlow loaded and a
trivial session run, over two training steps on a slide file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np


def resident_bytes() -> int:
    """Resident set of this process."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """Largest resident set while the block runs, sampled every 2 ms."""

    def __enter__(self):
        self.bytes = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, resident_bytes())

    def __exit__(self, *exception):
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes())


def write_slide(path: str, side: int, tissue: int):
    """A square slide with a square of noise in its middle, ``tissue`` px wide, and the rest white."""
    from whole_slide_cnn.slides.pyramid import write_pyramid

    image = np.full((side, side, 3), 255, np.uint8)
    inner = min(side, tissue or side)
    start = (side - inner) // 2
    random = np.random.RandomState(0)
    for top in range(start, start + inner, 512):
        rows = image[top : min(top + 512, start + inner), start : start + inner]
        rows[...] = random.randint(100, 230, rows.shape, dtype=np.uint8)
    write_pyramid(path, image, 1.0)


def moving_tissue(side: int, seed: int):
    """A canvas with three rectangles of noise, of random sizes and in random places."""
    from whole_slide_cnn.slides.canvas import ArrayCanvas

    random = np.random.RandomState(seed)
    image = np.full((side, side, 3), 255, np.uint8)
    for _ in range(3):
        height, width = random.randint(side // 8, side // 2, 2)
        top, left = random.randint(0, side - height), random.randint(0, side - width)
        image[top : top + height, left : left + width] = random.randint(100, 230, (height, width, 3))
    return ArrayCanvas(image, "slide {}".format(seed))


def measure(options, side: int, slide: str) -> dict:
    """Peak and prediction of one engine on one slide, in this process."""
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.memory import engine_memory
    from whole_slide_cnn.engines.runtime import keep_freed_memory_small
    from whole_slide_cnn.engines.table import ENGINES
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.running.optimisers import Adam
    from whole_slide_cnn.sizes import Size
    from whole_slide_cnn.slides.canvas import open_canvas
    from whole_slide_cnn.slides.settings import SlideSettings

    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.matmul(tf.ones([64, 64]), tf.ones([64, 64])))
    idle = resident_bytes()
    network = Network(options.backbone, options.pooling, "softmax", 3)
    extra = {
        "streaming": {"window": options.window},
        "staged": {"memory_gb": options.staged_gb},
        "unified": {"strip_mb": options.strip_mb, "group_mb": options.group_mb},
    }.get(options.engine, {})
    plan = engine_memory(options.engine, network, Size(side, side), options.compute, True, **extra)
    make = ENGINES[options.engine].engine_class()
    keep_freed_memory_small()
    with Peak() as peak, make(network, Size(side, side), options.compute, Adam(1e-4), **extra) as engine:
        engine.load_state(network.initial_weights(0))
        started = time.time()
        steps = options.moving or 2
        for step in range(steps):
            with (
                moving_tissue(side, step)
                if options.moving
                else open_canvas(slide, Size(side, side), SlideSettings(mpp=1.0))
            ) as canvas:
                engine.train_batch([canvas], [1])
        seconds = (time.time() - started) / steps
    return {
        "side": side,
        "peak": peak.bytes - idle,
        "predicted": plan.total,
        "parts": dict(plan.parts),
        "seconds_per_step": round(seconds, 2),
    }


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="streaming")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--pooling", default="gmp")
    parser.add_argument("--compute", default="float32")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--staged-gb", type=float, default=4.0)
    parser.add_argument("--strip-mb", type=float, default=16)
    parser.add_argument("--group-mb", type=float, default=4000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--tissue", type=int, default=0, metavar="PX", help="side of the tissue; 0 fills the slide")
    parser.add_argument(
        "--moving", type=int, default=0, metavar="N", help="N steps on canvases in memory, with tissue in random places"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "SLIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options, int(options.one[0]), options.one[1])))
        return 0
    rows = []
    print("{:>8} {:>12} {:>14} {:>9} {:>11}".format("side", "peak MB", "predicted MB", "error", "s per step"))
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sizes:
            slide = os.path.join(folder, "slide.tiff")
            write_slide(slide, side, options.tissue)
            command = [sys.executable, os.path.abspath(__file__), "--one", str(side), slide] + list(arguments)
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout
            row = json.loads(output.splitlines()[-1])
            rows.append(row)
            error = row["predicted"] / row["peak"] - 1
            print(
                "{:>8} {:>12.0f} {:>14.0f} {:>+8.1%} {:>11.1f}".format(
                    side, row["peak"] / 1e6, row["predicted"] / 1e6, error, row["seconds_per_step"]
                ),
                flush=True,
            )
    peaks = [row["peak"] for row in rows]
    print("largest over smallest peak: {:.3f}".format(max(peaks) / min(peaks)))
    if options.json:
        from whole_slide_cnn.files import write_text

        write_text(options.json, json.dumps({"options": vars(options), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
