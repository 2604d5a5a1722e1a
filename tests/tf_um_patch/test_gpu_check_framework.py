"""The checks of the shim under a framework: by stand-ins for frameworks over the stand-in driver, and TensorFlow on a
CPU, where nothing can be moved and the checks must say so."""

import os
import shutil

import pytest
import tensorflow
import tensorflow.compat.v1 as tf

from tf_um_patch import ops as um
from tf_um_patch.child import Finished
from tf_um_patch.gpu_check import command, framework

BUDGET = 32 << 20
HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture
def frameworks(native, tmp_path, monkeypatch):
    """A function that runs the two checks with the named stand-ins for frameworks installed, and no other framework."""
    for name, value in native.environment(preload=False, FAKE_CUDA_LIMIT=BUDGET).items():
        monkeypatch.setenv(name, value)
    shutil.copytree(os.path.join(HERE, "frameworks"), str(tmp_path / "modules"))

    def run(*installed, seconds=120, **variables):
        for name in set(framework.NAMES) - set(installed):
            (tmp_path / "modules" / (name + ".py")).write_text("raise ImportError('left out')\n", encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))
        return command.framework_checks(BUDGET, seconds)

    return run


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_a_framework_under_the_shim(frameworks, name):
    active, moved = frameworks(name)
    assert (active.status, moved.status) == ("pass", "pass"), (active.sentence, moved.sentence)
    assert active.sentence == "{} stand-in computed in managed memory under the shim".format(name)
    assert active.values["routes"]["value"] == {"cuMemAlloc_v2.dlsym": 1}
    assert active.values["managed_allocations"]["value"] == 1 and active.values["mean"]["value"] == 1
    tensor = 4 * framework.words(BUDGET)
    assert active.values["peak"]["value"] == moved.values["bytes"]["value"] == tensor == BUDGET // 16
    assert (moved.values["after_evict"]["value"], moved.values["after_prefetch"]["value"]) == (-1, 0)
    assert moved.sentence == "the code of UmEvict and UmPrefetch moved a tensor of {} to the host and back".format(name)


@pytest.mark.parametrize(
    "fault, words",
    [
        ("small", "none of its allocations was managed memory"),
        ("greedy", "it ended with code 1 and the words: RuntimeError: cuMemAlloc_v2 returned 2"),
        ("wrong", "it computed 7.0 instead of 1"),
        ("crash", "it ended with code -6"),
        ("hang", "it was ended after 1 s"),
    ],
)
def test_a_framework_that_fails_is_no_pass(frameworks, fault, words):
    active, moved = frameworks("torch", seconds=1 if fault == "hang" else 120, FAKE_FRAMEWORK=fault)
    assert active.status == "fail" and words in active.sentence and active.sentence.count("\n") == 0
    assert moved.status != "pass"


@pytest.mark.parametrize("fault", ["still", "forget"])
def test_moves_that_do_not_move_are_no_pass(frameworks, fault):
    active, moved = frameworks("torch", FAKE_CUDA_FAULTS=fault)
    assert (active.status, moved.status) == ("pass", "fail")
    assert "did not move a tensor of torch to the host and back with its contents" in moved.sentence


def test_without_a_framework_that_sees_the_gpu_it_is_skipped(frameworks):
    found = frameworks("cupy", FAKE_FRAMEWORK="absent")
    assert [check.status for check in found] == ["skipped", "skipped"]
    assert found[0].sentence == (
        "no framework is there that sees the GPU: tensorflow cannot be imported (left out); torch cannot be imported "
        "(left out); CuPy stand-in sees no GPU"
    )


def test_a_shim_that_writes_no_report_is_no_pass(frameworks, monkeypatch):
    monkeypatch.setattr(command, "run_for", lambda *arguments: Finished(0, '{"version": "1"}\n', ""))
    active, moved = frameworks()
    assert (active.status, moved.status) == ("fail", "skipped")
    assert active.sentence == "tensorflow under the shim: the shim wrote no report at its end"


# ---- what makes a pass ----

FACTS = {
    "version": "1",
    "mean": 1.0,
    "shim": {"used_bytes": 1},
    "reason": None,
    "evict": {"bytes": 8, "location": -1, "mean": 1.0},
    "prefetch": {"bytes": 8, "location": 0, "mean": 1.0},
}
COUNTED = {"managed_allocations": 1, "peak_bytes": 8, "refused_by_ceiling": 0, "cudaMalloc.symbol": 1}


def test_what_passes():
    assert command.judge_framework("torch", FACTS, COUNTED, 8).status == "pass"
    found = command.judge_framework_moves("tensorflow", FACTS)
    assert found.status == "pass" and found.sentence.startswith("UmEvict and UmPrefetch moved a tensor of tensorflow")


@pytest.mark.parametrize(
    "facts, counted, words",
    [
        ({"shim": None}, {}, "the shim is not in its process"),
        ({"mean": 0.5}, {}, "it computed 0.5 instead of 1"),
        ({}, {"managed_allocations": 0}, "none of its allocations was managed memory"),
        ({}, {"cudaMalloc.symbol": 0}, "no route of its allocations was counted"),
        ({}, {"peak_bytes": 9}, "its allocations passed the ceiling"),
        ({}, {"refused_by_ceiling": 2}, "the ceiling refused allocations"),
    ],
)
def test_what_does_not_pass(facts, counted, words):
    found = command.judge_framework("torch", dict(FACTS, **facts), dict(COUNTED, **counted), 8)
    assert (found.status, found.sentence) == ("fail", "under torch: " + words)


@pytest.mark.parametrize(
    "facts",
    [
        {"evict": {"bytes": 0, "location": -2, "mean": 1.0}},
        {"evict": {"bytes": 8, "location": 0, "mean": 1.0}},
        {"evict": {"bytes": 8, "location": -1, "mean": 0.5}},
        {"prefetch": {"bytes": 8, "location": -1, "mean": 1.0}},
        {"prefetch": {"bytes": 8, "location": 0, "mean": 0.0}},
    ],
)
def test_moves_that_do_not_pass(facts):
    assert command.judge_framework_moves("torch", dict(FACTS, **facts)).status == "fail"


def test_moves_that_cannot_be_had_are_skipped():
    found = command.judge_framework_moves("torch", {"version": "1", "reason": "no C++ compiler is found"})
    assert (found.status, found.sentence) == ("skipped", "no C++ compiler is found")


# ---- TensorFlow itself, on a CPU ----


def test_tensorflow_without_a_gpu():
    if tensorflow.test.is_built_with_cuda() and os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a GPU")
    found = framework.main("tensorflow", BUDGET)
    assert found == {"skipped": "TensorFlow {} sees no GPU".format(tensorflow.__version__)}


def test_the_trial_of_tensorflow_computes_and_runs_the_operations(compilers):
    operations = um.load_ops()
    operations.reset_counters()
    with framework.tensorflow_trial(BUDGET, "/cpu:0") as trial:
        assert trial.version == tensorflow.__version__ and trial.reason is None
        assert trial.mean() == 1
        assert trial.evict() == trial.prefetch() == (0, 0)  # on a CPU nothing moves, which is no pass
        assert trial.mean() == 1
    found = operations.counters()
    assert (found["evict_calls"], found["prefetch_calls"]) == (1, 1)
    assert found["evict_bytes"] == 4 * framework.words(BUDGET)


def test_tensorflow_is_limited_to_less_than_the_budget():
    options = framework.tensorflow_config(tf, BUDGET).gpu_options
    (limits,) = [device.memory_limit_mb for device in options.experimental.virtual_devices]
    assert options.allow_growth and len(limits) == 1 and BUDGET / 2 <= limits[0] * 2**20 < BUDGET


def test_the_trial_of_tensorflow_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with framework.tensorflow_trial(BUDGET, "/cpu:0") as trial:
        assert trial.mean() == 1 and trial.evict is None and trial.prefetch is None
        assert "no C++ compiler is found" in trial.reason


@pytest.mark.parametrize("budget, expected", [(16 << 20, 1 << 18), (256 * 10**6, 1 << 21), (1 << 30, 1 << 24)])
def test_the_size_of_the_tensor(budget, expected):
    assert framework.words(budget) == expected
    assert 4 * expected <= budget / 16 and expected & (expected - 1) == 0
