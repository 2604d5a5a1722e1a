"""A result folder: whether a run may begin or go on in it, and what a killed run left there.

``last.npz`` is the checkpoint that a run goes on from; it is replaced atomically and decides alone how far the run is.
The other files follow it. ``best.npz`` is a copy of the ``last.npz`` that was written at the end of the best epoch, and
is made before ``last.npz`` is replaced again: at any moment one of the two holds the best epoch's state.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np

from whole_slide_cnn.config import TrainConfig, current_keys, fixed_values
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import ConfigError, TrainingError, WeightsError
from whole_slide_cnn.files import remove_leftovers
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.running.checkpoint import load_checkpoint
from whole_slide_cnn.running.names import BEST, CURVES, LAST, LOG, SCALARS, WEIGHTS
from whole_slide_cnn.training.progress import Progress

_FILES_READ = ("data.train", "data.val", "model.weights")
_READ_BYTES = 2**20


class Resumption(NamedTuple):
    """What a run goes on from, besides weights and optimiser state.

    Attributes:
        progress: how far it was.
        failed: broken slides with their reasons, by the data list's name.
        origin: what :func:`origin` gave when it began.
    """

    progress: Progress
    failed: Dict[str, Dict[str, str]]
    origin: Dict[str, Any]


def begin(
    config: TrainConfig, model: Any, resume: bool = False, overwrite: bool = False, processes: int = 1
) -> Optional[Tuple[Dict[str, np.ndarray], Resumption]]:
    """Ready the result folder of a run; None where the run begins, or the state and progress that it goes on from.

    Args:
        model: what is trained; see :func:`whole_slide_cnn.running.checkpoint.load_checkpoint`.
        resume: go on from the checkpoint where there is one; where there is neither one nor a result, begin.
        overwrite: remove an earlier run first.
        processes: how many train together.

    Raises:
        TrainingError: the folder holds a run and neither resume nor overwrite was asked for, or its checkpoint is lost.
        WeightsError: the checkpoint is broken, of another model, or of another version of this program.
        ConfigError: the run began with another value of a key that decides what it computes.
    """
    folder = config.result_dir
    if overwrite:
        _remove_run(folder)
    for name in (LAST, BEST, WEIGHTS, LOG, CURVES):
        remove_leftovers(os.path.join(folder, name))
    held = [name for name in (LAST, BEST, LOG) if os.path.exists(os.path.join(folder, name))]
    if held and not resume:
        raise TrainingError(
            "{} already holds a run ({}); go on with it by --resume, replace it by --overwrite, or name another "
            "result_dir".format(folder, ", ".join(held))
        )
    if held and LAST not in held:
        raise TrainingError(
            "{} holds {}, but not the checkpoint {} to go on from; begin anew by --overwrite, or name another "
            "result_dir".format(folder, " and ".join(held), LAST)
        )
    if not held:
        return None
    path = os.path.join(folder, LAST)
    state, values = load_checkpoint(path, model)
    if "run" not in values:
        raise WeightsError("checkpoint {} says nothing about how far its run is, and cannot be resumed".format(path))
    _check_origin(path, values["origin"], origin(config, processes))
    try:
        progress = Progress.from_json(values["run"])
    except (KeyError, TypeError) as error:
        raise WeightsError(
            "checkpoint {} says how far its run is in the way of another version of this program; go on with that "
            "version, or begin anew by --overwrite".format(path)
        ) from error
    return state, Resumption(progress, values["failed"], values["origin"])


def with_choices_of_run(config: TrainConfig, network: Network) -> TrainConfig:
    """The configuration with what the run in its folder began with in the place of what it leaves to the machine: the
    engine ``auto``, and options of engines. What fits may have changed since, and a run goes on only with what it began
    with."""
    path = os.path.join(config.result_dir, LAST)
    if not os.path.exists(path):
        return config
    begun = load_checkpoint(path, network)[1].get("origin", {})
    found = {}
    if config.engine == "auto":
        found["engine"] = begun.get("engine", config.engine)
    for name, engine in ENGINES.items():
        options = engine.options_in(config)
        open_keys = [key for key in engine.settled if getattr(options, key) is None]
        decided = {key: begun.get("{}.{}".format(name, key)) for key in open_keys}
        if decided:
            found[name] = dataclasses.replace(options, **decided)
    return dataclasses.replace(config, **found)


def describe(progress: Progress, failed: Dict[str, Dict[str, str]], origin: Dict[str, Any]) -> Dict[str, Any]:
    """What a checkpoint holds besides arrays; :func:`begin` reads it back."""
    return {
        "epoch": progress.epoch,
        "best_loss": progress.schedule.best_loss,
        "run": progress.to_json(),
        "failed": failed,
        "origin": origin,
    }


def origin(config: TrainConfig, processes: int = 1) -> Dict[str, Any]:
    """What decides the numbers of a run, by dotted key; of files that are read, the SHA-256 (None where there is no
    such file any more)."""
    values = fixed_values(config)
    for key in _FILES_READ:
        if key == "model.weights" and config.model.weights == config.outputs.weights:
            continue  # the run itself replaces that file
        if values[key] is not None:
            values[key] = {"sha256": _digest(values[key])}
    return dict(values, processes=processes)


def _check_origin(path: str, begun: Dict[str, Any], wanted: Dict[str, Any]):
    """Refuse to go on with other values; keys that a checkpoint does not know yet had their defaults, and
    renamed ones count under their present names."""
    begun = dict(fixed_values(), **current_keys(begun))
    for key, value in json.loads(json.dumps(wanted)).items():
        before = begun.get(key)
        if before == value:
            continue
        if isinstance(before, dict) and isinstance(value, dict):
            if key == "model.weights" and value["sha256"] is None:
                continue  # only the first update needed it
            raise ConfigError("{}: the file is not the one that the run of {} began with".format(key, path))
        raise ConfigError(
            "{} is {}, but the run of {} began with {}; a run goes on only with what it began with".format(
                key, _shown(value), path, _shown(before)
            )
        )


def _shown(value) -> str:
    return "a file" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)


def _digest(path: str) -> Optional[str]:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(_READ_BYTES), b""):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def _remove_run(folder: str):
    """The checkpoint last: until it is gone, the folder is seen to hold a run, and after that nothing is left of it."""
    try:
        if os.path.isdir(os.path.join(folder, SCALARS)):
            shutil.rmtree(os.path.join(folder, SCALARS))
        for name in (CURVES, WEIGHTS, LOG, BEST, LAST):
            if os.path.exists(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
    except OSError as error:
        raise TrainingError("cannot remove the old run in {}: {}".format(folder, error.strerror)) from error
