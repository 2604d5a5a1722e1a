"""``benchmarks/gpu_steps.py`` measures the engines as they are: its rows, on the CPU."""

import gpu_steps
import pytest


@pytest.mark.parametrize(
    "engine, says",
    [
        ("streaming", {"windows", "window_shapes", "window_pixels"}),
        ("unified", {"groups", "evictions", "prefetches", "recomputes", "plan_peak_bytes"}),
    ],
)
def test_a_row_of_an_engine(engine, says, monkeypatch):
    monkeypatch.setattr(gpu_steps, "need_gpu", lambda: None)
    monkeypatch.setattr(gpu_steps, "allocator_peak", lambda: 7)
    given = ["--output", "-", "--engine", engine, "--backbones", "tiny", "--sides", "128", "--windows", "64"]
    options = gpu_steps.parser().parse_args(given + ["--tissue", "0.5", "--steps", "1"])
    (case,) = gpu_steps.cases_of(options)
    row = gpu_steps.measure(options, case)
    assert says <= set(row) and all(row[name] is not None for name in says)
    assert len(row["steps_s"]) == len(row["losses"]) == 2 and row["allocator_peak_bytes"] == 7
    assert row["planned_bytes"]["feature maps"] > 0
