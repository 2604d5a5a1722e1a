"""How one slide scales over processes that share its windows: ``python benchmarks/share.py``.

A training step of ``staged`` on one slide, in one process and in several (``train.share: windows``), each on a core of
its own; beside it what the plan predicts. Then what the plan predicts for up to 64 processes, also where each computes
slides of its own (``train.share: slides``): those wait after every update for the slide that costs most of theirs. The
prediction counts computation alone, neither reading nor what processes send each other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Sequence

import numpy as np

PREDICTED = (1, 2, 4, 8, 16, 32, 64)
LABEL = 1


def work_of(options):
    """What the planner is asked about."""
    from whole_slide_cnn.engines.costs import Work
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.sizes import Size

    network, size = Network(options.backbone, options.pooling, "softmax", 3), Size(options.side, options.side)
    given = {"staged": engine_options(options)}
    return Work(network, size, options.compute, True, max(options.tissue[0], 1e-6), options=given)


def engine_options(options):
    """Of ``staged``."""
    from whole_slide_cnn.engines.table import ENGINES

    return ENGINES["staged"].options(memory_gb=options.memory_gb)


def slides_of(options) -> List[Any]:
    """Per slide that is predicted for, where it is blank: the slides of a data list, or noise of some tissue shares."""
    from bench.slides import NoiseCanvas

    if options.config is None:
        return [NoiseCanvas(options.side, share, seed).blank_blocks() for seed, share in enumerate(options.tissue)]
    from whole_slide_cnn.config import load_config
    from whole_slide_cnn.running.slides import SlideSource, load_splits

    data = load_config(options.config, ["data.canvas=[{0}, {0}]".format(options.side)]).data
    with SlideSource(load_splits(data, "train")["train"], data) as source:
        found = []
        for _, canvas in source.canvases(source.records, print):
            found.append(canvas.blank_blocks())
            canvas.close()
    return found


# Measuring.


def measure(options) -> Dict[str, Any]:
    """In one of the processes: seconds of a step, the slowest process's, and the loss."""
    from tf_um_patch.host import launched

    launch = launched()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[launch.rank or 0]})
    from bench.slides import NoiseCanvas
    from bench.worker import random_weights

    from whole_slide_cnn.engines.runtime import keep_freed_memory_small
    from whole_slide_cnn.engines.table import ENGINES
    from whole_slide_cnn.running.communicator import communicator
    from whole_slide_cnn.running.optimisers import Adam

    keep_freed_memory_small()
    work = work_of(options)
    canvas = NoiseCanvas(options.side, options.tissue[0])
    with communicator() as group, ENGINES["staged"].make(
        work.network, work.canvas, work.compute, Adam(1e-4), options=engine_options(options)
    ) as engine:
        engine.load_state(random_weights(work.network))
        if group.size > 1:
            engine.group, engine.reduce_gradients = group, group.allreduce_sum
        seconds = []
        for _ in range(1 + options.iterations):
            group.barrier()
            started = time.monotonic()
            (prediction,) = engine.train_batch([canvas], [LABEL])
            seconds.append(max(group.allgather(time.monotonic() - started)))
        return {"rank": group.rank, "seconds": min(seconds[1:]), "first": seconds[0], "loss": float(prediction.loss)}


def started(arguments: Sequence[str], processes: int) -> Dict[str, Any]:
    """Measure with some processes."""
    command = [sys.executable, os.path.abspath(__file__)] + list(arguments)
    environment = dict(os.environ, TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1", OMP_NUM_THREADS="1")
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if processes > 1:
        if os.geteuid() == 0:  # as in a container; Open MPI asks twice
            environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        command = ["mpirun", "-np", str(processes), "--oversubscribe", "--bind-to", "none"] + command
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "measured.json")
        subprocess.run(command + ["--measured", path], env=environment, check=True)
        with open(path, encoding="utf-8") as stream:
            return dict(json.load(stream), processes=processes)


# Predicting.


def predicted(plan, slides: Sequence[np.ndarray], processes: Sequence[int]) -> List[Dict[str, Any]]:
    """Per number of processes: speed-up by windows and by slides, and how evenly windows are dealt."""
    blank = plan.blank_cost()
    alone = np.array([plan.costs(blocks)[0] + blank for blocks in slides])
    rows = []
    for number in processes:
        costs = [plan.costs(blocks, number) for blocks in slides]
        slowest = sum(max(parts) + blank for parts in costs)
        rows.append(
            {
                "processes": number,
                "windows": alone.sum() / slowest,
                "slides": number * alone.mean() / expected_maximum(alone, number),
                "balance": sum(map(sum, costs)) / (number * sum(map(max, costs))) if slowest else 1.0,
                "again": sum(map(sum, costs)) / (alone.sum() - blank * len(slides)) if any(map(sum, costs)) else 1.0,
            }
        )
    return rows


def expected_maximum(costs: np.ndarray, number: int) -> float:
    """The mean of the largest of some slides that are drawn independently of each other."""
    ordered = np.sort(costs)
    below = (np.arange(len(ordered) + 1) / len(ordered)) ** number
    return float((ordered * np.diff(below)).sum())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--side", type=int, default=4096, help="of the canvas, in px (default: %(default)s)")
    add("--backbone", default="resnet50", help="default: %(default)s")
    add("--pooling", choices=("gmp", "gap"), default="gmp", help="default: %(default)s")
    add("--compute", default="float32", help="default: %(default)s")
    add("--memory-gb", type=float, default=4.0, help="staged.memory_gb of each process (default: %(default)s)")
    add("--tissue", type=float, nargs="+", default=[0.25], metavar="SHARE",
        help="tissue shares of slides that are predicted for; the first is measured (default: 0.25)")  # fmt: skip
    add("--config", metavar="FILE", help="predict for the slides of its data.train instead")
    add("--processes", type=int, nargs="*", default=[1, 2], help="to measure with (default: 1 2)")
    add("--iterations", type=int, default=2, help="steps after the first, of which the fastest counts")
    add("--json", metavar="FILE", help="write all of it here as well")
    add("--measured", metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(arguments)
    from whole_slide_cnn.files import write_text

    if options.measured:
        found = measure(options)
        if not found.pop("rank"):
            write_text(options.measured, json.dumps(found) + "\n")
        return 0
    from bench.slides import NoiseCanvas

    from whole_slide_cnn.engines.table import ENGINES

    cores = len(os.sched_getaffinity(0))
    plan = ENGINES["staged"].plan(work_of(options))
    measured = [started(arguments, number) for number in options.processes if number <= cores]
    if measured:
        blocks = NoiseCanvas(options.side, options.tissue[0]).blank_blocks()
        print("{} px, {}, {:.0%} tissue: one slide, a core for each process".format(
            options.side, options.backbone, options.tissue[0]))  # fmt: skip
        print("{:>9} {:>9} {:>9} {:>10} {:>12} {:>9}".format(
            "processes", "s/step", "speed-up", "predicted", "even share", "loss"))  # fmt: skip
        expected = predicted(plan, [blocks], [row["processes"] for row in measured])
        for row, guess in zip(measured, expected):
            row.update(speed_up=measured[0]["seconds"] / row["seconds"], predicted=guess)
            print("{:>9} {:>9.2f} {:>9.2f} {:>10.2f} {:>12.1%} {:>9.5f}".format(
                row["processes"], row["seconds"], row["speed_up"], guess["windows"] / expected[0]["windows"],
                guess["balance"], row["loss"]))  # fmt: skip
    slides = slides_of(options)
    rows = predicted(plan, slides, PREDICTED)
    print("predicted speed-up, the mean of {} slides ({:.1%} of their blocks are tissue)".format(
        len(slides), 1 - np.mean([blocks.mean() for blocks in slides])))  # fmt: skip
    print("{:>9} {:>9} {:>9} {:>12} {:>12}".format("processes", "windows", "slides", "even share", "with halos"))
    for row in rows:
        print("{processes:>9} {windows:>9.2f} {slides:>9.2f} {balance:>12.1%} {again:>12.1%}".format(**row))
    if options.json:
        write_text(options.json, json.dumps({"measured": measured, "predicted": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
