"""What a check found."""

from typing import Any, Dict, NamedTuple

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


class Check(NamedTuple):
    """The result of one check.

    Attributes:
        name: of the check.
        status: PASS, FAIL or SKIPPED.
        sentence: what was found, in words.
        values: what was measured, each with its unit: ``{"time": {"value": 1.5, "unit": "ms"}}``.
    """

    name: str
    status: str
    sentence: str
    values: Dict[str, Dict[str, Any]] = {}

    def to_json(self) -> Dict[str, Any]:
        """The same as plain dictionaries."""
        return dict(self._asdict())


def measured(value: Any, unit: str) -> Dict[str, Any]:
    """A value with its unit, rounded to what is worth reading."""
    return {"value": float("{:.4g}".format(value)) if isinstance(value, float) else value, "unit": unit}


def verdict(name: str, good: bool, sentence: str, otherwise: str, values: Dict[str, Dict[str, Any]]) -> Check:
    """A check that passes with one sentence, or fails with another."""
    return Check(name, PASS if good else FAIL, sentence if good else otherwise, values)
