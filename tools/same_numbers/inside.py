"""What is asked of a checkout's modules, run by its Python: ``python -m same_numbers.inside``."""

import argparse
import contextlib
import json
import os
import sys
from typing import Any, Dict

import numpy as np

from .files import digest, write
from .recipes import EXACTNESS


def describe(options) -> int:
    """Print what numbers depend on besides the code, as JSON."""
    import platform

    import scipy
    import tensorflow

    processor = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
        processor = next((line.split(":")[1].strip() for line in stream if line.startswith("model name")), "")
    found = {"python": platform.python_version(), "processor": processor, "cores": str(os.cpu_count())}
    found.update({module.__name__: module.__version__ for module in (np, scipy, tensorflow)})
    print(json.dumps(found))
    return 0


def export_graph(options) -> int:
    """Save the graph of a training step of a small network: convolutions, branches, a sum and a maximum."""
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    random = np.random.RandomState(0)
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, (1, 192, 192, 3), "image")
        at, variables = image, []
        for layer in range(8):
            channels = 8 if layer < 5 else 16
            shape = (3, 3, at.shape.as_list()[3], channels)
            kernel = tf.get_variable(
                "kernel{}".format(layer), initializer=tf.constant(random.randn(*shape), tf.float32)
            )
            bias = tf.get_variable("bias{}".format(layer), initializer=tf.constant(random.randn(channels), tf.float32))
            variables += [kernel, bias]
            stride = 2 if layer == 5 else 1
            after = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(at, kernel, [1, stride, stride, 1], "SAME"), bias))
            at = at + after if layer in (2, 4, 7) else after
        pooled = tf.reduce_max(tf.nn.max_pool2d(at, 2, 2, "SAME"), axis=(1, 2))
        gradients = tf.gradients(tf.reduce_sum(pooled, name="loss"), variables)
        with tf.control_dependencies([tf.identity(value) for value in gradients]):
            train = tf.group(*[v.assign_sub(1e-3 * g) for v, g in zip(variables, gradients)], name="train")
        tf.add_to_collection(tf.GraphKeys.TRAIN_OP, train)
        tf.train.export_meta_graph(options.path)
    return 0


def exactness(options) -> int:
    """Write errors and results of every engine on the cases of the benchmark, as JSON."""
    import exactness as benchmark

    which, cases, names = options.which, benchmark.CASES, benchmark.compared_engines()
    float32 = benchmark.FLOAT32_CASES if which == "float32" else ()
    if which in names:
        cases, names = [case for case in cases if case.slow], [which]
    else:
        cases = [case for case in cases if not case.slow and case.pooling == which]
    errors: Dict[str, Any] = {}
    results: Dict[str, Any] = {}
    for case in cases:
        reference = benchmark.compute("direct", case)
        results["direct {}".format(case)] = digests_of(reference)
        for name in names:
            key = "{} {}".format(name, case)
            try:
                found = benchmark.compute(name, case)
            except Exception as error:  # such as where an engine has nothing to compute again
                errors[key] = {"refused": str(error)}
                continue
            error, where = benchmark.largest_error(found, reference)
            errors[key], results[key] = {"error": error, "where": where}, digests_of(found)
    for case in float32:
        for name in names:
            errors["float32 {} {}".format(name, case)] = {"ratio": benchmark.float32_ratio(name, case)}
    write(os.path.abspath(options.path), json.dumps({"errors": errors, "results": results}))
    return 0


def digests_of(result) -> Dict[str, Any]:
    """Losses, and digests of gradients and weights, of a result of the benchmark."""
    found = {
        part: {key: digest(value) for key, value in getattr(result, part).items()} for part in ("gradients", "weights")
    }
    return dict(found, losses=[float(loss) for loss in result.losses])


def main(arguments) -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser("same_numbers.inside", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    commands.required = True
    commands.add_parser("describe").set_defaults(run=describe)
    command = commands.add_parser("export-graph")
    command.add_argument("path")
    command.set_defaults(run=export_graph)
    command = commands.add_parser("exactness")
    command.add_argument("which", choices=EXACTNESS)
    command.add_argument("path")
    command.set_defaults(run=exactness)
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
