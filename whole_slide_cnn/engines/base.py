"""What all engines share: variables, gradient accumulation, the optimiser's step and the session."""

import abc
import ctypes
import os
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from tf_um_patch.host import may_have_gpu
from whole_slide_cnn.engines.loss_scale import LossScale
from whole_slide_cnn.errors import WeightsError
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
        compute: ``float64``, ``float32``, ``bfloat16`` or ``float16``; variables, head and loss are at least float32.
            With float16 the loss is scaled (:mod:`whole_slide_cnn.engines.loss_scale`).
        optimiser: object with ``build(gradients, variables) -> operation`` and ``feed() -> dict``; None for an engine
            that only predicts or returns gradients.

    Attributes:
        reduce_gradients: None, or a function that :meth:`train_batch` applies to the mean gradients of its batch before
            its step, such as the mean over several processes. It takes and returns a list of arrays, and is called
            several times in a step, each time with some of the gradients, always the same in the same order.
    """

    def __init__(self, network: Network, canvas_size: Size, compute: str = "float32", optimiser=None):
        self.network = network
        self.canvas_size = Size(*canvas_size)
        self.compute = compute
        self.reduce_gradients: Optional[Callable[[List[np.ndarray]], List[np.ndarray]]] = None
        self._optimiser = optimiser
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._variables = build.create_variables(network, compute)
            self._trainable = [spec.name for spec in network.variables if spec.trainable]
            with tf.variable_scope("accumulated"):
                self._sums = {name: accumulator(self._variables[name]) for name in self._trainable}
            self._sum_values = {name: total.read_value() for name, total in self._sums.items()}
            self._scaling = LossScale() if compute == "float16" else None
            self._nought = tf.placeholder(build.variable_type(compute), [], "nought")
            self._sum_feeds = {name: tf.placeholder(v.dtype.base_dtype, v.shape) for name, v in self._sums.items()}
            self._sum_assigns = {name: tf.assign(v, self._sum_feeds[name]) for name, v in self._sums.items()}
            self._zero = tf.group(*[tf.assign(v, tf.fill(v.shape, self._nought)).op for v in self._sums.values()])
            self._build_graph()
            if self._scaling is not None:
                self._scaling.watch(self._sum_values.values())
            self._apply = None
            if optimiser is not None:
                with tf.variable_scope("optimiser"):
                    self._apply = optimiser.build(
                        [self._sum_values[name] for name in self._trainable],
                        [self._variables[name] for name in self._trainable],
                    )
            self._state = {
                _plain_name(variable): variable
                for variable in tf.global_variables()
                if not variable.op.name.startswith("accumulated/")
            }
            self._state_values = {name: variable.read_value() for name, variable in self._state.items()}
            self._feeds = {name: tf.placeholder(v.dtype.base_dtype, v.shape) for name, v in self._state.items()}
            self._assigns = {name: tf.assign(v, self._feeds[name]) for name, v in self._state.items()}
        self._graph.finalize()
        keep_freed_memory_small()
        self._session = tf.Session(graph=self._graph, config=self._session_config())
        self.initialise()

    def initialise(self):
        """Set weights and gradients to zero and the optimiser to its start."""
        # Fed, not by initialisers: TensorFlow folds those into constants as large as the variables, and every graph
        # that it optimises keeps a copy.
        scalars = [variable.initializer for variable in self._state.values() if not variable.shape.ndims]
        self._session.run(scalars)
        self._assign(
            {
                name: np.broadcast_to(variable.dtype.as_numpy_dtype(0), variable.shape.as_list())
                for name, variable in self._state.items()
                if variable.shape.ndims
            }
        )
        self._session.run(self._zero, {self._nought: 0.0})
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
        """Add the engine's operations to the current graph."""

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
        """:meth:`predict` and :meth:`class_map` of one slide, the same numbers, where the engine can from one pass."""
        return self.predict(canvas, label), self.class_map(canvas)

    @abc.abstractmethod
    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        """Add ``share`` times the gradient of one slide's loss to the sums."""

    def _finish_batch(self):  # noqa: B027
        """Add what an engine had put off to the end of a batch."""

    def _session_config(self) -> tf.ConfigProto:
        return session_config()

    def _weights_changed(self):  # noqa: B027
        """Forget what was derived from the weights."""

    # What all share.

    def train_batch(self, canvases: Sequence[Canvas], labels: Sequence[int]) -> List[Prediction]:
        """One optimiser step on the mean gradient of a batch; returns the predictions before the step. In float16 the
        step is left out where a gradient is not finite, and the loss scale is lowered."""
        predictions = self._accumulate(canvases, labels)
        if self.reduce_gradients is not None:
            for names in self._portions(self._trainable):
                reduced = self.reduce_gradients(self._session.run([self._sum_values[name] for name in names]))
                feed = {self._sum_feeds[name]: value for name, value in zip(names, reduced)}
                self._session.run([self._sum_assigns[name].op for name in names], feed)
        if self._scaling is None or self._scaling.allows(self._session):
            self._session.run(self._apply, self._optimiser.feed())
            self._weights_changed()
        return predictions

    def gradients(self, canvases: Sequence[Canvas], labels: Sequence[int]):
        """Predictions, and the mean gradient of every trained variable by name."""
        predictions = self._accumulate(canvases, labels)
        return predictions, self._session.run(self._sum_values)

    def _accumulate(self, canvases: Sequence[Canvas], labels: Sequence[int]) -> List[Prediction]:
        for canvas in canvases:
            assert canvas.size == self.canvas_size, "canvas {} has size {}, the engine {}".format(
                canvas.name, canvas.size, self.canvas_size
            )
        self._session.run(self._zero, {self._nought: 0.0})
        share = 1.0 / len(canvases)
        predictions = [self._add_gradient(canvas, label, share) for canvas, label in zip(canvases, labels)]
        self._finish_batch()
        return predictions

    def state(self) -> Dict[str, np.ndarray]:
        """Weights and optimiser state by name."""
        return self._session.run(self._state_values)

    def weights(self) -> Dict[str, np.ndarray]:
        """The network's weights by name."""
        return self._session.run({name: self._state_values[name] for name in self._variables})

    def load_state(self, values: Dict[str, np.ndarray]):
        """Set variables by name (weights, and optimiser state where given).

        Raises:
            WeightsError: a name is unknown or a shape differs.
        """
        for name, value in values.items():
            if name not in self._state:
                raise WeightsError("there is no variable '{}' in this model".format(name))
            if tuple(self._feeds[name].shape.as_list()) != np.shape(value):
                raise WeightsError(
                    "variable '{}' has shape {} in this model, but {} in the file".format(
                        name, tuple(self._feeds[name].shape.as_list()), np.shape(value)
                    )
                )
        self._assign(values)
        self._weights_changed()

    def _assign(self, values: Dict[str, np.ndarray]):
        """Set variables."""
        for names in self._portions(values):
            feed = {self._feeds[name]: values[name] for name in names}
            self._session.run([self._assigns[name].op for name in names], feed)

    def _portions(self, names: Iterable[str]) -> Iterator[List[str]]:
        """Variables by some megabytes at a time: each call of the session takes milliseconds whatever its size, but fed
        all at once, a ResNet-50 and its Adam state would be in memory three times over."""
        portion: List[str] = []
        for name in names:
            portion.append(name)
            if sum(self._bytes_of(n) for n in portion) >= _FED_AT_ONCE:
                yield portion
                portion = []
        if portion:
            yield portion

    def _bytes_of(self, name: str) -> int:
        return self._feeds[name].shape.num_elements() * self._feeds[name].dtype.size

    # Pieces of graphs.

    def _head(self, pooled: tf.Tensor, label: tf.Tensor):
        """Loss and probabilities from pooled features (channels,)."""
        return build.head(self.network, self._variables, pooled, label)

    def _logits_of_cells(self, embedding: tf.Tensor) -> tf.Tensor:
        """Logits (cells, classes) of an embedding map (1, height, width, channels), cells in raster order."""
        return build.logits_of_cells(self.network, self._variables, embedding)

    def _gradients(self, target: tf.Tensor, names: Sequence[str], given: Optional[tf.Tensor] = None):
        """Gradients of a target, or of its product with what is given, for trained variables; scaled on their way where
        the engine computes in float16."""
        variables = [self._variables[name] for name in names]
        if self._scaling is None:
            return tf.gradients(target, variables, given)
        seed = self._scaling.value if given is None else self._scaling.value * given
        gradients = tf.gradients(target, variables, seed)
        return [None if gradient is None else gradient / self._scaling.value for gradient in gradients]

    def _add_to_sums(self, names: Sequence[str], gradients: Sequence[tf.Tensor], share: Optional[tf.Tensor] = None):
        """One operation that adds gradients (times ``share``) to the sums."""
        updates = []
        for name, gradient in zip(names, gradients):
            if gradient is not None:
                updates.append(self._sums[name].assign_add(gradient if share is None else share * gradient).op)
        return tf.group(*updates)


_FED_AT_ONCE = 2**24  # bytes
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_LARGE_BLOCK = 4 * 2**20


def keep_freed_memory_small():
    """Ask the C library to give blocks of 4 MiB and more back to the system when they are freed.

    By default glibc raises that limit to 32 MiB as it goes, keeps what is freed, and fragments it: a run then takes a
    quarter more memory than its tensors need, and no plan can say how much (docs/measurements.md). Costs a few percent
    of time on the CPU. Set ``MALLOC_MMAP_THRESHOLD_`` to choose another limit.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)


def has_gpu() -> bool:
    """Whether TensorFlow will compute on a GPU; told without starting its driver."""
    return bool(tf.test.is_built_with_cuda()) and may_have_gpu()


def unrolls_patches(compute: str) -> bool:
    """Whether TensorFlow's convolution gradients on this machine unroll their input into patches: its own CPU kernels
    do, oneDNN (TensorFlow 2, in float32 and bfloat16) and cuDNN do not."""
    if has_gpu():
        return False
    has_onednn = int(tf.__version__.split(".")[0]) >= 2 and os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0"
    return compute in ("float64", "float16") or not has_onednn


def session_config() -> tf.ConfigProto:
    """Take GPU memory as it is needed, so that what is used can be seen and shared."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if not has_gpu():
        # Operations one after the other, each on all cores. oneDNN's compiled kernels are kept once per thread that ran
        # an operation, so with more threads memory would grow for hundreds of steps; and the order of sums is fixed.
        config.inter_op_parallelism_threads = -1
    return config


def sum_updates(network: Network, loss: tf.Tensor, variables: Dict[str, tf.Variable]) -> List[tf.Operation]:
    """Operations that add the gradients of a loss to sums, in a graph that is only planned: as an engine's step has
    them."""
    trained = [variables[spec.name] for spec in network.variables if spec.trainable]
    return [
        accumulator(variable).assign_add(0.5 * gradient).op  # 0.5: a slide's share
        for variable, gradient in zip(trained, tf.gradients(loss, trained))
        if gradient is not None
    ]


def accumulator(variable: tf.Variable) -> tf.Variable:
    """A variable for the sum of gradients of another."""
    return tf.get_variable(
        variable.op.name.replace("/", "_"),
        variable.shape,
        variable.dtype.base_dtype,
        tf.zeros_initializer(),
        trainable=False,
        use_resource=True,
    )


def _plain_name(variable: tf.Variable) -> str:
    return variable.op.name
