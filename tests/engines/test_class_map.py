"""The class activation map: the dense layer on every cell, the same from every engine."""

import numpy as np
import pytest

from whole_slide_cnn.engines.streaming.engine import StreamingEngine
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

BOUND = 1e-9
SIZES = (Size(333, 450), Size(700, 611))


def tissue(size, kind, seed=0):
    """Noise on white: in a corner, inside, everywhere or nowhere."""
    image = np.full(size + (3,), 255, np.uint8)
    parts = {
        "corner": (slice(0, 150), slice(0, 120)),
        "lower border": (slice(size.height - 60, size.height), slice(150, 250)),
        "inside": (slice(200, 260), slice(180, 260)),
        "everywhere": (slice(None), slice(None)),
    }
    if kind in parts:
        image[parts[kind]] = np.random.RandomState(seed).randint(0, 256, image[parts[kind]].shape)
    return ArrayCanvas(image)


def random_weights(network, seed=0):
    """Weights without zeros; the bias is large enough to be missed where it is left out."""
    values = {}
    for index, spec in enumerate(network.variables):
        value = np.random.RandomState([seed, index]).standard_normal(spec.shape)
        scale = 0.6 * np.sqrt(2.0 / np.prod(spec.shape[:-1])) if spec.name.endswith("kernel") else 0.1
        values[spec.name] = scale * value + spec.name.endswith("weight")
    values["output/bias"] = np.array([1.0, -2.0, 0.5])
    return values


@pytest.fixture(scope="module", params=list(zip(("gmp", "gap"), SIZES)), ids=str)
def engines(request):
    """Every engine for one network and canvas size, with the same weights."""
    pooling, size = request.param
    network = Network("tiny", pooling, "softmax", 3)
    made = {}
    for name, engine in ENGINES.items():
        options = {"streaming": {"window": 96}, "unified": {"strip_mb": 0.5, "group_mb": 5}}.get(name, {})
        made[name] = engine.engine_class()(network, size, "float64", **options)
        made[name].load_state(random_weights(network))
    yield made
    for engine in made.values():
        engine.close()


@pytest.mark.parametrize("kind", ["corner", "lower border", "inside", "everywhere", "nowhere"])
def test_matches_direct(engines, kind):
    size = engines["direct"].canvas_size
    reference = engines["direct"].class_map(tissue(size, kind))
    assert reference.dtype == np.float64 and np.isfinite(reference).all() and reference.std() > 0
    for name, engine in engines.items():
        found = engine.class_map(tissue(size, kind))
        assert found.shape == (-(-size.height // 32), -(-size.width // 32), 3), name
        assert np.linalg.norm(found - reference) <= BOUND * np.linalg.norm(reference), name
        np.testing.assert_allclose(found, reference, rtol=1e-9, atol=1e-9, err_msg=name)


def test_its_mean_is_the_logit_of_average_pooling(engines):
    for engine in engines.values():
        canvas = tissue(engine.canvas_size, "inside")
        logits = engine.class_map(canvas).mean(axis=(0, 1))
        if engine.network.pooling == "gap":
            expected = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(engine.predict(canvas).probabilities, expected, rtol=1e-9)


def test_a_change_of_weights_changes_the_map(engines):
    engine = engines["streaming"]
    canvas = tissue(engine.canvas_size, "inside")
    before = engine.class_map(canvas)
    bias = engine.weights()["output/bias"]
    engine.load_state({"output/bias": bias + 1.0})
    np.testing.assert_allclose(engine.class_map(canvas), before + 1.0, rtol=1e-9)
    engine.load_state({"output/bias": bias})
    np.testing.assert_array_equal(engine.class_map(canvas), before)


def test_every_window_is_read_once_and_blank_area_never_and_no_embedding_is_kept(monkeypatch):
    class Counting(ArrayCanvas):
        reads = 0

        def _read(self, window):
            self.reads += 1
            return super()._read(window)

    image = np.full((960, 960, 3), 255, np.uint8)
    image[100:140, 100:140] = np.random.RandomState(0).randint(0, 256, (40, 40, 3))
    canvas = Counting(image)
    canvas.blank_blocks()
    canvas.reads = 0
    with StreamingEngine(Network("tiny", "gmp", "softmax", 3), Size(960, 960), "float64", window=128) as engine:
        engine.load_state(random_weights(engine.network))
        fetched = []
        run = engine._session.run
        monkeypatch.setattr(engine._session, "run", lambda *args: fetched.append(run(*args)) or fetched[-1])
        engine.class_map(canvas)
        assert 0 < canvas.reads == len(engine.cover(canvas).windows) < 9
        # of all embeddings only those of the small blank canvas ever left the graph
        blank, scores = fetched[0], fetched[1:]
        assert blank.shape == (1,) + engine.plan.blank.cells + (engine.network.channels,)
        assert len(scores) == 1 + canvas.reads and all(part.shape[1:] == (3,) for part in scores)


class CountingCanvas(ArrayCanvas):
    """Counts the pixels that are read of it."""

    pixels = 0

    def _read(self, window):
        self.pixels += window.height * window.width
        return super()._read(window)


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("pooling", ["gmp", "gap"])
@pytest.mark.parametrize("name", sorted(ENGINES))
def test_one_pass_gives_the_bits_of_two_and_reads_what_one_does(name, pooling, compute):
    """What is predicted and the map do not depend on whether they are asked for together."""
    network, size = Network("tiny", pooling, "softmax", 3), Size(333, 290)
    options = {"streaming": {"window": 96}, "unified": {"strip_mb": 0.5, "group_mb": 5}}.get(name, {})
    with ENGINES[name].engine_class()(network, size, compute, **options) as engine:
        engine.load_state(random_weights(network))
        for kind in ("corner", "everywhere"):
            canvas = CountingCanvas(tissue(size, kind)._array)
            canvas.blank_blocks()
            canvas.pixels = 0
            predicted = engine.predict(canvas, 1)
            once, canvas.pixels = canvas.pixels, 0
            logits = engine.class_map(canvas)
            canvas.pixels = 0
            both, both_logits = engine.predict_with_map(canvas, 1)
            assert 0 < canvas.pixels == once
            assert both.loss == predicted.loss
            np.testing.assert_array_equal(both.probabilities, predicted.probabilities)
            assert both_logits.dtype == logits.dtype
            np.testing.assert_array_equal(both_logits, logits)
            assert np.isnan(engine.predict_with_map(canvas)[0].loss)
