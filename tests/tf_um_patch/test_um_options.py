"""The table of options, sizes, and the host's memory."""

import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_um_patch import options
from tf_um_patch.build import SOURCES
from tf_um_patch.errors import OptionError


def test_the_table_is_that_of_the_shim():
    with open(os.path.join(SOURCES, "shim", "options.c"), encoding="utf-8") as stream:
        rows = re.findall(r'{"(TFUM_\w+)", TFUM_(\w+), ([^,]+),', stream.read())
    table = [(option.variable, option.kind.upper()) for option in options.OPTIONS]
    assert [(name, kind) for name, kind, _ in rows] == table
    initial = {option.variable: option.initial for option in options.OPTIONS}
    (threshold,) = [value for name, _, value in rows if name == "TFUM_THRESHOLD"]
    factor, shift = map(int, threshold.split(" << "))
    assert initial["TFUM_THRESHOLD"] == str(factor << shift)


def test_the_table_is_that_of_the_documentation():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with open(os.path.join(root, "docs", "unified-memory.md"), encoding="utf-8") as stream:
        rows = re.findall(r"^\| `(TFUM_\w+)` \| (.*?) \| (.*?) \|$", stream.read(), re.MULTILINE)
    assert rows == [(option.variable, option.initial, option.meaning) for option in options.OPTIONS]


def test_settings_name_every_variable_and_accept_what_they_write(tmp_path):
    given_settings = options.settings(1, 2, 3, True, str(tmp_path / "r"), "t")
    assert sorted(given_settings) == sorted(option.variable for option in options.OPTIONS)
    assert given_settings["TFUM_TRACE"] == os.path.abspath("t")
    options.check_environment(given_settings)
    assert options.settings() == {}
    assert options.settings(report="r") == {"TFUM_REPORT": os.path.abspath("r")}
    assert options.settings(report="-", trace="-") == {"TFUM_REPORT": "-", "TFUM_TRACE": "-"}


@pytest.mark.parametrize(
    "text, size",
    [
        ("0", 0),
        ("123", 123),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1.5 GB", 1500000000),
        ("2TiB", 2 << 40),
        (" 3MiB ", 3 << 20),
    ],
)
def test_sizes(text, size):
    assert options.parse_size(text) == size


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_sizes_in_bytes_are_exact(size):
    assert options.parse_size(str(size)) == size


@pytest.mark.parametrize("text", ["", "-1", "1 gb", "GB", "1e9", "0x10", "1G", "inf", "9999999TB", str(2**63)])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(OptionError, match="(is no size: give 0 or more bytes|: give fewer)"):
        options.parse_size(text)


@pytest.mark.parametrize(
    "variable, value, sentence",
    [
        ("TFUM_CEILING", "-1", "TFUM_CEILING=-1 cannot be used: set it to a whole number of bytes"),
        ("TFUM_CEILING", str(2**63), "cannot be used: set it to a whole number of bytes"),
        ("TFUM_SHOW", "on", "TFUM_SHOW=on cannot be used: set it to 0 or 1"),
        ("TFUM_CEILLING", "1", "TFUM_CEILLING is no variable of the shim: unset it, or did you mean TFUM_CEILING?"),
    ],
)
def test_wrong_variables_are_refused_before_anything_starts(variable, value, sentence):
    with pytest.raises(OptionError, match=re.escape(sentence)):
        options.check_environment({"PATH": "", variable: value})
