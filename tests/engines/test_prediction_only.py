"""An engine that only predicts: nothing of a training is built, planned, counted or drawn."""

import numpy as np
import pytest

from whole_slide_cnn.engines.costs import Work
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

NETWORK, SIZE = Network("tiny", "gmp", "softmax", 3), Size(200, 170)


def canvas():
    return ArrayCanvas(np.random.RandomState(0).randint(0, 256, tuple(SIZE) + (3,)).astype(np.uint8))


@pytest.mark.parametrize("name", list(ENGINES))
def test_it_predicts_the_same_without_what_gradients_need(name):
    found, weights = {}, NETWORK.initial_weights(3)
    for training in (True, False):
        with ENGINES[name].make(NETWORK, SIZE, "float64", training=training) as engine:
            engine.load_state(weights)
            ops = engine._graph.get_operations()
            assert any("accumulated/" in op.name for op in ops) == training
            assert any(op.type.endswith("BackpropFilter") for op in ops) == training
            prediction = engine.predict(canvas(), 1)
            found[training] = (prediction.loss, prediction.probabilities, engine.class_map(canvas()))
            assert set(engine.state()) == set(weights)
            if not training:
                with pytest.raises(AssertionError, match="only predicts"):
                    engine.gradients([canvas()], [1])
    for one, other in zip(found[True], found[False]):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", list(ENGINES))
def test_by_default_an_engine_trains_where_it_has_an_optimiser(name):
    with ENGINES[name].make(NETWORK, SIZE) as engine:
        assert not engine.training


@pytest.mark.parametrize("name", list(ENGINES))
def test_less_memory_is_stated_for_it(name):
    work = {training: Work(NETWORK, Size(512, 512), training=training) for training in (True, False)}
    assert ENGINES[name].memory(work[False]).total < ENGINES[name].memory(work[True]).total
