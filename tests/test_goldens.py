"""Results of the published implementation, and the script that compares with them."""

import functools
import glob
import json
import os

import goldens
import numpy as np
import pytest

from whole_slide_cnn.engines import table
from whole_slide_cnn.engines.direct.engine import DirectEngine
from whole_slide_cnn.engines.streaming.engine import StreamingEngine
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import save_weights
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

REFERENCE = os.path.join(os.path.dirname(__file__), "..", "..", "shared", "data", "reference")
PATHS = sorted(glob.glob(os.path.join(REFERENCE, "*.json")))


def _name(path, engine, compute):
    return "-".join([os.path.basename(path)[:-5], engine, compute])


# Every golden is checked in float64 on ``direct``; one also in float32, and one in small windows.
CASES = [pytest.param(path, DirectEngine, "float64", id=_name(path, "direct", "float64")) for path in PATHS]
for path in PATHS:
    if path.endswith("fixup_resnet34-gmp-320.json"):
        CASES.append(pytest.param(path, DirectEngine, "float32", id=_name(path, "direct", "float32")))
    if path.endswith("fixup_resnet34-gmp-349.json"):
        # its receptive field of 899 px makes every window compute nearly everything
        small_windows = functools.partial(StreamingEngine, window=128)
        name = _name(path, "streaming", "float64")
        CASES.append(pytest.param(path, small_windows, "float64", id=name, marks=pytest.mark.slow))

GOOD = {"probabilities": 1e-8, "gradient_max": 5e-7, "gradient_median": 1e-7, "loss": 0.0}


@pytest.mark.skipif(not PATHS, reason="the reference goldens of ../shared/data are not here")
@pytest.mark.parametrize("path, engine, compute", CASES)
def test_the_published_implementation_gives_the_same(path, engine, compute):
    with open(path, encoding="utf-8") as stream:
        golden = json.load(stream)
    errors = goldens.measure(golden, path, engine, compute)
    assert goldens.passes(errors, compute), errors
    assert errors["loss"] < {"float64": 1e-7, "float32": 1e-3}[compute]


# The script itself, on a golden of the tiny network made here.


@pytest.fixture(scope="module")
def tiny_golden():
    network = Network("tiny", "gmp", "softmax", 3)
    weights = [{"name": spec.name, "shape": list(spec.shape)} for spec in network.variables]
    golden = {"backbone": "tiny", "pool": "gmp", "size": 65, "label": 1, "weights": weights}
    values = goldens.recipe_weights([(spec.name, spec.shape) for spec in network.variables], "tiny")
    with DirectEngine(network, Size(65, 65), "float64", training=True) as engine:
        engine.load_state(values)
        (prediction,), gradients = engine.gradients([ArrayCanvas(goldens.recipe_image(65))], [1])
    golden["probabilities"] = prediction.probabilities.tolist()
    golden["loss"] = prediction.loss
    golden["gradient_l2"] = {name: float(np.linalg.norm(value)) for name, value in gradients.items()}
    return golden


def test_a_wrong_golden_fails(tiny_golden, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "ENGINES", {"direct": table.ENGINES["direct"]})
    path = tmp_path / "wrong.json"
    wrong = dict(tiny_golden, gradient_l2=dict(tiny_golden["gradient_l2"]))
    wrong["gradient_l2"]["conv1_conv/bias"] *= 1 + 1e-5
    path.write_text(json.dumps(wrong))
    assert goldens.main([str(path)]) == 1
    out = capsys.readouterr().out
    # what is off by one part in 100,000 fails in float64 and is rounding in float32
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("wrong")] == ["FAILED", "ok"]
    assert "goldens: 1 failed" in out


def test_main_runs_every_engine_and_fails_if_one_does(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.json"
    path.write_text("{}")
    results = {(name, compute): GOOD for name in table.ENGINES for compute in ("float64", "float32")}
    names = {engine.engine_class(): name for name, engine in table.ENGINES.items()}
    monkeypatch.setattr(goldens, "measure", lambda _1, _2, engine, compute, **_3: results[names[engine], compute])
    assert goldens.main([str(path), str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok") == 2 * len(results) and "goldens: all within bounds" in out
    results["streaming", "float32"] = dict(GOOD, probabilities=1e-3)
    assert goldens.main([str(path)]) == 1
    assert "goldens: 1 failed" in capsys.readouterr().out


def test_weights_beside_a_golden_go_before_the_recipe(tiny_golden, tmp_path):
    network = goldens.network_of(tiny_golden)
    path = str(tmp_path / "golden.json")
    recipe = goldens.weights_of(tiny_golden, path, network)
    save_weights(str(tmp_path / "golden.h5"), network, {name: value + 1 for name, value in recipe.items()})
    beside = goldens.weights_of(tiny_golden, path, network)
    for name, value in recipe.items():
        np.testing.assert_allclose(beside[name], value + 1, atol=1e-6)


def test_main_says_which_backbone_a_weight_file_fits(tmp_path, capsys):
    network = Network("tiny", "gmp", "softmax", 4)
    weights = network.initial_weights(0)
    path = str(tmp_path / "weights.h5")
    save_weights(path, network, weights)
    assert goldens.main([path]) == 0
    assert "fits tiny: 44 variables loaded" in capsys.readouterr().out
    save_weights(path, Network("tiny", "gmp", "softmax", 3), dict(weights, **{"output/bias": np.zeros(7)}))
    assert goldens.main([path]) == 1
    assert "fits no backbone" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [2e-7, 0.1, np.nan])
def test_probabilities_must_agree(bad):
    assert goldens.passes(GOOD, "float64")
    assert not goldens.passes(dict(GOOD, probabilities=bad), "float64")
    assert goldens.passes(dict(GOOD, probabilities=bad), "float32") == (bad < 1e-4)


@pytest.mark.parametrize("bad", [2e-6, 0.1, np.nan])
def test_every_gradient_must_agree_in_float64_and_the_median_in_float32(bad):
    assert not goldens.passes(dict(GOOD, gradient_max=bad), "float64")
    assert goldens.passes(dict(GOOD, gradient_max=bad), "float32")
    assert goldens.passes(dict(GOOD, gradient_median=bad), "float32") == (bad < 1e-2)


def test_measured_errors_are_those_of_the_golden(tiny_golden):
    norms = dict(tiny_golden["gradient_l2"])
    right = goldens.measure(tiny_golden, "none.json", DirectEngine, "float64")
    assert goldens.passes(right, "float64") and max(right.values()) < 1e-12
    norms["conv1_conv/bias"] = float("nan")  # must not be lost among the others
    probabilities = [tiny_golden["probabilities"][0] + 0.25] + tiny_golden["probabilities"][1:]
    wrong = dict(tiny_golden, gradient_l2=norms, probabilities=probabilities, loss=tiny_golden["loss"] - 0.5)
    errors = goldens.measure(wrong, "none.json", DirectEngine, "float64")
    assert errors["probabilities"] == pytest.approx(0.25) and errors["loss"] == pytest.approx(0.5)
    assert np.isnan(errors["gradient_max"])


def test_another_set_of_names_is_refused(tiny_golden):
    shorter = dict(tiny_golden, weights=tiny_golden["weights"][1:])
    with pytest.raises(AssertionError, match="names or shapes of tiny differ"):
        goldens.measure(shorter, "none.json", DirectEngine, "float64")


def test_the_image_is_noise_in_the_upper_left_and_white_elsewhere():
    image = goldens.recipe_image(9)
    assert image.shape == (9, 9, 3) and image.dtype == np.uint8
    assert (image[4:] == 255).all() and (image[:, 4:] == 255).all()
    noise = np.random.RandomState(99).randint(0, 256, (9, 9, 3))
    np.testing.assert_array_equal(image[:4, :4], noise[:4, :4])
