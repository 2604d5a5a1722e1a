"""A step of ``unified`` as a graph of strips, and its plan. A step may be planned that is never run."""

import functools
from typing import Any, Dict, List, Optional, Tuple

import tensorflow.compat.v1 as tf

from graph_tools.errors import BudgetError, GraphToolsError
from graph_tools.passes.planner import make_plan
from graph_tools.plan import Plan
from graph_tools.simulation.machine import Machine
from graph_tools.tensorflow.extract import extract
from whole_slide_cnn.engines.accumulators import sum_updates
from whole_slide_cnn.engines.runtime import has_gpu, unrolls_patches
from whole_slide_cnn.engines.unified.options import UnifiedOptions
from whole_slide_cnn.engines.unified.variants import order_of
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models import build, geometry
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.shapes import MOST_ELEMENTS
from whole_slide_cnn.models.strips import StripBuilder, Strips, aligned_partition
from whole_slide_cnn.sizes import Size

MB, GB = 10**6, 10**9
_UNLIMITED = 10**15  # bytes; no plan moves as much
# What a computer without a GPU does per second, in arithmetic and bytes: their ratio decides what is cheap to compute
# again. There is one memory, and so nothing to move to, and its pages are small.
_CPU: Dict[str, Any] = {"float32_flops": 1e11, "half_flops": 1e11, "memory_rate": 1e10, "page_bytes": 4096}
_CPU.update(copy_rate=1e9, on_demand_rate=1e9)  # of a file
_MARGIN = 8  # a strip with its halo and what gradients unroll of it stays below 2^31 elements


def machine_of(options: UnifiedOptions) -> Optional[Machine]:
    """What a plan is made for; None where it has no budget. Without a GPU there is one memory: nothing is moved, only
    recomputed, unless there is a folder to move to."""
    if options.device_gb is None:
        return None
    host = _UNLIMITED if options.host_gb is None else int(options.host_gb * GB)
    if has_gpu():
        return Machine(int(options.device_gb * GB), host)
    return Machine(int(options.device_gb * GB), host if options.eviction_dir else 0, **_CPU)


def planning_graph(
    network: Network, canvas: Size, compute: str, options: UnifiedOptions, training: bool = True
) -> Tuple[tf.Graph, List[tf.Tensor]]:
    """A step's graph and fetches, built only to be planned: the canvas may be of any size.

    Raises:
        TensorTooLargeError: one row of a feature map does not fit a strip.
    """
    with tf.Graph().as_default() as graph:
        variables = build.create_variables(network, compute)
        canvas_graph = CanvasGraph(network, canvas, compute, variables, options)
        loss, probabilities = canvas_graph.outputs(canvas_graph.embedding())
        return graph, [loss, probabilities] + (sum_updates(network, loss, variables) if training else [])


@functools.lru_cache(maxsize=2)  # what a run will take is asked more than once before it
def step_plan(
    network: Network,
    canvas: Size,
    compute: str,
    options: UnifiedOptions,
    training: bool = True,
) -> Plan:
    """The plan of a step, from a graph that is built but never run: it may be of any size.

    Args:
        training: whether gradients are computed.

    Raises:
        TensorTooLargeError: one row of a feature map does not fit a strip.
        ConfigError: the step cannot be planned.
    """
    graph, fetches = planning_graph(network, canvas, compute, options, training)
    return plan_of(graph, fetches, options, compute)


def held_bytes(plan: Plan) -> int:
    """The most bytes of tensors that a step holds where what is moved out leaves the process for a file."""
    evicted = [0] * len(plan.groups)
    for copy in plan.evictions:
        for group in range(copy.during + 1, copy.needed_by - 1):
            evicted[group] += copy.bytes
    held = max(group.bytes + group.carried_bytes - away for group, away in zip(plan.groups, evicted))
    return min(plan.peak_bytes, held)


def plan_of(graph: tf.Graph, fetches: List, options: UnifiedOptions, compute: str) -> Plan:
    """The plan of some fetches of a graph.

    Raises:
        ConfigError: they cannot be planned.
    """
    machine = machine_of(options)
    policy = "keep" if machine is None else options.memory_policy
    try:
        ops = extract(graph, fetches, workspace_limit=_UNLIMITED if unrolls_patches(compute) else 0)
        return make_plan(
            ops, int(options.group_mb * MB), order_of(policy, has_gpu()), options.prefetch_depth, policy, machine
        )
    except BudgetError as error:
        assert options.device_gb is not None, "there is no budget without it"
        raise ConfigError(
            "engine unified: no choice of tensors brings the step under unified.device_gb, {:g} ({}); give more, use "
            "a smaller unified.group_mb, or half precision".format(options.device_gb or 0.0, str(error).split(";")[0])
        ) from error
    except GraphToolsError as error:
        raise ConfigError("engine unified: {}".format(error)) from error


class CanvasGraph:
    """Operations on a whole canvas, in the current graph.

    Attributes:
        bounds: rows at which the strips of pixels begin, and the canvas's height.
        pixels: placeholders of these strips, uint8 (1, rows, width, 3).
        label: placeholder of the slide's class.
    """

    def __init__(
        self,
        network: Network,
        canvas: Size,
        compute: str,
        variables: Dict[str, tf.Variable],
        options: UnifiedOptions,
    ):
        self._network, self._canvas, self._compute, self._variables = network, canvas, compute, variables
        elements = min(int(options.strip_mb * MB) // build.COMPUTE_TYPES[compute].size, MOST_ELEMENTS // _MARGIN)
        self._partition = aligned_partition(network.trunk, canvas, elements)
        self.bounds = self._partition(canvas.height)
        self.label = tf.placeholder(tf.int32, [], "label")
        self.pixels = [
            tf.placeholder(tf.uint8, (1, stop - start, canvas.width, 3), "pixels")
            for start, stop in zip(self.bounds[:-1], self.bounds[1:])
        ]

    def embedding(self) -> Strips:
        """The embedding map in the compute type."""
        inputs = tuple(build.normalise(self._network, pixels, self._compute) for pixels in self.pixels)
        builder = StripBuilder(self._network.trunk, self._variables, self._compute, self._partition)
        return builder.on(Strips(self.bounds, inputs))

    def outputs(self, embedding: Strips):
        """Loss and probabilities."""
        return build.head(self._network, self._variables, self._pooled(embedding), self.label)

    def class_map(self, embedding: Strips) -> tf.Tensor:
        """Logits (cells high, cells wide, classes)."""
        parts = [build.logits_of_cells(self._network, self._variables, map_) for map_ in self._cast(embedding)]
        cells = geometry.cells_of(self._network.trunk, self._canvas)
        return tf.reshape(tf.concat(parts, 0), cells + (self._network.classes,))

    def _pooled(self, embedding: Strips) -> tf.Tensor:
        dtype = build.variable_type(self._compute)
        if self._network.pooling == "gmp":
            highest = tf.stack([build.pool_maximum(tensor, dtype)[0] for tensor in embedding.tensors])
            # strips are in raster order, and so the first of equal strips holds the first of equal cells
            return build.pool_maximum(highest[tf.newaxis, :, tf.newaxis, :], dtype)[0]
        sums = [tf.reduce_sum(map_, axis=[0, 1, 2]) for map_ in self._cast(embedding)]
        return tf.add_n(sums) / (embedding.height * embedding.width)

    def _cast(self, embedding: Strips) -> List[tf.Tensor]:
        return [tf.cast(tensor, build.variable_type(self._compute)) for tensor in embedding.tensors]
