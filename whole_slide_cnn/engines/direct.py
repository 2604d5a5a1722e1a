"""The whole canvas in one graph: the oracle, and the fastest engine where it fits."""

from typing import Optional

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines.base import Engine, Prediction
from whole_slide_cnn.models import build, geometry
from whole_slide_cnn.models.trace import check_tensor_sizes, trace_canvas
from whole_slide_cnn.sizes import Window
from whole_slide_cnn.slides.canvas import Canvas


class DirectEngine(Engine):
    """Plain back-propagation through the whole canvas.

    Raises:
        TensorTooLargeError: a feature map would have 2^31 elements or more.
    """

    name = "direct"

    def _build_graph(self):
        trunk = self.network.trunk
        check_tensor_sizes(trace_canvas(trunk, self.canvas_size))
        self._pixels = tf.placeholder(tf.uint8, (1,) + self.canvas_size + (3,), "pixels")
        self._label = tf.placeholder(tf.int32, [], "label")
        self._share = tf.placeholder(build.variable_type(self.compute), [], "share")
        trunk_builder = build.TrunkBuilder(trunk, self._variables, self.compute)
        embedding = trunk_builder(build.normalise(self.network, self._pixels, self.compute))
        dtype = build.variable_type(self.compute)
        if self.network.pooling == "gmp":
            pooled, _ = build.pool_maximum(embedding, dtype)
        else:
            pooled = tf.reduce_mean(tf.cast(embedding, dtype), axis=[0, 1, 2])
        logits = self._logits_of_cells(tf.cast(embedding, dtype))
        self._class_map = tf.reshape(logits, geometry.cells_of(trunk, self.canvas_size) + (self.network.classes,))
        self._loss, self._probabilities = self._head(pooled, self._label)
        gradients = self._gradients(self._loss, self._trainable)
        self._add = self._add_to_sums(self._trainable, gradients, self._share)

    def predict(self, canvas: Canvas, label: Optional[int] = None) -> Prediction:
        feed = {self._pixels: self._read(canvas), self._label: 0 if label is None else label}
        loss, probabilities = self._session.run([self._loss, self._probabilities], feed)
        return Prediction(float("nan") if label is None else float(loss), probabilities)

    def class_map(self, canvas: Canvas) -> np.ndarray:
        return self._session.run(self._class_map, {self._pixels: self._read(canvas)})

    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        feed = {self._pixels: self._read(canvas), self._label: label, self._share: share}
        loss, probabilities, _ = self._session.run([self._loss, self._probabilities, self._add], feed)
        return Prediction(float(loss), probabilities)

    def _read(self, canvas: Canvas) -> np.ndarray:
        return canvas.read(Window(0, 0, *self.canvas_size))[np.newaxis]
