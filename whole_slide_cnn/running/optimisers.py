"""Adam and AdamW, as one graph operation on accumulated gradients."""

from typing import Any, Sequence

import tensorflow.compat.v1 as tf


class Adam:
    """Adam (Kingma & Ba 2015), with decoupled weight decay where asked for (AdamW, Loshchilov & Hutter 2019).

    The rate is an attribute, read at every step, so that a schedule can change it.

    Args:
        learning_rate: step size.
        weight_decay: each step first multiplies every trained variable by ``1 - learning_rate * weight_decay``.
        epsilon: added to the square root of the second moment before its bias is corrected, as TensorFlow does.
    """

    def __init__(
        self,
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self._betas = beta1, beta2
        self._epsilon = epsilon
        self._rate: Any = None  # a placeholder, once built

    def build(self, gradients: Sequence[tf.Tensor], variables: Sequence[tf.Variable]) -> tf.Operation:
        """The operation of one step, in the current graph."""
        dtype = variables[0].dtype.base_dtype
        self._rate = tf.placeholder(dtype, [], "learning_rate")
        # as tensors: TensorFlow would round plain numbers, and their powers, to float32 whatever the variables are
        beta1, beta2, epsilon = (tf.constant(value, dtype) for value in self._betas + (self._epsilon,))
        adam = tf.train.AdamOptimizer(self._rate, beta1, beta2, epsilon)
        decayed = []
        if self.weight_decay:
            share = self._rate * self.weight_decay
            decayed = [variable.assign_sub(share * variable.read_value()).op for variable in variables]
        with tf.control_dependencies(decayed):
            return adam.apply_gradients(list(zip(gradients, variables)))

    def feed(self) -> dict:
        """What a step has to be fed."""
        return {self._rate: self.learning_rate}
