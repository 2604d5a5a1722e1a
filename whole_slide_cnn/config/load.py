"""From sources to a :class:`TrainConfig`, and back to YAML."""

import dataclasses
import difflib
import os
import textwrap
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Type, TypeVar

import yaml

from whole_slide_cnn.config.aliases import current
from whole_slide_cnn.config.options import (
    Field,
    Section,
    check_value,
    describe_type,
    describe_value,
    is_section,
    options_of,
    scalar_yaml,
)
from whole_slide_cnn.config.reference import RESULT_FOLDER, is_reference_form, translate
from whole_slide_cnn.config.schema import TrainConfig, config_class
from whole_slide_cnn.config.sources import Source, parse_overrides, read_sources
from whole_slide_cnn.errors import ConfigError

SomeSection = TypeVar("SomeSection", bound=Section)


class KeyHelp(NamedTuple):
    """What a user needs to know about one key."""

    key: str  # dotted, such as train.epochs
    type: str  # in words
    default: str  # in YAML, or "required"
    help: str  # one sentence


def load_config(path: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """Load a YAML file, the files its ``base`` names, and overrides such as ``train.epochs=3``, which win.

    Relative paths among the values are relative to the folder of the file that states them, those in overrides to the
    current folder; the returned paths are absolute. Files whose keys are upper case are read as those of the
    implementation published with the 2021 paper (:mod:`whole_slide_cnn.config.reference`): their paths are relative to
    the current folder, and overrides may use their keys, such as ``EPOCHS=3``, as well.

    Raises:
        ConfigError: with the file or override, the key, and what to do.
    """
    sources = read_sources(path)
    main = sources[-1]
    return _combine(_translated(sources, parse_overrides(overrides)), main.origin, main.folder)


def config_from_dict(values: Mapping[Any, Any], origin: str = "configuration", folder: str = os.curdir) -> TrainConfig:
    """Make a configuration from nested mappings; relative paths are relative to ``folder``.

    Raises:
        ConfigError: as :func:`load_config`, beginning with ``origin``.
    """
    return _combine([Source(origin, folder, values)], origin, folder)


def config_to_dict(config: Section) -> Dict[str, Any]:
    """The nested mappings of a configuration, in plain YAML types; ``config_from_dict`` takes them back."""
    return {
        field.name: config_to_dict(value) if is_section(kind) else list(value) if isinstance(value, tuple) else value
        for field, kind in options_of(type(config))
        for value in [getattr(config, field.name)]
    }


def fixed_values(config: Optional[TrainConfig] = None) -> Dict[str, Any]:
    """What must stay as it is when a run is resumed: dotted keys and their values, in plain YAML types.

    Args:
        config: a configuration, or None for the defaults of those keys that have one.
    """
    fixed = {}
    for key, field, _ in _leaves(config_class()):
        if field.metadata.get("may_change"):
            continue
        value = field.default
        if config is not None:
            value = config
            for name in key.split("."):
                value = getattr(value, name)
        if value is not dataclasses.MISSING:
            fixed[key] = list(value) if isinstance(value, tuple) else value
    return fixed


def resolved_yaml(config: Section) -> str:
    """Every key of a configuration in YAML; loading it gives an equal configuration."""
    # Not allow_unicode: PyYAML then writes characters such as U+0085 that it reads back as spaces.
    text: str = yaml.safe_dump(config_to_dict(config), sort_keys=False)
    return text


def describe_config() -> Tuple[KeyHelp, ...]:
    """All keys with type, default and sentence, in the order of the schema."""
    return tuple(
        KeyHelp(
            key,
            describe_type(field, kind),
            "required" if field.default is dataclasses.MISSING else scalar_yaml(field.default),
            field.metadata["help"],
        )
        for key, field, kind in _leaves(config_class())
    )


def config_help() -> str:
    """The text of ``--help-config``."""
    lines = [
        "Keys of a configuration file. 'base: other.yaml' (one or a list) takes all keys of other files first.",
        "",
    ]
    for entry in describe_config():
        default = "required" if entry.default == "required" else "default " + entry.default
        lines.append("{}: {} ({})".format(entry.key, entry.type, default))
        lines.append(textwrap.fill(entry.help, 100, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines) + "\n"


def _translated(files: List[Source], overrides: List[Source]) -> List[Source]:
    """Files and overrides in this program's keys."""
    reference = [source for source in files if is_reference_form(source.values)]
    if not reference:
        return files + overrides
    raw: Dict[Any, Any] = {}
    others: List[Source] = []
    for override in overrides:
        if set(override.values) <= {RESULT_FOLDER}:  # other files of the reference lie in this folder by its name
            raw["RESULT_DIR"] = override.values[RESULT_FOLDER]
        elif is_reference_form(override.values):
            raw.update(override.values)
        else:
            others.append(override)
    sources = []
    for source in files:
        values = source.values
        if source in reference:
            try:
                values = translate(dict(values, **raw))
            except ConfigError as error:
                raise ConfigError("{}: {}".format(source.origin, error)) from error
        sources.append(source._replace(values=values))
    return sources + others


def _combine(sources: Iterable[Source], origin: str, folder: str) -> TrainConfig:
    merged: Dict[str, Any] = {}
    for source in sources:
        try:
            _merge(merged, _check_section(config_class(), current(source.values), source.folder))
        except ConfigError as error:
            raise ConfigError("{}: {}".format(source.origin, error)) from error
    missing = _missing(config_class(), merged)
    if missing:
        plural = "key is" if len(missing) == 1 else "keys are"
        raise ConfigError("{}: the required {} missing: {}".format(origin, plural, ", ".join(missing)))
    try:
        return _build(config_class(), merged, folder)
    except ConfigError as error:
        raise ConfigError("{}: {}".format(origin, error)) from error


def _check_section(section: Type[Section], values: Mapping[Any, Any], folder: str, prefix: str = "") -> Dict[str, Any]:
    """The values of one source in the schema's types, nested as given, with absolute paths."""
    options = {field.name: (field, kind) for field, kind in options_of(section)}
    checked: Dict[str, Any] = {}
    for name, value in values.items():
        key = "{}{}".format(prefix, name)
        if name not in options:
            raise ConfigError("unknown key {}; {}".format(key, _suggest(str(name), section, prefix)))
        field, kind = options[name]
        if is_section(kind):
            if not isinstance(value, (dict, type(None))):  # 'train:' with all its keys commented out is null
                raise ConfigError(
                    "{}: expected a section of keys such as {}.{}, got {}".format(
                        key, key, options_of(kind)[0][0].name, describe_value(value)
                    )
                )
            checked[name] = _check_section(kind, value or {}, folder, key + ".")
        else:
            value = check_value(value, field, kind, key)
            checked[name] = _absolute(value, folder) if field.metadata.get("path") and value is not None else value
    return checked


def _build(section: Type[SomeSection], values: Mapping[str, Any], folder: str) -> SomeSection:
    arguments = {}
    for field, kind in options_of(section):
        if is_section(kind):
            arguments[field.name] = _build(kind, values.get(field.name, {}), folder)
        elif field.name in values:
            arguments[field.name] = values[field.name]
        elif field.metadata.get("path") and isinstance(field.default, str):
            arguments[field.name] = _absolute(field.default, folder)
    return section(**arguments)


def _merge(into: Dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value


def _missing(section: Type[Section], values: Mapping[str, Any], prefix: str = "") -> List[str]:
    missing: List[str] = []
    for field, kind in options_of(section):
        if is_section(kind):
            missing += _missing(kind, values.get(field.name, {}), prefix + field.name + ".")
        elif field.default is dataclasses.MISSING and field.name not in values:
            missing.append(prefix + field.name)
    return missing


def _leaves(section: Type[Section], prefix: str = "") -> Iterator[Tuple[str, Field, Any]]:
    for field, kind in options_of(section):
        if is_section(kind):
            yield from _leaves(kind, prefix + field.name + ".")
        else:
            yield prefix + field.name, field, kind


def _suggest(name: str, section: Type[Section], prefix: str) -> str:
    """The known key with the nearest name, in the same section or else in any."""
    here = {field.name: prefix + field.name for field, _ in options_of(section)}
    everywhere = {field.name: key for key, field, _ in _leaves(config_class())}
    for keys in (here, everywhere):
        nearest = difflib.get_close_matches(name, keys, 1)
        if nearest:
            return "did you mean {}?".format(keys[nearest[0]])
    return "the known keys here are {}".format(", ".join(here.values()))


def _absolute(path: str, folder: str) -> str:
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
