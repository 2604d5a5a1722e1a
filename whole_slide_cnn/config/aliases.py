"""Keys and values that were renamed: files, overrides and checkpoints of earlier versions go on working.

To rename a key, change its section and add a line to :data:`RENAMED_KEYS`; to rename or drop a value, add it to
:data:`REPLACED_VALUES`. Help and errors show the new names only.
"""

import warnings
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from whole_slide_cnn.errors import ConfigError


class Replacement(NamedTuple):
    """What an old value means now.

    Attributes:
        value: the present value.
        notice: one sentence for the user where the two differ in more than their names; None says nothing.
    """

    value: Any
    notice: Optional[str] = None


RENAMED_KEYS: Dict[str, str] = {
    "unified.choice": "unified.memory_policy",
    "unified.spill_dir": "unified.eviction_dir",
}

# By the present key.
REPLACED_VALUES: Dict[str, Dict[str, Replacement]] = {
    "unified.memory_policy": {
        "remat": Replacement("recompute"),
        **{
            name: Replacement(
                "recompute", "unified.memory_policy: {} is gone; recompute is planned instead".format(name)
            )
            for name in ("greedy", "integer", "best")
        },
    },
}


def current(values: Mapping[Any, Any]) -> Dict[Any, Any]:
    """Nested values of one source under their present keys; what is lost with a value that was dropped is warned of.

    Raises:
        ConfigError: a key is given under its old name and its present one.
    """
    found = _copied(values)
    for old, present in RENAMED_KEYS.items():
        section, name = _section_of(found, old)
        if name not in section:
            continue
        value = section.pop(name)
        into, present_name = _section_of(found, present, create=True)
        if present_name in into:
            raise ConfigError("{} is the old name of {}; give only that".format(old, present))
        into[present_name] = value
    for key in REPLACED_VALUES:
        section, name = _section_of(found, key)
        if name in section:
            replacement = _replacement(key, section[name])
            section[name] = replacement.value
            if replacement.notice is not None:
                warnings.warn(replacement.notice, stacklevel=2)
    return found


def current_keys(values: Mapping[str, Any]) -> Dict[str, Any]:
    """Values by dotted key, as a checkpoint states them, under their present keys and without a word."""
    present = {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
    return {key: _replacement(key, value).value for key, value in present.items()}


def _replacement(key: str, value: Any) -> Replacement:
    replaced = REPLACED_VALUES.get(key, {})
    return replaced[value] if isinstance(value, str) and value in replaced else Replacement(value)


def _copied(values: Mapping[Any, Any]) -> Dict[Any, Any]:
    """The mapping and the mappings in it anew, so that a source stays as it was read."""
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in values.items()}


def _section_of(values: Dict[Any, Any], key: str, create: bool = False) -> Tuple[Dict[Any, Any], str]:
    """The mapping that holds a dotted key, or an empty one, and the key's last part."""
    *sections, name = key.split(".")
    for part in sections:
        if create and values.get(part) is None:
            values[part] = {}
        inner = values.get(part)
        values = inner if isinstance(inner, dict) else {}
    return values, name
