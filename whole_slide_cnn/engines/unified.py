"""Whole-slide training over unified memory (2021 paper, Methods): the whole canvas in one graph, ordered by a plan.

Every feature map of the canvas exists at once, as strips. Where they exceed the device's memory, unified memory pages
them to the host, and the order in which operations run decides how often. So the graph is cut into groups of operations
that fit the device together, which run one after the other (Group Execution), and what a group needs is fetched while
the one before it runs (Group Prefetch). Beyond the paper, a budget makes the plan drop maps after the forward pass and
compute them again in the backward pass, or move them out of the device, so that less is held at once. The numbers stay
those of ``direct``.
"""

import functools
import os
import warnings
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from graph_tools.errors import BudgetError, GraphToolsError
from graph_tools.passes.planner import make_plan
from graph_tools.plan import Plan
from graph_tools.simulation.machine import Machine
from graph_tools.tensorflow.apply import EditReport, apply
from graph_tools.tensorflow.apply import session_config as ordered_session_config
from graph_tools.tensorflow.extract import extract
from tf_um_patch.launch import exceeds_device, memory_fraction
from tf_um_patch.ops import load_ops
from whole_slide_cnn.engines.base import Engine, Prediction, has_gpu, sum_updates, unrolls_patches
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models import build, geometry
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.strips import StripBuilder, Strips, aligned_partition
from whole_slide_cnn.models.trace import MOST_ELEMENTS
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import Canvas

MB, GB = 10**6, 10**9
_UNLIMITED = 10**15  # bytes; no plan moves as much
# What a computer without a GPU does per second, in arithmetic and bytes: their ratio decides what is cheap to compute
# again. There is one memory, and so nothing to move to, and its pages are small.
_CPU = {"float32_flops": 1e11, "half_flops": 1e11, "memory_rate": 1e10, "page_bytes": 4096}
_CPU.update(copy_rate=1e9, on_demand_rate=1e9)  # of a file
_MARGIN = 8  # a strip with its halo and what gradients unroll of it stays below 2^31 elements


@dataclass(frozen=True)
class UnifiedOptions:
    """How a canvas is cut, and its operations ordered.

    Attributes:
        strip_mb: a strip of a feature map has at most so many megabytes.
        group_mb: what the operations of a group touch has at most so many megabytes together.
        prefetch_depth: groups ahead that a tensor is fetched; 0 fetches nothing, 1 is the paper's.
        device_gb: gigabytes that what is held at once shall fit; None keeps all tensors, as the paper does.
        host_gb: gigabytes of host memory for what is moved out of a GPU; None sets no limit. Without a GPU there is one
            memory: nothing is moved, only recomputed, unless there is a folder to move to.
        eviction_dir: without a GPU, folder of the files to which tensors are moved, up to ``host_gb``.
        memory_policy: how what exceeds ``device_gb`` is chosen: ``recompute``, ``greedy``, ``integer`` or ``best`` (see
            :func:`graph_tools.passes.planner.make_plan`), or ``keep``, which takes no budget.
    """

    strip_mb: float = 256.0
    group_mb: float = 4000.0
    prefetch_depth: int = 1
    device_gb: Optional[float] = None
    host_gb: Optional[float] = None
    memory_policy: str = "recompute"
    eviction_dir: Optional[str] = None

    def machine(self) -> Optional[Machine]:
        """What a plan is made for; None where it has no budget."""
        if self.device_gb is None:
            return None
        host = _UNLIMITED if self.host_gb is None else int(self.host_gb * GB)
        if has_gpu():
            return Machine(int(self.device_gb * GB), host)
        return Machine(int(self.device_gb * GB), host if self.eviction_dir else 0, **_CPU)


def can_exceed_device() -> bool:
    """Whether what this process allocates may exceed its GPU: it was started by ``python -m tf_um_patch run``."""
    return exceeds_device()


class UnifiedEngine(Engine):
    """Plain back-propagation through strips of the whole canvas, in the order of a plan.

    Attributes:
        plan: of a training step.
        edits: what the plan added to the graph.

    Args:
        move_ops: what :func:`tf_um_patch.ops.load_ops` gave, to move tensors with; by default loaded where there is a
            GPU. Without it nothing is fetched ahead or moved out.
        options: fields of :class:`UnifiedOptions`.

    Raises:
        TensorTooLargeError: one row of a feature map does not fit a strip.
        ConfigError: the step cannot be planned.
    """

    name = "unified"

    def __init__(
        self,
        network: Network,
        canvas_size: Size,
        compute: str = "float32",
        optimiser=None,
        move_ops=None,
        **options,
    ):
        self._options = UnifiedOptions(**options)
        self._spills = self._options.eviction_dir is not None and not has_gpu()
        if move_ops is None and (has_gpu() or self._spills):
            move_ops = load_ops()
            if self._spills and not move_ops.available:
                raise ConfigError("unified.eviction_dir: {}".format(move_ops.reason))
            if not move_ops.available:
                warnings.warn(move_ops.reason, stacklevel=2)
        self._move_ops = move_ops if move_ops is not None and move_ops.available else None
        self.plan: Optional[Plan] = None
        self.edits = EditReport()
        super().__init__(network, canvas_size, compute, optimiser)

    def _build_graph(self):
        graph = _CanvasGraph(self.network, self.canvas_size, self.compute, self._variables, self._options)
        self._bounds, self._pixels, self._label = graph.bounds, graph.pixels, graph.label
        self._share = tf.placeholder(build.variable_type(self.compute), [], "share")
        # Apart from training: a plan ties every operation to its group, and prediction would wait for gradients.
        embedding = graph.embedding()
        self._predicted, self._class_map = graph.outputs(embedding), graph.class_map(embedding)
        loss, probabilities = graph.outputs(graph.embedding())
        gradients = self._gradients(loss, self._trainable)
        self._trained = [loss, probabilities, self._add_to_sums(self._trainable, gradients, self._share)]
        self.plan = _plan_of(self._graph, self._trained, self._options, self.compute)
        self.edits = apply(self._graph, self.plan, *self._movers())

    def _movers(self):
        """What makes the operations that copy a tensor to the device, and to the host or a file and back."""
        moves, folder = self._move_ops, self._options.eviction_dir
        if moves is None:
            return None, None
        if self._spills:
            os.makedirs(folder, exist_ok=True)
            return None, lambda tensor, name: moves.evict_to_file(tensor, folder, name), moves.restore
        return (
            lambda tensor, name: moves.prefetch(tensor, name=name),
            lambda tensor, name: moves.evict(tensor, name=name),
        )

    def _session_config(self) -> tf.ConfigProto:
        config = ordered_session_config(super()._session_config())
        fraction = memory_fraction()
        if fraction is not None and has_gpu():  # TensorFlow's own managed memory, where the shim could not be built
            config.gpu_options.per_process_gpu_memory_fraction = fraction
        return config

    def predict(self, canvas: Canvas, label: Optional[int] = None) -> Prediction:
        loss, probabilities = self._session.run(self._predicted, self._feed(canvas, 0 if label is None else label))
        return Prediction(float("nan") if label is None else float(loss), probabilities)

    def class_map(self, canvas: Canvas) -> np.ndarray:
        return self._session.run(self._class_map, self._feed(canvas, 0))

    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        feed = self._feed(canvas, label)
        feed[self._share] = share
        loss, probabilities, _ = self._session.run(self._trained, feed)
        return Prediction(float(loss), probabilities)

    def _feed(self, canvas: Canvas, label: int):
        feed = {self._label: label}
        for start, stop, pixels in zip(self._bounds[:-1], self._bounds[1:], self._pixels):
            feed[pixels] = canvas.read(Window(start, 0, stop - start, self.canvas_size.width))[np.newaxis]
        return feed


def planning_graph(
    network: Network, canvas: Size, compute: str, options: UnifiedOptions, training: bool = True
) -> Tuple[tf.Graph, List[tf.Tensor]]:
    """A step's graph and fetches, built only to be planned: the canvas may be of any size.

    Raises:
        TensorTooLargeError: one row of a feature map does not fit a strip.
    """
    with tf.Graph().as_default() as graph:
        variables = build.create_variables(network, compute)
        canvas_graph = _CanvasGraph(network, canvas, compute, variables, options)
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
    return _plan_of(graph, fetches, options, compute)


def held_bytes(plan: Plan) -> int:
    """The most bytes of tensors that a step holds where what is moved out leaves the process for a file."""
    spilled = [0] * len(plan.groups)
    for copy in plan.evictions:
        for group in range(copy.during + 1, copy.needed_by - 1):
            spilled[group] += copy.bytes
    held = max(group.bytes + group.carried_bytes - away for group, away in zip(plan.groups, spilled))
    return min(plan.peak_bytes, held)


def choice_of(memory_policy: str) -> str:
    """What graph_tools calls a memory policy."""
    return "remat" if memory_policy == "recompute" else memory_policy


def order_of(choice: str, on_gpu: Optional[bool] = None) -> str:
    """The order to plan: the graph's own, as in the paper, where everything is kept on a GPU; what the choice takes or
    what holds least elsewhere. An order that holds less may page far more."""
    return "topological" if choice == "keep" and (has_gpu() if on_gpu is None else on_gpu) else "auto"


def _plan_of(graph: tf.Graph, fetches: List, options: UnifiedOptions, compute: str) -> Plan:
    machine = options.machine()
    choice = "keep" if machine is None else choice_of(options.memory_policy)
    try:
        ops = extract(graph, fetches, workspace_limit=_UNLIMITED if unrolls_patches(compute) else 0)
        return make_plan(ops, int(options.group_mb * MB), order_of(choice), options.prefetch_depth, choice, machine)
    except BudgetError as error:
        raise ConfigError(
            "engine unified: no choice of tensors brings the step under unified.device_gb, {:g} ({}); give more, use "
            "a smaller unified.group_mb, or half precision".format(options.device_gb, str(error).split(";")[0])
        ) from error
    except GraphToolsError as error:
        raise ConfigError("engine unified: {}".format(error)) from error


class _CanvasGraph:
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
