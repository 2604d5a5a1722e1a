"""Seconds and memory of an engine's steps on a GPU: ``python benchmarks/gpu_steps.py --output FILE``.

Each row is a backbone, a canvas, a window and a type, in a process of its own: the first training step, which chooses
cuDNN's kernels for every new shape of a window, the median of those that follow, a prediction, and the peak of
TensorFlow's allocator beside what was planned. Slides are noise in memory, so nothing is read; weights are random.
``--exactness`` compares the engines with ``direct`` on the GPU instead, and ``direct`` with itself on the CPU.

``unified`` takes managed memory where all of it is started by ``python -m tf_um_patch run --ceiling 8GB -- python
benchmarks/gpu_steps.py ...``. Exits with 77 where there is no GPU. docs/gpu.md has what was found.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, Dict, List

import exactness
import numpy as np

from tf_um_patch.gpu_check.command import EXIT_FAIL, EXIT_NO_GPU, EXIT_PASS
from tf_um_patch.probe import run_probe

# A case for each head and pooling, and of two real backbones; by name, for the command line.
EXACTNESS = (
    "tiny-gmp-softmax-333x450-inside-w96",
    "resnet18-gmp-softmax-149x170-corner-w64",
    "tiny-gap-softmax-450x289-pair-w96",
    "fixup_resnet50-gmp-softmax-149x170-corner-w64",
    "tiny-gmp-sigmoid-333x450-inside-w64",
)
CASES = {str(case): case for case in exactness.CASES}
ENGINES = ("streaming", "unified", "direct")
SETTINGS = ("NVIDIA_TF32_OVERRIDE", "TF_CUDNN_USE_AUTOTUNE", "TF_CUDNN_WORKSPACE_LIMIT_IN_MB")  # that change figures


def tissue_image(side: int, share: float, seed: int = 0) -> np.ndarray:
    """A square slide, uint8: blobs of noise on white that cover a share of its pixels."""
    from scipy import ndimage

    random, coarse = np.random.RandomState(seed), max(16, side // 64)
    field = ndimage.gaussian_filter(random.standard_normal((coarse, coarse)), coarse / 12)
    mask = field >= np.quantile(field, 1 - share)
    image = np.full((side, side, 3), 255, np.uint8)
    index = np.minimum(np.arange(side) * coarse // side, coarse - 1)
    noise = random.randint(60, 230, (min(side, 2048), side, 3), dtype=np.uint8)
    for top in range(0, side, len(noise)):  # in bands: a slide of 21,500 px is 1.4 GB
        part = image[top : top + len(noise)]
        inside = mask[index[top : top + len(noise)]][:, index]
        part[inside] = noise[: len(part)][inside]
    return image


def cases_of(options) -> List[Dict[str, Any]]:
    """Rows as dictionaries, in the order of the options; a window means something to streaming alone."""
    windows = options.windows if options.engine == "streaming" else [None]
    names = ("backbone", "side", "window", "compute")
    found = itertools.product(options.backbones, options.sides, windows, options.types)
    return [dict(zip(names, values), engine=options.engine) for values in found]


def engine_options(options, case: Dict[str, Any]) -> Dict[str, Any]:
    """Options of the engine of a row, beyond those that every engine has."""
    if case["engine"] == "streaming":
        return {"window": case["window"]}
    if case["engine"] == "unified":
        return {
            "strip_mb": options.strip_mb,
            "group_mb": options.group_mb,
            "device_gb": options.device_gb,
            "prefetch_depth": options.prefetch_depth,
        }
    return {}


def summary(steps: List[float], predictions: List[float]) -> Dict[str, Any]:
    """Figures of a row from seconds: the first step stands alone, and a prediction is the best of several."""
    steady = statistics.median(steps[1:])
    return {
        "first_step_s": steps[0],
        "steps_s": steps,
        "step_s": steady,
        "trained_per_minute": 60 / steady,
        "predict_s": min(predictions),
        "predicted_per_minute": 60 / min(predictions),
    }


def measure(options, case: Dict[str, Any]) -> Dict[str, Any]:
    """One row, in this process."""
    from whole_slide_cnn.engines.memory import engine_memory
    from whole_slide_cnn.engines.table import ENGINES as KNOWN
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.running.optimisers import Adam
    from whole_slide_cnn.sizes import Size
    from whole_slide_cnn.slides.canvas import ArrayCanvas

    need_gpu()
    network, size = Network(case["backbone"], options.pooling, "softmax", 3), Size(case["side"], case["side"])
    canvas, more = ArrayCanvas(tissue_image(case["side"], options.tissue)), engine_options(options, case)
    row = dict(
        case, planned_bytes=dict(engine_memory(case["engine"], network, size, case["compute"], True, **more).parts)
    )
    began = time.perf_counter()
    make = KNOWN[case["engine"]].engine_class()
    with make(network, size, case["compute"], Adam(1e-4), **more) as engine:
        row["build_s"] = time.perf_counter() - began
        row.update(facts_of(case["engine"], engine, canvas))
        engine.load_state(network.initial_weights(0))
        training = [clocked(lambda: engine.train_batch([canvas], [1])) for _ in range(1 + options.steps)]
        row["allocator_peak_bytes"] = allocator_peak()
        predicting = [clocked(lambda: engine.predict(canvas, 1)) for _ in range(2)]
    row.update(summary([seconds for seconds, _ in training], [seconds for seconds, _ in predicting]))
    row["losses"] = [float(found[0].loss) for _, found in training]
    return row


def facts_of(name: str, engine, canvas) -> Dict[str, Any]:
    """What an engine is about to do: its windows, or its plan."""
    if name == "streaming":
        from whole_slide_cnn.engines.streaming.plan import pixels_of

        windows = engine.cover(canvas).windows
        kinds = engine.plan.kinds(windows)
        shapes = {kind.pixels for kind in kinds}
        return {"windows": len(windows), "window_shapes": len(shapes), "window_pixels": pixels_of(kinds)}
    if name == "unified":
        plan = engine.plan
        parts = ("groups", "evictions", "prefetches", "recomputes")
        return dict({part: len(getattr(plan, part)) for part in parts}, plan_peak_bytes=plan.peak_bytes)
    return {}


def clocked(work):
    """Seconds that something took, and what it gave."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def need_gpu() -> None:
    """End this process where TensorFlow computes on the CPU, which it would do without a word."""
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.runtime import session_config

    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        if not any(device.device_type == "GPU" for device in session.list_devices()):
            sys.exit(
                "TensorFlow {} sees no GPU: install the CUDA libraries that it is built for".format(tf.__version__)
            )


def allocator_peak():
    """Largest number of bytes that TensorFlow held on the GPU, where this version tells."""
    import tensorflow

    ask = getattr(tensorflow.config.experimental, "get_memory_info", None)
    return None if ask is None else ask("GPU:0")["peak"]


# ---- exactness ----


def digest(result) -> Dict[str, List[float]]:
    """Two numbers of each gradient, norm and projection, and the losses: enough to compare results of two processes."""
    found = {"loss": [float(value) for value in result.losses]}
    for name, value in result.gradients.items():
        flat = np.ravel(value).astype(np.float64)
        along = np.random.RandomState(len(name)).standard_normal(flat.size)
        found[name] = [float(np.linalg.norm(flat)), float(flat @ along / np.linalg.norm(along))]
    return found


def digest_error(found: Dict[str, List[float]], reference: Dict[str, List[float]]) -> float:
    """Largest difference of two digests, relative to the first number of each, which no projection exceeds."""
    return max(
        abs(one - other) / max(abs(reference[name][0]), 1e-300)
        for name in reference
        for one, other in zip(found[name], reference[name])
    )


def compare(options, name: str) -> Dict[str, Any]:
    """The engines' errors in float64 in a case, and with ``--types`` that of gradients in others, in this process."""
    need_gpu()
    case = CASES[name]
    direct = exactness.compute("direct", case)
    row: Dict[str, Any] = {"case": name, "digest": digest(direct), "float64": {}}
    for engine in ("streaming", "unified"):
        error, where = exactness.largest_error(exactness.compute(engine, case), direct)
        row["float64"][engine] = {"error": error, "where": where}
    for dtype in [dtype for dtype in options.types if dtype != "float64" and case.backbone == "tiny"]:
        row[dtype] = {engine: exactness.approximation(engine, dtype, case) for engine in ENGINES}
    return row


# ---- the command ----


def in_child(arguments: List[str], options, **variables: str) -> Dict[str, Any]:
    """What a process of this command printed as its last line, or {"error": why}."""
    command = [sys.executable, os.path.abspath(__file__)] + arguments
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    try:
        done = subprocess.run(command, env=dict(os.environ, **variables), timeout=options.timeout, **pipes)
    except subprocess.TimeoutExpired:
        return {"error": "it was ended after {:g} s".format(options.timeout)}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(arguments: List[str], options):
    """Rows as they are found; "error" says why one is missing."""
    if not options.exactness:
        for case in cases_of(options):
            yield dict(case, **in_child(arguments + ["--one", json.dumps(case)], options))
        return
    for name in options.cases:
        row = dict({"case": name}, **in_child(arguments + ["--one", name], options))
        if "digest" in row:
            on_cpu = in_child(arguments + ["--digest", name], options, CUDA_VISIBLE_DEVICES="-1")
            found = row.pop("digest")
            row["direct_against_cpu"] = on_cpu.get("error") or digest_error(found, on_cpu)
        yield row


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output", metavar="FILE", required=True, help="JSON")
    arguments.add_argument("--engine", choices=ENGINES, default="streaming")
    arguments.add_argument("--backbones", nargs="+", default=["fixup_resnet50"])
    arguments.add_argument("--pooling", default="gmp")
    arguments.add_argument("--sides", type=int, nargs="+", default=[4688, 11000], metavar="PX", help="of the canvas")
    arguments.add_argument("--windows", type=int, nargs="+", default=[2048], metavar="PX")
    arguments.add_argument("--types", nargs="+", default=["float32"], help="float32 is TF32 unless switched off")
    arguments.add_argument("--tissue", type=float, default=0.22, help="share of the canvas (default: 0.22)")
    arguments.add_argument("--steps", type=int, default=3, help="training steps after the first (default: 3)")
    arguments.add_argument("--strip-mb", type=float, default=256, help="of unified")
    arguments.add_argument("--group-mb", type=float, default=4000, help="of unified")
    arguments.add_argument("--device-gb", type=float, help="of unified")
    arguments.add_argument("--prefetch-depth", type=int, default=1, help="of unified")
    arguments.add_argument("--exactness", action="store_true", help="instead: compare engines with direct")
    arguments.add_argument("--cases", nargs="+", choices=sorted(CASES), default=EXACTNESS, metavar="CASE")
    arguments.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of each row (default: 300)")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    arguments.add_argument("--digest", help=argparse.SUPPRESS)
    return arguments


def main(arguments) -> int:
    options = parser().parse_args(arguments)
    if options.digest:
        print(json.dumps(digest(exactness.compute("direct", CASES[options.digest]))))
        return EXIT_PASS
    if options.one:
        row = compare(options, options.one) if options.exactness else measure(options, json.loads(options.one))
        print(json.dumps(row))
        return EXIT_PASS
    facts = run_probe()
    if facts["absent"]:
        why = facts["error"] or "the driver sees none"
        print("there is no GPU here, so nothing was measured ({})".format(why), file=sys.stderr)
        return EXIT_NO_GPU
    report: Dict[str, Any] = {"gpu": facts.get("name"), "driver": facts.get("version"), "options": vars(options)}
    report.update(settings={name: os.environ.get(name) for name in SETTINGS}, rows=[])
    for row in rows_of(list(arguments), options):
        report["rows"].append(row)
        print(json.dumps(row), flush=True)
        with open(options.output, "w", encoding="utf-8") as stream:
            json.dump(report, stream, indent=1)
            stream.write("\n")
    return EXIT_FAIL if any("error" in row for row in report["rows"]) else EXIT_PASS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
