"""Frozen dataclasses of plain values as JSON, and back: what was written is what is read."""

import dataclasses
import json
import typing

from graph_tools.errors import FileError


def to_json(value) -> str:
    """A dataclass as one line of JSON; fields at their default are left out."""
    return json.dumps(_encode(value), separators=(",", ":"), sort_keys=True)


def from_json(cls, text: str):
    """The dataclass that :func:`to_json` wrote.

    Raises:
        FileError: the text is not JSON of this class.
        GraphToolsError: whatever the class says about values that contradict each other.
    """
    try:
        return _decode(cls, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError("this is not the JSON of a {}: {}".format(cls.__name__, error)) from error


def _encode(value):
    if dataclasses.is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: _encode(item) for field, item in pairs if item != field.default}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(kind, data):
    arguments = getattr(kind, "__args__", None)
    if arguments:  # Tuple[X, ...], Tuple[X, Y] or Optional[X]; typing.get_origin is newer than Python 3.7
        if type(None) in arguments:
            return None if data is None else _decode(arguments[0], data)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_decode(arguments[0], item) for item in _expect(list, data))
        if len(arguments) != len(_expect(list, data)):
            raise ValueError("{} values where {} belong".format(len(data), len(arguments)))
        return tuple(_decode(part, item) for part, item in zip(arguments, data))
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        unknown = sorted(set(_expect(dict, data)) - set(hints))
        if unknown:
            raise ValueError("unknown key '{}'".format(unknown[0]))
        return kind(**{name: _decode(hints[name], item) for name, item in data.items()})
    if issubclass(kind, tuple):
        return kind(*(_decode(part, item) for part, item in zip(_hints(kind).values(), _expect(list, data))))
    if kind is float and isinstance(data, int):
        return float(data)
    return _expect(kind, data)


_HINTS: typing.Dict[type, dict] = {}


def _hints(kind):
    """Types of a class's fields; looking them up takes longer than everything else."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def _expect(kind, data):
    if type(data) is not kind:
        raise ValueError("{!r} where a {} belongs".format(data, kind.__name__))
    return data
