"""Dynamic loss scaling: half precision has no numbers for the smallest gradients, and so the loss is multiplied first.

The scale follows the training: it is halved when a gradient is not finite, whose step is left out, and doubled after a
number of steps that all were (Micikevicius et al. 2018). Scales are powers of two, which change no bit of a gradient
that half precision can hold. Scale and count are variables, so that checkpoints hold them.
"""

from typing import Iterable

import tensorflow.compat.v1 as tf

from whole_slide_cnn.errors import TrainingError

FIRST, LARGEST = 2.0**15, 2.0**24
# Good steps before the scale is doubled. For small images 2,000 are usual; a whole slide is a step, and takes longer.
GROWS_AFTER = 200


class LossScale:
    """The scale of one training, in the current graph.

    Attributes:
        value: float32 scalar tensor.
    """

    def __init__(self):
        with tf.variable_scope("loss_scale"):
            self._scale, self._good = (
                tf.get_variable(
                    name, [], tf.float32, tf.constant_initializer(first), trainable=False, use_resource=True
                )
                for name, first in (("scale", FIRST), ("good_steps", 0.0))
            )
        self.value = self._scale.read_value()

    def watch(self, gradients: Iterable[tf.Tensor]):
        """Build what :meth:`allows` runs, for gradients that must be finite."""
        self._finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.is_finite(gradient)) for gradient in gradients]))
        good = self._good.read_value() + 1.0
        grows = good >= GROWS_AFTER
        grown = tf.where(grows, tf.minimum(2.0 * self.value, LARGEST), self.value)
        left = tf.where(grows, tf.zeros_like(good), good)
        with tf.control_dependencies([grown, left]):  # both are read before either is set
            self._grow = tf.group(self._scale.assign(grown).op, self._good.assign(left).op)
        self._shrink = tf.group(self._scale.assign(0.5 * self.value).op, self._good.assign(0.0).op)

    def allows(self, session: tf.Session) -> bool:
        """Whether the gradients are finite, so that a step can be made; the scale follows.

        Raises:
            TrainingError: they are not, and a smaller scale would not help.
        """
        finite, scale = session.run([self._finite, self.value])
        if not finite and scale <= 1.0:
            raise TrainingError(
                "gradients are not finite in float16, even without a loss scale; use model.compute bfloat16 or "
                "float32, or lower train.learning_rate"
            )
        session.run(self._grow if finite else self._shrink)
        return bool(finite)
