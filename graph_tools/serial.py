"""Frozen dataclasses of plain values as JSON, and back: what was written is what is read.

A class whose fields were called otherwise in files of before says so in ``FORMER_NAMES``, former name to present one.
"""

import dataclasses
import json
import typing
from typing import Any, Dict, Mapping, Type, TypeVar

from graph_tools.errors import FileError

Value = TypeVar("Value")


def to_json(value: Any) -> str:
    """A dataclass as one line of JSON; fields at their default are left out."""
    return json.dumps(_encode(value), separators=(",", ":"), sort_keys=True)


def from_json(cls: Type[Value], text: str) -> Value:
    """The dataclass that :func:`to_json` wrote, now or under former names of its fields.

    Raises:
        FileError: the text is not JSON of this class.
        GraphToolsError: whatever the class says about values that contradict each other.
    """
    try:
        value: Value = _decode(cls, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError("this is not the JSON of a {}: {}".format(cls.__name__, error)) from error
    return value


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: _encode(item) for field, item in pairs if item != field.default}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(kind: Any, data: Any) -> Any:
    arguments = getattr(kind, "__args__", None)
    if arguments:  # Tuple[X, ...], Tuple[X, Y] or Optional[X]; typing.get_origin is newer than Python 3.7
        if type(None) in arguments:
            return None if data is None else _decode(arguments[0], data)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_decode(arguments[0], item) for item in _expect(list, data))
        if len(arguments) != len(_expect(list, data)):
            raise ValueError("{} values where {} belong".format(len(data), len(arguments)))
        return tuple(_decode(part, item) for part, item in zip(arguments, data))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        present = _present_names(kind, _expect(dict, data))
        unknown = sorted(set(present) - set(hints))
        if unknown:
            raise ValueError("unknown key '{}'".format(unknown[0]))
        return kind(**{name: _decode(hints[name], item) for name, item in present.items()})
    if issubclass(kind, tuple):
        return kind(*(_decode(part, item) for part, item in zip(_hints(kind).values(), _expect(list, data))))
    if kind is float and isinstance(data, int):
        return float(data)
    return _expect(kind, data)


def _present_names(kind: Any, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Values by what their fields are called now."""
    former: Mapping[str, str] = getattr(kind, "FORMER_NAMES", {})
    if not former or former.keys().isdisjoint(data):
        return data
    present = {former.get(name, name): item for name, item in data.items()}
    if len(present) < len(data):
        raise ValueError("a field is there under two names")
    return present


_HINTS: Dict[Any, Dict[str, Any]] = {}


def _hints(kind: Any) -> Dict[str, Any]:
    """Types of a class's fields; looking them up takes longer than everything else."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def _expect(kind: Any, data: Any) -> Any:
    if type(data) is not kind:
        raise ValueError("{!r} where a {} belongs".format(data, kind.__name__))
    return data
