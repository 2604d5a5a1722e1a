"""Files with the upper-case keys of the 2021 reference implementation."""

import os
import re
import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.config import TrainConfig, load_config, resolved_yaml
from whole_slide_cnn.config import reference as form
from whole_slide_cnn.errors import ConfigError

# What every published file has; other keys are added by the tests.
LEAST = {
    "RESULT_DIR": "runs/first",
    "SLIDE_DIR": "slides",
    "RESIZE_RATIO": 0.2,
    "INPUT_SIZE": [640, 512, 3],
    "MODEL": "fixup_resnet50",
    "POOL_USE": "gmp",
    "NUM_CLASSES": 3,
}
# A whole file, with keys of features that it does not use.
WHOLE = """\
RESULT_DIR: "runs/first"
MODEL_PATH: "${RESULT_DIR}/weights.h5"
LOAD_MODEL_BEFORE_TRAIN: False
CONFIG_RECORD_PATH: "${RESULT_DIR}/settings.yaml"
USE_MIXED_PRECISION: True
USE_HMS: True
USE_MIL: False
TRAIN_CSV_PATH: "lists/train.csv"
VAL_CSV_PATH: "lists/val.csv"
TEST_CSV_PATH: "lists/test.csv"
SLIDE_DIR: "slides/"
SLIDE_FILE_EXTENSION: ".ndpi"
SLIDE_READER: "openslide"
RESIZE_RATIO: 0.2 # a fifth
INPUT_SIZE: [21500, 11000, 3]
MODEL: "fixup_resnet50"
NUM_CLASSES: 3
BATCH_SIZE: 1
EPOCHS: 200
NUM_UPDATES_PER_EPOCH: 100
INIT_LEARNING_RATE: 0.00002
POOL_USE: "gmp"
REDUCE_LR_FACTOR: 0.1
REDUCE_LR_PATIENCE: 24
TIME_RECORD_PATH: "${RESULT_DIR}/times.csv"
TEST_TIME_RECORD_PATH: "${RESULT_DIR}/test_times.csv"
TEST_RESULT_PATH: "${RESULT_DIR}/result.json"
USE_TCGA_VAHADANE: False
ENABLE_VIZ: False
VIZ_SIZE: [2150, 2150]
VIZ_FOLDER: "${RESULT_DIR}/viz"
MIL_PATCH_SIZE: [224, 224]
MIL_INFER_BATCH_SIZE: NULL
MIL_USE_EM: True
MIL_K: 3
MIL_SKIP_WHITE: NULL
POST_TRAIN_METHOD: ""
POST_TRAIN_EPOCHS: 5
DEBUG_PATH: NULL
"""
# Keys that the form is known by; families have one member here.
KEYS = re.findall(
    r"\w+",
    """
RESULT_DIR MODEL_PATH LOAD_MODEL_BEFORE_TRAIN CONFIG_RECORD_PATH USE_MIXED_PRECISION USE_HMS USE_MIL TRAIN_CSV_PATH
VAL_CSV_PATH TEST_CSV_PATH SLIDE_DIR SLIDE_FILE_EXTENSION SLIDE_READER RESIZE_RATIO INPUT_SIZE MODEL NUM_CLASSES
BATCH_SIZE EPOCHS NUM_UPDATES_PER_EPOCH INIT_LEARNING_RATE POOL_USE REDUCE_LR_FACTOR REDUCE_LR_PATIENCE TIME_RECORD_PATH
TEST_TIME_RECORD_PATH TEST_RESULT_PATH USE_TCGA_VAHADANE ENABLE_VIZ VIZ_SIZE VIZ_FOLDER MIL_PATCH_SIZE
MIL_INFER_BATCH_SIZE MIL_USE_EM MIL_K MIL_SKIP_WHITE POST_TRAIN_METHOD POST_TRAIN_MIL_PATCH_SIZE
POST_TRAIN_INIT_LEARNING_RATE POST_TRAIN_REDUCE_LR_FACTOR POST_TRAIN_REDUCE_LR_PATIENCE POST_TRAIN_EPOCHS
POST_TRAIN_NUM_UPDATES_PER_EPOCH POST_TRAIN_MODEL_PATH DEBUG_PATH
""",
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function (overrides, **values) -> TrainConfig for a file with :data:`LEAST` and values; None removes a key."""
    monkeypatch.chdir(str(tmp_path))

    def run(*overrides, **given):
        values = {name: value for name, value in dict(LEAST, **given).items() if value != "(absent)"}
        os.makedirs("configs", exist_ok=True)
        with open(os.path.join("configs", "run.yaml"), "w", encoding="utf-8") as stream:
            yaml.safe_dump(values, stream)
        return load_config(os.path.join("configs", "run.yaml"), overrides)

    return run


@pytest.fixture
def refusal(load):
    """A function like :func:`load` that returns the sentence of the error, without the file's name."""

    def run(*overrides, **given):
        with pytest.raises(ConfigError) as error:
            load(*overrides, **given)
        sentence = str(error.value)
        assert sentence.startswith((os.path.join("configs", "run.yaml") + ": ", "override "))
        assert "\n" not in sentence
        return sentence.split(": ", 1)[1]

    return run


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_a_whole_file(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "whole.yaml"
    path.write_text(WHOLE, encoding="utf-8")
    monkeypatch.chdir(str(tmp_path))
    config = load_config(str(path))
    here = lambda *parts: os.path.join(os.getcwd(), *parts)  # noqa: E731
    data, train, outputs = config.data, config.train, config.outputs
    assert config.result_dir == here("runs", "first") and config.engine == "auto" and config.memory_gb is None
    assert (data.train, data.val, data.test) == tuple(here("lists", n + ".csv") for n in ("train", "val", "test"))
    assert (data.slides, data.extension, data.reader) == (here("slides"), ".ndpi", "openslide")
    assert (data.ratio, data.mpp, data.canvas, data.classes) == (0.2, None, (21500, 11000), ("0", "1", "2"))
    assert data.allow_shared_cases
    model = config.model
    assert (model.backbone, model.pooling, model.activation) == ("fixup_resnet50", "gmp", "softmax")
    assert (model.compute, model.weights, model.class0_bias) == ("bfloat16", None, 1.0)
    assert (train.optimizer, train.learning_rate, train.batch_size) == ("adam", 2e-5, 1)
    assert (train.epochs, train.updates_per_epoch) == (200, 100)
    assert (train.reduce_factor, train.reduce_patience, train.on_plateau) == (0.1, 24, "rollback")
    assert (train.min_learning_rate, train.epsilon, train.lr_scaling) == (1e-8, 1e-7, "none")
    assert (outputs.heatmaps, outputs.heatmap_size) == (None, None)
    assert (outputs.weights, outputs.config) == (here("runs/first/weights.h5"), here("runs/first/settings.yaml"))
    assert (outputs.train_times, outputs.test_times) == (
        here("runs/first/times.csv"),
        here("runs/first/test_times.csv"),
    )
    assert outputs.test_scores == here("runs/first/result.json")


def test_what_it_is_resolved_to_loads_to_the_same(tmp_path, load):
    config = load(TRAIN_CSV_PATH="lists/train.csv", USE_MIXED_PRECISION=True)
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config(str(other / "config.yaml")) == config


def test_documented_defaults(load):
    config = load()
    folder = config.result_dir
    assert config.outputs.weights == os.path.join(folder, "model.h5")
    assert config.outputs.config == os.path.join(folder, "config.yaml")
    assert config.outputs.test_scores == os.path.join(folder, "test_result.json")
    assert (config.outputs.train_times, config.outputs.test_times) == (None, None)
    assert (config.data.reader, config.data.extension, config.train.batch_size) == ("openslide", "", 1)
    assert (config.model.compute, config.model.weights, config.engine) == ("float32", None, "auto")


RENAMED = [
    ("TRAIN_CSV_PATH", "a.csv", "data.train", "a.csv"),
    ("VAL_CSV_PATH", "b.csv", "data.val", "b.csv"),
    ("TEST_CSV_PATH", "c.csv", "data.test", "c.csv"),
    ("SLIDE_DIR", "${RESULT_DIR}/scans", "data.slides", "runs/first/scans"),
    ("SLIDE_FILE_EXTENSION", ".svs", "data.extension", ".svs"),
    ("SLIDE_FILE_EXTENSION", "svs", "data.extension", ".svs"),
    ("SLIDE_READER", "image", "data.reader", "image"),
    ("RESIZE_RATIO", 0.05, "data.ratio", 0.05),
    ("RESIZE_RATIO", 1, "data.ratio", 1.0),
    ("RESIZE_RATIO", 0.2, "data.ratio_mpp", 0.46),
    ("INPUT_SIZE", [100, 200, 3], "data.canvas", (100, 200)),
    ("MODEL", "fixup_resnet34", "model.backbone", "fixup_resnet34"),
    ("MODEL", "frozenbn_resnet50", "model.backbone", "frozenbn_resnet50"),
    ("MODEL", "tiny", "model.backbone", "tiny"),
    ("POOL_USE", "gap", "model.pooling", "gap"),
    ("NUM_CLASSES", 2, "data.classes", ("0", "1")),
    ("BATCH_SIZE", 4, "train.batch_size", 4),
    ("EPOCHS", 7, "train.epochs", 7),
    ("NUM_UPDATES_PER_EPOCH", 9, "train.updates_per_epoch", 9),
    ("INIT_LEARNING_RATE", "1e-4", "train.learning_rate", 1e-4),
    ("MODEL_PATH", "m.hdf5", "outputs.weights", "m.hdf5"),
    ("CONFIG_RECORD_PATH", "${RESULT_DIR}/x.yaml", "outputs.config", "runs/first/x.yaml"),
    ("TIME_RECORD_PATH", "t.csv", "outputs.train_times", "t.csv"),
    ("TEST_TIME_RECORD_PATH", "t.csv", "outputs.test_times", "t.csv"),
    ("TEST_RESULT_PATH", "r.json", "outputs.test_scores", "r.json"),
    ("USE_MIXED_PRECISION", True, "model.compute", "bfloat16"),
    ("USE_MIXED_PRECISION", False, "model.compute", "float32"),
    ("LOAD_MODEL_BEFORE_TRAIN", True, "model.weights", "runs/first/model.h5"),
    ("LOAD_MODEL_BEFORE_TRAIN", False, "model.weights", None),
    ("REDUCE_LR_FACTOR", 0.5, "train.reduce_factor", 0.5),
    ("REDUCE_LR_PATIENCE", 24, "train.reduce_patience", 24),
    ("REDUCE_LR_PATIENCE", 24, "train.on_plateau", "rollback"),
    ("EPOCHS", 7, "augment.preset", "reference_2021"),
    ("EPOCHS", 7, "train.lr_scaling", "none"),
    ("REDUCE_LR_PATIENCE", 24, "train.min_learning_rate", 1e-8),
    ("REDUCE_LR_PATIENCE", 24, "train.min_improvement", 1e-4),
    ("REDUCE_LR_FACTOR", 0.5, "train.on_plateau", "reduce"),
    ("EPOCHS", 7, "train.epsilon", 1e-7),
    ("USE_HMS", True, "engine", "auto"),
    ("USE_HMS", False, "engine", "auto"),
    ("ENABLE_VIZ", True, "outputs.heatmaps", "runs/first/viz"),
    ("ENABLE_VIZ", True, "outputs.heatmap_size", None),
    ("ENABLE_VIZ", False, "outputs.heatmaps", None),
]
# Settings of what is off, whatever they hold.
SAY_NOTHING = [
    *[("VIZ_SIZE", value) for value in ([2150, 2150], "large", 0)],
    *[("VIZ_FOLDER", value) for value in ("${RESULT_DIR}/viz", "${HOME}/viz", 3)],
    *[("MIL_PATCH_SIZE", [224, 224]), ("MIL_K", 3), ("MIL_USE_EM", True), ("MIL_SKIP_WHITE", True)],
    *[("MIL_INFER_BATCH_SIZE", 32), ("POST_TRAIN_MODEL_PATH", "${HOME}/p.pkl"), ("POST_TRAIN_EPOCHS", 5)],
    *[("POST_TRAIN_MIL_PATCH_SIZE", [224, 224]), ("POST_TRAIN_INIT_LEARNING_RATE", 0.1)],
    *[("POST_TRAIN_REDUCE_LR_FACTOR", 0.1), ("POST_TRAIN_REDUCE_LR_PATIENCE", 2)],
    *[("POST_TRAIN_NUM_UPDATES_PER_EPOCH", 3)],
]
REFUSED = [
    ("USE_MIL", True, "USE_MIL: multiple-instance learning is not there yet; set it to False"),
    ("USE_TCGA_VAHADANE", True, "the colour normalisation of TCGA slides is not there yet; set it to False"),
    ("DEBUG_PATH", "debug", "DEBUG_PATH: writing files for debugging is not there; set it to NULL"),
    ("POST_TRAIN_METHOD", "svm", "POST_TRAIN_METHOD: combining patches by a second model is not there; set it to NULL"),
]


@pytest.mark.parametrize("name, given, key, expected", RENAMED)
def test_each_key(load, name, given, key, expected):
    config = load(**{name: given})
    field = form._target(key).field
    if field.metadata.get("path") and expected is not None:
        expected = os.path.join(os.getcwd(), *expected.split("/"))
    assert value_of(config, key) == expected


def test_an_override_beside_the_form_may_use_a_key_by_its_earlier_name(load):
    unified = load("unified.choice=keep", "unified.spill_dir=maps").unified
    assert unified.memory_policy == "keep" and unified.eviction_dir == os.path.join(os.getcwd(), "maps")


@pytest.mark.parametrize("name, given", SAY_NOTHING)
def test_settings_of_what_is_off_say_nothing(load, name, given):
    assert load(**{name: given}) == load()


@pytest.mark.parametrize("given", [None, "", False], ids=["null", "empty", "false"])
@pytest.mark.parametrize("name", KEYS)
def test_null_empty_and_false_never_refuse(load, refusal, name, given):
    """Such a key is as good as absent, which only a required one must not be."""
    if name in LEAST:
        assert refusal(**{name: given}) == "the required key is missing: " + name
    else:
        assert load(**{name: given}) == load(**{name: "(absent)"})


@pytest.mark.parametrize("name, given, message", REFUSED)
def test_what_is_not_there_is_refused_by_name(refusal, name, given, message):
    sentence = refusal(**{name: given})
    assert sentence.startswith(name + ": ") and sentence.endswith(message)


def test_the_tables_miss_no_key():
    """A key that is added needs a line here, and lines of the tables name keys that are known."""
    known = set(form._RENAMED) | set(form._REQUIRED) | set(form._SWITCHES) | set(form._REFUSED_TEXTS)
    known |= set(form._HEATMAPS) | set(form._SCHEDULE) | {"SLIDE_FILE_EXTENSION"}
    with_prefix = {name for name in KEYS if name.startswith(form._UNUSED_PREFIXES)} - known
    assert set(KEYS) == known | with_prefix
    tested = {line[0] for line in RENAMED + SAY_NOTHING + REFUSED}
    assert tested == set(KEYS) - {"RESULT_DIR"}
    assert known <= {line.split(":")[0] for line in WHOLE.splitlines()}


@pytest.mark.parametrize(
    "given, folder, size",
    [
        ({}, "runs/first/viz", None),
        ({"VIZ_SIZE": None, "VIZ_FOLDER": ""}, "runs/first/viz", None),
        ({"VIZ_SIZE": [300, 2150]}, "runs/first/viz", (300, 2150)),  # height, width
        ({"VIZ_FOLDER": "${RESULT_DIR}/maps", "VIZ_SIZE": 64}, "runs/first/maps", (64, 64)),
        ({"VIZ_FOLDER": "maps"}, "maps", None),
    ],
)
def test_maps_that_test_draws(load, given, folder, size):
    outputs = load(ENABLE_VIZ=True, **given).outputs
    assert outputs.heatmaps == os.path.join(os.getcwd(), *folder.split("/")) and outputs.heatmap_size == size


def test_a_rate_that_begins_below_the_lowest_one(load):
    train = load(INIT_LEARNING_RATE=1e-9, REDUCE_LR_PATIENCE=3).train
    assert train.learning_rate == train.min_learning_rate == 1e-9


@pytest.mark.parametrize(
    "given, message",
    [
        ({"USE_MIL": True, "POST_TRAIN_METHOD": "svm"}, "USE_MIL: multiple-instance learning is not there yet"),
        ({"ENABLE_VIZ": "yes"}, "ENABLE_VIZ: expected true or false, got the text 'yes'"),
        ({"ENABLE_VIZ": True, "VIZ_SIZE": "large"}, "VIZ_SIZE: expected a list of 2 whole numbers, got the text"),
        ({"ENABLE_VIZ": True, "VIZ_SIZE": [64]}, "VIZ_SIZE: expected a list of 2 whole numbers, got the list [64]"),
        ({"ENABLE_VIZ": True, "VIZ_SIZE": [64, 0]}, "VIZ_SIZE: expected a value at least 1, got 0"),
        ({"ENABLE_VIZ": True, "VIZ_FOLDER": 3}, "VIZ_FOLDER: expected text, got 3"),
        ({"ENABLE_VIZ": True, "VIZ_FOLDER": "${HOME}/v"}, "VIZ_FOLDER: only ${RESULT_DIR} can be replaced in a path"),
        ({"REDUCE_LR_PATIENCE": 3, "INIT_LEARNING_RATE": "fast"}, "INIT_LEARNING_RATE: expected a number, got"),
        ({"USE_HMS": "yes please"}, "USE_HMS: expected true or false, got the text 'yes please'"),
        ({"USE_MIXED_PRECISION": 1}, "USE_MIXED_PRECISION: expected true or false, got 1"),
        ({"MODEL": "resnet34"}, "MODEL: expected one of fixup_resnet34, fixup_resnet50, frozenbn_resnet50, tiny, got"),
        ({"MODEL": "resnet50"}, "MODEL: expected one of fixup_resnet34, "),
        ({"POOL_USE": "max"}, "POOL_USE: expected one of gmp, gap, got the text 'max'"),
        ({"SLIDE_READER": "cucim"}, "SLIDE_READER: expected one of auto, openslide, image, got the text 'cucim'"),
        ({"INPUT_SIZE": [512, 512]}, "INPUT_SIZE: expected [height, width, 3], got the list [512, 512]"),
        ({"INPUT_SIZE": [512, 512, 1]}, "INPUT_SIZE: expected [height, width, 3]"),
        ({"INPUT_SIZE": 512}, "INPUT_SIZE: expected [height, width, 3], got 512"),
        ({"INPUT_SIZE": [0, 512, 3]}, "INPUT_SIZE: expected a value at least 1, got 0"),
        ({"INPUT_SIZE": ["a", 512, 3]}, "INPUT_SIZE[0]: expected a whole number, got the text 'a'"),
        ({"NUM_CLASSES": 1}, "NUM_CLASSES: expected a whole number of at least 2, got 1"),
        ({"NUM_CLASSES": True}, "NUM_CLASSES: expected a whole number of at least 2, got true"),
        ({"EPOCHS": 0}, "EPOCHS: expected a value at least 1, got 0"),
        ({"EPOCHS": "many"}, "EPOCHS: expected a whole number, got the text 'many'"),
        ({"INIT_LEARNING_RATE": -1}, "INIT_LEARNING_RATE: expected a value above 0"),
        ({"RESIZE_RATIO": "fifth"}, "RESIZE_RATIO: expected a number, got the text 'fifth'"),
        ({"MODEL_PATH": "model.pt"}, "MODEL_PATH: expected a file that ends in .h5 or .hdf5, not model.pt"),
        ({"RESULT_DIR": 3}, "RESULT_DIR: expected text, got 3"),
        ({"RESULT_DIR": "${RESULT_DIR}/x"}, "RESULT_DIR: expected a folder, got the text '${RESULT_DIR}/x'"),
        ({"SLIDE_DIR": "${HOME}/x"}, "SLIDE_DIR: only ${RESULT_DIR} can be replaced in a path, not ${HOME}"),
        ({"EPOCH": 3}, "unknown key EPOCH in the form of the 2021 reference implementation; did you mean EPOCHS?"),
        ({"INPUT_SIZES": 3}, "did you mean INPUT_SIZE?"),
        ({"ZZ": 3}, "the known keys are RESULT_DIR, "),
        ({"MODEL": "(absent)"}, "the required key is missing: MODEL"),
        ({"MODEL": None, "POOL_USE": ""}, "the required keys are missing: MODEL, POOL_USE"),
        ({"base": "x.yaml"}, "INPUT_SIZE is a key in the form of the 2021 reference implementation, base is not"),
        ({"train": {"epochs": 3}}, "is a key in the form of the 2021 reference implementation, train is not"),
    ],
)
def test_refusals_name_the_key(refusal, given, message):
    assert message in refusal(**given)


def test_overrides_in_either_form(load):
    config = load("EPOCHS=3", "train.batch_size=5", "INPUT_SIZE=[64, 96, 3]", "engine=streaming")
    assert (config.train.epochs, config.train.batch_size, config.data.canvas) == (3, 5, (64, 96))
    assert config.engine == "streaming"


@pytest.mark.parametrize("name", ["RESULT_DIR", "result_dir"])
def test_files_follow_the_result_folder(load, name):
    config = load(name + "=elsewhere")
    assert config.result_dir == os.path.join(os.getcwd(), "elsewhere")
    assert config.outputs.weights == os.path.join(os.getcwd(), "elsewhere", "model.h5")


def test_an_override_in_the_reference_form_needs_such_a_file(tmp_path):
    path = tmp_path / "ours.yaml"
    path.write_text("result_dir: x\ndata: {classes: [a, b], canvas: 64, mpp: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="override EPOCHS=3: unknown key EPOCHS"):
        load_config(str(path), ["EPOCHS=3"])


def test_a_file_of_ours_can_add_to_one_of_the_reference(load, tmp_path):
    load()
    path = tmp_path / "configs" / "more.yaml"
    path.write_text(
        textwrap.dedent("""\
        base: run.yaml
        seed: 5
        streaming: {window: 256}
        """),
        encoding="utf-8",
    )
    config = load_config(str(path))
    assert (config.seed, config.streaming.window, config.model.backbone) == (5, 256, "fixup_resnet50")
    assert config.result_dir == os.path.join(os.getcwd(), "runs", "first")


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), anything))
def test_any_values_give_a_configuration_or_one_sentence(values):
    """Whatever a file holds, it is used or refused by the name of a key of its own form."""
    try:
        translated = form.translate(dict(LEAST, **values))
    except ConfigError as error:
        assert str(error).split(":")[0].split("[")[0].split(" ")[-1].isupper() or "missing" in str(error)
        return
    assert set(translated) <= {field.name for field, _ in form.options_of(TrainConfig)}
