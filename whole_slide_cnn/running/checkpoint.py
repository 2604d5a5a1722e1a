"""Checkpoints: one ``.npz`` file with weights, optimiser state and what they belong to, replaced atomically."""

import dataclasses
import json
import os
from typing import Any, Dict, Tuple

import numpy as np

from whole_slide_cnn.errors import WeightsError
from whole_slide_cnn.files import replacing
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import METADATA_KEY, read_npz

# What decides whether a network's weights fit. Pooling and activation have no weights, but change what a model means.
_NETWORK_IDENTITY = ("backbone", "pooling", "activation", "classes")


def save_checkpoint(path: str, model: Any, state: Dict[str, np.ndarray], progress: Dict[str, Any]):
    """Write a checkpoint.

    Args:
        model: what the weights are of: a network, or any other frozen dataclass of values that JSON can hold.
        state: weights and optimiser state, such as :meth:`whole_slide_cnn.engines.interface.Engine.state` gives them.
        progress: anything JSON can hold.
    """
    metadata = json.dumps({"network": dataclasses.asdict(model), "progress": progress})
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **{METADATA_KEY: np.array(metadata)}, **state)  # type: ignore[arg-type]


def load_checkpoint(path: str, model: Any) -> Tuple[Dict[str, np.ndarray], Dict[str, Any]]:
    """Read a checkpoint back: state and progress.

    Args:
        model: what it shall be of; in anything but a network, all values have to be the same.

    Raises:
        WeightsError: the file is missing, broken, no checkpoint, or of another model.
    """
    if not os.path.isfile(path):
        raise WeightsError("checkpoint {} does not exist; train first, or name another one".format(path))
    try:
        state = read_npz(path)
        metadata = json.loads(str(state.pop(METADATA_KEY)))
        found, progress = dict(metadata["network"]), metadata["progress"]
    except Exception as error:  # a broken file makes zipfile and NumPy raise almost anything
        raise WeightsError("{} is not a checkpoint of this program, or is broken ({})".format(path, error)) from error
    wanted = json.loads(json.dumps(dataclasses.asdict(model)))
    different = [
        "{} is {}, the configuration says {}".format(key, found.get(key), wanted[key])
        for key in (_NETWORK_IDENTITY if isinstance(model, Network) else wanted)
        if found.get(key) != wanted[key]
    ]
    if different:
        raise WeightsError("checkpoint {} is of another model: {}".format(path, "; ".join(different)))
    return state, progress
