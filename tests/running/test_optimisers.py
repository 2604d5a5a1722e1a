"""Adam and AdamW against their formulas in NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from whole_slide_cnn.running.optimisers import Adam

SHAPES = {"first": (3, 4), "second": (5,)}


def reference(values, gradients, rates, beta1, beta2, epsilon, decay):
    """Adam as TensorFlow defines it (epsilon is added before the bias of the second moment is corrected), in float64,
    after the decoupled decay of AdamW."""
    value, mean, square = np.array(values), np.zeros_like(values), np.zeros_like(values)
    for step, (gradient, rate) in enumerate(zip(gradients, rates), 1):
        value = value * (1 - rate * decay)
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        corrected = rate * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        value = value - corrected * mean / (np.sqrt(square) + epsilon)
    return value


def run(optimiser, dtype, start, gradients, rates):
    """Variables after one step for each rate."""
    with tf.Graph().as_default():
        feeds = {name: tf.placeholder(dtype, shape) for name, shape in SHAPES.items()}
        variables = {
            name: tf.get_variable(name, initializer=tf.constant(start[name], dtype), use_resource=True)
            for name in SHAPES
        }
        step = optimiser.build([feeds[name] for name in SHAPES], [variables[name] for name in SHAPES])
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for number, rate in enumerate(rates):
                optimiser.learning_rate = rate
                session.run(step, {**{feeds[n]: gradients[n][number] for n in SHAPES}, **optimiser.feed()})
            return session.run(variables)


@pytest.fixture
def problem():
    """First values, and five gradients of each variable: some tiny, some zero, so that epsilon and moments matter."""
    random = np.random.RandomState(0)
    start = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    gradients = {name: random.standard_normal((5,) + shape) for name, shape in SHAPES.items()}
    gradients["first"][:, 0] *= 1e-8
    gradients["first"][2] = 0
    return start, gradients


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("rates", [[0.01] * 5, [0.01, 0.02, 0.0, 0.5, 0.003]], ids=["constant", "changing"])
@pytest.mark.parametrize("dtype, bound", [(tf.float64, 1e-12), (tf.float32, 2e-6)], ids=["float64", "float32"])
def test_follows_the_formula(problem, dtype, bound, rates, decay):
    start, gradients = problem
    optimiser = Adam(rates[0], beta1=0.8, beta2=0.99, epsilon=1e-7, weight_decay=decay)
    found = run(optimiser, dtype, start, gradients, rates)
    for name in SHAPES:
        expected = reference(start[name], gradients[name], rates, 0.8, 0.99, 1e-7, decay)
        np.testing.assert_allclose(found[name], expected, rtol=bound, atol=bound)


def test_decay_is_decoupled_from_the_gradient(problem):
    """Without a gradient the moments stay zero, and a weight shrinks by exactly rate times decay a step."""
    start, gradients = problem
    nothing = {name: np.zeros_like(values) for name, values in gradients.items()}
    found = run(Adam(0.01, weight_decay=0.5), tf.float64, start, nothing, [0.01] * 3)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], start[name] * 0.995**3, rtol=1e-14)


def test_default_moments_in_float64(problem):
    start, gradients = problem
    found = run(Adam(1e-3), tf.float64, start, gradients, [1e-3] * 5)
    for name in SHAPES:
        expected = reference(start[name], gradients[name], [1e-3] * 5, 0.9, 0.999, 1e-8, 0.0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-15)
