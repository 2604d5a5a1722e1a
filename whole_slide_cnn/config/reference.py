"""Configuration files of the implementation published with the 2021 paper, which has upper-case keys.

They say less than this program's own: :func:`translate` gives what they say in its keys, and what they leave open as
the paper has it. A key is refused where its value asks for something that is not there, never for being there.
"""

import difflib
import re
from typing import Any, Dict, Mapping, Match, NamedTuple, Optional, Tuple

from whole_slide_cnn.config.options import check_value, describe_value, options_of
from whole_slide_cnn.config.schema import config_class
from whole_slide_cnn.config.sections.outputs import WEIGHT_EXTENSIONS
from whole_slide_cnn.errors import ConfigError

RESULT_FOLDER = "result_dir"  # our key for RESULT_DIR

# MODEL: networks that are the same here and there. Theirs with other names normalise over the slides of a batch.
MODELS = ("fixup_resnet34", "fixup_resnet50", "frozenbn_resnet50", "tiny")

_UPPER_CASE = re.compile(r"[A-Z][A-Z0-9_]*")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_RESULT_DIR = "${RESULT_DIR}"

_LOWEST_RATE = 1e-8
_LEAST_IMPROVEMENT = 1e-4
# RESIZE_RATIO is that of Hamamatsu slides of 0.46 um/px; Aperio slides come to the same um/px.
_RATIO_MPP = 0.46

# Keys whose value means the same under another name, with what the reference takes where it is not given.
_RENAMED: Dict[str, Tuple[str, Any]] = {
    "RESULT_DIR": (RESULT_FOLDER, None),
    "MODEL_PATH": ("outputs.weights", _RESULT_DIR + "/model.h5"),
    "CONFIG_RECORD_PATH": ("outputs.config", _RESULT_DIR + "/config.yaml"),
    "TIME_RECORD_PATH": ("outputs.train_times", None),
    "TEST_TIME_RECORD_PATH": ("outputs.test_times", None),
    "TEST_RESULT_PATH": ("outputs.test_scores", _RESULT_DIR + "/test_result.json"),
    "TRAIN_CSV_PATH": ("data.train", None),
    "VAL_CSV_PATH": ("data.val", None),
    "TEST_CSV_PATH": ("data.test", None),
    "SLIDE_DIR": ("data.slides", None),
    "SLIDE_READER": ("data.reader", "openslide"),
    "RESIZE_RATIO": ("data.ratio", None),
    "POOL_USE": ("model.pooling", None),
    "BATCH_SIZE": ("train.batch_size", 1),
    "EPOCHS": ("train.epochs", None),
    "NUM_UPDATES_PER_EPOCH": ("train.updates_per_epoch", None),
    "INIT_LEARNING_RATE": ("train.learning_rate", None),
}
_REQUIRED = ("RESULT_DIR", "SLIDE_DIR", "RESIZE_RATIO", "INPUT_SIZE", "MODEL", "POOL_USE", "NUM_CLASSES")

# Keys that turn something on, and what that is where this program does not have it.
_SWITCHES: Dict[str, Optional[str]] = {
    "LOAD_MODEL_BEFORE_TRAIN": None,
    "USE_MIXED_PRECISION": None,
    "USE_HMS": None,
    "USE_MIL": "multiple-instance learning",
    "USE_TCGA_VAHADANE": "the colour normalisation of TCGA slides",
    "ENABLE_VIZ": None,
}
_REFUSED_TEXTS = {
    "DEBUG_PATH": "writing files for debugging",
    "POST_TRAIN_METHOD": "combining patches by a second model",
}

# Settings of what something else turns on: without it they say nothing, whatever they are.
_HEATMAPS: Dict[str, Tuple[str, Any]] = {
    "VIZ_FOLDER": ("outputs.heatmaps", _RESULT_DIR + "/viz"),
    "VIZ_SIZE": ("outputs.heatmap_size", None),
}
_UNUSED_PREFIXES = ("MIL_", "POST_TRAIN_")


class _Target(NamedTuple):
    """A field of our configuration with its type."""

    field: Any
    kind: Any


def is_reference_form(values: Mapping[Any, Any]) -> bool:
    """Whether the keys of a file or an override are upper case.

    Raises:
        ConfigError: some are and others are not.
    """
    upper = [name for name in values if isinstance(name, str) and _UPPER_CASE.fullmatch(name)]
    others = [name for name in values if name not in upper]
    if upper and others:
        raise ConfigError(
            "{} is a key in the form of the 2021 reference implementation, {} is not; a file has keys of one form, and "
            "one that names the other as its base can add to it".format(upper[0], others[0])
        )
    return bool(upper)


def translate(values: Mapping[str, Any]) -> Dict[str, Any]:
    """The nested mapping in this program's keys that says what a file in the reference's form says.

    Raises:
        ConfigError: a key is unknown or missing, or its value is not usable; the sentence begins with the key.
    """
    for name in values:
        _check_known(name)
    values = _substituted({name: value for name, value in values.items() if _says_something(name, value, values)})
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        plural = "key is" if len(missing) == 1 else "keys are"
        raise ConfigError("the required {} missing: {}".format(plural, ", ".join(missing)))
    found: Dict[str, Any] = {}
    for name, (target, _) in _RENAMED.items():
        if name in values:
            found[target] = _checked(values[name], target, name)
    for rule in (_switches, _model, _canvas, _classes, _extension, _left_open, _schedule, _heatmaps):
        found.update(rule(values))
    return _nested(found)


def _check_known(name: str) -> None:
    known = list(_RENAMED) + list(_REQUIRED) + list(_SWITCHES) + list(_REFUSED_TEXTS) + list(_HEATMAPS)
    known += ["SLIDE_FILE_EXTENSION"] + list(_SCHEDULE)
    if name in known or name.startswith(_UNUSED_PREFIXES):
        return
    nearest = difflib.get_close_matches(name, known, 1)
    hint = "did you mean {}?".format(nearest[0]) if nearest else "the known keys are {}".format(", ".join(known))
    raise ConfigError("unknown key {} in the form of the 2021 reference implementation; {}".format(name, hint))


def _says_something(name: str, value: Any, values: Mapping[str, Any]) -> bool:
    """Whether a key of a file does, given the others: what is off or blank says nothing, nor do settings of it."""
    if value is None or value is False or value == "" or value == [] or value == {}:
        return False
    if name in _HEATMAPS:
        return values.get("ENABLE_VIZ") is True
    return name in _REFUSED_TEXTS or not name.startswith(_UNUSED_PREFIXES)


def _substituted(values: Dict[str, Any]) -> Dict[str, Any]:
    """Values, and defaults where there is none, with ``${RESULT_DIR}`` replaced."""
    folder = values.get("RESULT_DIR")
    if isinstance(folder, str) and _VARIABLE.search(folder):
        raise ConfigError("RESULT_DIR: expected a folder, got {}".format(describe_value(folder)))
    for name, (_, default) in [*_RENAMED.items(), *_HEATMAPS.items()]:
        if default is not None:
            values.setdefault(name, default)
    return {name: _expand(name, value, folder) for name, value in values.items()}


def _expand(name: str, value: Any, folder: Any) -> Any:
    if not isinstance(value, str) or not isinstance(folder, str):
        return value

    def replacement(match: Match[str]) -> str:
        if match.group() != _RESULT_DIR:
            raise ConfigError("{}: only {} can be replaced in a path, not {}".format(name, _RESULT_DIR, match.group()))
        return folder

    return _VARIABLE.sub(replacement, value)


def _switches(values: Dict[str, Any]) -> Dict[str, Any]:
    """What is turned on. ``USE_HMS`` turns nothing on here: it is about how a whole slide is computed, and either way
    that is by the engine that fits."""
    on = {name: value for name, value in values.items() if name in _SWITCHES}
    for name, value in on.items():
        if value is not True:  # what is False has been left out
            raise ConfigError("{}: expected true or false, got {}".format(name, describe_value(value)))
        if _SWITCHES[name] is not None:
            raise ConfigError("{}: {} is not there yet; set it to False".format(name, _SWITCHES[name]))
    for name, feature in _REFUSED_TEXTS.items():
        if name in values:
            raise ConfigError("{}: {} is not there; set it to NULL".format(name, feature))
    found = {"engine": "auto"}
    if on.get("USE_MIXED_PRECISION"):
        found["model.compute"] = "bfloat16"
    if on.get("LOAD_MODEL_BEFORE_TRAIN"):
        found["model.weights"] = _checked(values["MODEL_PATH"], "model.weights", "MODEL_PATH")
    return found


def _model(values: Dict[str, Any]) -> Dict[str, Any]:
    if values["MODEL"] not in MODELS:
        raise ConfigError(
            "MODEL: expected one of {}, got {}; there is no network that normalises over the slides of a batch".format(
                ", ".join(MODELS), describe_value(values["MODEL"])
            )
        )
    if not str(values["MODEL_PATH"]).lower().endswith(WEIGHT_EXTENSIONS):
        expected = " or ".join(WEIGHT_EXTENSIONS)
        raise ConfigError("MODEL_PATH: expected a file that ends in {}, not {}".format(expected, values["MODEL_PATH"]))
    return {"model.backbone": values["MODEL"]}


def _canvas(values: Dict[str, Any]) -> Dict[str, Any]:
    size = values["INPUT_SIZE"]
    if not isinstance(size, (list, tuple)) or len(size) != 3 or type(size[2]) is not int or size[2] != 3:
        raise ConfigError("INPUT_SIZE: expected [height, width, 3], got {}".format(describe_value(size)))
    return {"data.canvas": _checked(list(size[:2]), "data.canvas", "INPUT_SIZE")}


def _classes(values: Dict[str, Any]) -> Dict[str, Any]:
    """Classes have no names there: a data list gives their numbers."""
    count = values["NUM_CLASSES"]
    if type(count) is not int or count < 2:
        raise ConfigError("NUM_CLASSES: expected a whole number of at least 2, got {}".format(describe_value(count)))
    return {"data.classes": tuple(map(str, range(count)))}


def _extension(values: Dict[str, Any]) -> Dict[str, Any]:
    extension = _checked(values.get("SLIDE_FILE_EXTENSION", ""), "data.extension", "SLIDE_FILE_EXTENSION")
    return {"data.extension": "." + extension if extension and not extension.startswith(".") else extension}


def _left_open(values: Dict[str, Any]) -> Dict[str, Any]:
    """What the form has no key for. Its published files score the validation list as a test list."""
    return {
        "train.optimizer": "adam",
        "model.activation": "softmax",
        "data.allow_shared_cases": True,
        "data.ratio_mpp": _RATIO_MPP,
    }


_SCHEDULE = {"REDUCE_LR_FACTOR": "train.reduce_factor", "REDUCE_LR_PATIENCE": "train.reduce_patience"}
# The reference takes its rate as it is, however many processes there are, and always augments; its Adam is Keras'.
_WITHOUT_KEY = {"train.lr_scaling": "none", "train.epsilon": 1e-7, "augment.preset": "reference_2021"}


def _schedule(values: Dict[str, Any]) -> Dict[str, Any]:
    """How the learning rate falls, and how slides are changed at random."""
    found = {target: _checked(values[name], target, name) for name, target in _SCHEDULE.items() if name in values}
    found.update(_WITHOUT_KEY)
    if "REDUCE_LR_PATIENCE" in values:
        rate = _checked(values.get("INIT_LEARNING_RATE", _LOWEST_RATE), "train.learning_rate", "INIT_LEARNING_RATE")
        found.update({"train.on_plateau": "rollback", "train.min_improvement": _LEAST_IMPROVEMENT})
        found["train.min_learning_rate"] = min(rate, _LOWEST_RATE)
    return found


def _heatmaps(values: Dict[str, Any]) -> Dict[str, Any]:
    """What ``test`` draws. The reference draws each slide's own class; here all are drawn."""
    if "ENABLE_VIZ" not in values:
        return {}
    return {target: _checked(values[name], target, name) for name, (target, _) in _HEATMAPS.items() if name in values}


def _checked(value: Any, target: str, name: str) -> Any:
    """``value`` in the type of our key ``target``, checked; ``name`` begins the sentence of an error."""
    field, kind = _target(target)
    return check_value(value, field, kind, name)


def _target(key: str) -> _Target:
    """The field of one of our keys."""
    found = _Target(None, config_class())
    for part in key.split("."):
        found = {field.name: _Target(field, kind) for field, kind in options_of(found.kind)}[part]
    return found


def _nested(flat: Dict[str, Any]) -> Dict[str, Any]:
    nested: Dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        into = nested
        for parent in parents:
            into = into.setdefault(parent, {})
        into[last] = value
    return nested
