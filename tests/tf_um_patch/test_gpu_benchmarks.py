"""The commands that measure on a GPU: without one, over the stand-in driver, and what of them is arithmetic alone."""

import json
import os
import struct
import sys

import gpu_layers
import gpu_probe
import gpu_steps
import numpy as np
import ptx
import pytest
from gpu import card, kernels, rates, schedule

from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size

MIB = 1 << 20
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROBE = os.path.join(ROOT, "benchmarks", "gpu_probe.py")
RESULTS = os.path.join(ROOT, "docs", "gpu", "2026-11-27-h200")
ABSENT = {"absent": True, "error": None, "free": None}


# ---- where there is no GPU, or not room enough on it ----


@pytest.mark.parametrize("command", [gpu_layers, gpu_probe, gpu_steps])
def test_without_a_gpu_they_say_so_in_one_sentence(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "run_probe", lambda: ABSENT)
    assert command.main(["--output", str(tmp_path / "found.json")]) == 77
    said = capsys.readouterr()
    assert said.err == "there is no GPU here, so nothing was measured (the driver sees none)\n" and said.out == ""
    assert not os.listdir(str(tmp_path))


def test_a_gpu_that_cannot_be_used_is_a_failure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_probe, "run_probe", lambda: dict(ABSENT, absent=False, error="cuInit returned 999"))
    assert gpu_probe.main(["--output", str(tmp_path / "found.json")]) == 1
    assert "the GPU cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    "budget, free, why",
    [
        ("1GB", 4 * 10**9 - 4, "more than a quarter of the 3999999996 bytes"),
        ("8001MB", 10**12, "cannot be used: give"),
        ("63MiB", 10**12, "cannot be used: give"),
    ],
)
def test_a_budget_is_refused_before_anything_is_allocated(budget, free, why, monkeypatch, tmp_path, capsys):
    facts = {"absent": False, "error": None, "free": free, "name": "A card"}
    monkeypatch.setattr(gpu_probe, "run_probe", lambda: facts)
    assert gpu_probe.main(["--output", str(tmp_path / "found.json"), "--budget", budget]) == 2
    assert why in capsys.readouterr().err


def test_a_budget_that_fits_is_not_refused():
    assert gpu_probe.refused(10**9, 4 * 10**9, "A card") is None


@pytest.mark.parametrize("budget", [card.LEAST_BUDGET, 10**9 + 1, 43 * 10**8, card.MOST_BUDGET])
def test_units_are_pages_and_the_largest_part_fits_a_budget(budget):
    unit = card.unit_of(budget)
    assert unit > 0 and unit % card.PAGE == 0 and card.UNITS * unit + card.PAGE < budget
    block = max(card.PAGE, 4 * unit // 26 // card.PAGE * card.PAGE)
    assert len(schedule.blocks_of(schedule.steps_of())) * block + card.PAGE < budget


def test_the_default_budget_has_units_of_a_gibibyte():
    assert card.unit_of(gpu_probe.size(gpu_probe.BUDGET)) == 1 << 30


# ---- over the stand-in ----


@pytest.fixture(scope="module")
def probed(native, tmp_path_factory):
    """What a run of all parts wrote that need no framework; the stand-in ends what passes the budget."""
    folder = tmp_path_factory.mktemp("probed")
    path, budget = str(folder / "found.json"), card.LEAST_BUDGET
    options = ["--output", path, "--budget", str(budget), "--repeats", "1", "--only"] + list(gpu_probe.PARTS)
    limits = {"FAKE_CUDA_FREE": 4 * budget, "FAKE_CUDA_LIMIT": budget, "FAKE_CUDA_LEFT": folder / "left"}
    done = native.run(sys.executable, PROBE, *options, preload=False, **limits)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "left").exists()  # where it writes what is not given back
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def test_every_part_is_measured(probed):
    assert set(gpu_probe.PARTS) <= set(probed) and probed["gpu"]["name"] == "Stand-in 0"
    assert not [name for name in gpu_probe.PARTS if "error" in probed[name]]


def test_rates_are_those_of_the_stand_in(probed):
    """It moves 10 GB/s, faults in 2 GB/s, and its kernels take 0.004 ns per byte."""
    assert [row["bytes"] for row in probed["rates"]] == [factor * probed["unit"] for factor in rates.FACTORS]
    assert {row[way] for row in probed["rates"] for way in ("to_host", "to_device")} == {10.0}
    first = probed["faults"][0]
    assert (first["read_host_resident"], first["write_device_resident"], first["value_ok"]) == (1.98, 250.0, True)
    assert first["prefetch_never_touched"] == 10.0


def test_the_schedule_is_in_the_report(probed):
    found = probed["schedule"]
    assert len(found["steps"]) == 40 and set(found["runs"]) == {"spin_2ms", "spin_6ms"}
    assert set(found["runs"]["spin_2ms"]) == {
        "all resident",
        "on demand",
        "ahead, one stream",
        "ahead, two streams",
        "ahead, two streams, slack",
    }


def test_a_part_that_fails_does_not_take_the_others_with_it(monkeypatch, tmp_path):
    facts = {"absent": False, "error": None, "free": 10**12, "total": 10**12, "name": "A card", "capability": "9.0"}
    monkeypatch.setattr(gpu_probe, "run_probe", lambda: dict(facts, version="13.0"))
    command = [sys.executable, "-c", "print('{\"found\": 7}')"]
    failing = [sys.executable, "-c", "raise SystemExit('it is broken')"]
    monkeypatch.setattr(gpu_probe, "command_of", lambda name, *_: failing if name == "rates" else command)
    path = tmp_path / "found.json"
    assert gpu_probe.main(["--output", str(path), "--only", "rates", "faults"]) == 1
    report = json.loads(path.read_text(encoding="utf-8"))
    assert "it is broken" in report["rates"]["error"] and report["faults"] == 7


# ---- the schedule ----


def recorded():
    """The schedule that a card ran, as it was planned then."""
    with open(os.path.join(RESULTS, "probe.json"), encoding="utf-8") as stream:
        return json.load(stream)["schedule"]


def as_lists(values):
    """Named tuples of tuples as JSON has them."""
    return [{name: list(field) for name, field in value._asdict().items()} for value in values]


def test_the_recorded_schedule_is_the_one_that_is_planned():
    found, steps = recorded(), schedule.steps_of()
    assert as_lists(steps) == found["steps"]
    for name, lookahead in (("lru", False), ("lookahead", True)):
        moves = schedule.plan(steps, found["capacity_blocks"], lookahead)
        assert as_lists(moves) == found[name]
        assert sum(len(move.evict) for move in moves) == found["evicted_blocks_" + name]


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("capacity", [6, 7, 11])
def test_a_schedule_never_holds_more_than_the_device_does(capacity, lookahead):
    moves = schedule.plan(schedule.steps_of(), capacity, lookahead)
    held = set(schedule.resident_after(moves))
    before = set(held)
    for move in moves:
        assert set(move.evict) <= held and not set(move.evict) & set(move.touch + move.ahead)
        held = held - set(move.evict) | set(move.touch) | set(move.ahead)
        assert len(held) <= capacity
    assert held == before  # an iteration leaves what it begins with


def test_a_schedule_that_fits_evicts_nothing():
    steps = schedule.steps_of(2)
    moves = schedule.plan(steps, len(schedule.blocks_of(steps)), True)
    assert steps[2:] == [(("x1", "x2"), ("g1",)), (("x0", "g1"), ("g0",))]
    assert not [move for move in moves if move.evict]


# ---- small parts ----


def test_ranges_of_flags():
    assert card.runs([]) == [] and card.runs([False]) == []
    assert card.runs([True, True, False, True]) == [(0, 2), (3, 4)]


def test_pieces_cover_a_range_once():
    assert list(rates.pieces(70, 32)) == [(0, 32), (32, 32), (64, 6)]


def test_the_reading_kernel_reads_every_word():
    values = [3, 5, 7, 11, 13, 17, 19]
    memory = bytearray(struct.pack("<13I", *(values + [99] * 6)))
    ptx.run(kernels.PTX.decode("ascii"), "probe_read", 2, 3, [0, 7, 0, 28], memory)
    assert list(struct.unpack("<13I", memory)) == values + [3 + 19, 5, 7, 11, 13, 17]


@pytest.mark.parametrize("count", [0, 1, 6, 7, 25])
def test_the_writing_kernel_sets_every_word_and_no_other(count):
    memory = bytearray(struct.pack("<{}I".format(count + 1), *[1] * (count + 1)))
    ptx.run(kernels.PTX.decode("ascii"), "probe_write", 2, 3, [0, count, 5, 0], memory)
    assert list(struct.unpack("<{}I".format(count + 1), memory)) == [5] * count + [1]


# ---- steps ----


def test_rows_are_all_combinations_and_windows_are_of_streaming_alone():
    given = ["--output", "-", "--sides", "1", "2", "--windows", "3", "4", "--types", "float32", "bfloat16"]
    found = gpu_steps.cases_of(gpu_steps.parser().parse_args(given))
    assert len(found) == 8
    assert found[1] == {
        "backbone": "fixup_resnet50", "side": 1, "window": 3, "compute": "bfloat16", "engine": "streaming",
        "pooling": "gmp", "tissue": 0.22, "options": {"window": 3},
    }  # fmt: skip
    found = gpu_steps.cases_of(gpu_steps.parser().parse_args(given + ["--engine", "direct"]))
    assert len(found) == 4 and {case["window"] for case in found} == {None}


def test_a_summary_leaves_the_first_step_out():
    found = gpu_steps.summary([60.0, 2.0, 4.0, 3.0], [9.0, 0.5])
    assert (found["first_step_s"], found["step_s"], found["trained_per_minute"]) == (60.0, 3.0, 20.0)
    assert (found["predict_s"], found["predicted_per_minute"]) == (0.5, 120.0)


@pytest.mark.parametrize("side, share", [(700, 0.22), (2100, 0.6)])
def test_a_slide_has_its_share_of_tissue(side, share):
    image = gpu_steps.tissue_image(side, share)
    assert image.shape == (side, side, 3)
    assert (image != 255).any(axis=-1).mean() == pytest.approx(share, abs=0.01)
    assert np.array_equal(image, gpu_steps.tissue_image(side, share))


def test_digests_find_a_difference():
    random = np.random.RandomState(0)
    gradients = {"a": random.randn(30, 4), "b": random.randn(7)}

    def digest(**changed):
        return gpu_steps.digest(gpu_steps.exactness.Result(np.array([0.5]), dict(gradients, **changed), {}))

    assert gpu_steps.digest_error(digest(), digest()) == 0
    assert 1e-9 < gpu_steps.digest_error(digest(b=gradients["b"] * (1 + 1e-6)), digest()) < 2e-6
    assert gpu_steps.digest_error(digest(a=-gradients["a"]), digest()) > 1e-3


def test_cases_of_the_exactness_are_cases_of_make_exactness():
    assert set(gpu_steps.EXACTNESS) <= set(gpu_steps.CASES)


def test_rows_can_be_named_one_by_one():
    given = ["--output", "-", "--option", "streaming.window=96", "--option", "unified.strip_mb=2", "--tissue", "0.5"]
    given += ["--row", "side=64", "--row", "compute=float16", "tissue=0.2", "streaming.window=32"]
    given += ["--row", "engine=unified", "backbone=tiny"]
    first, second, third = gpu_steps.cases_of(gpu_steps.parser().parse_args(given))
    assert (first["side"], first["compute"], first["tissue"]) == (64, "float32", 0.5)
    assert (second["side"], second["compute"], second["tissue"]) == (4688, "float16", 0.2)
    assert (first["options"], second["options"]) == ({"window": 96}, {"window": 32})
    assert (third["backbone"], third["options"]) == ("tiny", {"strip_mb": 2})
    with pytest.raises(SystemExit, match="--row sides=3: rows have backbone, side"):
        gpu_steps.cases_of(gpu_steps.parser().parse_args(["--output", "-", "--row", "sides=3"]))


def child(monkeypatch, *lines, end="", code=0):
    """The command with a stand-in for the process that measures: it prints lines, does something, ends."""
    program = "import sys, time; print({!r}, flush=True); {}; sys.exit({})".format("\n".join(lines), end or "0", code)
    start = gpu_steps.subprocess.Popen
    monkeypatch.setattr(
        gpu_steps.subprocess, "Popen", lambda command, **pipes: start([sys.executable, "-c", program], **pipes)
    )
    monkeypatch.setattr(gpu_steps, "run_probe", lambda: {"absent": False, "name": "A card", "version": "13.0"})


def message(index, **row):
    return json.dumps({"index": index, "row": dict(row, side=index, done=row.get("done", False))})


def rows_found(tmp_path, *given):
    path = tmp_path / "found.json"
    code = gpu_steps.main(["--output", str(path), "--shared"] + list(given))
    return code, json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_a_process_that_fails_says_why_and_the_rows_after_it_are_measured(monkeypatch, tmp_path):
    child(monkeypatch, "a library speaks", message(0, done=True, step_s=2.0), end="sys.exit('out of memory')")
    code, rows = rows_found(tmp_path, "--sides", "64", "65", "66")
    assert code == 1 and [row.get("error") for row in rows] == [None, "out of memory", None]


def test_a_process_that_says_nothing_ends(monkeypatch, tmp_path):
    child(monkeypatch, "nothing", code=3)
    code, rows = rows_found(tmp_path, "--sides", "64", "65")
    assert code == 1 and [(row["side"], row["error"]) for row in rows] == [
        (side, "it said nothing") for side in (64, 65)
    ]


def test_at_the_deadline_steps_that_were_made_are_kept(monkeypatch, tmp_path):
    child(monkeypatch, message(0, first_step_s=9.0), end="time.sleep(60)")
    monkeypatch.setattr(gpu_steps, "LEAST_SECONDS", 1.5)
    code, (first, second) = rows_found(tmp_path, "--sides", "64", "65", "--deadline", "4")
    assert code == 1 and first["first_step_s"] == 9.0 and first["error"].startswith("it was ended after")
    assert second["side"] == 65 and second["error"] == "left out: the deadline"


# ---- layers ----


def test_kinds_of_convolutions_do_the_work_of_the_network():
    side = 2048
    work = sum(times * kind.flops(side**2) for kind, times in gpu_layers.kinds().items())
    assert work == pytest.approx(Network("resnet50", "gmp", "softmax", 3).flops(Size(side, side)), rel=0.001)


def test_rates_of_a_network_are_those_of_its_kinds_where_these_are_equal():
    seconds = {
        str(kind): {name: work / 5e12 for name, work in gpu_layers.work_of(kind, 2**20).items()}
        for kind in gpu_layers.kinds()
    }
    assert gpu_layers.network_rates(seconds, 2**20) == pytest.approx({"forward": 5, "backward": 5, "step": 5})


def test_the_deadline_cuts_off_small_windows_first():
    options = gpu_layers.parser().parse_args(["--output", "-", "--types", "bfloat16", "float32"])
    found = list(gpu_layers.combinations(options))
    assert len(found) == len(set(found)) == 8
    assert found[:2] == [("bfloat16", "NHWC", 1, 2048), ("float32", "NCHW", 1, 2048)]
    assert all(batch * side**2 == 2048**2 for _, _, batch, side in found) and found[4][2:] == (16, 512)
