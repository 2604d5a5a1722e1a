import dataclasses
import glob
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.config import (
    BACKBONES,
    Data,
    config_class,
    config_from_dict,
    config_help,
    config_to_dict,
    describe_config,
    fixed_values,
    load_config,
    resolved_yaml,
)
from whole_slide_cnn.config.options import is_section, options_of
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.sizes import Size

CONFIGS = os.path.join(os.path.dirname(__file__), "..", "..", "configs")


def values(data=None, **sections):
    return dict({"result_dir": "out", "data": dict({"classes": ["a", "b"], "canvas": 64}, **(data or {}))}, **sections)


def error_of(given):
    with pytest.raises(ConfigError) as caught:
        config_from_dict(given, "run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ") and "\n" not in message
    return message


def test_defaults():
    config = config_from_dict(values({"mpp": 0.5}))
    assert config.data.canvas == Size(64, 64) and isinstance(config.data.canvas, Size)
    assert (config.seed, config.memory_gb, config.streaming.window) == (0, None, 1024)
    assert (config.train.learning_rate, config.train.weight_decay, config.train.batch_size) == (2e-5, 0.01, 1)
    assert (config.data.max_failed_share, config.model.class0_bias) == (0.1, 1.0)


def test_a_group_must_fit_the_device():
    message = error_of(values({"mpp": 1.0}, unified={"device_gb": 2.0}))
    assert "unified.group_mb: a group of 4000 MB exceeds unified.device_gb, which is 2" in message


def test_what_a_resumed_run_must_keep():
    """All but what says where things are, how often something is saved, and when to stop."""
    config = config_from_dict(values({"mpp": 0.5}, train={"batch_size": 3}))
    fixed = fixed_values(config)
    every = {entry.key for entry in describe_config()}
    assert fixed["train.batch_size"] == 3 and fixed["data.canvas"] == [64, 64] and fixed["data.classes"] == ["a", "b"]
    assert every - set(fixed) == {
        "result_dir",
        "memory_gb",
        "data.slides",
        "data.test",
        "data.max_failed_share",
        "train.epochs",
        "train.checkpoint_every_minutes",
        "train.checkpoint_every_updates",
        "train.tensorboard",
        "data.allow_shared_cases",
        "outputs.config",
        "outputs.heatmap_size",
        "outputs.heatmaps",
        "outputs.test_scores",
        "outputs.test_times",
        "outputs.train_times",
        "outputs.weights",
        "unified.prefetch_depth",
        "unified.eviction_dir",
    }
    defaults = fixed_values()
    assert defaults["train.batch_size"] == 1 and set(fixed) - set(defaults) == {"data.classes", "data.canvas"}


def test_magnification_is_converted_once():
    config = config_from_dict(values({"magnification": 20}))
    assert (config.data.mpp, config.data.magnification) == (0.5, None)
    assert dataclasses.replace(config.data, extension=".svs").mpp == 0.5


@pytest.mark.parametrize(
    "resolution, named",
    [
        ({}, "not none"),
        ({"mpp": 1.0, "ratio": 0.5}, "not data.mpp and data.ratio"),
        ({"mpp": 0.5, "magnification": 20}, "not data.mpp and data.magnification"),
    ],
)
def test_exactly_one_resolution(resolution, named):
    assert named in error_of(values(resolution))


@pytest.mark.parametrize(
    "data, message",
    [
        ({"classes": ["a"]}, "data.classes: expected two classes or more, got 1"),
        ({"classes": ["a", "b", "a"]}, "data.classes: a is listed twice"),
        ({"classes": ["a", " b"]}, "data.classes: ' b' is blank or begins or ends with a space"),
        ({"classes": [False, True]}, "data.classes[0]: expected text, got false (put it in quotes"),
        ({"canvas": [64]}, "data.canvas: expected a list of 2 whole numbers"),
        ({"canvas": 0}, "data.canvas: expected a value at least 1, got 0"),
        ({"extension": "svs"}, "data.extension: expected a leading dot, as in .svs"),
        ({"reader": "magic"}, "data.reader: expected one of auto, openslide, image"),
        ({"max_failed_share": 1.5}, "data.max_failed_share: expected a value at least 0 and at most 1"),
        ({"slides": ""}, "data.slides: the path is empty"),
        ({"mpp": -1}, "data.mpp: expected a value above 0"),
    ],
)
def test_rules_of_data(data, message):
    assert message in error_of(values(dict({"mpp": 1.0}, **data)))


@pytest.mark.parametrize(
    "given, message",
    [
        (values({"mpp": 1}, epochs=3), "unknown key epochs; did you mean train.epochs?"),
        (values({"mpp": 1}, trian={"epochs": 3}), "unknown key trian; did you mean train?"),
        (values({"mpp": 1}, model={"back_bone": "tiny"}), "unknown key model.back_bone; did you mean model.backbone?"),
        (values({"mpp": 1}, model={"window": 64}), "unknown key model.window; did you mean streaming.window?"),
        (values({"mpp": 1}, streaming={"xyzzy": 1}), "unknown key streaming.xyzzy; the known keys here are"),
        (values({"mpp": 1}, **{"model": {3: 4}}), "unknown key model.3; the known keys here are model.backbone"),
        (
            values({"mpp": 1}, engine="x"),
            "engine: expected one of auto, direct, streaming, unified, staged, got the text 'x'",
        ),
        (values({"mpp": 1}, model="tiny"), "model: expected a section of keys such as model.backbone"),
        ({}, "the required keys are missing: result_dir, data.classes, data.canvas"),
        ({"result_dir": "x", "data": {"classes": ["a", "b"]}}, "the required key is missing: data.canvas"),
    ],
)
def test_unknown_and_missing_keys(given, message):
    assert message in error_of(given)


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults():
    assert config_from_dict(values({"mpp": 1}, train=None)) == config_from_dict(values({"mpp": 1}))


def test_sections_check_their_rules_without_a_file():
    with pytest.raises(ConfigError, match="give exactly one"):
        Data(classes=("a", "b"), canvas=(8, 8))


texts = st.text(min_size=1, max_size=12).filter(lambda text: text == text.strip())


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(texts, min_size=2, max_size=4, unique=True),
    canvas=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    mpp=st.floats(1e-6, 1e6),
    rate=st.floats(1e-300, 1e300),
    bias=st.floats(allow_nan=False, allow_infinity=False),
    backbone=st.sampled_from(BACKBONES),
    slides=texts.filter(lambda text: "\0" not in text),
)
def test_resolved_yaml_loads_to_an_equal_config(tmp_path_factory, classes, canvas, mpp, rate, bias, backbone, slides):
    given_values = values(
        {"classes": classes, "canvas": list(canvas), "mpp": mpp, "slides": slides},
        train={"learning_rate": rate},
        model={"class0_bias": bias, "backbone": backbone},
    )
    config = config_from_dict(given_values)
    path = tmp_path_factory.mktemp("resolved") / "config.yaml"
    path.write_bytes(resolved_yaml(config).encode("utf-8"))
    assert load_config(str(path)) == config
    assert config_from_dict(config_to_dict(config)) == config


def test_resolved_yaml_keeps_unusual_characters(tmp_path):
    config = config_from_dict(values({"classes": ["no", "a\x85b", "\u75c5\u7406"], "mpp": 1}), folder=str(tmp_path))
    (tmp_path / "config.yaml").write_text(resolved_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_every_key_is_described():
    def keys(section, prefix=""):
        for field, kind in options_of(section):
            yield from keys(kind, field.name + ".") if is_section(kind) else [prefix + field.name]

    described = describe_config()
    assert [entry.key for entry in described] == list(keys(config_class()))
    for entry in described:
        assert entry.help.endswith(".") and entry.type and entry.default, entry
        assert "    " + entry.help[:60] in config_help()
    assert {entry.key for entry in described if entry.default == "required"} == {
        "result_dir",
        "data.classes",
        "data.canvas",
    }
    assert {entry.key: entry.default for entry in described}["train.learning_rate"] == "2.0e-05"


EXAMPLES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(CONFIGS, "*.yaml")))


def test_examples_are_as_published():
    assert {"base.yaml", "lung_2021_4x.yaml", "lymph_node_2022_20x.yaml"} <= set(EXAMPLES)
    lung = load_config(os.path.join(CONFIGS, "lung_2021_4x.yaml"))
    assert (lung.data.ratio, lung.data.canvas, len(lung.data.classes)) == (0.2, (21500, 21500), 3)
    assert (lung.model.backbone, lung.model.pooling, lung.model.activation) == ("fixup_resnet50", "gmp", "softmax")
    assert (lung.train.optimizer, lung.train.learning_rate, lung.train.updates_per_epoch) == ("adam", 2e-5, 100)
    lymph = load_config(os.path.join(CONFIGS, "lymph_node_2022_20x.yaml"))
    assert (lymph.data.mpp, lymph.data.canvas, lymph.model.backbone) == (0.46, (75000, 75000), "resnet50")
    assert (lymph.model.pooling, lymph.train.optimizer) == ("gmp", "adamw")
    assert (lymph.train.learning_rate, lymph.train.weight_decay) == (1e-5, 0.01)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "base.yaml"])
def test_examples_load_and_share_the_base(name):
    config = load_config(os.path.join(CONFIGS, name))
    assert config.data.train and config.data.val and config.data.test
    with open(os.path.join(CONFIGS, name), encoding="utf-8") as stream:
        assert "base: base.yaml" in stream.read()
