"""``benchmarks/gpu_steps.py`` measures the engines as they are: its rows, on the CPU."""

import json

import gpu_steps
import pytest


def options_of(*given):
    return gpu_steps.parser().parse_args(["--output", "-", "--backbones", "tiny", "--sides", "128", *given])


@pytest.mark.parametrize(
    "engine, option, says",
    [
        ("streaming", "streaming.window=64", {"windows", "window_shapes", "window_pixels"}),
        ("unified", "unified.strip_mb=0.5", {"groups", "evictions", "prefetches", "recomputes", "plan_peak_bytes"}),
    ],
)
def test_a_row_of_an_engine(engine, option, says, monkeypatch):
    monkeypatch.setattr(gpu_steps, "allocator_peak", lambda reset=False: 7)
    options = options_of("--engine", engine, "--option", option, "--tissue", "0.5", "--steps", "2")
    (case,) = gpu_steps.cases_of(options)
    key, value = option.partition(".")[2].split("=")
    assert case["options"] == {key: float(value)}
    rows = [json.loads(json.dumps(row)) for row in gpu_steps.measure(options, case)]
    assert [len(row["steps_s"]) for row in rows] == [1, 2, 3, 3, 3] and "step_s" not in rows[0]
    row = rows[-1]
    assert says <= set(row) and all(row[name] is not None for name in says)
    assert len(row["losses"]) == 3 and row["allocator_peak_bytes"] == 7
    assert row["planned_bytes"]["feature maps"] > 0 and row["step_s"] > 0 and row["predict_s"] > 0


def test_a_row_that_took_long_makes_no_more_steps(monkeypatch):
    options = options_of("--row-seconds", "1e-3", "--steps", "5")
    (case,) = gpu_steps.cases_of(options)
    *_, row = gpu_steps.measure(options, case)
    assert len(row["steps_s"]) == 2


def test_rows_share_a_process_and_a_failure_is_one_row_of_it(tmp_path):
    """The whole command: a row that cannot be planned, then one in the same process, then TF32 in another."""
    path = tmp_path / "found.json"
    given = ["--output", str(path), "--on-cpu", "--shared", "--steps", "1", "--deadline", "200"]
    given += ["--row", "backbone=tiny", "side=96", "streaming.window=7", "--row", "backbone=tiny", "side=96"]
    given += ["--row", "backbone=tiny", "side=96", "compute=tensorfloat32"]
    assert gpu_steps.main(given) == 1
    first, second, third = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert first["error"].startswith("ConfigError: window") and first["first_of_process"]
    assert "error" not in second and second["step_s"] > 0 and not second["first_of_process"]
    assert "error" not in third and third["compute"] == "tensorfloat32" and third["first_of_process"]


def test_what_is_compared_in_a_process_of_its_own():
    cases = ["tiny-gmp-softmax-333x450-inside-w96", "resnet18-gmp-softmax-149x170-corner-w64"]
    options = options_of("--exactness", "--types", "float32", "tensorfloat32", "--cases", *cases)
    assert gpu_steps.units_of(options) == [
        {"case": cases[0], "types": ["float64", "float32"]},
        {"case": cases[0], "types": ["tensorfloat32"]},
        {"case": cases[1], "types": ["float64"]},
    ]
