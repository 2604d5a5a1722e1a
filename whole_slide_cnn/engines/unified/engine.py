"""Whole-slide training over unified memory (2021 paper, Methods): the whole canvas in one graph, ordered by a plan.

Every feature map of the canvas exists at once, as strips. Where they exceed the device's memory, unified memory pages
them to the host, and the order in which operations run decides how often. So the graph is cut into groups of operations
that fit the device together, which run one after the other (Group Execution), and what a group needs is fetched while
the one before it runs (Group Prefetch). Beyond the paper, a budget makes the plan drop maps after the forward pass and
compute them again in the backward pass, or move them out of the device, so that less is held at once. The numbers stay
those of ``direct``.
"""

import os
import warnings
from typing import Any, Dict, Optional, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from graph_tools.plan import Plan
from graph_tools.tensorflow.apply import EditReport, apply
from graph_tools.tensorflow.apply import session_config as ordered_session_config
from tf_um_patch.launch import memory_fraction
from tf_um_patch.ops import load_ops
from whole_slide_cnn.engines.accumulators import Accumulators
from whole_slide_cnn.engines.interface import Engine, Prediction
from whole_slide_cnn.engines.runtime import has_gpu
from whole_slide_cnn.engines.unified.options import UnifiedOptions
from whole_slide_cnn.engines.unified.steps import CanvasGraph, plan_of
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models import build
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import Canvas

PREDICTION = "graph_tools_prediction"  # what the plan of a prediction adds to a graph is named under this


class UnifiedEngine(Engine):
    """Plain back-propagation through strips of the whole canvas, in the order of a plan.

    A prediction has a plan of its own, with the same groups and budget. Its operations are its own as well: a plan ties
    every operation to its group, and prediction would wait for gradients. The class map follows the plan up to the
    embedding map, of which each strip is used up as it comes.

    Attributes:
        plan: of a training step; None in an engine that only predicts.
        prediction_plan: of a prediction.
        edits: what the plan of a training step added to the graph.

    Args:
        move_ops: what :func:`tf_um_patch.ops.load_ops` gave, to move tensors with; by default loaded where there is a
            GPU. Without it nothing is fetched ahead or moved out.
        options: fields of :class:`UnifiedOptions`.

    Raises:
        TensorTooLargeError: one row of a feature map does not fit a strip.
        ConfigError: the step cannot be planned.
    """

    def __init__(
        self,
        network: Network,
        canvas_size: Size,
        compute: str = "float32",
        optimiser=None,
        training: Optional[bool] = None,
        move_ops=None,
        **options,
    ):
        self._options = UnifiedOptions(**options)
        self._to_files = self._options.eviction_dir is not None and not has_gpu()
        if move_ops is None and (has_gpu() or self._to_files):
            move_ops = load_ops()
            if self._to_files and not move_ops.available:
                raise ConfigError("unified.eviction_dir: {}".format(move_ops.reason))
            if not move_ops.available:
                warnings.warn(move_ops.reason, stacklevel=2)
        self._move_ops = move_ops if move_ops is not None and move_ops.available else None
        self.plan: Optional[Plan] = None
        self.edits = EditReport()
        super().__init__(network, canvas_size, compute, optimiser, training)

    def _build_graph(self):
        self._steps = CanvasGraph(self.network, self.canvas_size, self.compute, self._variables, self._options)
        self._bounds, self._pixels, self._label = self._steps.bounds, self._steps.pixels, self._steps.label
        embedding = self._steps.embedding()
        self._predicted, self._class_map = self._steps.outputs(embedding), self._steps.class_map(embedding)
        self.prediction_plan = plan_of(self._graph, self._predicted, self._options, self.compute)
        apply(self._graph, self.prediction_plan, **self._movers(), scope=PREDICTION)

    def _build_training(self, accumulators: Accumulators):
        self._share = tf.placeholder(build.variable_type(self.compute), [], "share")
        loss, probabilities = self._steps.outputs(self._steps.embedding())
        gradients = accumulators.gradients(loss, self._trainable)
        self._trained = [loss, probabilities, accumulators.add(self._trainable, gradients, self._share)]
        self.plan = plan_of(self._graph, self._trained, self._options, self.compute)
        self.edits = apply(self._graph, self.plan, **self._movers())

    def _movers(self) -> Dict[str, Any]:
        """What makes the operations that copy a tensor to the device, and to the host or a file and back."""
        moves, folder = self._move_ops, self._options.eviction_dir
        if moves is None:
            return {}
        if self._to_files and folder is not None:
            os.makedirs(folder, exist_ok=True)
            return {
                "make_eviction": lambda tensor, name: moves.evict_to_file(tensor, folder, name),
                "make_return": moves.restore,
            }
        return {
            "make_prefetch": lambda tensor, name: moves.prefetch(tensor, name=name),
            "make_eviction": lambda tensor, name: moves.evict(tensor, name=name),
        }

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

    def predict_with_map(self, canvas: Canvas, label: Optional[int] = None) -> Tuple[Prediction, np.ndarray]:
        feed = self._feed(canvas, 0 if label is None else label)
        (loss, probabilities), logits = self._session.run([self._predicted, self._class_map], feed)
        return Prediction(float("nan") if label is None else float(loss), probabilities), logits

    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        feed = self._feed(canvas, label)
        feed[self._share] = share
        loss, probabilities, _ = self._session.run(self._trained, feed)
        return Prediction(float(loss), probabilities)

    def _feed(self, canvas: Canvas, label: int) -> Dict[Any, Any]:
        feed: Dict[Any, Any] = {self._label: label}
        for start, stop, pixels in zip(self._bounds[:-1], self._bounds[1:], self._pixels):
            feed[pixels] = canvas.read(Window(start, 0, stop - start, self.canvas_size.width))[np.newaxis]
        return feed
