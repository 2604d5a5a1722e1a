"""The way from the gradients of single slides to one optimiser step: sums, their reduction over processes, the step."""

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines.loss_scale import LossScale
from whole_slide_cnn.engines.state import Variables
from whole_slide_cnn.models import build
from whole_slide_cnn.models.network import Network

# Takes gradients and gives as many back, such as their mean over several processes.
Reduction = Callable[[List[np.ndarray]], List[np.ndarray]]


class Accumulators:
    """Sums of the gradients of trained variables, on the device, in the current graph.

    Args:
        trained: the trained variables by name.
        compute: type that the network computes in; with float16 gradients are scaled on their way.
    """

    def __init__(self, trained: Mapping[str, tf.Variable], compute: str):
        self._trained = dict(trained)
        with tf.variable_scope("accumulated"):
            self._sums = {name: accumulator(variable) for name, variable in self._trained.items()}
        self._access = Variables(self._sums)
        self._scaling = LossScale() if compute == "float16" else None
        self._nought = tf.placeholder(build.variable_type(compute), [], "nought")
        self._zero = tf.group(*[tf.assign(v, tf.fill(v.shape, self._nought)).op for v in self._sums.values()])
        self._apply: Optional[tf.Operation] = None
        self._optimiser: Any = None

    @property
    def names(self) -> List[str]:
        """Names of the trained variables."""
        return list(self._trained)

    # Pieces of graphs.

    def gradients(
        self,
        target: tf.Tensor,
        names: Sequence[str],
        given: Optional[tf.Tensor] = None,
        with_respect_to: Sequence[tf.Tensor] = (),
    ) -> List[Optional[tf.Tensor]]:
        """Gradients of a target, or of its product with what is given, for trained variables and then for tensors;
        scaled on their way where the engine computes in float16, so that those of tensors come in at least float32."""
        sources = [self._trained[name] for name in names] + list(with_respect_to)
        if self._scaling is None:
            return list(tf.gradients(target, sources, given))
        scale = self._scaling.value
        found = []
        for gradient in tf.gradients(target, sources, scale if given is None else scale * given):
            found.append(None if gradient is None else tf.cast(gradient, scale.dtype) / scale)
        return found

    def add(
        self, names: Sequence[str], gradients: Sequence[Optional[tf.Tensor]], share: Optional[tf.Tensor] = None
    ) -> tf.Operation:
        """One operation that adds gradients (times ``share``) to the sums."""
        updates = []
        for name, gradient in zip(names, gradients):
            if gradient is not None:
                updates.append(self._sums[name].assign_add(gradient if share is None else share * gradient).op)
        return tf.group(*updates)

    def finish(self, optimiser):
        """Build the step, once all operations that add to the sums are there.

        Args:
            optimiser: object with ``build(gradients, variables) -> operation`` and ``feed() -> dict``, or None.
        """
        if self._scaling is not None:
            self._scaling.watch(self._access.values.values())
        if optimiser is not None:
            self._optimiser = optimiser
            with tf.variable_scope("optimiser"):
                self._apply = optimiser.build(list(self._access.values.values()), list(self._trained.values()))

    # What runs.

    def zero(self, session: tf.Session):
        """Begin a batch."""
        session.run(self._zero, {self._nought: 0.0})

    def read(self, session: tf.Session) -> Dict[str, np.ndarray]:
        """The sums by name."""
        return self._access.read(session)

    def step(self, session: tf.Session, reduction: Optional[Reduction] = None) -> bool:
        """Reduce the sums, and make one step with them; left out, with a smaller loss scale, where in float16 one of
        them is not finite. Returns whether it was made.

        Raises:
            TrainingError: in float16 no loss scale makes the gradients finite.
        """
        if reduction is not None:
            self._access.update(session, reduction)
        if self._scaling is not None and not self._scaling.allows(session):
            return False
        session.run(self._apply, self._optimiser.feed())
        return True


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


def is_accumulator(variable: tf.Variable) -> bool:
    """Whether a variable holds a sum of gradients, which is no part of a training's state."""
    return bool(variable.op.name.startswith("accumulated/"))
