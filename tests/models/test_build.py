"""The TensorFlow graph of a network: windows, pooling, normalisation, losses, types."""

import itertools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SMALL_TRUNKS, random_weights, slim_backbones, variables_of

from whole_slide_cnn.models import build, geometry
from whole_slide_cnn.models.layers import SAME, Conv, FixedNorm, MaxPool
from whole_slide_cnn.models.network import BACKBONES, Network
from whole_slide_cnn.models.resnet import norm_trunk
from whole_slide_cnn.sizes import Size, Window


class TrunkGraph:
    """A trunk in float64 with random weights: its map of any window of a canvas, and of the whole canvas."""

    def __init__(self, trunk, canvas):
        self.trunk, self.canvas = trunk, canvas
        with tf.Graph().as_default() as graph:
            weights = random_weights(variables_of(trunk))
            variables = {name: tf.placeholder(tf.float64, value.shape) for name, value in weights.items()}
            self._weights = {variables[name]: value for name, value in weights.items()}
            builder = build.TrunkBuilder(trunk, variables, "float64")
            self._canvas_image = tf.placeholder(tf.float64, (1,) + canvas + (3,))
            self._canvas_map = builder(self._canvas_image)
            self._image = tf.placeholder(tf.float64, (1, None, None, 3))
            self._fed = build.GeometryTensors.placeholders(trunk)
            self._map = builder(self._image, self._fed)
        self.session = tf.Session(graph=graph)

    def of_canvas(self, image):
        return self.session.run(self._canvas_map, {self._canvas_image: image, **self._weights})

    def of_window(self, image, cells):
        window = geometry.window_geometry(self.trunk, self.canvas, cells)
        pixels = window.pixels
        part = image[:, pixels.top : pixels.bottom, pixels.left : pixels.right]
        feed = {self._image: part, self._fed.padding: window.padding, self._fed.crops: window.crops}
        return self.session.run(self._map, {**feed, **self._weights})


def assert_windows_are_crops(trunk, canvas, windows):
    graph = TrunkGraph(trunk, canvas)
    image = np.random.RandomState(1).standard_normal((1,) + canvas + (3,))
    with graph.session:
        whole = graph.of_canvas(image)
        assert whole.shape[1:3] == geometry.cells_of(trunk, canvas)
        assert (whole > 0).mean() > 0.2 and np.unique(whole).size > 0.2 * whole.size  # the comparison is not of zeros
        for window in windows:
            found = graph.of_window(image, window)
            expected = whole[:, window.top : window.bottom, window.left : window.right]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(whole).max())


def rectangles(cells, count, seed=0):
    """Each corner, and random rectangles of cells."""
    random = np.random.RandomState(seed)
    for top, left in itertools.product((0, cells.height - 1), (0, cells.width - 1)):
        yield Window(top, left, 1, 1)
    for _ in range(count):
        top, left = random.randint(cells.height), random.randint(cells.width)
        yield Window(top, left, 1 + random.randint(cells.height - top), 1 + random.randint(cells.width - left))


@pytest.mark.parametrize("canvas", [Size(96, 128), Size(97, 114)])
@pytest.mark.parametrize("family", sorted(SMALL_TRUNKS))
def test_the_map_of_a_window_is_a_crop_of_the_map_of_the_canvas(family, canvas):
    trunk = SMALL_TRUNKS[family]()
    assert_windows_are_crops(trunk, canvas, rectangles(geometry.cells_of(trunk, canvas), 6))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_windows_of_every_backbone_are_crops(backbone):
    with slim_backbones():
        trunk = Network(backbone, "gmp", "softmax", 2).trunk
    canvas = Size(265, 379)  # strided SAME layers meet both parities on the way down
    assert_windows_are_crops(trunk, canvas, rectangles(geometry.cells_of(trunk, canvas), 3))


# Single layers.


def map_of(layers, image, values=(), cells=None):
    """The float64 map of a few layers for a fixed image; of a window where ``cells`` are given."""
    with tf.Graph().as_default(), tf.Session() as session:
        builder = build.TrunkBuilder(layers, {name: tf.constant(value) for name, value in dict(values).items()}, F64)
        if cells is None:
            return session.run(builder(tf.constant(image)))
        canvas = Size(*image.shape[1:3])
        window = geometry.window_geometry(layers, canvas, cells)
        pixels = window.pixels
        fed = build.GeometryTensors(tf.constant(window.padding), tf.constant(window.crops))
        part = image[:, pixels.top : pixels.bottom, pixels.left : pixels.right]
        return session.run(builder(tf.constant(part), fed))


F64 = "float64"


@pytest.mark.parametrize("padding", [1, SAME])
@pytest.mark.parametrize("canvas", [Size(6, 9), Size(7, 8)])
def test_padding_of_a_max_pool_never_wins(padding, canvas):
    layers = (MaxPool("pool", 3, 2, padding),)
    image = -(10.0 ** np.random.RandomState(0).uniform(-3, 250, (1,) + canvas + (2,)))
    expected = np.empty((1,) + geometry.cells_of(layers, canvas) + (2,))
    for row, column in np.ndindex(expected.shape[1:3]):
        before = [geometry.padding_of(layers[0], side)[0] for side in canvas]
        top, left = 2 * row - before[0], 2 * column - before[1]
        part = image[0, max(top, 0) : top + 3, max(left, 0) : left + 3]
        expected[0, row, column] = part.max(axis=(0, 1))
    np.testing.assert_array_equal(map_of(layers, image), expected)
    cells = Window(0, 0, 2, expected.shape[2])
    np.testing.assert_array_equal(map_of(layers, image, cells=cells), expected[:, :2])


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_batch_norm_is_the_batch_norm_and_so_are_its_gradients(bias):
    norm = FixedNorm("bn", 0.01, True)
    layer = Conv("conv", 3, 5, 3, 2, 1, bias, norm)
    values = random_weights(variables_of((layer,)))
    random = np.random.RandomState(5)
    image = random.standard_normal((1, 9, 8, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        tensors = {name: tf.constant(value) for name, value in values.items()}
        folded = build.TrunkBuilder((layer,), tensors, F64)(tf.constant(image))
        plain = tf.nn.conv2d(
            np.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)], "constant"), tensors["conv/kernel"], 2, "VALID"
        )
        if bias:
            plain = plain + tensors["conv/bias"]
        plain = (plain - tensors["bn/moving_mean"]) / tf.sqrt(tensors["bn/moving_variance"] + norm.epsilon)
        plain = plain * tensors["bn/gamma"] + tensors["bn/beta"]
        weight = tf.constant(random.standard_normal(folded.shape.as_list()))
        trained = [name for name in sorted(tensors) if "moving" not in name]
        found, expected = (
            session.run([y] + tf.gradients(y * weight, [tensors[name] for name in trained])) for y in (folded, plain)
        )
    assert trained == ["bn/beta", "bn/gamma"] + ["conv/bias"] * bias + ["conv/kernel"]
    for name, ours, theirs in zip(["map"] + trained, found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max(), err_msg=name)


# The maximum over cells.


@pytest.fixture(scope="module")
def maximum():
    """A function (map (1, height, width, 2)) -> values, cells, gradient of ``values . (2, 3)`` for that map."""
    with tf.Graph().as_default() as graph:
        embedding = tf.placeholder(tf.float64, (1, None, None, 2))
        values, cells = build.pool_maximum(embedding, tf.float64)
        (gradient,) = tf.gradients(values * tf.constant([2.0, 3.0], tf.float64), [embedding])
    with tf.Session(graph=graph) as session:
        yield lambda array: session.run([values, cells, gradient], {embedding: array})


def test_the_first_cell_in_raster_order_wins_a_tie_and_takes_the_whole_gradient(maximum):
    array = np.array([[[1, 7], [5, 0], [2, 7]], [[5, 7], [5, 1], [0, 0]]], np.float64)[np.newaxis]
    values, cells, gradient = maximum(array)
    assert values.tolist() == [5, 7] and cells.tolist() == [1, 0]
    expected = np.zeros_like(array)
    expected[0, 0, 1, 0], expected[0, 0, 0, 1] = 2, 3
    np.testing.assert_array_equal(gradient, expected)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data())
def test_the_maximum_of_maps_with_many_ties(maximum, data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    entries = st.lists(st.integers(-2, 1), min_size=2 * shape[0] * shape[1], max_size=2 * shape[0] * shape[1])
    array = np.array(data.draw(entries), np.float64).reshape((1,) + shape + (2,))
    values, cells, gradient = maximum(array)
    flat = array.reshape(-1, 2)
    assert cells.tolist() == flat.argmax(axis=0).tolist()  # NumPy documents the first
    assert values.tolist() == flat.max(axis=0).tolist()
    expected = np.zeros_like(flat)
    expected[cells, [0, 1]] = [2, 3]
    np.testing.assert_array_equal(gradient.reshape(-1, 2), expected)


def test_an_inactive_maximum_passes_no_gradient():
    before = np.array([[-1.0, 0.0, 2.0], [-3.0, -1.0, 1.0]]).reshape((1, 1, 2, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.constant(before)
        values, _ = build.pool_maximum(tf.nn.relu(x), tf.float64)
        found, gradient = session.run([values, tf.gradients(values, [x])[0]])
    assert found.tolist() == [0, 0, 2]
    np.testing.assert_array_equal(gradient, np.array([[0, 0, 1], [0, 0, 0]]).reshape((1, 1, 2, 3)))


# Input and loss.


@pytest.mark.parametrize(
    "backbone, expected",
    [
        ("tiny", [(255 - 127.5) / 127.5, (0 - 127.5) / 127.5, (128 - 127.5) / 127.5]),
        ("fixup_resnet50", [1.0, -1.0, 0.5 / 127.5]),
        ("frozenbn_resnet50", [128 - 103.939, 0 - 116.779, 255 - 123.68]),
        ("resnet18", [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255.0 - 0.406) / 0.225]),
        ("resnet50", [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255.0 - 0.406) / 0.225]),
    ],
)
def test_preprocessing(backbone, expected):
    network = Network(backbone, "gmp", "softmax", 2)
    for compute, tolerance in (("float64", 1e-14), ("float32", 1e-6), ("bfloat16", 1e-2)):
        with tf.Graph().as_default(), tf.Session() as session:
            values = build.normalise(network, tf.constant([[[[255, 0, 128]]]], tf.uint8), compute)
            assert values.dtype == build.COMPUTE_TYPES[compute]
            found = session.run(tf.cast(values, tf.float64))[0, 0, 0]
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("label", [0, 2])
def test_losses_are_those_of_the_formulas(label):
    logits = np.array([1.5, -0.3, 800.0 if label else -40.0])  # beyond where a naive exponential overflows
    with tf.Graph().as_default(), tf.Session() as session:
        softmax = session.run(build.loss_of(tf.constant(logits), tf.constant(label), "softmax"))
        sigmoid = session.run(build.loss_of(tf.constant(logits), tf.constant(label), "sigmoid"))
    shifted = logits - logits.max()
    probabilities = np.exp(shifted) / np.exp(shifted).sum()
    np.testing.assert_allclose(softmax[0], np.log(np.exp(shifted).sum()) - shifted[label], atol=1e-14)
    np.testing.assert_allclose(softmax[1], probabilities, atol=1e-14)
    target = np.arange(3) == label
    # -log(sigmoid(z)) and -log(1 - sigmoid(z))
    each = np.where(target, np.logaddexp(0, -logits), np.logaddexp(0, logits))
    np.testing.assert_allclose(sigmoid[0], each.mean(), rtol=1e-14)
    np.testing.assert_allclose(sigmoid[1], np.exp(-np.logaddexp(0, -logits)), atol=1e-14)


# Types.


@pytest.mark.parametrize("compute", ["float64", "float32", "bfloat16", "float16"])
def test_variables_and_head_are_never_below_float32(compute):
    network = Network("tiny", "gmp", "softmax", 3)
    with tf.Graph().as_default():
        variables = build.create_variables(network, compute)
    assert {v.dtype.base_dtype for v in variables.values()} == {tf.float64 if compute == "float64" else tf.float32}
    assert [v.op.name for v in variables.values()] == [spec.name for spec in network.variables]


@pytest.mark.parametrize("compute, bounds", [("bfloat16", (0.02, 0.02, 0.12)), ("float16", (0.003, 0.003, 0.03))])
def test_half_precision_computes_what_float32_does_to_its_precision(compute, bounds):
    trunk = norm_trunk(((8, 1),), True, 0, 1e-5, True, True, SAME, True)
    image = np.random.RandomState(1).standard_normal((1, 33, 34, 3)).astype(np.float32)
    weights = random_weights(variables_of(trunk))
    found = {}
    for kind in ("float32", compute):
        with tf.Graph().as_default(), tf.Session() as session:
            variables = {name: tf.constant(value, tf.float32) for name, value in weights.items()}
            dtype = build.COMPUTE_TYPES[kind]
            embedding = build.TrunkBuilder(trunk, variables, kind)(tf.cast(tf.constant(image), dtype))
            assert embedding.dtype == dtype
            embedding = tf.cast(embedding, tf.float32)
            (gradient,) = tf.gradients(embedding**2, [variables["conv1_conv/kernel"]])
            assert gradient.dtype == tf.float32
            maximum, _ = build.pool_maximum(embedding, tf.float32)
            found[kind] = session.run([embedding, maximum, gradient])
    # gradients differ by more than rounding, which also flips ReLUs and pools
    for full, half, bound in zip(found["float32"], found[compute], bounds):
        assert 1e-4 < np.linalg.norm(full - half) / np.linalg.norm(full) < bound, bound


def test_a_cell_that_is_not_a_number_reaches_the_pooled_value_of_its_channel_only():
    cells = np.arange(12.0).reshape(1, 3, 2, 2)
    cells[0, 1, 0, 1] = np.nan
    with tf.Graph().as_default(), tf.Session() as session:
        values, _ = session.run(build.pool_maximum(tf.constant(cells), tf.float64))
    assert values[0] == 10.0 and np.isnan(values[1])
