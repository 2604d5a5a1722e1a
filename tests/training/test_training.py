"""Training real slides with real engines."""

import os

import numpy as np
import pytest

from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.models.network import make_network
from whole_slide_cnn.running import assembly
from whole_slide_cnn.running.checkpoint import load_checkpoint
from whole_slide_cnn.slides.canvas import SlideCanvas
from whole_slide_cnn.training import loop
from whole_slide_cnn.training.engine_learner import EngineLearner
from whole_slide_cnn.training.loop import Trainer

EXACT = ("model.compute=float64", "train.learning_rate=1.0e-3")


class Workshop:
    """Engines by what they are built for, made once and set back to the start for every use: building takes seconds."""

    def __init__(self):
        self._made = {}

    def engine(self, config):
        """An engine with its optimiser, as a new run of the configuration begins with them."""
        key = config.engine, config.model, config.train.optimizer
        network = make_network(config)
        if key not in self._made:
            optimiser = assembly.make_optimiser(config)
            engine = assembly.make_engine(config, network, optimiser, report=lambda text: None)
            self._made[key] = engine, optimiser, engine.state()
        engine, optimiser, start = self._made[key]
        engine.load_state(dict(start, **network.initial_weights(config.seed)))
        optimiser.learning_rate = config.train.learning_rate
        return engine, optimiser

    def train(self, config):
        """Log rows and final weights by name."""
        engine, optimiser = self.engine(config)
        sources = assembly.open_splits(config, "train")
        try:
            return Trainer(
                config, EngineLearner(engine, optimiser), sources["train"], sources.get("val")
            ).run(), engine.weights()
        finally:
            for source in sources.values():
                source.close()

    def close(self):
        for engine, _, _ in self._made.values():
            engine.close()


@pytest.fixture(scope="module")
def workshop():
    """A :class:`Workshop`."""
    made = Workshop()
    yield made
    made.close()


@pytest.fixture
def canvases(slide_set):
    """The canvases of the train list with their labels."""
    source = assembly.open_splits(slide_set.config("unused"), "train")["train"]
    pairs = [(canvas, record.label) for record, canvas in source.canvases(source.records, pytest.fail)]
    source.close()
    yield pairs
    for canvas, _ in pairs:
        canvas.close()


@pytest.fixture
def fixed_order(monkeypatch):
    """A function (names, ...) that replaces the random order of slides; each name is one slide of a batch."""

    def order(*names):
        class InThatOrder:
            def __init__(self, records, seed):
                self._by_name = {record.slide_id: record for record in records}

            def since(self, position):
                return enumerate(self._by_name[name] for name in names[position:])

        monkeypatch.setattr(loop, "Sampler", InThatOrder)

    return order


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_training_lowers_the_loss(workshop, slide_set, tmp_path):
    rows, _ = workshop.train(slide_set.config(tmp_path, "train.epochs=4", "train.updates_per_epoch=6"))
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]


def test_same_seed_same_weights(workshop, slide_set, tmp_path):
    weights = [
        workshop.train(slide_set.config(tmp_path, "seed={}".format(seed), "train.epochs=1"))[1] for seed in (3, 3, 4)
    ]
    for name in weights[0]:
        np.testing.assert_array_equal(weights[0][name], weights[1][name], err_msg=name)
    assert any((weights[0][name] != weights[2][name]).any() for name in weights[0])


@pytest.mark.parametrize("pooling", ["gmp", pytest.param("gap", marks=pytest.mark.slow)])
def test_engines_agree_after_three_steps(workshop, slide_set, tmp_path, pooling):
    """Float64, AdamW, batches of two: every weight within 1e-9 of direct, and all of them trained."""
    trained = {}
    for engine in ENGINES:
        config = slide_set.config(
            tmp_path,
            "engine={}".format(engine),
            "model.pooling={}".format(pooling),
            "train.optimizer=adamw",
            "train.epochs=1",
            *EXACT,
        )
        trained[engine] = workshop.train(config)
    direct_rows, direct = trained.pop("direct")
    start = make_network(config).initial_weights(config.seed)
    for engine, (rows, weights) in trained.items():
        for name in direct:
            assert relative_error(weights[name], direct[name]) <= 1e-9, (engine, name)
            assert relative_error(direct[name], start[name] + 1e-12) > 1e-4, name
        for key in ("train_loss", "val_loss"):
            assert rows[0][key] == pytest.approx(direct_rows[0][key], rel=1e-9), engine


@pytest.mark.parametrize("engine", list(ENGINES))
def test_gradient_of_a_batch_is_the_mean_over_its_slides(workshop, slide_set, canvases, engine):
    config = slide_set.config("unused", "engine={}".format(engine), *EXACT)
    built, _ = workshop.engine(config)
    built.load_state(perturbed(built.weights()))
    single = [built.gradients([canvas], [label]) for canvas, label in canvases[:2]]
    predictions, gradients = built.gradients(*zip(*canvases[:2]))
    for prediction, ((alone,), _) in zip(predictions, single):
        assert prediction.loss == pytest.approx(alone.loss, rel=1e-12)
    assert gradients
    for name, gradient in gradients.items():
        mean = (single[0][1][name] + single[1][1][name]) / 2
        assert np.linalg.norm(mean) > 0, name
        assert relative_error(gradient, mean) < 1e-12, name


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_step_is_the_optimisers_on_that_gradient(workshop, slide_set, canvases, engine):
    """The first step of Adam moves every weight against the sign of its gradient, by the learning rate."""
    config = slide_set.config("unused", "engine={}".format(engine), *EXACT)
    built, _ = workshop.engine(config)
    built.load_state(perturbed(built.weights()))
    before = built.weights()
    _, gradients = built.gradients(*zip(*canvases[:2]))
    built.train_batch(*zip(*canvases[:2]))
    after = built.weights()
    for name, gradient in gradients.items():
        clear = np.abs(gradient) > 1e-3
        moved = after[name] - before[name]
        np.testing.assert_allclose(moved[clear], -1e-3 * np.sign(gradient[clear]), rtol=1e-3, err_msg=name)
    assert sum((np.abs(gradient) > 1e-3).sum() for gradient in gradients.values()) > 100


def perturbed(weights):
    """Weights under which Fixup's zero-initialised layers pass gradients."""
    random = np.random.RandomState(0)
    return {name: value + 0.02 * random.standard_normal(value.shape) for name, value in sorted(weights.items())}


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("breaks_at", ["first", "last"])
def test_a_slide_that_breaks_amid_a_step_leaves_no_trace(
    workshop, slide_set, tmp_path, monkeypatch, fixed_order, engine, breaks_at
):
    """The run goes on as if the slide had never been there: same weights, bit for bit."""
    settings = ("engine={}".format(engine), "train.epochs=1", "train.updates_per_epoch=2", "data.max_failed_share=1")
    config = slide_set.config(tmp_path, "data.val=null", *settings, *EXACT)

    fixed_order("train-0", "train-1", "train-3", "train-4")
    _, expected = workshop.train(config)

    # reads of train-2: the search for blank blocks, then what the steps need
    with counted_reads(monkeypatch) as reads:
        fixed_order("train-0", "train-2", "train-1", "train-3")
        workshop.train(config)
    total = reads["train-2"]
    assert total > 1
    breaking = 2 if breaks_at == "first" else total
    with counted_reads(monkeypatch, {"train-2": breaking}) as reads:
        fixed_order("train-0", "train-1", "train-2", "train-3", "train-4")
        _, found = workshop.train(config)
    assert breaking <= reads["train-2"] <= breaking + 1  # the window after it may have been read ahead
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


class counted_reads:
    """Counts reads by slide while it is entered; a slide named in ``breaks_at`` breaks at that read."""

    def __init__(self, monkeypatch, breaks_at=()):
        self._monkeypatch, self._breaks_at, self._counts = monkeypatch, dict(breaks_at), {}

    def __enter__(self):
        plain, counts, breaks_at = SlideCanvas.read, self._counts, self._breaks_at
        self._undo = lambda: self._monkeypatch.setattr(SlideCanvas, "read", plain)

        def read(canvas, window):
            counts[canvas.name] = counts.get(canvas.name, 0) + 1
            if counts[canvas.name] == breaks_at.get(canvas.name):
                raise SlideError(canvas.name, "level 0 cannot be read")
            return plain(canvas, window)

        self._monkeypatch.setattr(SlideCanvas, "read", read)
        return counts

    def __exit__(self, *exception):
        self._undo()


def test_exported_weights_predict_alike(workshop, slide_set, tmp_path, canvases):
    """What best.h5 holds, given as model.weights, is the best checkpoint's network."""
    config = slide_set.config(tmp_path)
    workshop.train(config)
    network = make_network(config)
    state, _ = load_checkpoint(os.path.join(config.result_dir, "best.npz"), network)
    engine, _ = workshop.engine(config)
    engine.load_state(state)
    expected = [engine.predict(canvas, label) for canvas, label in canvases]
    again = slide_set.config(tmp_path, "seed=9", "model.weights={}".format(tmp_path / "best.h5"))
    said = []
    with assembly.make_engine(again, network, assembly.make_optimiser(again), said.append) as engine:
        found = [engine.predict(canvas, label) for canvas, label in canvases]
    assert said[0].startswith("engine streaming: predicted peak memory 0.")  # before anything else
    assert "{} variables loaded".format(len(network.variables)) in said[2]
    assert len({prediction.loss for prediction in expected}) > 1
    for left, right in zip(expected, found):
        assert left.loss == right.loss
        np.testing.assert_array_equal(left.probabilities, right.probabilities)
