"""Where configuration values come from: YAML files with their bases, and ``key=value`` overrides."""

import os
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple

import yaml

from whole_slide_cnn.config.reference import is_reference_form
from whole_slide_cnn.errors import ConfigError

BASE_KEY = "base"


class Source(NamedTuple):
    """Unchecked values from one place."""

    origin: str  # a file or an override as the user wrote it; begins every error message
    folder: str  # what relative paths among the values are relative to
    values: Mapping[Any, Any]  # nested as in YAML


def read_sources(path: str, chain: Tuple[str, ...] = ()) -> List[Source]:
    """Read a YAML file and, before it, the files its ``base`` key names (one or a list, relative to it, recursively).

    Later sources take precedence over earlier ones.

    Raises:
        ConfigError: a file is missing, unreadable, empty, not YAML, not a mapping, or its own base.
    """
    path = os.path.expanduser(path)
    identity = os.path.realpath(path)
    if identity in chain:
        raise ConfigError("{}: base files form a cycle".format(path))
    values = _read_mapping(path)
    try:
        if is_reference_form(values):  # written to be run from the folder its paths are relative to
            return [Source(path, os.curdir, values)]
    except ConfigError as error:
        raise ConfigError("{}: {}".format(path, error)) from error
    folder = os.path.dirname(path)
    sources = []
    for base in _bases(values.pop(BASE_KEY, None), path):
        base_path = os.path.join(folder, os.path.expanduser(base))
        if not os.path.exists(base_path):
            raise ConfigError("{}: base file {} does not exist".format(path, base_path))
        sources += read_sources(base_path, chain + (identity,))
    return sources + [Source(path, folder, values)]


def parse_overrides(overrides: Iterable[str]) -> List[Source]:
    """Turn texts like ``train.epochs=3`` into sources; the value is YAML, paths are relative to the current folder.

    Raises:
        ConfigError: a text has no key or no ``=``, or its value is not YAML.
    """
    return [_parse_override(text) for text in overrides]


def _parse_override(text: str) -> Source:
    key, separator, value_text = text.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names):
        raise ConfigError("override {!r}: expected key=value, such as train.epochs=3".format(text))
    origin = "override {}".format(text)
    value = _parse_yaml(value_text, origin)
    for name in reversed(names):
        value = {name: value}
    return Source(origin, os.curdir, value)


def _bases(bases: Any, path: str) -> List[str]:
    if bases is None:
        return []
    if isinstance(bases, str):
        return [bases]
    if isinstance(bases, list) and all(isinstance(base, str) for base in bases):
        return bases
    raise ConfigError("{}: {}: expected a file name or a list of file names".format(path, BASE_KEY))


def _read_mapping(path: str) -> Dict[Any, Any]:
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError("{}: cannot read the configuration: {}".format(path, error.strerror)) from error
    except UnicodeDecodeError as error:
        raise ConfigError("{}: not a YAML file: it is not UTF-8 text".format(path)) from error
    values = _parse_yaml(text, path)
    if values is None:
        raise ConfigError("{}: the configuration is empty".format(path))
    if not isinstance(values, dict):
        raise ConfigError("{}: expected lines of the form 'key: value'".format(path))
    return values


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _refuse_duplicates(node, origin, set())
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = " in line {}".format(mark.line + 1) if mark else ""
        raise ConfigError("{}: not valid YAML{}: {}".format(origin, where, error.problem or error.context)) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-13-45
        raise ConfigError("{}: not valid YAML: {}".format(origin, " ".join(str(error).split()))) from error


def _refuse_duplicates(node: Optional[yaml.Node], origin: str, seen: Set[int]) -> None:
    """PyYAML keeps the last of two equal keys without a word, so a setting further up would be lost unnoticed."""
    if node is None or id(node) in seen:  # an alias may contain itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_duplicates(child, origin, seen)
    elif isinstance(node, yaml.MappingNode):
        names = set()
        for key, child in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                line = key.start_mark.line + 1
                raise ConfigError("{}: key {} in line {} was already given above".format(origin, key.value, line))
            if isinstance(key, yaml.ScalarNode):
                names.add(key.value)
            _refuse_duplicates(child, origin, seen)
