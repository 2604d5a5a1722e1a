import dataclasses
from typing import Optional, Tuple

import pytest

from whole_slide_cnn.config.options import Section, describe_type, option, options_of
from whole_slide_cnn.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Example(Section):
    count: int = option("A count.", 1, at_least=1)
    rate: float = option("A rate.", 0.5, above=0, below=1)
    flag: bool = option("A flag.", False)
    name: str = option("A name.", "a", choices=("a", "b"))
    maybe: Optional[float] = option("Maybe.", None)
    pair: Tuple[int, int] = option("A pair.", (1, 2))
    names: Tuple[str, ...] = option("Names.", ())


@pytest.mark.parametrize(
    "name, given, stored",
    [
        ("count", 3, 3),
        ("rate", "2e-5", 2e-5),
        ("rate", "5.E-1", 0.5),
        ("flag", True, True),
        ("name", "b", "b"),
        ("maybe", 3, 3.0),
        ("maybe", None, None),
        ("pair", [3, 4], (3, 4)),
        ("names", ["x", "y"], ("x", "y")),
        ("names", [], ()),
    ],
)
def test_accepts(name, given, stored):
    value = getattr(Example(**{name: given}), name)
    assert value == stored
    assert type(value) is type(stored)


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("count", True, "count: expected a whole number, got true"),
        ("count", 3.0, "count: expected a whole number, got 3.0"),
        ("count", "3", "count: expected a whole number, got the text '3'"),
        ("count", None, "count: expected a whole number, got null"),
        ("count", 0, "count: expected a value at least 1, got 0"),
        ("rate", False, "rate: expected a number, got false"),
        ("rate", "fast", "rate: expected a number, got the text 'fast'"),
        ("rate", "nan", "rate: expected a number, got the text 'nan'"),
        ("rate", float("nan"), "rate: expected a finite number, got .nan"),
        ("rate", float("inf"), "rate: expected a finite number, got .inf"),
        ("rate", 10**400, "rate: expected a finite number"),
        ("rate", 1, "rate: expected a value above 0 and below 1, got 1.0"),
        ("flag", 1, "flag: expected true or false, got 1"),
        ("flag", "yes", "flag: expected true or false, got the text 'yes'"),
        ("name", "c", "name: expected one of a, b, got the text 'c'"),
        ("name", False, "name: expected text, got false (put it in quotes"),
        ("maybe", True, "maybe: expected a number, got true"),
        ("pair", [1, 2, 3], "pair: expected a list of 2 whole numbers, got the list [1, 2, 3]"),
        ("pair", [1, "x"], "pair[1]: expected a whole number, got the text 'x'"),
        ("pair", 1, "pair: expected a list of 2 whole numbers, got 1"),
        ("names", "x", "names: expected a list of texts, got the text 'x'"),
        ("names", ["x", True], "names[1]: expected text, got true"),
    ],
)
def test_refuses(name, given, message):
    with pytest.raises(ConfigError) as caught:
        Example(**{name: given})
    assert str(caught.value).startswith(message)


def test_instances_are_frozen_and_replacing_checks_again():
    example = Example()
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.count = 2
    assert dataclasses.replace(example, count=2).count == 2
    with pytest.raises(ConfigError):
        dataclasses.replace(example, count=0)


def test_types_in_words():
    words = {field.name: describe_type(field, kind) for field, kind in options_of(Example)}
    assert words == {
        "count": "a whole number at least 1",
        "rate": "a number above 0 and below 1",
        "flag": "true or false",
        "name": "one of a, b",
        "maybe": "a number, or null",
        "pair": "a list of 2 whole numbers",
        "names": "a list of texts",
    }
