"""What an engine is: it computes loss, gradients and class maps of a network on whole canvases."""

import abc
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.accumulators import Accumulators, Reduction, is_accumulator
from whole_slide_cnn.engines.state import Variables
from whole_slide_cnn.models import build
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import Canvas


class Prediction(NamedTuple):
    """Loss (nan without a label) and probabilities (classes,) of one slide."""

    loss: float
    probabilities: np.ndarray


class Engine(abc.ABC):
    """Computes loss and gradients of a network on whole canvases of one size.

    A step is :meth:`train_batch`; its gradient is the mean over the slides of the batch. All engines compute the same
    numbers; they differ in memory and time only.

    Args:
        network: the network, which every engine computes alike.
        canvas_size: size of all canvases in pixels.
        compute: ``float64``, ``float32``, ``tensorfloat32``, ``bfloat16`` or ``float16``; variables, head and loss are
            at least float32. With float16 the loss is scaled (:mod:`whole_slide_cnn.engines.loss_scale`);
            tensorfloat32 is float32 but for a GPU's products (:func:`whole_slide_cnn.engines.runtime.choose_products`).
        optimiser: object with ``build(gradients, variables) -> operation`` and ``feed() -> dict``; None for an engine
            that makes no step.
        training: whether gradients are computed; by default where there is an optimiser. Without them only what
            predicts is built and planned, which takes a fraction of the memory.

    Attributes:
        reduce_gradients: None, or a function that :meth:`train_batch` applies to the mean gradients of its batch before
            its step, such as the mean over several processes. It takes and returns a list of arrays, and is called
            several times in a step, each time with some of the gradients, always the same in the same order.
        group: None, or the processes that compute every slide together with this one, all of which make the same calls
            (an object with ``rank``, ``size`` and ``allgather``, as a communicator); for engines whose description has
            ``shares_windows``. Each adds a part of the gradient to its sums.

    Raises:
        ConfigError: on a GPU, float32 and tensorfloat32 in one process.
    """

    def __init__(
        self,
        network: Network,
        canvas_size: Size,
        compute: str = "float32",
        optimiser=None,
        training: Optional[bool] = None,
    ):
        self.network = network
        self.canvas_size = Size(*canvas_size)
        self.compute = compute
        self.reduce_gradients: Optional[Reduction] = None
        self.group: Any = None
        self.training = optimiser is not None if training is None else training
        assert self.training or optimiser is None, "an optimiser is for training"
        runtime.choose_products(compute)
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._variables = build.create_variables(network, compute)
            self._trainable = [spec.name for spec in network.variables if spec.trainable]
            if self.training:
                trained = {name: self._variables[name] for name in self._trainable}
                self._accumulators = Accumulators(trained, compute)
            self._build_graph()
            if self.training:
                self._build_training(self._accumulators)
                self._accumulators.finish(optimiser)
            self._state = Variables({v.op.name: v for v in tf.global_variables() if not is_accumulator(v)})
        self._graph.finalize()
        self._session = tf.Session(graph=self._graph, config=self._session_config())
        self.initialise()

    def initialise(self):
        """Set weights and gradients to zero and the optimiser to its start."""
        self._state.reset(self._session)
        if self.training:
            self._accumulators.zero(self._session)
        self._weights_changed()

    def close(self):
        """Give back the session and its memory."""
        self._session.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    # What an engine defines.

    @abc.abstractmethod
    def _build_graph(self):
        """Add what predicts to the current graph."""

    @abc.abstractmethod
    def _build_training(self, accumulators: Accumulators):
        """Add what computes gradients to the current graph, after what predicts."""

    @abc.abstractmethod
    def predict(self, canvas: Canvas, label: Optional[int] = None) -> Prediction:
        """Probabilities of one slide, and its loss where its label is given."""

    @abc.abstractmethod
    def class_map(self, canvas: Canvas) -> np.ndarray:
        """Class activation map (2021, "Visualization"; 2022, Methods): the dense layer, bias included, on every cell.

        Returns:
            Logits (cells high, cells wide, classes) in the head's type. The activation, applied per cell, makes them
            probabilities; under average pooling their mean over cells is the slide's logit.

        Raises:
            SlideError: the slide cannot be read.
        """

    def predict_with_map(self, canvas: Canvas, label: Optional[int] = None) -> Tuple[Prediction, np.ndarray]:
        """:meth:`predict` and :meth:`class_map` of one slide, bit for bit; engines that can read it once for both.

        Raises:
            SlideError: the slide cannot be read.
        """
        return self.predict(canvas, label), self.class_map(canvas)

    @abc.abstractmethod
    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        """Add ``share`` times the gradient of one slide's loss to the sums."""

    def _finish_batch(self):  # noqa: B027
        """Add what an engine had put off to the end of a batch."""

    def _session_config(self) -> tf.ConfigProto:
        return runtime.session_config()

    def _weights_changed(self):  # noqa: B027
        """Forget what was derived from the weights."""

    # What all share.

    def train_batch(self, canvases: Sequence[Canvas], labels: Sequence[int]) -> List[Prediction]:
        """One optimiser step on the mean gradient of a batch; returns the predictions before the step. In float16 the
        step is left out where a gradient is not finite, and the loss scale is lowered."""
        predictions = self._accumulate(canvases, labels)
        if self._accumulators.step(self._session, self.reduce_gradients):
            self._weights_changed()
        return predictions

    def gradients(self, canvases: Sequence[Canvas], labels: Sequence[int]):
        """Predictions, and the mean gradient of every trained variable by name."""
        predictions = self._accumulate(canvases, labels)
        return predictions, self._accumulators.read(self._session)

    def _accumulate(self, canvases: Sequence[Canvas], labels: Sequence[int]) -> List[Prediction]:
        assert self.training, "this engine only predicts; make it with training=True"
        for canvas in canvases:
            assert canvas.size == self.canvas_size, "canvas {} has size {}, the engine {}".format(
                canvas.name, canvas.size, self.canvas_size
            )
        self._accumulators.zero(self._session)
        share = 1.0 / len(canvases)
        predictions = [self._add_gradient(canvas, label, share) for canvas, label in zip(canvases, labels)]
        self._finish_batch()
        return predictions

    def state(self) -> Dict[str, np.ndarray]:
        """Weights and optimiser state by name."""
        return self._state.read(self._session)

    def weights(self) -> Dict[str, np.ndarray]:
        """The network's weights by name."""
        return self._session.run({name: self._state.values[name] for name in self._variables})

    def load_state(self, values: Dict[str, np.ndarray]):
        """Set variables by name (weights, and optimiser state where given).

        Raises:
            WeightsError: a name is unknown or a shape differs.
        """
        self._state.check(values)
        self._state.assign(self._session, values)
        self._weights_changed()

    # Pieces of graphs.

    def _head(self, pooled: tf.Tensor, label: tf.Tensor):
        """Loss and probabilities from pooled features (channels,)."""
        return build.head(self.network, self._variables, pooled, label)

    def _logits_of_cells(self, embedding: tf.Tensor) -> tf.Tensor:
        """Logits (cells, classes) of an embedding map (1, height, width, channels), cells in raster order."""
        return build.logits_of_cells(self.network, self._variables, embedding)
