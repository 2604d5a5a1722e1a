"""The slide streamed through the network in windows (ESCNN, 2022, Methods; architecture, streaming).

Forward, each window leaves behind only its share of the pooled features. Backward, the windows that carry gradient are
computed again. Blank cells are taken from one small blank canvas. Memory does not grow with the canvas.
"""

from typing import Any, Dict, Iterable, Iterator, Optional, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines.accumulators import Accumulators
from whole_slide_cnn.engines.interface import Engine, Prediction
from whole_slide_cnn.engines.streaming.feeding import ReadAhead
from whole_slide_cnn.engines.streaming.options import StreamingOptions
from whole_slide_cnn.engines.streaming.plan import Cover, StreamingPlan, slices
from whole_slide_cnn.engines.streaming.pooling import BLANK, Pooled, running_pooling
from whole_slide_cnn.models import build
from whole_slide_cnn.models.geometry import WindowGeometry
from whole_slide_cnn.models.layers import Relu
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import Canvas

_HEAD = ("output/kernel", "output/bias")


class StreamingEngine(Engine):
    """Windows with halos, exact to the bit of arithmetic order.

    Args:
        options: fields of :class:`StreamingOptions`.

    Attributes:
        plan: of canvases of this size.

    Raises:
        TensorTooLargeError: a window has a tensor of 2^31 elements or more.
    """

    def __init__(
        self,
        network: Network,
        canvas_size: Size,
        compute: str = "float32",
        optimiser=None,
        training: Optional[bool] = None,
        **options: Any,
    ):
        assert isinstance(network.trunk[-1], Relu)  # so a maximum of zero passes no gradient
        self.plan = StreamingPlan(network.trunk, Size(*canvas_size), StreamingOptions(**options).window)
        self.plan.check_sizes()
        self._reader = ReadAhead()
        super().__init__(network, canvas_size, compute, optimiser, training)

    def close(self):
        self._reader.close()
        super().close()

    def _build_graph(self):
        dtype = build.variable_type(self.compute)
        trunk = self.network.trunk
        self._pixels = tf.placeholder(tf.uint8, [1, None, None, 3], "pixels")
        self._window = build.GeometryTensors.placeholders(trunk)
        trunk_builder = build.TrunkBuilder(trunk, self._variables, self.compute)
        embedding = trunk_builder(build.normalise(self.network, self._pixels, self.compute), self._window)
        self._map = tf.cast(embedding, dtype)
        self._class_scores = self._logits_of_cells(self._map)
        if self.network.pooling == "gmp":
            self._summary = build.pool_maximum(embedding, dtype)
        else:
            self._summary = (tf.reduce_sum(self._map, axis=[0, 1, 2]),)
        self._pooled = tf.placeholder(dtype, [self.network.channels], "pooled")
        self._label = tf.placeholder(tf.int32, [], "label")
        self._loss, self._probabilities = self._head(self._pooled, self._label)

    def _build_training(self, accumulators: Accumulators):
        dtype = build.variable_type(self.compute)
        trunk_names = [name for name in self._trainable if name not in _HEAD]
        self._map_gradient = tf.placeholder(dtype, [1, None, None, self.network.channels], "map_gradient")
        gradients = accumulators.gradients(self._map, trunk_names, self._map_gradient)
        self._add_trunk = accumulators.add(trunk_names, gradients)

        self._share = tf.placeholder(dtype, [], "share")
        variables = [self._variables[name] for name in _HEAD]
        gradients = tf.gradients(self._share * self._loss, [self._pooled] + variables)
        self._pooled_gradient, self._add_head = gradients[0], accumulators.add(_HEAD, gradients[1:])

    # One slide.

    def predict(self, canvas: Canvas, label: Optional[int] = None) -> Prediction:
        return self._predict(self._forward(canvas, self.cover(canvas)), label)

    def _predict(self, pooled: Pooled, label: Optional[int]) -> Prediction:
        feed = {self._pooled: pooled.values, self._label: 0 if label is None else label}
        loss, probabilities = self._session.run([self._loss, self._probabilities], feed)
        return Prediction(float("nan") if label is None else float(loss), probabilities)

    def predict_with_map(self, canvas: Canvas, label: Optional[int] = None) -> Tuple[Prediction, np.ndarray]:
        cover = self.cover(canvas)
        logits = self._blank_logits(canvas, cover)
        return self._predict(self._forward(canvas, cover, logits), label), logits

    def class_map(self, canvas: Canvas) -> np.ndarray:
        """As :meth:`Engine.class_map`. Of each window only the logits are kept; blank cells are copies of those of the
        blank canvas."""
        cover = self.cover(canvas)
        logits = self._blank_logits(canvas, cover)
        for (window, _), feed in self._feeds_of(canvas, [(window, None) for window in cover.windows]):
            logits[slices(window)] = self._session.run(self._class_scores, feed).reshape(window.size + (-1,))
        return logits

    def _blank_logits(self, canvas: Canvas, cover: Cover) -> np.ndarray:
        """Logits of the blank cells (cells high, cells wide, classes); those of the windows are yet to be set."""
        shape = self.plan.cells + (self.network.classes,)
        logits = np.empty(shape, build.variable_type(self.compute).as_numpy_dtype)
        if len(cover.blank.kinds):
            blank = self._blank_map(canvas)
            feed = {self._map: blank.reshape((1,) + self.plan.blank.cells + blank.shape[-1:])}
            logits[...] = self.plan.blank.spread(self._session.run(self._class_scores, feed))
        return logits

    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        cover = self.cover(canvas)
        pooled = self._forward(canvas, cover)
        feed = {self._pooled: pooled.values, self._label: label, self._share: share}
        loss, probabilities, gradient, _ = self._session.run(
            [self._loss, self._probabilities, self._pooled_gradient, self._add_head], feed
        )
        if self.network.pooling == "gmp":
            self._backward_maximum(canvas, cover, pooled, gradient)
        else:
            self._backward_average(canvas, cover, gradient)
        return Prediction(float(loss), probabilities)

    def cover(self, canvas: Canvas) -> Cover:
        """What of a canvas is computed in windows, and what is left to the blank canvas."""
        return self.plan.cover(canvas.blank_blocks())

    def _forward(self, canvas: Canvas, cover: Cover, logits: Optional[np.ndarray] = None) -> Pooled:
        """Pooled features.

        Args:
            logits: where to put the logits of the windows' cells; None computes none.
        """
        pooling = running_pooling(self.network.pooling, self.plan.cells)
        feeds = self._feeds_of(canvas, ((window, None) for window in cover.windows))
        for index, ((window, _), feed) in enumerate(feeds):
            if logits is None:
                summary = self._session.run(self._summary, feed)
            else:
                summary, scores = self._session.run([self._summary, self._class_scores], feed)
                logits[slices(window)] = scores.reshape(window.size + (-1,))
            pooling.add_window(index, window, *summary)
        if len(cover.blank.kinds):
            pooling.add_blank(cover.blank, self._blank_map(canvas))
        return pooling.result()

    # Going back.

    def _backward_maximum(self, canvas: Canvas, cover: Cover, pooled: Pooled, gradient: np.ndarray):
        """Compute again only the windows that hold a maximum with gradient."""
        owner, cell = pooled.owner, pooled.cell
        assert owner is not None and cell is not None, "a maximum has its place"
        active = (gradient != 0) & (pooled.values > 0)

        def jobs():  # one by one: a window's gradient is as large as its embedding map
            for index, window in enumerate(cover.windows):
                channels = np.flatnonzero(active & (owner == index))
                if len(channels):
                    values = np.zeros((window.height * window.width,) + gradient.shape, gradient.dtype)
                    values[cell[channels], channels] = gradient[channels]
                    yield window, values.reshape((1,) + window.size + gradient.shape)

        self._run_backward(canvas, jobs())
        channels = np.flatnonzero(active & (owner == BLANK))
        if len(channels):
            self._blank_gradient(canvas)[cell[channels], channels] += gradient[channels]

    def _backward_average(self, canvas: Canvas, cover: Cover, gradient: np.ndarray):
        """Every cell of the cover has the same gradient."""
        each = gradient / (self.plan.cells.height * self.plan.cells.width)
        self._run_backward(canvas, ((window, each) for window in cover.windows))
        if len(cover.blank.kinds):
            self._blank_gradient(canvas)[cover.blank.kinds] += cover.blank.counts[:, np.newaxis] * each

    def _run_backward(self, canvas: Canvas, jobs: Iterable[Tuple[Window, np.ndarray]]):
        for (window, gradient), feed in self._feeds_of(canvas, jobs):
            shape = (1,) + window.size + gradient.shape[-1:]
            self._session.run(self._add_trunk, {**feed, self._map_gradient: np.broadcast_to(gradient, shape)})

    # The blank canvas: forward once for given weights, backward once for a batch.

    def _weights_changed(self):
        self._blank_maps: Dict[bytes, np.ndarray] = {}
        self._blank_gradients: Dict[bytes, np.ndarray] = {}

    def _blank_map(self, canvas: Canvas) -> np.ndarray:
        """(cells of the blank canvas, channels)."""
        key = canvas.blank_colour.tobytes()
        if key not in self._blank_maps:
            values = self._session.run(self._map, self._blank_feed(canvas.blank_colour))
            self._blank_maps[key] = values.reshape(-1, values.shape[-1])
        return self._blank_maps[key]

    def _blank_gradient(self, canvas: Canvas) -> np.ndarray:
        key = canvas.blank_colour.tobytes()
        if key not in self._blank_gradients:
            self._blank_gradients[key] = np.zeros_like(self._blank_map(canvas))
        return self._blank_gradients[key]

    def _accumulate(self, canvases, labels):
        self._blank_gradients = {}  # of a batch that a broken slide cut short
        return super()._accumulate(canvases, labels)

    def _finish_batch(self):
        for key, gradient in self._blank_gradients.items():
            feed = self._blank_feed(np.frombuffer(key, np.uint8))
            feed[self._map_gradient] = gradient.reshape((1,) + self.plan.blank.cells + (-1,))
            self._session.run(self._add_trunk, feed)
        self._blank_gradients = {}

    def _blank_feed(self, colour: np.ndarray):
        whole = self.plan.blank_geometry()
        return self._feed(whole, np.broadcast_to(colour, whole.pixels.size + (3,)))

    # Feeding windows.

    def _feed(self, window: WindowGeometry, pixels: np.ndarray):
        return {
            self._pixels: pixels[np.newaxis],
            self._window.padding: window.padding,
            self._window.crops: window.crops,
        }

    def _feeds_of(self, canvas: Canvas, jobs: Iterable[Tuple[Window, Any]]) -> Iterator:
        """Each job (window of cells, anything) with the feed for its window, read one window ahead."""

        def load(job):
            window = self.plan.geometry(job[0])
            return job, self._feed(window, canvas.read(window.pixels))

        return self._reader(jobs, load)
