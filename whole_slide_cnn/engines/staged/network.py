"""The stages of a network as TensorFlow operations: each from what is fed, forward and back."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines.accumulators import Accumulators
from whole_slide_cnn.engines.staged.stages import Stage
from whole_slide_cnn.models import build
from whole_slide_cnn.models.geometry import WindowGeometry
from whole_slide_cnn.models.layers import Conv, MaxPool, Residual, Scalar, Trunk, layer_variables, walk
from whole_slide_cnn.models.network import Network

Feed = Dict[Any, Any]


class StageBuilder(build.TrunkBuilder):
    """A stage's operations, so that going back reads no map but its input, its result and its activations: what those
    are is fed, and no convolution is computed again for a shape, or for the gradient of a factor."""

    def __init__(self, layers: Trunk, variables: Dict[str, tf.Variable], compute: str):
        super().__init__(layers, variables, compute)
        self._factors = _factors(layers)

    def _sum(self, body: tf.Tensor, shortcut: tf.Tensor) -> tf.Tensor:
        return tf.add_n([body, shortcut])  # the gradient of + asks both for their shapes

    def _scalar(self, layer: Scalar, x: tf.Tensor) -> tf.Tensor:
        if layer.weight and layer not in self._factors.values():
            x = x * self._value(layer.name + "/weight")
        return tf.nn.bias_add(x, tf.fill([int(x.shape[3])], self._value(layer.name + "/bias")))

    def _folded(self, layer: Conv):
        kernel, bias = super()._folded(layer)
        if layer.name not in self._factors:
            return kernel, bias
        factor = self._variables[self._factors[layer.name].name + "/weight"]
        return kernel * factor, None if bias is None else bias * factor


def _factors(layers: Trunk) -> Dict[str, Scalar]:
    """By the name of a convolution the scalar that multiplies what it gives, and so may multiply its kernel instead."""
    found = {}
    for layer, after in zip(layers, layers[1:] + (None,)):
        if isinstance(layer, Conv) and isinstance(after, Scalar) and after.weight:
            found[layer.name] = after
        elif isinstance(layer, Residual):
            found.update(_factors(layer.body))
            found.update(_factors(layer.shortcut))
    return found


class StageGraph:
    """One stage on a batch of windows that are computed alike, in the current graph.

    Args:
        stage: the stage.
        variables: of the network, by name.

    Attributes:
        given: placeholder of what is fed, (n, rows, columns, channels): pixels (uint8), or the map before the stage.
        result: the map after it, in the compute type.
        inner: activations inside the stage; where they and the result are fed, nothing is computed again.
    """

    def __init__(self, network: Network, stage: Stage, variables: Dict[str, tf.Variable], compute: str):
        self.stage = stage
        self._dtype = build.variable_type(compute)
        self._trained = [spec.name for layer in walk(stage.layers) for spec in layer_variables(layer) if spec.trainable]
        prefix = "stage_{}_".format(stage.index)
        shape = [None, None, None, stage.source.channels]
        is_first = stage.index == 0
        self.given = tf.placeholder(tf.uint8 if is_first else build.COMPUTE_TYPES[compute], shape, prefix + "given")
        self._values = build.normalise(network, self.given, compute) if is_first else self.given
        self._window = build.GeometryTensors.placeholders(stage.layers)
        builder = StageBuilder(stage.layers, variables, compute)
        self.result = builder(self._values, self._window)
        self.inner: List[tf.Tensor] = [tensor for tensor in builder.activations if tensor is not self.result]
        self.result_gradient: Any = None
        self.given_gradient: Any = None
        self.add_gradients: Any = None
        self._prepared: Dict[Tuple[int, ...], Any] = {}

    def build_gradients(self, accumulators: Accumulators) -> None:
        """Add what turns the gradient of the result into those of the weights, which are summed, and of what is
        given."""
        self.result_gradient = tf.placeholder(self._dtype, self.result.shape, "result_gradient")
        wanted = [] if self.stage.index == 0 else [self._values]
        found = accumulators.gradients(
            tf.cast(self.result, self._dtype), self._trained, self.result_gradient, with_respect_to=wanted
        )
        self.add_gradients = accumulators.add(self._trained, found[: len(self._trained)])
        if wanted:
            self.given_gradient = tf.cast(found[-1], self._dtype)

    def feed(self, geometry: WindowGeometry, given: np.ndarray) -> Feed:
        """What is fed for some windows of one geometry."""
        return {self.given: given, self._window.padding: geometry.padding, self._window.crops: geometry.crops}

    def forward(self, session: tf.Session, feed: Feed, keep: bool) -> Tuple[np.ndarray, List[np.ndarray]]:
        """The result, and the inner activations where they are to be kept."""
        fetched = self._run(session, [self.result] + (self.inner if keep else []), feed)
        return fetched[0], fetched[1:]

    def takes_result(self, inner: Sequence[np.ndarray]) -> bool:
        """Whether the way back takes the result from the feed. cuDNN finds a maximum by comparing it with the pooling's
        input to the bit: after a pooling it must be of the same run as that."""
        return bool(inner) or not isinstance(self.stage.layers[-1], MaxPool)

    def feed_back(
        self, feed: Feed, gradient: np.ndarray, result: Optional[np.ndarray], inner: Sequence[np.ndarray] = ()
    ) -> Feed:
        """What is fed to go back.

        Args:
            feed: for the windows.
            gradient: of the result.
            result, inner: what the forward pass gave, where it is known; the rest is computed again.
        """
        feed = dict(feed)
        feed[self.result_gradient] = gradient
        if result is not None and self.takes_result(inner):
            feed[self.result] = result
        feed.update(zip(self.inner, inner))
        return feed

    def backward(self, session: tf.Session, feed: Feed) -> Optional[np.ndarray]:
        """Sum the weights' gradients; returns the gradient of what was given, None where that is the image."""
        wanted = [self.add_gradients] + ([] if self.given_gradient is None else [self.given_gradient])
        found = self._run(session, wanted, feed)
        return None if self.given_gradient is None else found[1]

    def _run(self, session: tf.Session, fetches: List[Any], feed: Feed) -> List[Any]:
        """What a session's ``run`` does, prepared once for each set of tensors that is fed and fetched."""
        tensors = list(feed)
        key = tuple(id(tensor) for tensor in [session] + fetches + tensors)
        if key not in self._prepared:
            self._prepared[key] = session.make_callable(fetches, tensors)
        found: List[Any] = self._prepared[key](*feed.values())
        return found
