"""The whole canvas in one graph: the oracle, and the fastest engine where it fits."""

from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines.accumulators import Accumulators, sum_updates
from whole_slide_cnn.engines.interface import Engine, Prediction
from whole_slide_cnn.models import build, geometry
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.shapes import canvas_shapes, check_tensor_sizes
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import Canvas


class _Step(NamedTuple):
    """Tensors of one step on a whole canvas."""

    pixels: tf.Tensor
    label: tf.Tensor
    embedding: tf.Tensor
    loss: tf.Tensor
    probabilities: tf.Tensor


class DirectEngine(Engine):
    """Plain back-propagation through the whole canvas.

    Raises:
        TensorTooLargeError: a feature map would have 2^31 elements or more.
    """

    def _build_graph(self):
        trunk = self.network.trunk
        check_tensor_sizes(canvas_shapes(trunk, self.canvas_size))
        step = _whole_canvas(self.network, self.canvas_size, self.compute, self._variables)
        self._pixels, self._label = step.pixels, step.label
        self._loss, self._probabilities = step.loss, step.probabilities
        logits = self._logits_of_cells(tf.cast(step.embedding, build.variable_type(self.compute)))
        self._class_map = tf.reshape(logits, geometry.cells_of(trunk, self.canvas_size) + (self.network.classes,))

    def _build_training(self, accumulators: Accumulators):
        self._share = tf.placeholder(build.variable_type(self.compute), [], "share")
        gradients = accumulators.gradients(self._loss, self._trainable)
        self._add = accumulators.add(self._trainable, gradients, self._share)

    def predict(self, canvas: Canvas, label: Optional[int] = None) -> Prediction:
        feed = {self._pixels: self._read(canvas), self._label: 0 if label is None else label}
        loss, probabilities = self._session.run([self._loss, self._probabilities], feed)
        return Prediction(float("nan") if label is None else float(loss), probabilities)

    def class_map(self, canvas: Canvas) -> np.ndarray:
        return self._session.run(self._class_map, {self._pixels: self._read(canvas)})

    def predict_with_map(self, canvas: Canvas, label: Optional[int] = None) -> Tuple[Prediction, np.ndarray]:
        feed = {self._pixels: self._read(canvas), self._label: 0 if label is None else label}
        loss, probabilities, logits = self._session.run([self._loss, self._probabilities, self._class_map], feed)
        return Prediction(float("nan") if label is None else float(loss), probabilities), logits

    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        feed = {self._pixels: self._read(canvas), self._label: label, self._share: share}
        loss, probabilities, _ = self._session.run([self._loss, self._probabilities, self._add], feed)
        return Prediction(float(loss), probabilities)

    def _read(self, canvas: Canvas) -> np.ndarray:
        return canvas.read(Window(0, 0, *self.canvas_size))[np.newaxis]


def planning_graph(network: Network, canvas: Size, compute: str, training: bool) -> Tuple[tf.Graph, List[tf.Tensor]]:
    """A step's graph and fetches, only to be planned: its tensors may have 2^31 elements and more, and so it must never
    be run."""
    with tf.Graph().as_default() as graph:
        variables = build.create_variables(network, compute)
        step = _whole_canvas(network, Size(*canvas), compute, variables)
        updates = sum_updates(network, step.loss, variables) if training else []
        return graph, [step.loss, step.probabilities] + updates


def _whole_canvas(network: Network, canvas: Size, compute: str, variables: Dict[str, tf.Variable]) -> _Step:
    """Operations from pixels to loss, in the current graph."""
    pixels = tf.placeholder(tf.uint8, (1,) + canvas + (3,), "pixels")
    label = tf.placeholder(tf.int32, [], "label")
    trunk_builder = build.TrunkBuilder(network.trunk, variables, compute)
    embedding = trunk_builder(build.normalise(network, pixels, compute))
    dtype = build.variable_type(compute)
    if network.pooling == "gmp":
        pooled, _ = build.pool_maximum(embedding, dtype)
    else:
        pooled = tf.reduce_mean(tf.cast(embedding, dtype), axis=[0, 1, 2])
    loss, probabilities = build.head(network, variables, pooled, label)
    return _Step(pixels, label, embedding, loss, probabilities)
