"""What the benchmarks of planning share: the operations of a training step, from a graph that is never run."""

import time
from typing import Dict, Tuple

import tensorflow.compat.v1 as tf

from graph_tools.extract import extract
from graph_tools.opgraph import OpGraph
from whole_slide_cnn.engines.unified import UnifiedOptions, _CanvasGraph
from whole_slide_cnn.models import build
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size


def step_graph(network: Network, side: int, compute: str, strip_mb: float) -> Tuple[OpGraph, Dict[str, float]]:
    """The operations of a training step on a square canvas as strips, and the seconds that each phase took.

    Args:
        side: of the canvas, in px.
        strip_mb: a strip of a feature map has at most so many megabytes.
    """
    times, started = {}, time.time()

    def done(phase):
        times[phase] = time.time() - started - sum(times.values())

    with tf.Graph().as_default() as graph:
        variables = build.create_variables(network, compute)
        canvas = _CanvasGraph(network, Size(side, side), compute, variables, UnifiedOptions(strip_mb=strip_mb))
        fetches = list(canvas.outputs(canvas.embedding()))
        done("forward graph")
        trained = [variables[spec.name] for spec in network.variables if spec.trainable]
        fetches += [gradient for gradient in tf.gradients(fetches[0], trained) if gradient is not None]
        done("gradients")
        ops = extract(graph, fetches)
        done("extract")
    return ops, times
