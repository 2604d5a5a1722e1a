"""float32 is float32: products are TensorFloat-32 by name only, and a process keeps to its choice."""

import exactness
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.running.optimisers import Adam
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

NETWORK, SIZE = Network("tiny", "gmp", "softmax", 3), Size(96, 128)
OPTIONS = {"streaming": {"window": 64}, "unified": {"strip_mb": 0.2, "group_mb": 2}, "staged": {"skip_blank": False}}
OVERRIDE = "NVIDIA_TF32_OVERRIDE"


@pytest.fixture
def process(monkeypatch):
    """A process with a GPU and no choice yet: what TensorFlow's switch is set to, one after the other."""
    asked = []
    monkeypatch.setenv(OVERRIDE, "")  # what a test leaves there goes with it
    monkeypatch.delenv(OVERRIDE)
    monkeypatch.setattr(runtime, "has_gpu", lambda: True)
    monkeypatch.setattr(runtime, "_rounds_products", None)
    monkeypatch.setattr(runtime, "_tensorflow_switch", lambda: asked.append)
    return asked


def make_engine(name, compute):
    return ENGINES[name].engine_class()(NETWORK, SIZE, compute, Adam(1e-3), **OPTIONS.get(name, {}))


@pytest.mark.parametrize("compute, rounds", [("float32", False), ("float16", False), ("tensorfloat32", True)])
@pytest.mark.parametrize("name", list(ENGINES))
def test_every_engine_chooses_before_it_has_a_session(name, compute, rounds, process, monkeypatch):
    class Reached(Exception):
        pass

    def session(*_, **__):
        assert process == [rounds]
        raise Reached

    monkeypatch.setattr(tf, "Session", session)
    with pytest.raises(Reached):
        make_engine(name, compute)


def test_the_switch_of_this_tensorflow(monkeypatch):
    """Where there is one, it is the one that is set."""
    experimental = tf.config.experimental
    if not hasattr(experimental, "enable_tensor_float_32_execution"):
        assert tf.__version__.startswith("1.")
        return
    monkeypatch.setattr(runtime, "has_gpu", lambda: True)
    before = experimental.tensor_float_32_execution_enabled()
    try:
        for compute, rounds in (("tensorfloat32", True), ("float32", False)):
            monkeypatch.setattr(runtime, "_rounds_products", None)
            runtime.choose_products(compute)
            assert experimental.tensor_float_32_execution_enabled() == rounds
    finally:
        experimental.enable_tensor_float_32_execution(before)


def test_without_a_switch_the_libraries_are_told(process, monkeypatch):
    """As in builds of TensorFlow 1.15 on newer libraries than its own; what a user has set stays."""
    monkeypatch.setattr(runtime, "_tensorflow_switch", lambda: None)
    runtime.choose_products("float32")
    assert runtime.os.environ[OVERRIDE] == "0" and process == []
    monkeypatch.setenv(OVERRIDE, "1")
    runtime.choose_products("float32")
    assert runtime.os.environ[OVERRIDE] == "1"


@pytest.mark.parametrize("first, second", [("float32", "tensorfloat32"), ("tensorfloat32", "bfloat16")])
def test_a_process_keeps_to_its_choice(first, second, process):
    runtime.choose_products("float64")
    assert process == []
    runtime.choose_products(first)
    runtime.choose_products(first)
    runtime.choose_products("float64")
    with pytest.raises(ConfigError, match="compute {} needs a process of its own: .* cannot share one".format(second)):
        make_engine("direct", second)
    assert process == [first == "tensorfloat32"] * 2


def test_without_a_gpu_it_is_float32(monkeypatch):
    """Bit for bit, and in one process with it."""
    monkeypatch.setattr(runtime, "has_gpu", lambda: False)
    canvas = ArrayCanvas(np.random.RandomState(0).randint(0, 256, tuple(SIZE) + (3,)).astype(np.uint8))
    found = []
    for compute in ("float32", "tensorfloat32"):
        with make_engine("direct", compute) as engine:
            engine.load_state(exactness.random_weights(NETWORK, 0))
            found.append(engine.gradients([canvas], [1])[1])
    for name, value in found[0].items():
        assert value.any() and value.dtype == np.float32
        np.testing.assert_array_equal(found[1][name], value, name)


def test_whether_products_are_rounded(process, monkeypatch):
    assert runtime.rounds_products("tensorfloat32") and not runtime.rounds_products("float32")
    monkeypatch.setenv(OVERRIDE, "0")
    assert not runtime.rounds_products("tensorfloat32")
    monkeypatch.delenv(OVERRIDE)
    monkeypatch.setattr(runtime, "has_gpu", lambda: False)
    assert not runtime.rounds_products("tensorfloat32")
