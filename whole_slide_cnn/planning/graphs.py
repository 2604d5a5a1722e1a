"""Steps of the engines as operation graphs: shapes only, so that they may be of any size."""

import functools

import numpy as np

from graph_tools.errors import GraphToolsError
from graph_tools.graph.lifetimes import lifetimes, touched_bytes
from graph_tools.graph.opgraph import OpGraph, stable_order
from graph_tools.simulation.machine import Machine
from graph_tools.tensorflow.extract import extract
from whole_slide_cnn.engines import direct, unified
from whole_slide_cnn.engines.unified import UnifiedOptions
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.shapes import MOST_ELEMENTS
from whole_slide_cnn.sizes import Size

# As high as strips can be: cut only so that no tensor has 2^31 elements. The paper has no strips.
WHOLE_MB = 1e12


@functools.lru_cache(maxsize=8)
def direct_graph(network: Network, canvas: Size, compute: str, training: bool, unrolls: bool = False) -> OpGraph:
    """A step of ``direct``: the whole canvas in one graph, which may hold tensors that no operation can compute.

    Args:
        unrolls: whether convolutions unroll their input into patches, as TensorFlow's own CPU kernels do.
    """
    return _extracted(direct.planning_graph(network, canvas, compute, training), unrolls)


@functools.lru_cache(maxsize=2)
def unified_graph(
    network: Network, canvas: Size, compute: str, strip_mb: float, training: bool, unrolls: bool = False
) -> OpGraph:
    """A step of ``unified``.

    Raises:
        TensorTooLargeError: one row of a feature map does not fit a strip.
    """
    options = UnifiedOptions(strip_mb=strip_mb)
    return _extracted(unified.planning_graph(network, Size(*canvas), compute, options, training), unrolls)


def in_memory_seconds(ops: OpGraph, machine: Machine) -> float:
    """Time of a step whose tensors are all on the device."""
    life, named = lifetimes(ops, stable_order(ops)), ops.by_name()
    return float(
        np.sum([machine.seconds(named[name], size) for name, size in zip(life.order, touched_bytes(ops, life))])
    )


def _extracted(built, unrolls: bool) -> OpGraph:
    graph, fetches = built
    try:
        return extract(graph, fetches, workspace_limit=MOST_ELEMENTS if unrolls else 0)
    except GraphToolsError as error:
        raise ConfigError("the step cannot be planned: {}".format(error)) from error
