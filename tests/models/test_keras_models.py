"""Files exchanged with real Keras models of the same layers, which the published implementation consists of."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from small_networks import SMALL_TRUNKS, random_weights

from whole_slide_cnn.engines.direct.engine import DirectEngine
from whole_slide_cnn.models import resnet
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import load_weights, save_weights
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

pytestmark = pytest.mark.skipif(
    not tf.__version__.startswith("1."), reason="Keras 3 of the current runtime has no graph mode and other files"
)

SIZE = Size(70, 97)


class KerasTwin:
    """A Keras model of a family of small trunks, built without our layers; one call more, one model more."""

    def __init__(self, family):
        self.layers = tf.keras.layers
        self.norm, self.bottleneck = family == "reference_norm", family != "fixup_basic"
        self.stages = ((8, 2), (8, 2)) if family == "fixup_basic" else ((4, 2), (6, 2))

    def __call__(self):
        layers = self.layers
        x = inputs = layers.Input(SIZE + (3,))
        x = layers.ZeroPadding2D(3)(x)
        x = self.conv(x, "conv1", 64 if self.norm else 8, 7, 2, "valid")
        x = layers.Activation("relu")(x)
        x = layers.MaxPooling2D(3, 2, "same")(x)
        for stage, (filters, blocks) in enumerate(self.stages):
            for block in range(blocks):
                name = "conv{}_block{}".format(stage + 2, block + 1)
                x = self.block(x, name, filters, 2 if stage and not block else 1, not block)
        x = layers.GlobalMaxPooling2D()(x)
        return tf.keras.Model(inputs, layers.Dense(3, "softmax", name="output")(x))

    def block(self, x, name, filters, stride, project):
        shortcut = x
        if not self.norm:
            x = scalar_layer(False)(x)
        plan = [(filters, 1, stride), (filters, 3, 1), (4 * filters, 1, 1)]
        if not self.bottleneck:
            plan = [(filters, 3, stride), (filters, 3, 1)]
        if project:
            shortcut = self.conv(x, name + "_0", plan[-1][0], 1, stride)
        for position, (channels, kernel, step) in enumerate(plan, 1):
            x = self.conv(x, "{}_{}".format(name, position), channels, kernel, step)
            last = position == len(plan)
            if not last:
                x = self.layers.Activation("relu")(x)
            if not self.norm:
                x = scalar_layer(last)(x)
        return self.layers.Activation("relu")(self.layers.Add()([shortcut, x]))

    def conv(self, x, name, channels, kernel, stride, padding="same"):
        x = self.layers.Conv2D(channels, kernel, stride, padding, name=name + "_conv")(x)
        if self.norm:
            x = self.layers.BatchNormalization(epsilon=1.001e-5, trainable=False, name=name + "_bn")(x, training=False)
        return x


def scalar_layer(multiplies):
    class ScalarMulAddLayer(tf.keras.layers.Layer):
        def build(self, _):
            if multiplies:
                self.factor = self.add_weight("weight", ())
            self.summand = self.add_weight("bias", ())

        def call(self, x):
            return (x * self.factor if multiplies else x) + self.summand

    return ScalarMulAddLayer()


@pytest.fixture(params=["fixup_basic", "fixup_bottleneck", "reference_norm"])
def twin(request, monkeypatch):
    """(network, its twin) in a graph and session of their own."""
    monkeypatch.setitem(resnet.TRUNKS, "tiny", SMALL_TRUNKS[request.param])
    with tf.Graph().as_default(), tf.Session() as session:
        tf.keras.backend.set_session(session)
        yield Network("tiny", "gmp", "softmax", 3), KerasTwin(request.param)
    tf.keras.backend.clear_session()


def test_keras_reads_our_file_by_order_and_computes_the_same(tmp_path, twin):
    network, build = twin
    weights = {name: np.float32(value) for name, value in random_weights(network.variables).items()}
    path = str(tmp_path / "ours.h5")
    save_weights(path, network, weights)
    model = build()
    model.load_weights(path)
    for variable, value in zip(model.weights, tf.keras.backend.batch_get_value(model.weights)):
        np.testing.assert_array_equal(value, weights[variable.name.split(":")[0]])
    image = np.random.RandomState(2).randint(0, 256, SIZE + (3,)).astype(np.uint8)
    theirs = model.predict((image[np.newaxis] - 127.5) / 127.5)[0]
    with DirectEngine(network, SIZE, "float32") as engine:
        engine.load_state(weights)
        ours = engine.predict(ArrayCanvas(image)).probabilities
    assert 0.01 < theirs.max() < 0.99
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("twin", ["fixup_basic", "reference_norm"], indirect=True)
def test_we_read_keras_s_files_also_of_a_second_model(tmp_path, twin):
    network, build = twin
    for earlier in range(2):
        model = build()
        random = np.random.RandomState(earlier)
        model.set_weights([random.standard_normal(v.shape.as_list()).astype(np.float32) for v in model.weights])
        path = str(tmp_path / "theirs.h5")
        model.save_weights(path)
        found, report = load_weights(path, network)
        assert not (report.missing or report.unexpected or report.mismatched)
        # every value is Keras's own of the layer of that name, or of the scalar in that place
        scalars = sorted((layer.name for layer in model.layers if layer.name.startswith("scalar")), key=scalar_number)
        assert not earlier or "scalar_mul_add_layer" not in scalars
        for layer in model.layers:
            name = layer.name
            if name in scalars:
                number = scalars.index(name)
                name = "scalar_mul_add_layer" + ("_{}".format(number) if number else "")
            for variable, value in zip(layer.weights, layer.get_weights()):
                np.testing.assert_array_equal(found[name + "/" + variable.name.split("/")[-1][:-2]], value)


def scalar_number(name):
    return int(name.split("_")[-1]) if name[-1].isdigit() else 0
