"""``python -m tf_um_patch gpu-check`` over the stand-in driver, whose faults it must find, and without a GPU."""

import json
import os
import re
import sys
import time

import pytest

from tf_um_patch import child, probe
from tf_um_patch.errors import OptionError
from tf_um_patch.gpu_check import card, command, figures, framework, measure
from tf_um_patch.gpu_check.result import Check
from tf_um_patch.options import OPTIONS

MIB = 1 << 20
BUDGET = 32 * MIB
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ALL = list(measure.NAMES) + ["shim", "framework", "framework_moves"]


class Runner:
    """Runs the command, or its driver checks alone, over the stand-in.

    Attributes:
        output: the folder that the command writes to.
        left: the file in which the stand-in writes down what a process did not give back.
    """

    def __init__(self, native, folder):
        self.native, self.output, self.left = native, folder / "out", folder / "left"
        self.modules = folder / "modules"
        self.modules.mkdir()
        for name in framework.NAMES:  # they take seconds to import; see test_gpu_check_framework.py
            (self.modules / (name + ".py")).write_text("raise ImportError('left out')\n", encoding="utf-8")

    def __call__(self, *arguments, **variables):
        """Exit code, report (None where it refuses) and standard error of the command."""
        options = ("--output", str(self.output), "--budget", str(BUDGET))
        done = self._run("tf_um_patch", "gpu-check", *options, *arguments, **variables)
        report = json.loads(done.stdout) if done.stdout else None
        if report:
            assert json.loads((self.output / command.FILE).read_text(encoding="utf-8")) == report
        return done.returncode, report, done.stderr

    def measure(self, **variables):
        """The results of the driver checks, by name in their order."""
        done = self._run("tf_um_patch.gpu_check.measure", str(BUDGET), **variables)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [check["name"] for check in found] == list(measure.NAMES)
        return {check["name"]: check for check in found}

    def _run(self, module, *arguments, **variables):
        # In front of the installed packages; conftest's own value is only the repository, which the command adds.
        variables["PYTHONPATH"] = os.pathsep.join([ROOT, str(self.modules)])
        given = dict({"FAKE_CUDA_LEFT": self.left, "FAKE_CUDA_LIMIT": BUDGET}, **variables)
        return self.native.run(sys.executable, "-m", module, *arguments, preload=False, **given)


@pytest.fixture
def check(native, tmp_path):
    """A :class:`Runner`."""
    return Runner(native, tmp_path)


def failed(results):
    """Names of the checks that failed, of a report or of :meth:`Runner.measure`."""
    checks = results["checks"] if "checks" in results else results.values()
    return {check["name"] for check in checks if check["status"] == "fail"}


def sentence(report, name):
    """What a report says of a check."""
    (found,) = [check["sentence"] for check in report["checks"] if check["name"] == name]
    return found


# ---- a GPU that works ----


@pytest.fixture(scope="module")
def passed(native, tmp_path_factory):
    """A run in which all is well, on a card that has just enough free: (runner, exit code, report, standard error).

    The stand-in ends a process that passes FAKE_CUDA_LIMIT, and writes down what is not given back.
    """
    runner = Runner(native, tmp_path_factory.mktemp("passed"))
    return (runner,) + runner(FAKE_CUDA_FREE=4 * BUDGET)


def test_everything_passes_within_the_budget(passed):
    runner, code, report, said = passed
    assert code == 0, said
    assert report["status"] == "pass" and said.startswith("on Stand-in 0 9 checks pass, 0 fail and 2 were skipped; the")
    assert [check["name"] for check in report["checks"]] == ALL
    assert {check["name"] for check in report["checks"] if check["status"] == "skipped"} == set(ALL[-2:])
    assert "tensorflow cannot be imported (left out); torch cannot" in sentence(report, "framework")
    assert not runner.left.exists()
    assert [os.path.basename(path) for path in report["figures"]] == ["timeline.png", "memory.png"]
    for path in report["figures"]:
        with open(path, "rb") as stream:
            assert stream.read(8) == b"\x89PNG\r\n\x1a\n"
    assert report["gpu"]["name"] == "Stand-in 0" and report["budget"] == {"value": BUDGET, "unit": "bytes"}
    assert report["shared"] is True  # most of the card is taken
    assert report["driver"] == "12.4"


def test_measured_values_are_those_of_the_stand_in(passed):
    """Its times are simulated: 10 GB/s of moves, 2 GB/s of faults, 0.004 ns per byte of a kernel."""
    values = {found["name"]: found["values"] for found in passed[2]["checks"]}
    count = values["allocation"]["bytes_of_each"]["value"]
    assert BUDGET / 2 - 4 * MIB <= count < BUDGET / 2 and count % card.PAGE == 0
    assert values["prefetch"]["to_device"] == values["prefetch"]["to_host"] == {"value": 10.0, "unit": "GB/s"}
    assert values["pages"]["on_demand"]["value"] == pytest.approx(1 / 0.504, rel=1e-3)
    assert values["pages"]["ratio"]["value"] == pytest.approx(0.504 / 0.004, rel=1e-3)
    assert values["managed_cost"]["ratio"]["value"] == 1.0
    assert values["managed_cost"]["plain_time"] == {"value": pytest.approx(count * 4e-9, rel=1e-3), "unit": "ms"}
    overlap = {name: entry["value"] for name, entry in values["overlap"].items()}
    assert overlap["kernel_time"] == pytest.approx(overlap["prefetch_time"], rel=1e-3)
    assert overlap["overlap"] == pytest.approx(1, abs=1e-3)
    assert overlap["timeline"] == [[0.0, pytest.approx(overlap["together_time"], rel=1e-3)]] * 2


def test_every_value_has_a_unit(passed):
    for found in passed[2]["checks"]:
        assert found["sentence"]
        for entry in found["values"].values():
            assert set(entry) == {"value", "unit"} and entry["unit"]


def test_one_that_passed_its_budget_would_be_seen(check):
    code, report, _ = check(FAKE_CUDA_LIMIT=BUDGET // 2)
    assert code == 1 and "ended with code -6" in sentence(report, "allocation")


# ---- a GPU that does not work ----


@pytest.mark.parametrize(
    "fault, failing, words",
    [
        (
            "still",
            {"prefetch", "pages", "moves", "overlap"},
            "the last prefetch location was not where memory was told",
        ),
        ("pretend", {"pages", "overlap"}, "less than 2.0: they did not move"),
        ("forget", {"prefetch", "pages", "moves", "managed_cost"}, "contents were lost on the way"),
        ("serial", {"overlap"}, "0% of a prefetch overlaps with a kernel, less than 50%"),
        ("slow", {"managed_cost"}, "5.00 times as long on managed memory on the device as on plain memory, more than"),
        ("nameless", {"allocation", "moves"}, "the driver calls managed memory plain, or plain memory managed"),
        ("timeless", {"allocation"}, "a kernel took 0.0 s by CUDA's events: update the NVIDIA driver"),
        (
            "idle",
            {"allocation", "prefetch", "pages", "moves", "overlap", "managed_cost"},
            "memory does not hold what a kernel wrote to it",
        ),
    ],
)
def test_faults_without_an_error_are_found(check, fault, failing, words):
    found = check.measure(FAKE_CUDA_FAULTS=fault)
    assert failed(found) == failing
    assert words in found[next(name for name in ALL if name in failing)]["sentence"]
    assert not check.left.exists()


@pytest.mark.parametrize(
    "function, failing",
    [
        ("cuDevicePrimaryCtxRetain", "attributes"),
        ("cuStreamCreate", "attributes"),
        ("cuModuleLoadData", "attributes"),
        ("cuModuleGetFunction", "attributes"),
        ("cuMemAllocManaged", "allocation"),
        ("cuPointerGetAttribute", "allocation"),
        ("cuLaunchKernel", "allocation"),
        ("cuEventCreate", "allocation"),
        ("cuEventElapsedTime", "allocation"),
        ("cuMemPrefetchAsync", "prefetch"),
        ("cuMemRangeGetAttribute", "prefetch"),
        ("cuStreamDestroy_v2", "given_back"),
        ("cuModuleUnload", "given_back"),
    ],
)
def test_a_call_that_fails_is_named_in_one_sentence(check, function, failing):
    found = check.measure(FAKE_CUDA_FAIL=function + ":719")
    assert failed(found) == {failing}
    assert found[failing]["sentence"] == "{} returned 719: see CUresult in CUDA's documentation".format(function)
    later = list(found.values())[measure.NAMES.index(failing) + 1 :]
    assert {check["status"] for check in later} <= {"skipped"}
    assert not check.left.exists()


SPANS = """
import ctypes, json
from tf_um_patch.driver import LIBRARY
from tf_um_patch.gpu_check.card import Card, Driver
card = Card(Driver(), 1 << 24)
own = ctypes.CDLL(LIBRARY)
address = card.managed(1 << 20)
card.move(address, 1 << 20, -1)
works = [(lambda: card.spin(10 ** 4), card.compute), (lambda: card.enqueue_move(address, 1 << 20, 0), card.copy)]
events = own.fake_calls(b"cuEventCreate")
spans = card.spans(works)
waits, events = own.fake_calls(b"cuStreamWaitEvent"), own.fake_calls(b"cuEventCreate") - events
print(json.dumps([spans, waits, events == own.fake_calls(b"cuEventDestroy_v2")]))
"""


def test_spans_have_one_origin(native):
    """A stream that has nothing to do could otherwise begin before the origin of all times was recorded."""
    spans, waits, destroyed = native.python(SPANS, preload=False)
    assert [pytest.approx(end) for _, end in spans] == [1e4 * 2e-9, (1 << 20) * 1e-10]
    assert [start for start, _ in spans] == [0, 0] and waits == 1 and destroyed


def test_memory_that_cannot_be_given_back_is_found(check):
    found = check.measure(FAKE_CUDA_FAIL="cuMemFree_v2:719")
    assert failed(found) == {"given_back"} and "cuMemFree_v2 returned 719" in found["given_back"]["sentence"]
    assert check.left.read_text(encoding="ascii").startswith("3 allocations")


def test_the_command_says_what_failed(check):
    code, report, said = check(FAKE_CUDA_FAULTS="pretend")
    assert code == 1 and report["status"] == "fail" and failed(report) == {"pages", "overlap"}
    assert said.startswith("pages fails: a kernel takes 1.00 times") and "\noverlap fails: " in said
    assert said.count("\n") == 3


@pytest.mark.parametrize("attributes", ["83:0", "89:0"])
def test_a_gpu_without_paging_is_not_asked_to_page(check, attributes):
    found = check.measure(FAKE_CUDA_ATTRIBUTES=attributes)
    assert failed(found) == {"attributes"}
    assert {found[name]["status"] for name in measure.NAMES[1:]} == {"skipped"}
    assert "use one of compute capability 6.0 or later" in found["attributes"]["sentence"]


def test_a_card_that_hangs_ends_the_check(check):
    start = time.time()
    code, report, said = check("--timeout", "2", FAKE_CUDA_FAULTS="hang")
    assert code == 1 and time.time() - start < 60
    assert "attributes" not in failed(report)  # what was known before is kept
    assert "was ended after 2 s, for the card may hang" in sentence(report, "allocation")
    assert failed(report) == {"allocation"} and "allocation fails: " in said


@pytest.mark.parametrize("known, code", [(8, -11), (8, None), (3, 1), (0, 1), (2, 0)])
def test_a_process_of_checks_that_does_not_end_well_is_no_pass(monkeypatch, known, code):
    lines = [json.dumps(Check(name, "pass", "fine").to_json()) + "\n" for name in measure.NAMES[:known]]
    output = "".join(lines) + '{"name": "half a li'
    monkeypatch.setattr(command, "run_for", lambda *arguments: child.Finished(code, output, "words\n"))
    found = command.driver_checks(BUDGET, 60)
    assert [check.name for check in found] == list(measure.NAMES)
    known = min(known, 7)
    assert [check.status for check in found] == ["pass"] * known + ["fail"] + ["skipped"] * (7 - known)
    assert "did not end well: it " in found[known].sentence


def test_a_shim_without_effect_is_found(check):
    code, report, _ = check(FAKE_CUDA_ATTRIBUTES="89:0")
    assert code == 1 and "shim" in failed(report)
    assert "did not become managed memory (plain)" in sentence(report, "shim")


def test_without_a_compiler_what_needs_one_is_skipped(check):
    code, report, _ = check(CC="no-such-compiler")
    skipped = {check["name"] for check in report["checks"] if check["status"] == "skipped"}
    assert code == 0 and skipped == {"moves", "shim", "framework", "framework_moves"}
    assert "no C compiler is found" in sentence(report, "shim")


# ---- what is refused ----


@pytest.mark.parametrize(
    "arguments, variables, words",
    [
        (
            [],
            {"FAKE_CUDA_FREE": 4 * BUDGET - 1},
            "is more than a quarter of the 134217727 bytes that Stand-in 0 has free",
        ),
        (["--budget", "3GiB"], {}, "a card hangs where managed memory exceeds what is free: give at most 2147483648"),
        (["--budget", "lots"], {}, "--budget: 'lots' is no size"),
        (["--budget", "1MB"], {}, "--budget 1MB is too small to time anything: give 16777216 or more"),
        (["--timeout", "0"], {}, "--timeout 0 cannot be used: give a number of seconds above 0"),
        (["--timeout", "soon"], {}, "--timeout soon cannot be used"),
        (["--output", "/proc/nowhere"], {}, "--output /proc/nowhere cannot be written"),
        ([], {command.REQUIRE_VARIABLE: "yes"}, "TF_UM_PATCH_REQUIRE_GPU=yes cannot be used: set it to 0 or 1"),
    ],
)
def test_refused_in_one_sentence(check, arguments, variables, words):
    code, report, said = check(*arguments, **variables)
    assert code == 2 and report is None
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_a_card_that_others_filled_meanwhile_is_left_alone(check):
    """Between the command's question and the allocation."""
    found = check.measure(FAKE_CUDA_FREE=BUDGET, FAKE_CUDA_LIMIT=MIB)
    assert failed(found) == {"allocation"}
    assert "bytes are not allocated: together " in found["allocation"]["sentence"]
    assert "others may have filled meanwhile; try again with a smaller" in found["allocation"]["sentence"]


@pytest.mark.parametrize("free, refused", [(400, False), (399, True), (0, True)])
def test_refusal(free, refused):
    assert (card.refusal(100, free, "A card") is not None) is refused


def test_more_than_the_budget_is_never_allocated():
    driver = card.Driver.__new__(card.Driver)
    driver.memory = lambda: (1000, 1000)
    own = card.Card.__new__(card.Card)
    own.driver, own.budget, own.allocated = driver, 300, 100
    own._fit(200)
    with pytest.raises(card.DriverError, match="201 bytes are not allocated: together 301 of a budget of 300"):
        own._fit(201)
    own.budget = 1000
    with pytest.raises(card.DriverError, match="251 bytes are not allocated"):
        own._fit(251)


# ---- no GPU ----


def has_gpu():
    return probe.probe()["devices"] > 0


def test_without_a_driver_it_says_so(check):
    if has_gpu():
        pytest.skip("this machine has a GPU")
    code, report, said = check(LD_LIBRARY_PATH="")
    assert code == command.EXIT_NO_GPU == 77 and report["status"] == "no GPU"
    assert report["checks"] == report["figures"] == [] and said.count("\n") == 1
    assert said.startswith("there is no GPU here, so nothing was checked (libcuda.so.1 cannot be loaded")


@pytest.mark.parametrize("value, code", [("1", 1), ("0", 77)])
def test_a_variable_makes_a_missing_gpu_a_failure(check, value, code):
    found, report, _ = check(FAKE_CUDA_DEVICES=0, **{command.REQUIRE_VARIABLE: value})
    assert found == code and report["status"] == "no GPU" and "cuInit returned 100" in report["sentence"]


def test_the_variable_is_none_that_the_shim_refuses():
    assert not command.REQUIRE_VARIABLE.startswith("TFUM_")
    assert command.REQUIRE_VARIABLE not in {option.variable for option in OPTIONS}


@pytest.mark.parametrize("failing", ["cuInit:3", "cuDevicePrimaryCtxRetain:2", "cuDeviceGetName:719"])
def test_a_gpu_that_cannot_be_used_is_no_missing_gpu(check, failing):
    code, report, said = check(FAKE_CUDA_FAIL=failing)
    assert code == 1 and report["status"] == "fail" and report["checks"] == []
    assert said.startswith("the GPU cannot be used: {} returned".format(failing.split(":")[0]))


def test_without_matplotlib_there_are_no_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    checks = [Check(name, "pass", "", {"time": {"value": 1.0, "unit": "ms"}}) for name in ("overlap", "pages")]
    assert figures.draw(checks, "", str(tmp_path)) == [] and os.listdir(str(tmp_path)) == []


def test_figures_of_an_earlier_run_do_not_stay(check):
    check.output.mkdir()
    for name in (figures.TIMELINE, figures.MEMORY):
        (check.output / name).write_bytes(b"old")
    check(FAKE_CUDA_DEVICES=0)
    assert os.listdir(str(check.output)) == [command.FILE]


# ---- parts ----


def test_the_documentation_has_the_same_checks_and_numbers():
    with open(os.path.join(ROOT, "docs", "unified-memory.md"), encoding="utf-8") as stream:
        text = stream.read()
    (section,) = re.findall(r"^## Checks on a GPU$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert list(rows) == ALL
    assert "at least {:g} times".format(measure.LEAST_FAULT_RATIO) in rows["pages"]
    assert "at least {:.0f} %".format(100 * measure.LEAST_OVERLAP) in rows["overlap"]
    assert "at most {} times".format(measure.LARGEST_MANAGED_RATIO) in rows["managed_cost"]
    assert re.findall(r"^\| (\d+) \|", section, re.MULTILINE) == ["0", "1", "2", str(command.EXIT_NO_GPU)]
    assert "medians of {},".format(measure.REPEATS) in section and command.REQUIRE_VARIABLE + "=1" in section


def test_a_process_that_does_not_end_is_ended_with_its_children(tmp_path):
    mark = tmp_path / "mark"
    script = "(sleep 1; touch {}) & echo started; sleep 600".format(mark)
    done = child.run_for(["sh", "-c", script], dict(os.environ), 0.3)
    assert done.code is None and done.output == "started\n"
    assert done.why(0.3) == "it was ended after 0.3 s, for the card may hang: look at it with nvidia-smi"
    time.sleep(1)
    assert not mark.exists()


def test_why_a_process_did_not_end_well():
    done = child.run_for(["sh", "-c", "echo first >&2; echo last >&2; exit 3"], dict(os.environ), 60)
    assert done == (3, "", "first\nlast\n") and done.why(60) == "it ended with code 3 and the words: last"
    assert child.Finished(-11, "", "").why(60) == "it ended with code -11 and the words: none"


def test_only_the_first_gpu_and_no_other_way_to_memory(monkeypatch):
    for name in command._SETTINGS_OF_FRAMEWORKS + ("TFUM_CEILING",):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = command._environment()
    assert not set(command._SETTINGS_OF_FRAMEWORKS + ("TFUM_CEILING",)) & set(found)
    assert found["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert command._environment()["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_size_of_the_budget_is_read_as_elsewhere():
    assert command._budget("256MB") == 256 * 10**6 and command._budget("1GiB") == 1 << 30
    with pytest.raises(OptionError, match="--budget"):
        command._budget("-1")
