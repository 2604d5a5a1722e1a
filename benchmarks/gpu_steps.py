"""Seconds and memory of an engine's steps on a GPU: ``python benchmarks/gpu_steps.py --output FILE``.

Each row is a backbone, a canvas and a type: the first training step, which chooses cuDNN's kernels for every new shape
of a window, the median of those that follow, predictions, and the peak of TensorFlow's allocator beside what was
planned. Slides are noise in memory, so nothing is read; weights are random. ``--row`` names rows one by one, in
the order of their importance, and ``--deadline`` ends the whole in time: the file then has the steps that were made.
``--exactness`` compares the engines with ``direct`` on the GPU instead, and ``direct`` with itself on the CPU.

A row has a process of its own. ``--shared`` saves the start of most: rows that follow each other share one where they
can, so that only the first of them meets cuDNN cold, and the peak of a row may include memory of those before.

``unified`` takes managed memory where all of it is started by ``python -m tf_um_patch run --ceiling 8GB -- python
benchmarks/gpu_steps.py ...``. Exits with 77 where there is no GPU. docs/gpu.md has what was found.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, List, Optional

import exactness
import numpy as np
import yaml
from bench.slides import tissue_image

from tf_um_patch.gpu_check.command import EXIT_FAIL, EXIT_NO_GPU, EXIT_PASS
from tf_um_patch.probe import run_probe
from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.files import write_text

# A case for each head and pooling, and of two real backbones; by name, for the command line.
EXACTNESS = (
    "tiny-gmp-softmax-333x450-inside-w96",
    "resnet18-gmp-softmax-149x170-corner-w64",
    "tiny-gap-softmax-450x289-pair-w96",
    "fixup_resnet50-gmp-softmax-149x170-corner-w64",
    "tiny-gmp-sigmoid-333x450-inside-w64",
)
CASES = {str(case): case for case in exactness.CASES}
ENGINES = ("streaming", "unified", "staged", "direct")
TF32 = "tensorfloat32"
LEAST_SECONDS = 10  # no row begins with less before the deadline
SETTINGS = ("NVIDIA_TF32_OVERRIDE", "TF_CUDNN_USE_AUTOTUNE", "TF_CUDNN_WORKSPACE_LIMIT_IN_MB")  # that change figures


def cases_of(options) -> List[Dict[str, Any]]:
    """Rows as dictionaries, in order: those that were named, else all combinations of the options. What a row does
    not say is as the options have it; a window means something to streaming alone."""
    windows = options.windows if options.engine == "streaming" else [None]
    names = ("backbone", "side", "window", "compute")
    found = itertools.product(options.backbones, options.sides, windows, options.types)
    combinations = [dict(zip(names, values)) for values in found]
    rows = combinations if not options.row else [_named(words, combinations[0]) for words in options.row]
    same = {"engine": options.engine, "pooling": options.pooling, "tissue": options.tissue, "options": {}}
    return [_with_engine_options(dict(same, **row), options.option) for row in rows]


def _named(words: List[str], default: Dict[str, Any]) -> Dict[str, Any]:
    """A row of words such as ``side=4688`` and ``streaming.window=2048``."""
    row = dict(default, options={})
    kinds = {
        "backbone": str,
        "side": int,
        "window": int,
        "compute": str,
        "engine": str,
        "pooling": str,
        "tissue": float,
    }
    for word in words:
        key, _, value = word.partition("=")
        if key in kinds:
            row[key] = kinds[key](value)
        elif "." in key:
            row["options"] = dict(row["options"], **{key: value})
        else:
            raise SystemExit("--row {}: rows have {} and options of engines".format(word, ", ".join(kinds)))
    return row


def _with_engine_options(row: Dict[str, Any], given: List[str]) -> Dict[str, Any]:
    """A row with the options of its engine, as plain values; those of other engines are left out."""
    words = dict([word.partition("=")[::2] for word in given], **row["options"])
    prefix = row["engine"] + "."
    options = {key[len(prefix) :]: yaml.safe_load(value) for key, value in words.items() if key.startswith(prefix)}
    if row["engine"] == "streaming" and row["window"] is not None:
        options["window"] = row["window"]
    return dict(row, options=options)


def summary(steps: List[float], predictions: List[float]) -> Dict[str, Any]:
    """Figures of a row from seconds: the first step stands alone, and a prediction is the best of several."""
    found: Dict[str, Any] = {"first_step_s": steps[0], "steps_s": steps}
    if steps[1:]:
        steady = statistics.median(steps[1:])
        found.update(step_s=steady, trained_per_minute=60 / steady)
    if predictions:
        found.update(predict_s=min(predictions), predicted_per_minute=60 / min(predictions))
    return found


def measure(options, case: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """One row, in this process; again with all that is known after each step."""
    from whole_slide_cnn.engines.memory import engine_memory
    from whole_slide_cnn.engines.table import ENGINES as KNOWN
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.running.optimisers import Adam
    from whole_slide_cnn.sizes import Size
    from whole_slide_cnn.slides.canvas import ArrayCanvas

    began = time.perf_counter()
    name, compute = case["engine"], case["compute"]
    network, size = Network(case["backbone"], case["pooling"], "softmax", 3), Size(case["side"], case["side"])
    canvas, given = ArrayCanvas(slide(case["side"], case["tissue"])), KNOWN[name].options(**case["options"])
    row = dict(case, slide_s=time.perf_counter() - began)
    planned = engine_memory(name, network, size, compute, True, **case["options"])
    row["planned_bytes"] = dict(planned.parts)
    begun = time.perf_counter()
    steps: List[float] = []
    predictions: List[float] = []
    losses: List[float] = []
    with KNOWN[name].make(network, size, compute, Adam(1e-4), True, given) as engine:
        row["build_s"] = time.perf_counter() - begun
        row.update(facts_of(name, engine, canvas))
        engine.load_state(network.initial_weights(0))
        allocator_peak(reset=True)
        for _ in range(1 + options.steps):
            seconds, (found,) = clocked(lambda: engine.train_batch([canvas], [1]))
            steps.append(seconds)
            losses.append(float(found.loss))
            row.update(summary(steps, []), losses=losses, allocator_peak_bytes=allocator_peak())
            yield row
            if len(steps) > 1 and options.row_seconds and time.perf_counter() - began > options.row_seconds:
                break
        for _ in range(2):
            predictions.append(clocked(lambda: engine.predict(canvas, 1))[0])
            row.update(summary(steps, predictions))
            yield row


@functools.lru_cache(maxsize=2)
def slide(side: int, share: float) -> np.ndarray:
    """A slide, once for the rows of a process: the largest takes longer to make than to train on."""
    return tissue_image(side, share)


def facts_of(name: str, engine, canvas) -> Dict[str, Any]:
    """What an engine is about to do: its windows, or its plan."""
    if name == "streaming" and hasattr(engine, "cover"):
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


def has_gpu() -> bool:
    """Whether TensorFlow may compute on a GPU."""
    from whole_slide_cnn.engines import runtime

    return runtime.has_gpu()


def need_gpu(options) -> None:
    """End this process where TensorFlow computes on the CPU, which it would do without a word."""
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.runtime import session_config

    if options.on_cpu:
        return
    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        if not any(device.device_type == "GPU" for device in session.list_devices()):
            sys.exit(
                "TensorFlow {} sees no GPU: install the CUDA libraries that it is built for".format(tf.__version__)
            )


def allocator_peak(reset: bool = False) -> Optional[int]:
    """Largest number of bytes that TensorFlow held on the GPU, where this version tells; or begin anew with what it
    holds now."""
    import tensorflow

    ask = getattr(tensorflow.config.experimental, "get_memory_info", None)
    if ask is None or not has_gpu():
        return None
    if reset:
        tensorflow.config.experimental.reset_memory_stats("GPU:0")
    return ask("GPU:0")["peak"]


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


def compare(options, unit: Dict[str, Any]) -> Dict[str, Any]:
    """The engines' errors in float64 in a case, or those of gradients in other types, in this process."""
    name, types = unit["case"], unit["types"]
    row: Dict[str, Any] = {"case": name}
    if "float64" in types:
        direct = exactness.compute("direct", CASES[name])
        row.update(digest=digest(direct), float64={})
        for engine in exactness.engines_of(CASES[name]):
            try:
                error, where = exactness.largest_error(exactness.compute(engine, CASES[name]), direct)
            except (
                AssertionError,
                WholeSlideError,
            ) as reason:  # it must not cost the others' figures
                row["float64"][engine] = {"error": None, "where": str(reason)}
            else:
                row["float64"][engine] = {"error": error, "where": where}
    for dtype in [dtype for dtype in types if dtype != "float64"]:
        row[dtype] = {engine: exactness.approximation(engine, dtype, CASES[name], options.seeds) for engine in ENGINES}
    return row


def units_of(options) -> List[Dict[str, Any]]:
    """What is compared in a process of its own: TF32 apart from other types, which share no process with it. Types that
    are not exact are measured with the tiny network, which is quick and has every kind of layer."""
    found = []
    for name in options.cases:
        types = ["float64"] + [it for it in options.types if it != "float64" and CASES[name].backbone == "tiny"]
        for part in ([it for it in types if it != TF32], [it for it in types if it == TF32]):
            if part:
                found.append({"case": name, "types": part})
    return found


def compared(options, arguments: List[str], unit: Dict[str, Any]) -> Dict[str, Any]:
    """What a process found of it, and another on the CPU."""
    row = dict(unit, **in_child(arguments + ["--one", json.dumps(unit)], options))
    found = row.pop("digest", None)
    if found is not None and not options.no_cpu:
        on_cpu = in_child(arguments + ["--digest", unit["case"]], options, CUDA_VISIBLE_DEVICES="-1")
        row["direct_against_cpu"] = on_cpu.get("error") or digest_error(found, on_cpu)
    return row


# ---- the command ----


def in_child(arguments: List[str], options, **variables: str) -> Dict[str, Any]:
    """What a process of this command printed as its last line, or {"error": why}."""
    command = [sys.executable, os.path.abspath(__file__)] + arguments
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    seconds = seconds_left(options)
    try:
        done = subprocess.run(command, env=dict(os.environ, **variables), timeout=seconds, **pipes)
    except subprocess.TimeoutExpired:
        return {"error": "it was ended after {:.0f} s".format(seconds)}
    if done.returncode:
        return {"error": last_line(done.stderr)}
    return json.loads(done.stdout.splitlines()[-1])


def last_line(text: str) -> str:
    """Why a process failed, as far as it said."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def seconds_left(options) -> float:
    """Seconds that a row may take now."""
    if options.deadline is None:
        return options.timeout
    return max(min(options.timeout, options.began + options.deadline - time.monotonic()), 0.1)


def process_of(case: Dict[str, Any]) -> bool:
    """Rows with equal values may share a process: TF32 shares none with other types."""
    return case["compute"] == TF32


def rows_of(arguments: List[str], options) -> Iterator[List[Dict[str, Any]]]:
    """All rows that are known, again and again; "error" says why something is missing of one."""
    rows: List[Dict[str, Any]] = []
    if options.exactness:
        with ThreadPoolExecutor(options.jobs) as pool:
            for row in pool.map(lambda unit: compared(options, arguments, unit), units_of(options)):
                rows.append(row)
                yield rows
        return
    cases = cases_of(options)
    while cases:
        if seconds_left(options) < LEAST_SECONDS:
            yield rows + [dict(case, error="left out: the deadline") for case in cases]
            return
        share = list(next(itertools.groupby(cases, process_of))[1]) if options.shared else cases[:1]
        done: List[Dict[str, Any]] = []
        for done in measured(arguments, options, share):
            yield rows + done
        rows += done
        cases = cases[len(done) :]


def measured(arguments: List[str], options, cases: List[Dict[str, Any]]) -> Iterator[List[Dict[str, Any]]]:
    """The first rows of some, at least one, measured in one process; again whenever more is known of them."""
    done: List[Dict[str, Any]] = []
    command = [sys.executable, os.path.abspath(__file__)] + arguments + ["--one", json.dumps(cases)]
    with tempfile.NamedTemporaryFile() as output, tempfile.TemporaryFile() as said, open(output.name, "rb") as reader:
        child = subprocess.Popen(command, stdout=output, stderr=said)
        began, waiting, ended = time.monotonic(), b"", False
        try:
            while not ended:
                ended = child.poll() is not None
                *lines, waiting = (waiting + reader.read()).split(b"\n")
                for line in lines:
                    if not line.startswith(b"{"):
                        continue  # of a library
                    message = json.loads(line.decode("utf-8"))
                    if message["index"] == len(done):
                        done.append({})
                    done[-1] = message["row"]
                    began = time.monotonic() if done[-1]["done"] else began
                    yield done
                if not ended and (time.monotonic() - began > options.timeout or seconds_left(options) < 1):
                    raise TimeoutError("it was ended after {:.0f} s".format(time.monotonic() - began))
                time.sleep(0 if ended else 0.1)
            if child.returncode:
                said.seek(0)
                raise ChildProcessError(last_line(said.read().decode("utf-8", "replace")))
        except (TimeoutError, ChildProcessError) as error:
            if done and done[-1]["done"]:
                if len(done) == len(cases):
                    return
                done.append(cases[len(done)])
            done = done or [cases[0]]
            done[-1] = dict(done[-1], error=str(error), done=True)
            yield done
        finally:
            child.kill()
            child.wait()


def measure_all(options, cases: List[Dict[str, Any]]) -> None:
    """Rows in this process, each printed whenever more is known of it."""
    need_gpu(options)
    for index, case in enumerate(cases):
        row = case
        try:
            for row in measure(options, case):
                print(json.dumps({"index": index, "row": dict(row, done=False)}), flush=True)
        except Exception as error:  # of a row that does not fit; the next may
            row = dict(row, error="{}: {}".format(type(error).__name__, (str(error).splitlines() or [""])[0]))
        print(json.dumps({"index": index, "row": dict(row, first_of_process=index == 0, done=True)}), flush=True)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output", metavar="FILE", required=True, help="JSON, written again after each step")
    arguments.add_argument("--engine", choices=ENGINES, default="streaming")
    arguments.add_argument("--backbones", nargs="+", default=["fixup_resnet50"])
    arguments.add_argument("--pooling", default="gmp")
    arguments.add_argument("--sides", type=int, nargs="+", default=[4688, 11000], metavar="PX", help="of the canvas")
    arguments.add_argument(
        "--windows", type=int, nargs="+", default=[None], metavar="PX", help="of streaming (default: the engine's own)"
    )
    arguments.add_argument("--types", nargs="+", default=["float32"])
    arguments.add_argument("--tissue", type=float, default=0.22, help="share of the canvas (default: 0.22)")
    arguments.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="ENGINE.KEY=VALUE",
        help="of an engine, such as unified.strip_mb=16; may be repeated",
    )
    arguments.add_argument(
        "--row",
        action="append",
        nargs="+",
        metavar="KEY=VALUE",
        help="one row instead of all combinations, such as: side=4688 compute=bfloat16 streaming.window=2048; may be "
        "repeated",
    )
    arguments.add_argument("--steps", type=int, default=3, help="training steps after the first (default: 3)")
    arguments.add_argument(
        "--row-seconds",
        type=float,
        metavar="SECONDS",
        help="after so many a row makes no more training steps, if it has one besides the first",
    )
    arguments.add_argument("--shared", action="store_true", help="rows that follow each other share a process")
    arguments.add_argument("--exactness", action="store_true", help="instead: compare engines with direct")
    arguments.add_argument("--cases", nargs="+", choices=sorted(CASES), default=EXACTNESS, metavar="CASE")
    arguments.add_argument("--seeds", type=int, default=exactness.FLOAT32_SEEDS, help="of types that are not exact")
    arguments.add_argument("--no-cpu", action="store_true", help="do not compare direct with a CPU")
    arguments.add_argument("--jobs", type=int, default=1, help="comparisons at a time (default: 1)")
    arguments.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of each row (default: 300)")
    arguments.add_argument("--deadline", type=float, metavar="SECONDS", help="of all; rows beyond it are left out")
    arguments.add_argument("--on-cpu", action="store_true", help="try the command itself, where there is no GPU")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    arguments.add_argument("--digest", help=argparse.SUPPRESS)
    return arguments


def main(arguments) -> int:
    options = parser().parse_args(arguments)
    options.began = time.monotonic()
    if options.digest:
        print(json.dumps(digest(exactness.compute("direct", CASES[options.digest]))))
        return EXIT_PASS
    if options.one and options.exactness:
        need_gpu(options)
        print(json.dumps(compare(options, json.loads(options.one))))
        return EXIT_PASS
    if options.one:
        measure_all(options, json.loads(options.one))
        return EXIT_PASS
    facts = run_probe()
    if facts["absent"] and not options.on_cpu:
        why = facts["error"] or "the driver sees none"
        print("there is no GPU here, so nothing was measured ({})".format(why), file=sys.stderr)
        return EXIT_NO_GPU
    report: Dict[str, Any] = {"gpu": facts.get("name"), "driver": facts.get("version"), "options": vars(options)}
    report.update(settings={name: os.environ.get(name) for name in SETTINGS}, rows=[])
    for rows in rows_of(list(arguments), options):
        report.update(rows=rows, seconds=time.monotonic() - options.began)
        write_text(options.output, json.dumps(report, indent=1) + "\n")
        if rows[-1].get("done", True):
            print(json.dumps(rows[-1]), flush=True)
    return EXIT_FAIL if any("error" in row for row in report["rows"]) else EXIT_PASS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
