"""Configurations, overrides and checkpoints with keys and values of earlier versions."""

import warnings

import pytest
import yaml

from whole_slide_cnn.config import (
    aliases,
    config_class,
    config_from_dict,
    config_help,
    current_keys,
    describe_config,
    load_config,
    resolved_yaml,
)
from whole_slide_cnn.config.aliases import Replacement
from whole_slide_cnn.config.options import check_value, options_of
from whole_slide_cnn.errors import ConfigError

MINIMAL = {"result_dir": "out", "data": {"classes": ["a", "b"], "canvas": 64, "mpp": 1.0}}


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_file


@pytest.fixture
def dropped(monkeypatch):
    """A value that means another one now, with its sentence."""
    table = {"model.pooling": {"max": Replacement("gmp", "model.pooling: max is gone; gmp is the nearest")}}
    monkeypatch.setattr(aliases, "REPLACED_VALUES", table)


def test_a_configuration_that_an_earlier_version_recorded_still_loads(write):
    new = config_from_dict(dict(MINIMAL, unified={"device_gb": 8.0, "eviction_dir": "maps"}))
    old = resolved_yaml(new).replace("memory_policy: recompute", "choice: remat").replace("eviction_dir", "spill_dir")
    assert "choice: remat" in old and "spill_dir: /" in old
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_config(write("config.yaml", old)) == new


def test_old_keys_in_overrides_and_bases(write):
    write("base.yaml", "unified: {choice: keep, spill_dir: old}\n")
    path = write("run.yaml", "base: base.yaml\n" + yaml.safe_dump(MINIMAL))
    assert load_config(path).unified.memory_policy == "keep"
    assert load_config(path, ["unified.choice=remat"]).unified.memory_policy == "recompute"
    assert load_config(path, ["unified.memory_policy=recompute"]).unified.memory_policy == "recompute"
    assert load_config(path, ["unified.spill_dir=/there"]).unified.eviction_dir == "/there"


def test_an_old_key_and_its_present_one_in_one_source_are_refused():
    with pytest.raises(ConfigError, match="unified.choice is the old name of unified.memory_policy; give only that"):
        config_from_dict(dict(MINIMAL, unified={"choice": "remat", "memory_policy": "recompute"}))


def test_a_source_is_left_as_it_was():
    given = dict(MINIMAL, unified={"choice": "remat"})
    config_from_dict(given)
    assert given["unified"] == {"choice": "remat"}


@pytest.mark.parametrize("section", [3, None, ["choice"]])
def test_what_is_no_section_gets_the_usual_sentence(section):
    given = dict(MINIMAL, unified=section)
    if section is None:
        assert config_from_dict(given) == config_from_dict(MINIMAL)
    else:
        with pytest.raises(ConfigError, match="unified: expected a section of keys"):
            config_from_dict(given)


def test_a_wrong_value_under_an_old_key_names_the_present_one():
    with pytest.raises(ConfigError, match="unified.memory_policy: expected one of keep, recompute"):
        config_from_dict(dict(MINIMAL, unified={"choice": "magic"}))
    with pytest.raises(ConfigError, match="unified.memory_policy: expected text"):
        config_from_dict(dict(MINIMAL, unified={"choice": ["remat"]}))


def test_a_key_may_move_to_another_section(monkeypatch):
    monkeypatch.setattr(aliases, "RENAMED_KEYS", {"memory_limit": "memory_gb", "model.window": "streaming.window"})
    config = config_from_dict(dict(MINIMAL, memory_limit=3, model={"window": 64}, streaming=None))
    assert (config.memory_gb, config.streaming.window) == (3.0, 64)


def test_a_dropped_value_means_the_nearest_and_says_so(dropped):
    with pytest.warns(UserWarning, match="max is gone; gmp is the nearest"):
        assert config_from_dict(dict(MINIMAL, model={"pooling": "max"})).model.pooling == "gmp"
    assert current_keys({"model.pooling": "max", "train.beta1": 0.5}) == {"model.pooling": "gmp", "train.beta1": 0.5}


@pytest.mark.parametrize("name", ["greedy", "integer", "best"])
def test_memory_policies_of_earlier_versions(name):
    given = dict(MINIMAL, unified={"choice": name, "device_gb": 8.0})
    with pytest.warns(UserWarning, match="memory_policy: {} is gone; recompute is planned instead".format(name)):
        assert config_from_dict(given).unified.memory_policy == "recompute"


def test_keys_of_a_checkpoint():
    old = {"unified.choice": "remat", "unified.spill_dir": None, "seed": 3, "data.classes": ["a", "b"]}
    new = {"unified.memory_policy": "recompute", "unified.eviction_dir": None, "seed": 3, "data.classes": ["a", "b"]}
    assert current_keys(old) == new
    assert current_keys(new) == new


def test_the_tables_lead_to_what_exists_and_help_shows_nothing_else():
    known = {entry.key for entry in describe_config()}
    assert set(aliases.RENAMED_KEYS.values()) | set(aliases.REPLACED_VALUES) <= known
    assert not known & set(aliases.RENAMED_KEYS)
    assert not [key for key in aliases.RENAMED_KEYS if key in config_help()]
    for key, replaced in aliases.REPLACED_VALUES.items():
        for old, replacement in replaced.items():
            assert _set(key, replacement.value)
            with pytest.raises(ConfigError):
                _check(key, old)


def _set(key, value):
    section, name = key.split(".")
    return getattr(getattr(config_from_dict(dict(MINIMAL, **{section: {name: value}})), section), name) == value


def _check(key, value):
    """Check a value without the tables."""
    section, name = key.split(".")
    sections = {field.name: kind for field, kind in options_of(config_class())}
    ((field, kind),) = [(field, kind) for field, kind in options_of(sections[section]) if field.name == name]
    check_value(value, field, kind, key)
