"""float16 and bfloat16 on every engine: how near they are to float64, and the scale of the loss."""

import exactness
import numpy as np
import pytest

from whole_slide_cnn.engines import loss_scale
from whole_slide_cnn.engines.direct.engine import DirectEngine
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.running.optimisers import Adam
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

NETWORK, SIZE = Network("tiny", "gmp", "softmax", 3), Size(96, 128)
OPTIONS = {"streaming": {"window": 64}, "staged": {"tile": 64}, "unified": {"strip_mb": 0.2, "group_mb": 2}}
SCALE, GOOD = "loss_scale/scale", "loss_scale/good_steps"


def canvas(seed=0):
    return ArrayCanvas(np.random.RandomState(seed).randint(0, 256, tuple(SIZE) + (3,)).astype(np.uint8))


def make_engine(rate=1e-3):
    return DirectEngine(NETWORK, SIZE, "float16", Adam(rate))


@pytest.fixture(scope="module")
def shared():
    with make_engine() as made:
        yield made


@pytest.fixture
def engine(shared):
    shared.initialise()
    shared.load_state(NETWORK.initial_weights(0))
    return shared


@pytest.fixture(scope="module")
def exact():
    return gradients_of("direct", "float64")


def gradients_of(name, compute):
    with ENGINES[name].engine_class()(NETWORK, SIZE, compute, training=True, **OPTIONS.get(name, {})) as made:
        made.load_state(exactness.random_weights(NETWORK, 0))
        _, found = made.gradients([canvas()], [1])
    return np.concatenate([np.ravel(found[key]).astype(np.float64) for key in sorted(found)])


@pytest.mark.parametrize("compute, bound", [pytest.param("bfloat16", 0.5, marks=pytest.mark.slow), ("float16", 0.1)])
@pytest.mark.parametrize("name", list(ENGINES))
def test_gradients_are_near_those_of_float64(name, compute, bound, exact):
    error = exactness.relative_error(gradients_of(name, compute), exact)
    assert 1e-6 < error < bound


@pytest.mark.parametrize("power", [13, 14, 16])
def test_a_scale_of_two_to_any_power_that_float16_holds_changes_no_bit(engine, power):
    """Between those at which some gradient of this network is too large for float16, or too small for all its bits."""
    engine.load_state(exactness.random_weights(NETWORK, 0))
    _, expected = engine.gradients([canvas()], [1])
    engine.load_state({SCALE: np.float32(2.0**power)})
    _, found = engine.gradients([canvas()], [1])
    assert 2.0**power != loss_scale.FIRST
    for name, gradient in expected.items():
        assert np.isfinite(gradient).all(), name
        np.testing.assert_array_equal(found[name], gradient, err_msg=name)
    assert sum(gradient.any() for gradient in expected.values()) > 0.9 * len(expected)


def test_a_step_whose_gradients_are_not_finite_is_left_out(engine):
    engine.train_batch([canvas()], [1])
    before = engine.state()
    assert (before[SCALE], before[GOOD]) == (loss_scale.FIRST, 1)
    engine.load_state({SCALE: np.float32(2.0**60)})
    engine.train_batch([canvas()], [1])
    after = engine.state()
    assert (after.pop(SCALE), after.pop(GOOD)) == (2.0**59, 0)
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name], name)


def test_the_scale_is_doubled_after_some_good_steps(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    with make_engine(1e-5) as made:
        made.load_state(NETWORK.initial_weights(0))
        made.load_state({SCALE: np.float32(64)})
        scales = []
        for _ in range(7):
            made.train_batch([canvas()], [1])
            scales.append(float(made.state()[SCALE]))
        assert scales == [64, 64, 128, 128, 128, 256, 256] and made.state()[GOOD] == 1
        made.load_state(
            {SCALE: np.float32(loss_scale.LARGEST), GOOD: np.float32(2), "output/kernel": np.zeros((128, 3))}
        )
        made.train_batch([canvas()], [1])
        assert made.state()[SCALE] in (loss_scale.LARGEST, loss_scale.LARGEST / 2)


def test_a_resumed_training_has_the_weights_of_one_that_was_not_stopped(monkeypatch):
    """With steps that are left out, and a scale that falls and rises, before and after the interruption."""
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 2)
    scales = []
    with make_engine() as first, make_engine() as second:
        first.load_state(dict(NETWORK.initial_weights(0), **{SCALE: np.float32(2.0**19)}))
        for step in range(9):
            if step == 5:
                state = first.state()
            first.train_batch([canvas(step)], [step % 3])
            scales.append(float(first.state()[SCALE]))
        changes = [after - before for before, after in zip(scales[:-1], scales[1:])]
        assert sum(change < 0 for change in changes) > 1 and any(change > 0 for change in changes), scales
        second.load_state(state)
        for step in range(5, 9):
            second.train_batch([canvas(step)], [step % 3])
        for name, value in first.state().items():
            np.testing.assert_array_equal(second.state()[name], value, name)


def test_gradients_that_no_scale_makes_finite_end_the_training(engine):
    engine.load_state({SCALE: np.float32(1), "output/kernel": np.full((128, 3), 3e38)})
    with pytest.raises(TrainingError, match="not finite in float16, even without a loss scale; use model.compute"):
        engine.train_batch([canvas()], [1])


def test_other_types_have_no_scale():
    with DirectEngine(NETWORK, SIZE, "float32", Adam(1e-3)) as made:
        assert SCALE not in made.state()
