"""How fast this GPU convolves, by TensorFlow: ``python benchmarks/gpu_layers.py --output FILE``.

The convolutions of ResNet-50 (stride on the 3 x 3 convolution), one of each kind, forward and backward, in each type
and layout, on one large window and on a batch of small ones with as many pixels. Values are random, the graph is not
rewritten, and cuDNN chooses as it does for the engines; a time is that of some repetitions less that of one. Each type
and layout also gets a rate of the network: what its convolutions together would take at their kinds' rates. That is
what an engine's step is measured against: it counts no halo, and nothing but convolutions.

TF32 has a process of its own, since TensorFlow chooses it for a process. Exits with 77 where there is no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from tf_um_patch.gpu_check.command import EXIT_FAIL, EXIT_NO_GPU, EXIT_PASS
from tf_um_patch.probe import run_probe
from whole_slide_cnn.files import write_text

TF32 = "tensorfloat32"
WIDTHS = (64, 128, 256, 512)
BLOCKS = (3, 4, 6, 3)
PASSES = ("forward", "backward")


class Kind(NamedTuple):
    """A kind of convolution: kernel and stride, channels, and the side of its input as a divisor of the window's."""

    kernel: int
    stride: int
    inputs: int
    outputs: int
    divisor: int

    def __str__(self) -> str:
        return "{0}x{0}/{1} {2}-{3}".format(*self[:4])

    def flops(self, pixels: int) -> int:
        """Multiplications and additions of the forward pass on so many pixels of the image."""
        return 2 * self.kernel**2 * self.inputs * self.outputs * pixels // (self.divisor * self.stride) ** 2


def kinds() -> Dict[Kind, float]:
    """The kinds that are measured, and how many times each one's work a ResNet-50 does; convolutions that are not
    measured count as work of the nearest kind, which has the same kernel and stage."""
    found: Dict[Kind, float] = {Kind(7, 2, 3, 64, 1): 1.0}
    for stage, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS)):
        divisor, before = 4 * 2**stage, 64 if stage == 0 else 2 * width
        reduce, square, expand = (
            Kind(1, 1, 4 * width, width, divisor),
            Kind(3, 1, width, width, divisor),
            Kind(1, 1, width, 4 * width, divisor),
        )
        found[square], found[expand] = blocks, blocks
        # the first block reads another map, at twice the side but in the first stage, and has a shortcut
        first = Kind(1, 1, before, width, divisor if stage == 0 else divisor // 2)
        shortcut = Kind(1, 1 if stage == 0 else 2, before, 4 * width, first.divisor)
        pixels = 2**20
        found[reduce] = blocks - 1 + first.flops(pixels) / reduce.flops(pixels)
        found[expand] += shortcut.flops(pixels) / expand.flops(pixels)
    return found


def combinations(options) -> Iterator[Tuple[str, str, int, int]]:
    """Type, layout, batch and side, the most important first: what is cut off by the deadline is the small windows,
    then the layout that a type is not known to like."""
    for batch, side in ((1, options.side), (16, options.side // 4)):
        for first in (True, False):
            for dtype in options.types:
                liked = "NCHW" if dtype in ("float32", "float64") else "NHWC"
                for layout in options.layouts:
                    if (layout == liked) == first:
                        yield dtype, layout, batch, side


def measure(options, dtype: str, layout: str, batch: int, side: int, kind: Kind) -> Dict[str, float]:
    """Seconds of a kind's passes, in this process."""
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.models.build import COMPUTE_TYPES

    at = side // kind.divisor
    shape = [batch, at, at, kind.inputs] if layout == "NHWC" else [batch, kind.inputs, at, at]
    filters = [kind.kernel, kind.kernel, kind.inputs, kind.outputs]
    same = {"strides": [1, kind.stride, kind.stride, 1], "padding": "SAME", "data_format": layout}
    if layout == "NCHW":
        same["strides"] = [1, 1, kind.stride, kind.stride]
    found = {}
    with tf.Graph().as_default() as graph:
        type_ = COMPUTE_TYPES[dtype]
        random = [tf.cast(tf.random.normal(shape, seed=1), type_), tf.cast(tf.random.normal(filters, seed=2), type_)]
        x, kernel = (tf.get_variable(name, initializer=value) for name, value in zip("xk", random))
        one = tf.nn.conv2d(x, kernel, **same)
        gradient = tf.get_variable(
            "gradient", initializer=tf.cast(tf.random.normal([int(n) for n in one.shape], seed=3), type_)
        )

        def forward():
            return [tf.nn.conv2d(x, kernel, **same)]

        def backward():
            made = [tf.nn.conv2d_backprop_filter(x, filters, gradient, **same)]
            # nobody needs the gradient of the image
            return made if kind.inputs == 3 else made + [tf.nn.conv2d_backprop_input(shape, kernel, gradient, **same)]

        fetches = {}
        for name, make in (("forward", forward), ("backward", backward)):
            fetches[name] = [_chain(tf, make, count) for count in (1, 1 + options.repeats)]
        with tf.Session(graph=graph, config=_as_written(tf)) as session:
            session.run(tf.global_variables_initializer())
            for name in PASSES:
                for fetch in fetches[name]:
                    session.run(fetch)
                times = [min(_times(session, fetch)) for fetch in fetches[name]]
                found[name] = max(times[1] - times[0], 1e-9) / options.repeats
    return found


def _chain(tf, make, count: int):
    """Some repetitions, one after the other; one number of the last comes to the host, so that all have ended."""
    made = []
    for _ in range(count):
        with tf.control_dependencies(made):
            made = make()
    with tf.control_dependencies(made):
        return tf.reduce_sum([tf.cast(tf.reshape(tensor, [-1])[0], tf.float32) for tensor in made])


def _times(session, fetch, repeats: int = 3) -> List[float]:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        session.run(fetch)
        found.append(time.perf_counter() - began)
    return found


def _as_written(tf):
    """A session that runs the graph as it stands: equal convolutions stay many, and keep their layout."""
    from whole_slide_cnn.engines.runtime import session_config

    config = session_config()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = tf.OptimizerOptions.L0
    return config


def work_of(kind: Kind, pixels: int) -> Dict[str, int]:
    """Operations of each pass."""
    forward = kind.flops(pixels)
    return {"forward": forward, "backward": forward * (1 if kind.inputs == 3 else 2)}


def network_rates(found: Dict[str, Dict[str, float]], pixels: int) -> Dict[str, float]:
    """10^12 operations per second of all convolutions of a network, from seconds by kind; a step is both passes."""
    work, seconds = dict.fromkeys(PASSES, 0.0), dict.fromkeys(PASSES, 0.0)
    for kind, times in kinds().items():
        for name, flops in work_of(kind, pixels).items():
            work[name] += times * flops
            seconds[name] += times * found[str(kind)][name]
    rates = {name: work[name] / seconds[name] / 1e12 for name in PASSES}
    return dict(rates, step=sum(work.values()) / sum(seconds.values()) / 1e12)


def measure_all(options) -> None:
    """Rows of one process, each printed as it is known."""
    from whole_slide_cnn.engines import runtime

    for dtype, layout, batch, side in combinations(options):
        runtime.choose_products(dtype)
        if time.monotonic() > options.until:
            return
        row: Dict[str, Any] = {"compute": dtype, "layout": layout, "batch": batch, "side": side}
        row.update(seconds={}, tflops={})
        began = time.perf_counter()
        for kind in kinds():
            if time.monotonic() > options.until:
                row["error"] = "left out from {} on: the deadline".format(kind)
                break
            try:
                seconds = measure(options, dtype, layout, batch, side, kind)
            except Exception as error:  # NCHW is not there for all types, and nowhere without a GPU
                row["error"] = "{} {}: {}".format(kind, type(error).__name__, (str(error).splitlines() or [""])[0])
                break
            row["seconds"][str(kind)] = seconds
            work = work_of(kind, batch * side**2)
            row["tflops"][str(kind)] = {name: work[name] / seconds[name] / 1e12 for name in PASSES}
        if "error" not in row:
            row["network_tflops"] = network_rates(row["seconds"], batch * side**2)
        print(json.dumps(dict(row, took=time.perf_counter() - began)), flush=True)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output", metavar="FILE", required=True, help="JSON, written again after each row")
    arguments.add_argument("--types", nargs="+", default=["bfloat16", "float32", TF32, "float16"])
    arguments.add_argument("--layouts", nargs="+", choices=("NHWC", "NCHW"), default=["NHWC", "NCHW"])
    arguments.add_argument("--side", type=int, default=2048, metavar="PX", help="of the large window (default: 2048)")
    arguments.add_argument("--repeats", type=int, default=4, help="of each convolution (default: 4)")
    arguments.add_argument("--deadline", type=float, default=120, metavar="SECONDS", help="of all (default: 120)")
    arguments.add_argument("--on-cpu", action="store_true", help="try the command itself, where there is no GPU")
    arguments.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return arguments


def main(arguments) -> int:
    options = parser().parse_args(arguments)
    if options.one:
        measure_all(options)
        return EXIT_PASS
    facts = run_probe()
    if facts["absent"] and not options.on_cpu:
        why = facts["error"] or "the driver sees none"
        print("there is no GPU here, so nothing was measured ({})".format(why), file=sys.stderr)
        return EXIT_NO_GPU
    report: Dict[str, Any] = {"gpu": facts.get("name"), "driver": facts.get("version"), "options": vars(options)}
    report.update(autotune=os.environ.get("TF_CUDNN_USE_AUTOTUNE"), rows=[], errors=[])
    until = time.monotonic() + options.deadline
    processes = [[it for it in options.types if it != TF32], [it for it in options.types if it == TF32]]
    processes = [types for types in processes if types]
    for index, types in enumerate(processes):
        # what is left is shared by the number of types
        left = until - time.monotonic()
        share = left * len(types) / sum(len(it) for it in processes[index:])
        command = [sys.executable, os.path.abspath(__file__)] + list(arguments)
        command += ["--one", "--until", str(time.monotonic() + share), "--types"] + types
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        try:
            output, said = child.communicate(timeout=share + 15)
        except subprocess.TimeoutExpired:
            child.kill()
            output, said = child.communicate()
            report["errors"].append("{} was ended after {:.0f} s".format(" ".join(types), share + 15))
        else:
            if child.returncode:
                report["errors"].append((said.strip().splitlines() or ["it said nothing"])[-1])
        for line in output.splitlines():
            if line.startswith("{") and line.endswith("}"):
                row = json.loads(line)
                report["rows"].append(row)
                print(json.dumps({key: row.get(key) for key in SHOWN}), flush=True)
        write_text(options.output, json.dumps(report, indent=1) + "\n")
    return EXIT_FAIL if report["errors"] or not report["rows"] else EXIT_PASS


SHOWN = ("compute", "layout", "batch", "side", "network_tflops", "error", "took")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
