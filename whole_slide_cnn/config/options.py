"""Typed options: what a section of a configuration is made of and how one value is checked.

A section is a frozen dataclass derived from :class:`Section` whose fields are made by :func:`option`. Supported types
are ``bool``, ``int``, ``float``, ``str``, ``Tuple[T, ...]``, ``Tuple[T, T]``, ``Optional`` of these, and sections.
"""

import dataclasses
import math
import re
import typing
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type

import yaml

from whole_slide_cnn.errors import ConfigError

if TYPE_CHECKING:
    Field = dataclasses.Field[Any]
else:
    Field = dataclasses.Field  # Python 3.7 has no parameter for it

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SINGULAR = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_PLURAL = {bool: "true or false values", int: "whole numbers", float: "numbers", str: "texts"}


def option(help: str, default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A dataclass field with a sentence for the user and rules for its value.

    Args:
        help: one sentence that says what the option does, with its unit.
        default: the value where none is given; without it the option is required.
        rules: ``choices`` (allowed texts), ``path=True`` (a file or folder, relative to the file that states it),
            ``above``, ``at_least``, ``below``, ``at_most`` (bounds of numbers), ``prepare`` (a function applied to
            the raw value before its type is checked), and ``may_change=True`` (no number that training computes depends
            on it, so that it may differ when a run is resumed).
    """
    return dataclasses.field(default=default, metadata=dict(rules, help=help))


def square(value: Any) -> Any:
    """A ``prepare`` of options that are a height and a width: one whole number means both."""
    return [value, value] if type(value) is int else value


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of the frozen dataclasses: every value is checked however an instance is made.

    Raises:
        ConfigError: a value has the wrong type, breaks a bound, or the values break a rule of the section.
    """

    def __post_init__(self) -> None:
        for field, kind in options_of(type(self)):
            self._set(field.name, check_value(getattr(self, field.name), field, kind, field.name))
        self.check_rules()

    def check_rules(self) -> None:
        """Check the rules between fields; sections that have some override this."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen once it has been made


def options_of(section: Type[Section]) -> List[Tuple[Field, Any]]:
    """The ``(field, type)`` pairs of a section class, in order; types as ``typing`` resolves them."""
    kinds = typing.get_type_hints(section)
    return [(field, kinds[field.name]) for field in dataclasses.fields(section)]


def is_section(kind: Any) -> bool:
    """Whether a field's type is itself a section."""
    return isinstance(kind, type) and issubclass(kind, Section)


def check_value(value: Any, field: Field, kind: Any, key: str) -> Any:
    """Return ``value`` in the field's type.

    Whole numbers are accepted where a number is expected, and so is text such as ``2e-5``, which YAML 1.1 does not read
    as a number; lists become tuples. True and false are never numbers.

    Raises:
        ConfigError: the value has another type, is not among the choices, or is out of bounds; it names ``key``.
    """
    if is_section(kind):
        if not isinstance(value, kind):
            raise ConfigError("{}: expected a section, got {}".format(key, describe_value(value)))
        return value
    prepare = field.metadata.get("prepare")
    value = _convert(prepare(value) if prepare else value, kind, key)
    if value is not None:
        _check_choice(value, field.metadata.get("choices"), key)
        _check_bounds(value, field.metadata, key)
        if field.metadata.get("path") and not value:
            raise ConfigError("{}: the path is empty".format(key))
    return value


def describe_type(field: Field, kind: Any) -> str:
    """The type of an option in words, such as ``a number above 0, or null``."""
    if kind is not _without_none(kind):
        return describe_type(field, _without_none(kind)) + ", or null"
    if field.metadata.get("choices"):
        return "one of {}".format(", ".join(field.metadata["choices"]))
    return ("a path" if field.metadata.get("path") else _expected(kind)) + _bounds_text(field.metadata)


def describe_value(value: Any) -> str:
    """A value as a user would recognise it in a YAML file, shortened."""
    if value is None or isinstance(value, (bool, int, float)):
        return scalar_yaml(value)
    names: Dict[type, str] = {str: "the text ", dict: "the section ", list: "the list ", tuple: "the list "}
    text = repr(value)
    return names.get(type(value), "the {} ".format(type(value).__name__)) + (
        text[:57] + "..." if len(text) > 60 else text
    )


def scalar_yaml(value: Any) -> str:
    """One value in YAML, on one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, width=float("inf"))
    return text.strip()[1:-1]


def _convert(value: Any, kind: Any, key: str) -> Any:
    inner = _without_none(kind)
    if inner is not kind:
        return None if value is None else _convert(value, inner, key)
    if getattr(kind, "__origin__", None) is tuple:
        return _convert_list(value, kind, key)
    if kind is float:
        return _convert_number(value, key)
    if type(value) is not kind:  # not isinstance: a bool is an int
        hint = ""
        if kind is str and isinstance(value, (bool, int, float)):
            hint = " (put it in quotes: YAML reads words like no and on as true or false, and digits as numbers)"
        raise _wrong_type(value, kind, key, hint)
    return value


def _convert_number(value: Any, key: str) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) not in (int, float):
        raise _wrong_type(value, float, key)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError("{}: expected a finite number, got {}".format(key, describe_value(value)))
    return number


def _convert_list(value: Any, kind: Any, key: str) -> Tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(value, kind, key)
    kinds = kind.__args__
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _wrong_type(value, kind, key)
    return tuple(_convert(item, inner, "{}[{}]".format(key, i)) for i, (item, inner) in enumerate(zip(value, kinds)))


def _check_choice(value: Any, choices: Optional[Sequence[str]], key: str) -> None:
    if choices and value not in choices:
        raise ConfigError("{}: expected one of {}, got {}".format(key, ", ".join(choices), describe_value(value)))


def _check_bounds(value: Any, rules: Mapping[str, Any], key: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if (
            ("above" in rules and not number > rules["above"])
            or ("at_least" in rules and not number >= rules["at_least"])
            or ("below" in rules and not number < rules["below"])
            or ("at_most" in rules and not number <= rules["at_most"])
        ):
            raise ConfigError("{}: expected a value{}, got {}".format(key, _bounds_text(rules), describe_value(number)))


def _bounds_text(rules: Mapping[str, Any]) -> str:
    words = [("above", "above"), ("at_least", "at least"), ("below", "below"), ("at_most", "at most")]
    parts = ["{} {}".format(text, rules[name]) for name, text in words if name in rules]
    return " " + " and ".join(parts) if parts else ""


def _wrong_type(value: Any, kind: Any, key: str, hint: str = "") -> ConfigError:
    return ConfigError("{}: expected {}, got {}{}".format(key, _expected(kind), describe_value(value), hint))


def _expected(kind: Any) -> str:
    if getattr(kind, "__origin__", None) is not tuple:
        return _SINGULAR[kind]
    many = kind.__args__[-1] is Ellipsis
    return "a list of {}{}".format("" if many else "{} ".format(len(kind.__args__)), _PLURAL[kind.__args__[0]])


def _without_none(kind: Any) -> Any:
    """The ``T`` of an ``Optional[T]``, or ``kind`` itself."""
    if getattr(kind, "__origin__", None) is not typing.Union:
        return kind
    (inner,) = [argument for argument in kind.__args__ if argument is not type(None)]
    return inner
