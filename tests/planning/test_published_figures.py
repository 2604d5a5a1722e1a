"""The comparison with the papers' figures: its rules, and the quick one of its rows; all of them in the slow tests."""

import json
import os

import published_figures
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_bands():
    row = published_figures.Row("x", "", 10.0, 12.1, "GB", 0.8, 1.2)
    assert row.ratio == pytest.approx(1.21) and row.within is False
    assert published_figures.Row("x", "", 10.0, 11.9, "GB", 0.8, 1.2).within is True
    assert published_figures.Row("x", "", 10.0, 99.0, "GB").within is None
    assert "MISSED" in published_figures.table([row])


def test_memory_of_plain_training():
    """4,688 px in half precision: 19.1 GB."""
    planned = published_figures.Planned()
    found = planned("direct", 4688, published_figures.HALF)
    assert found.device_bytes / 1e9 == pytest.approx(19.1, rel=0.2) and found.fits


@pytest.mark.slow
def test_all_rows_are_within_their_bands(tmp_path, capsys):
    assert published_figures.main(["--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len([row for row in rows if row["within"]]) >= 7 and not [row for row in rows if row["within"] is False]
    assert "all rows with a band are within it" in capsys.readouterr().out
    with open(os.path.join(ROOT, "docs", "planning.md"), encoding="utf-8") as stream:
        documented = stream.read()
    for row in rows:
        assert "| {} | {} | ".format(row["what"], row["inferred"]) in documented
