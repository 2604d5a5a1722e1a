"""From layers to TensorFlow operations. Runs on TensorFlow 1.15 and 2.x through the same graph-mode interface."""

from typing import Dict, List, NamedTuple, Optional

import tensorflow.compat.v1 as tf

from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.layers import Conv, MaxPool, Relu, Residual, Scalar, Trunk, is_spatial
from whole_slide_cnn.models.network import Network

COMPUTE_TYPES = {
    "float64": tf.float64,
    "float32": tf.float32,
    "tensorfloat32": tf.float32,  # how float32 is multiplied is the process's choice (whole_slide_cnn.engines.runtime)
    "bfloat16": tf.bfloat16,
    "float16": tf.float16,
}


def variable_type(compute: str) -> tf.DType:
    """Type of variables, head and loss: float64 when computing in float64, else float32."""
    return tf.float64 if compute == "float64" else tf.float32


class GeometryTensors(NamedTuple):
    """The arrays of a :class:`~whole_slide_cnn.models.geometry.WindowGeometry` as tensors, so that one graph serves
    windows of every shape and position."""

    padding: tf.Tensor
    crops: tf.Tensor

    @classmethod
    def placeholders(cls, trunk: Trunk) -> "GeometryTensors":
        """int32 placeholders for one window's geometry."""
        spatial, residual = len(geometry.spatial_names(trunk)), len(geometry.residual_names(trunk))
        return cls(
            tf.placeholder(tf.int32, [spatial, 4], "padding"), tf.placeholder(tf.int32, [residual, 2, 4], "crops")
        )


def create_variables(network: Network, compute: str) -> Dict[str, tf.Variable]:
    """All variables of a network in the current graph, by name, still without values."""
    dtype = variable_type(compute)
    return {
        spec.name: tf.get_variable(
            spec.name, spec.shape, dtype, tf.zeros_initializer(), trainable=spec.trainable, use_resource=True
        )
        for spec in network.variables
    }


def normalise(network: Network, pixels: tf.Tensor, compute: str) -> tf.Tensor:
    """uint8 RGB pixels ``NHWC`` to the network's input, in the compute type."""
    dtype = variable_type(compute)
    rule = network.preprocessing
    values = tf.cast(pixels, dtype)
    if rule.bgr:
        values = tf.reverse(values, [-1])
    values = (values - tf.constant(rule.mean, dtype)) / tf.constant(rule.deviation, dtype)
    return tf.cast(values, COMPUTE_TYPES[compute])


class TrunkBuilder:
    """Builds the trunk on an input, for a whole canvas (static padding) or a window (padding and crops fed).

    Attributes:
        activations: what the rectified linear units gave so far.
    """

    def __init__(self, trunk: Trunk, variables: Dict[str, tf.Variable], compute: str):
        self._trunk = trunk
        self._variables = variables
        self._dtype = COMPUTE_TYPES[compute]
        self._spatial = {name: index for index, name in enumerate(geometry.spatial_names(trunk))}
        self._residual = {name: index for index, name in enumerate(geometry.residual_names(trunk))}
        self.activations: List[tf.Tensor] = []

    def __call__(self, inputs: tf.Tensor, window: Optional[GeometryTensors] = None) -> tf.Tensor:
        """The embedding map of ``inputs`` (``NHWC``, compute type). Without ``window``, ``inputs`` is a whole canvas of
        static size."""
        return self._apply(self._trunk, inputs, window)

    def _apply(self, layers: Trunk, x: tf.Tensor, window: Optional[GeometryTensors]) -> tf.Tensor:
        for layer in layers:
            if isinstance(layer, Conv):
                x = self._conv(layer, x, window)
            elif isinstance(layer, MaxPool):
                # the lowest finite number, not minus infinity: 0 * inf would poison gradients
                x = tf.nn.max_pool2d(
                    self._pad(layer, x, window, self._dtype.min), layer.kernel, layer.stride, "VALID", name=layer.name
                )
            elif isinstance(layer, Relu):
                x = tf.nn.relu(x)
                self.activations.append(x)
            elif isinstance(layer, Scalar):
                x = self._scalar(layer, x)
            else:
                x = self._residual_block(layer, x, window)
        return x

    def _residual_block(self, layer: Residual, x: tf.Tensor, window: Optional[GeometryTensors]) -> tf.Tensor:
        inputs = [x, x]
        if window is not None:
            crops = window.crops[self._residual[layer.name]]
            inputs = [_crop(x, crops[branch]) for branch in range(2)]
        return self._sum(self._apply(layer.body, inputs[0], window), self._apply(layer.shortcut, inputs[1], window))

    def _sum(self, body: tf.Tensor, shortcut: tf.Tensor) -> tf.Tensor:
        return body + shortcut

    def _scalar(self, layer: Scalar, x: tf.Tensor) -> tf.Tensor:
        if layer.weight:
            x = x * self._value(layer.name + "/weight")
        return x + self._value(layer.name + "/bias")

    def _conv(self, layer: Conv, x: tf.Tensor, window: Optional[GeometryTensors]) -> tf.Tensor:
        kernel, bias = self._folded(layer)
        x = tf.nn.conv2d(
            self._pad(layer, x, window, 0.0), tf.cast(kernel, self._dtype), layer.stride, "VALID", name=layer.name
        )
        return x if bias is None else tf.nn.bias_add(x, tf.cast(bias, self._dtype))

    def _folded(self, layer: Conv):
        """Kernel and bias with the fixed normalisation folded in, so that no map has to be kept for its gradient."""
        kernel = self._variables[layer.name + "/kernel"]
        bias = self._variables[layer.name + "/bias"] if layer.bias else None
        if layer.norm is None:
            return kernel, bias
        norm = {part: self._variables[layer.norm.name + "/" + part] for part in _NORM_PARTS}
        scale = norm["gamma"] / tf.sqrt(norm["moving_variance"] + layer.norm.epsilon)
        mean = norm["moving_mean"] if bias is None else norm["moving_mean"] - bias
        return kernel * scale, norm["beta"] - mean * scale

    def _pad(self, layer, x: tf.Tensor, window: Optional[GeometryTensors], value: float) -> tf.Tensor:
        if not is_spatial(layer):
            return x
        if window is None:
            rows, columns = (geometry.padding_of(layer, int(side)) for side in x.shape[1:3])
            if not any(rows + columns):
                return x
            paddings = [[0, 0], list(rows), list(columns), [0, 0]]
        else:
            paddings = tf.pad(tf.reshape(window.padding[self._spatial[layer.name]], [2, 2]), [[1, 1], [0, 0]])
        padded = tf.pad(x, paddings, constant_values=value)
        padded.set_shape([x.shape[0], None, None, x.shape[3]])
        return padded

    def _value(self, name: str) -> tf.Tensor:
        return tf.cast(self._variables[name], self._dtype)


_NORM_PARTS = ("gamma", "beta", "moving_mean", "moving_variance")


def _crop(x: tf.Tensor, crop: tf.Tensor) -> tf.Tensor:
    begin = tf.concat([[0], crop[:2], [0]], 0)
    size = tf.concat([[-1], crop[2:], [-1]], 0)
    cropped = tf.slice(x, begin, size)
    cropped.set_shape([x.shape[0], None, None, x.shape[3]])
    return cropped


def pool_maximum(embedding: tf.Tensor, dtype: tf.DType):
    """Per channel the maximum over cells and the first cell, in raster order, that has it.

    ``reduce_max`` splits the gradient among ties and ``argmax`` leaves open which of them it names on a GPU; ties go to
    the first cell (architecture, streaming).

    Args:
        embedding: (1, height, width, channels).

    Returns:
        Values, (channels,) in ``dtype``, differentiable, and cells, (channels,) int32, ``row * width + column``.
    """
    channels = int(embedding.shape[3])
    flat = tf.cast(tf.reshape(embedding, [-1, channels]), dtype)
    cells = tf.shape(flat)[0]
    at_maximum = tf.equal(flat, tf.reduce_max(flat, axis=0, keepdims=True))
    first = tf.reduce_min(tf.where(at_maximum, _column(cells, flat), tf.fill(tf.shape(flat), cells - 1)), axis=0)
    first = tf.stop_gradient(first)
    values = tf.gather_nd(flat, tf.stack([first, tf.range(channels)], axis=1))
    # maxima skip cells that are not a number on some machines; such a cell must reach the loss
    return values + tf.stop_gradient(0.0 * tf.reduce_sum(flat, axis=0)), first


def pool_maxima(embedding: tf.Tensor, dtype: tf.DType):
    """:func:`pool_maximum` of each map of a batch.

    Args:
        embedding: (n, height, width, channels).

    Returns:
        Values, (n, channels) in ``dtype``, and cells, (n, channels) int32, ``row * width + column``.
    """
    shape = tf.shape(embedding)
    flat = tf.cast(tf.reshape(embedding, tf.stack([shape[0], -1, int(embedding.shape[3])])), dtype)
    cells = shape[1] * shape[2]
    maxima = tf.reduce_max(flat, axis=1, keepdims=True)
    numbers = tf.broadcast_to(tf.range(cells)[:, tf.newaxis], tf.shape(flat))
    first = tf.reduce_min(tf.where(tf.equal(flat, maxima), numbers, tf.fill(tf.shape(flat), cells - 1)), axis=1)
    # maxima skip cells that are not a number on some machines; such a cell must reach the loss
    return maxima[:, 0] + 0.0 * tf.reduce_sum(flat, axis=1), first


def head(network: Network, variables: Dict[str, tf.Variable], pooled: tf.Tensor, label: tf.Tensor):
    """Loss and probabilities (classes,) of a slide from its pooled features (channels,)."""
    logits = tf.linalg.matvec(variables["output/kernel"], pooled, transpose_a=True) + variables["output/bias"]
    return loss_of(logits, label, network.activation)


def logits_of_cells(network: Network, variables: Dict[str, tf.Variable], embedding: tf.Tensor) -> tf.Tensor:
    """Logits (cells, classes) of an embedding map (1, height, width, channels), cells in raster order."""
    flat = tf.reshape(embedding, [-1, network.channels])
    return tf.matmul(flat, variables["output/kernel"]) + variables["output/bias"]


def _column(cells: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(tf.range(cells)[:, tf.newaxis], tf.shape(like))


def loss_of(logits: tf.Tensor, label: tf.Tensor, activation: str):
    """Loss and probabilities of one slide.

    Args:
        logits: (classes,).
        label: int32 scalar, the class of the slide.

    Returns:
        Scalar loss and probabilities (classes,).
    """
    target = tf.one_hot(label, int(logits.shape[0]), dtype=logits.dtype)
    if activation == "softmax":
        return -tf.reduce_sum(target * tf.nn.log_softmax(logits)), tf.nn.softmax(logits)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
    return tf.reduce_mean(losses), tf.sigmoid(logits)
