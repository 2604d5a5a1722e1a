"""Checkpoints: what was saved comes back, and nothing else is taken for it."""

import os

import numpy as np
import pytest

from whole_slide_cnn.errors import WeightsError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.running import checkpoint
from whole_slide_cnn.running.checkpoint import load_checkpoint, save_checkpoint

NETWORK = Network("tiny", "gmp", "softmax", 2)


@pytest.fixture
def state():
    """Weights and optimiser state of different types and shapes."""
    random = np.random.RandomState(0)
    values = {name: value.astype(np.float32) for name, value in NETWORK.initial_weights(0).items()}
    values["optimiser/output/kernel/Adam"] = random.standard_normal((128, 2)).astype(np.float32)
    values["optimiser/beta1_power"] = np.float32(0.9)
    return values


@pytest.fixture
def path(tmp_path, state):
    """A checkpoint."""
    path = str(tmp_path / "best.npz")
    save_checkpoint(path, NETWORK, state, {"epoch": 3, "best_loss": 0.25})
    return path


def test_round_trip_is_exact(path, state):
    found, progress = load_checkpoint(path, NETWORK)
    assert progress == {"epoch": 3, "best_loss": 0.25}
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


def test_replaces_an_older_checkpoint(path, state):
    state["output/bias"] = state["output/bias"] + 1
    save_checkpoint(path, NETWORK, state, {"epoch": 4})
    found, progress = load_checkpoint(path, NETWORK)
    assert progress == {"epoch": 4}
    np.testing.assert_array_equal(found["output/bias"], state["output/bias"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_the_old_one(path, state, monkeypatch, error):
    def write_a_little(stream, **arrays):
        stream.write(b"PK\x03\x04 half a checkpoint")
        raise error

    monkeypatch.setattr(checkpoint.np, "savez", write_a_little)
    with pytest.raises(error):
        save_checkpoint(path, NETWORK, state, {"epoch": 4})
    assert load_checkpoint(path, NETWORK)[1]["epoch"] == 3
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


def test_missing(tmp_path):
    with pytest.raises(WeightsError, match="nowhere.npz does not exist; train first"):
        load_checkpoint(str(tmp_path / "nowhere.npz"), NETWORK)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated(path, share):
    size = os.path.getsize(path)
    with open(path, "r+b") as stream:
        stream.truncate(int(share * size))
    with pytest.raises(WeightsError, match="best.npz is not a checkpoint of this program, or is broken"):
        load_checkpoint(path, NETWORK)


def test_a_single_array_is_no_checkpoint(tmp_path):
    path = str(tmp_path / "array.npz")
    with open(path, "wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(WeightsError, match="array.npz is not a checkpoint of this program"):
        load_checkpoint(path, NETWORK)


def test_flipped_bytes_are_noticed(path):
    with open(path, "r+b") as stream:
        stream.seek(os.path.getsize(path) // 2)
        stream.write(b"\xaa" * 64)
    with pytest.raises(WeightsError, match="is broken"):
        load_checkpoint(path, NETWORK)


@pytest.mark.parametrize(
    "arrays",
    [
        {"output/kernel": np.zeros(3)},
        {"metadata": np.array("no JSON")},
        {"metadata": np.array('["JSON", "of something else"]')},
        {"metadata": np.array('{"progress": {}}')},
        {"metadata": np.array([{"pickled": 1}], dtype=object)},
    ],
    ids=["no metadata", "no JSON", "a list", "no network", "pickled"],
)
def test_other_npz_files(tmp_path, arrays):
    path = str(tmp_path / "other.npz")
    np.savez(path, **arrays)
    with pytest.raises(WeightsError, match="other.npz is not a checkpoint of this program"):
        load_checkpoint(path, NETWORK)


@pytest.mark.parametrize(
    "other, sentence",
    [
        (Network("resnet18", "gmp", "softmax", 2), "backbone is tiny, the configuration says resnet18"),
        (Network("tiny", "gap", "softmax", 2), "pooling is gmp, the configuration says gap"),
        (Network("tiny", "gmp", "sigmoid", 2), "activation is softmax, the configuration says sigmoid"),
        (Network("tiny", "gmp", "softmax", 3), "classes is 2, the configuration says 3"),
    ],
    ids=lambda value: value.backbone if isinstance(value, Network) else "",
)
def test_another_model(path, other, sentence):
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(path, other)
    assert str(caught.value) == "checkpoint {} is of another model: {}".format(path, sentence)


def test_first_bias_does_not_matter(path):
    """It is only where training began."""
    load_checkpoint(path, Network("tiny", "gmp", "softmax", 2, class0_bias=5.0))
