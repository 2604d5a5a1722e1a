"""Small TensorFlow graphs with whole-number values, so that no order of summation changes a bit."""

from collections import namedtuple

import numpy as np
import tensorflow.compat.v1 as tf

Net = namedtuple("Net", "graph image fetches variables train")
CHANNELS = 4


def whole_numbers(shape, seed, low=-2, high=3):
    return np.random.RandomState(seed).randint(low, high, shape).astype(np.float32)


def conv_net(side=16, layers=4, resource=True, dtype=tf.float32, batch=1):
    """A residual network with a maximum pooling head, its gradients and an update by gradient descent."""
    graph = tf.Graph()
    with graph.as_default():
        image = tf.placeholder(dtype, (batch, side, side, CHANNELS), "image")
        variables, at = [], image
        with tf.variable_scope("net", use_resource=resource):
            for layer in range(layers):
                kernel = _variable("kernel{}".format(layer), (3, 3, CHANNELS, CHANNELS), layer, dtype)
                bias = _variable("bias{}".format(layer), (CHANNELS,), 50 + layer, dtype)
                variables += [kernel, bias]
                after = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(at, kernel, strides=1, padding="SAME"), bias))
                at = after + at if layer % 2 else after
        pooled = tf.reduce_max(tf.nn.max_pool2d(at, 2, 2, "SAME"), axis=(1, 2))
        loss = tf.reduce_sum(pooled * tf.constant(whole_numbers((batch, CHANNELS), 99), dtype), name="loss")
        gradients = tf.gradients(loss, variables)
        with tf.control_dependencies([tf.identity(value) for value in gradients]):
            train = tf.group(*[v.assign_sub(2.0**-30 * g) for v, g in zip(variables, gradients)], name="train")
        tf.add_to_collection(tf.GraphKeys.TRAIN_OP, train)
    return Net(graph, image, [loss] + gradients, variables, train)


def _variable(name, shape, seed, dtype):
    values = whole_numbers(shape, seed, -1, 2)
    return tf.get_variable(name, dtype=dtype, initializer=tf.cast(tf.constant(values), dtype))


def feed(net):
    return {net.image: whole_numbers(net.image.shape.as_list(), 7)}


def run_steps(net, steps=2, config=None, options=None):
    """Loss and gradients of some training steps, the weights after them, and the metadata of the last step."""
    results, metadata = [], tf.RunMetadata()
    with tf.Session(graph=net.graph, config=config) as session:
        with net.graph.as_default():
            start = [variable.initializer for variable in net.variables]
        session.run(start)
        for _ in range(steps):
            values, _ = session.run([net.fetches, net.train], feed(net), options=options, run_metadata=metadata)
            results += values
        results += session.run(net.variables)
    return results, metadata


def same_bits(one, other):
    return len(one) == len(other) and all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in zip(one, other))
