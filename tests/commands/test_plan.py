"""``plan``: tables and JSON for this machine and for GPUs that are not here; what it refuses."""

import json

import pytest

from tf_um_patch.host import GpuInfo
from whole_slide_cnn import plan
from whole_slide_cnn.engines.table import ENGINES

SMALL = "--set", "streaming.window=64", "--set", "unified.strip_mb=1"


@pytest.fixture
def planned(call, slide_set):
    """A function (*options) -> Outcome of ``plan`` for the data set's configuration."""

    def run(*options):
        return call(plan.main, "--config", slide_set.path("config.yaml"), *SMALL, *options)

    return run


def test_a_plan_for_this_machine_and_for_a_gpu(planned, tmp_path):
    outcome = planned("--device", "host", "--device", "V100-32GB", "--json", tmp_path / "plan.json")
    assert outcome.code == 0 and outcome.stdout.count("recommended: direct (") == 2
    assert "on this machine (" in outcome.stdout and "on V100-32GB: device 32.8 GB, host " in outcome.stdout
    host, gpu = json.loads((tmp_path / "plan.json").read_text())
    assert [item["engine"] for item in host["estimates"]] == list(ENGINES)
    assert gpu["recommended"] == "direct" and gpu["target"]["gpu"] and gpu["compute"] == "float32"
    moved = [item["simulation"]["on_demand_bytes"] for item in gpu["estimates"] if item["engine"] == "unified"]
    assert moved == [0] * len(moved)  # all of it fits


def test_what_differs_from_the_table(planned, tmp_path):
    options = "--device-memory", "6MB", "--host-memory", "1GB", "--copy-rate", "1e9", "--half-flops", "2e12"
    outcome = planned("--device", "t4", *options, "--predict", "--tissue", "0.5", "--json", tmp_path / "plan.json")
    (found,) = json.loads((tmp_path / "plan.json").read_text())
    assert outcome.code == 0 and found["recommended"] == "direct"
    assert found["target"]["device_bytes"] == 6 * 10**6 and found["target"]["host_bytes"] == 9 * 10**8
    assert (found["target"]["copy_rate"], found["target"]["half_flops"]) == (1e9, 2e12)
    assert (found["training"], found["tissue"]) == (False, 0.5)


def test_a_host_without_memory(planned, tmp_path):
    """Nothing can leave the GPU, and nothing can read slides; it is planned all the same."""
    for size in ("0", "0GB"):
        outcome = planned("--device", "V100-32GB", "--host-memory", size, "--json", tmp_path / "plan.json")
        (found,) = json.loads((tmp_path / "plan.json").read_text())
        assert outcome.code == 1 and found["target"]["host_bytes"] == 0, outcome.stderr
        assert "of host memory and 0.000 GB are free for it" in found["reason"]
    assert planned("--device", "host", "--host-memory", "0").code == 1


def test_where_nothing_fits_the_exit_code_says_so(planned):
    outcome = planned("--device", "V100-32GB", "--device-memory", "1MB", "--host-memory", "1MB")
    assert outcome.code == 1 and "nothing fits in float32: direct does not fit (" in outcome.stdout


def test_memory_that_the_configuration_allows(planned):
    outcome = planned("--device", "V100-32GB", "--set", "memory_gb=1.5")
    assert "on V100-32GB: device 1.5 GB, host 1.5 GB for a run" in outcome.stdout


def test_a_gpu_that_is_not_in_the_table(planned, monkeypatch):
    from whole_slide_cnn.planning import targets

    monkeypatch.setattr(targets, "first_gpu", lambda: GpuInfo("NVIDIA A10", 24 * 10**9, 23 * 10**9))
    assert "NVIDIA A10 with 24.0 GB, is not in the table; name one like it by --device" in planned().sentence()


def test_measuring_a_step_here(planned, monkeypatch):
    from whole_slide_cnn.planning import targets

    measured = []
    monkeypatch.setattr(targets, "measured_scale", lambda *given: measured.append(given) or 2.0)
    assert "recommended: direct" in planned("--device", "host", "--measure", "--host-memory", "8GB").stdout
    assert [len(given) for given in measured] == [4, 5]  # a canvas of any size, and one of a window's


def test_the_known_gpus(call):
    outcome = call(plan.main, "--list-devices")
    assert outcome.code == 0 and "V100-32GB" in outcome.stdout and "H200" in outcome.stdout


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--device", "V1000"), "unknown device 'V1000' (known: "),
        (("--device", "T4", "--device-memory", "much"), "--device-memory: 'much' is not a size in bytes"),
        (
            ("--device", "T4", "--measure"),
            "--measure times a step on this machine's processor; use it with --device host",
        ),
        (("--device", "host", "--device", "V1000"), "unknown device 'V1000' (known: "),
        (("--device", "host", "--device-memory", "8GB"), "--device-memory is that of a GPU; name one with --device"),
        (("--tissue", "2"), "a tissue share of 2.0 is none; give more than 0 and at most 1"),
        (("--set", "unified.strip_mb=0.001"), "use a larger unified.strip_mb"),
    ],
)
def test_what_cannot_be_planned(planned, options, sentence):
    outcome = planned(*options)
    if "strip_mb" in options[-1]:  # the other engines can still be planned
        assert sentence in outcome.stdout and outcome.code == 0
    else:
        assert sentence in outcome.sentence() and outcome.code == 2


def test_numbers_are_checked_by_the_command_line(planned):
    outcome = planned("--copy-rate", "0")
    assert outcome.code == 2 and "expected a number above 0, got '0'" in outcome.stderr
