"""``make bench-throughput``: its arithmetic, its slides, its table of engines, its processes and its page."""

import json
import os
import sys
import textwrap

import numpy as np
import pytest
import throughput
from bench import cases, floor, page, peer, slides, statistics, winners, worker

from whole_slide_cnn.engines.streaming.cover import blank_cells
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.layers import Conv, walk
from whole_slide_cnn.models.resnet import TRUNKS
from whole_slide_cnn.models.shapes import backward_flops, canvas_shapes, forward_flops
from whole_slide_cnn.sizes import Size, Window

SETTING = worker.Setting("tiny", "gmp", "float32", slides.SlideKind(), iterations=2)


# ---- statistics ----


def test_quartiles_and_whiskers_are_those_of_the_papers():
    found = statistics.summary([1, 2, 3, 4, 5, 100])
    assert (found["median"], found["q1"], found["q3"]) == (3.5, 2.25, 4.75)
    assert (found["low"], found["high"], found["number"]) == (1, 5, 6)  # within 3.5 +- 3.75
    assert statistics.box([1, 2, 3, 4, 5, 100])["fliers"] == [100]


def test_one_value_is_a_box():
    assert statistics.summary([2.0]) == {"median": 2, "q1": 2, "q3": 2, "low": 2, "high": 2, "number": 1}


# ---- slides ----


@pytest.mark.parametrize("side, share", [(333, 0.3), (700, 0.05)])
def test_noise_is_one_slide_through_every_window(side, share):
    canvas = slides.NoiseCanvas(side, share)
    image = slides.whole(canvas)
    assert (image != 255).any(axis=-1).mean() == pytest.approx(share, abs=0.02)
    window = Window(31, 100, 77, 210)
    assert np.array_equal(canvas.read(window), image[31:108, 100:310])


@pytest.mark.parametrize("side", [333, 1024, 2100])
def test_blank_blocks_without_reading_are_those_that_reading_finds(side):
    canvas = slides.NoiseCanvas(side, 0.25)
    assert np.array_equal(canvas.blank_blocks(), slides.ArrayCanvas(slides.whole(canvas)).blank_blocks())


def test_no_two_cells_of_a_large_canvas_see_the_same_noise():
    canvas = slides.NoiseCanvas(75000, 1.0)
    parts = [
        canvas.read(Window(32 * row, 32 * column, 32, 32)).tobytes()
        for row in (0, 7, 2000)
        for column in range(0, 2040, 8)
    ]
    assert len(set(parts)) == len(parts)


# ---- the work without any halo ----


@pytest.mark.parametrize("backbone", sorted(TRUNKS))
def test_a_slide_full_of_tissue_takes_the_work_of_its_canvas(backbone):
    trunk, size = TRUNKS[backbone](), Size(450, 333)
    steps = canvas_shapes(trunk, size)
    found = floor.work(trunk, size, np.zeros((15, 11), bool))
    assert 2 * found.forward == forward_flops(steps) and 2 * found.backward == backward_flops(steps)
    assert found.share == 1 and found.blank == 0
    assert [layer.name for layer in found.layers] == [layer.name for layer in walk(trunk) if isinstance(layer, Conv)]


@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "frozenbn_resnet50"])
def test_the_work_is_counted_position_by_position(backbone):
    """Against masks that are dilated by each layer in turn, for one winner and one coloured block."""
    trunk, size = TRUNKS[backbone](), Size(900, 837)
    blank = np.ones((29, 27), bool)
    blank[13, 9] = blank[3, 20] = False
    wanted = np.zeros(geometry.cells_of(trunk, size), bool)
    wanted[14, 10] = True
    found = floor.work(trunk, size, blank, wanted)
    deepest = [layer.name for layer in trunk[-2].body if isinstance(layer, Conv)][-1]
    first, (last,) = found.layers[0], (layer for layer in found.layers if layer.name == deepest)
    coloured = np.repeat(np.repeat(~blank, 32, 0), 32, 1)[:900, :837]
    conv = trunk[0]
    assert first.positions == _dilated(coloured, conv.kernel, conv.stride, geometry.padding_of(conv, 900)[0]).sum()
    assert last.positions == (~blank_cells(trunk, size, blank)).sum() and last.wanted == 1
    assert 0 < found.again < found.forward and first.wanted < first.positions


def _dilated(mask, kernel, stride, padding):
    """Which outputs of a filter see something of a mask."""
    padded = np.pad(mask, padding)
    rows, columns = ((side - kernel) // stride + 1 for side in padded.shape)
    found = np.zeros((rows, columns), bool)
    for row in range(kernel):
        for column in range(kernel):
            found |= padded[row : row + stride * rows : stride, column : column + stride * columns : stride][
                :rows, :columns
            ]
    return found


def test_without_wanted_cells_there_is_nothing_to_go_back_to():
    trunk, size = TRUNKS["tiny"](), Size(320, 320)
    found = floor.work(trunk, size, np.zeros((10, 10), bool), np.zeros((10, 10), bool))
    assert found.again == found.backward == 0 and found.step == found.forward


def test_a_blank_slide_takes_a_blank_canvas_alone():
    trunk, size = TRUNKS["tiny"](), Size(2048, 2048)
    found = floor.work(trunk, size, np.ones((64, 64), bool))
    assert found.forward == 0 and 0 < found.blank < forward_flops(canvas_shapes(trunk, size))


def test_winners_are_the_same_in_windows_of_any_size(monkeypatch):
    canvas, weights = slides.NoiseCanvas(450, 0.4), worker.random_weights(SETTING.network)
    whole = winners.winner_cells(SETTING.network, weights, canvas, "float64")
    monkeypatch.setattr(winners, "SIDE", 4)
    assert np.array_equal(winners.winner_cells(SETTING.network, weights, canvas, "float64"), whole)
    assert 1 < whole.sum() <= SETTING.network.channels
    found = worker.floor_of(SETTING._replace(slide=slides.SlideKind(share=0.1)), 900, winners=True)
    assert 0 < found["share"] < 1 and found["step_macs"] < 4 * found["forward_macs"] + found["blank_macs"]


# ---- cases ----


def test_every_engine_of_the_table_is_measured_in_both_modes_on_every_canvas():
    found = list(cases.cases([512, 256], cases.MODES, [], {}))
    for side in (256, 512):
        for mode in cases.MODES:
            names = [case.engine for case in found if (case.side, case.mode) == (side, mode)]
            assert set(names) == set(ENGINES)
    assert [case.side for case in found] == sorted(case.side for case in found)


def test_techniques_are_options_that_the_engine_has():
    defaults = vars(ENGINES[cases.ENGINE].options())
    for technique in cases.TECHNIQUES:
        ENGINES[cases.ENGINE].options(**technique.options)
        assert all(defaults[key] != value for key, value in technique.options.items())
    rows = {row[0]: row for row in cases.engine_rows({}) + cases.technique_rows({})}
    assert rows["staged, no stages"][1:] == ("staged", {"checkpoints": "none"}, True)
    everything = {key: value for technique in cases.TECHNIQUES for key, value in technique.options.items()}
    assert rows[cases.ALL_OFF][1:] == ("staged", everything, False)


def test_rows_can_be_named_and_peers_come_last():
    found = list(cases.cases([256], ["train"], [], {}, ["streaming"], ["other"]))
    assert [(case.name, case.runner) for case in found] == [("streaming", "engine"), ("other", "peer")]


@pytest.mark.parametrize(
    "given, says",
    [
        (["--set", "streaming.window=8"], "window: expected a value at least 32"),
        (["--set", "streaming.windows=64"], "no option"),
        (["--set", "window=64"], "ENGINE.KEY=VALUE"),
        (["--only", "escnn"], "there is no 'escnn'"),
        (["--iterations", "0"], "--iterations"),
        (["--peer", "nobody"], "no program runs the peer nobody; known are hms2, lightstream"),
        (["--peer", "hms2=/nowhere/at/all"], "there is no /nowhere/at/all"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(given, says):
    with pytest.raises(ConfigError, match=says):
        throughput.parse(given)


def test_a_preset_gives_way_to_what_is_given():
    options = throughput.parse(["--preset", "step"])
    assert (options.sides, options.iterations, options.minutes) == ([4096, 8192], 1, 0)
    options = throughput.parse(["--preset", "step", "--sides", "512", "--iterations", "2"])
    assert (options.sides, options.iterations, options.only) == ([512], 2, ["streaming", "staged"])
    assert throughput.parse(["--full"]).iterations == 30


# ---- processes ----


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("mode", cases.MODES)
def test_a_case_is_measured(engine, mode):
    (case,) = (case for case in cases.cases([160], [mode], [], {}, [engine]))
    found = worker.measure_engine(SETTING, case)
    assert len(found["seconds"]) == 2 and len(found["losses"]) == 3
    # in a process that has done more before, as here, nothing need be above where it began
    assert isinstance(found["peak_bytes"], int) and found["idle_bytes"] > 0


def test_what_does_not_fit_is_refused_with_the_planners_sentence(tmp_path):
    case = next(cases.cases([4096], ["train"], [], {}, ["direct"]))
    target = worker.Target("host", worker_machine(), False)
    setting = SETTING._replace(memory_gb=0.1)
    assert "engine direct needs" in worker.plan(setting, case, target, 0.25)["refused"]
    told = {"cases": [case._asdict(), case._replace(side=8192)._asdict()], "path": str(tmp_path / "plans")}
    told.update(target=dict(vars(target), machine=vars(target.machine)), tissue={"4096": 0.25, "8192": 0.25})
    throughput.write_plans(setting, told)
    lines = [json.loads(line) for line in (tmp_path / "plans").read_text(encoding="utf-8").splitlines()]
    assert lines[1]["key"] == "direct 8192 train"
    assert lines[1]["plan"]["refused"].startswith("as at 4,096 px: engine direct needs")


def worker_machine():
    from graph_tools.simulation.machine import Machine

    return Machine(device_bytes=10**12, host_bytes=0)


def test_settings_survive_the_way_to_a_process():
    assert worker.Setting.of(json.loads(json.dumps(SETTING._asdict()))) == SETTING


# ---- peers ----

STAND_IN = """
import json, sys
import numpy as np
orders = json.load(open(sys.argv[1]))
slide, weights = np.load(orders["slide"]), np.load(orders["weights"])
assert slide.shape == (96, 96, 3) and slide.dtype == np.uint8
assert weights["conv1.weight"].shape == (64, 3, 7, 7) and weights["fc.bias"].shape == (3,)
print("a peer may say what it likes first")
print(json.dumps({"seconds": [2.0, 3.0], "first_s": 9.0, "peak_bytes": 5, "settings": {"tile": orders["tile"]}}))
"""
WEIGHTS = worker.Setting("resnet18", "gmp", "float32", slides.SlideKind())
CASE = cases.Case("mine", "peer", "mine", 96, "train", {})


def stand_in(tmp_path, text, tile=""):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return peer.parse("mine={}{}".format(path, tile), sys.executable)


def test_a_peer_gets_the_slide_and_the_weights_and_is_measured(tmp_path):
    found = peer.run(stand_in(tmp_path, STAND_IN, "@512"), WEIGHTS, CASE, str(tmp_path), 60)
    assert found["seconds"] == [2.0, 3.0] and found["settings"] == {"tile": 512}


@pytest.mark.parametrize(
    "text, says",
    [
        ("raise SystemExit('it has no GPU')", "it has no GPU"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("print('no numbers')", "no JSON"),
        ("import time; time.sleep(60)", "after 1 s"),
    ],
)
def test_a_peer_that_fails_is_a_row_that_says_why(tmp_path, text, says):
    assert (
        says in peer.run(stand_in(tmp_path, text), WEIGHTS, CASE, str(tmp_path), 1 if "sleep" in text else 60)["failed"]
    )


def test_a_peer_is_named_by_its_interpreter_or_its_checkout(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("", encoding="utf-8")
    for given in (tmp_path, python):
        assert peer.parse("lightstream={}".format(given), "x")[2:] == (str(python), None, None)
    (tmp_path / "hms2").mkdir()
    found = peer.parse("hms2={}@1024".format(tmp_path / "hms2"), "x")
    assert found[2:] == ("x", str(tmp_path / "hms2"), 1024)


def test_programs_of_peers_import_nothing_of_this_repository_but_what_measures():
    folder = peer.FOLDER
    for name in os.listdir(folder):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), encoding="utf-8") as stream:
                text = stream.read()
            compile(text, name, "exec")
            assert "whole_slide_cnn" not in text and "tensorflow" not in text, name


# ---- the page ----


def report():
    measured = {"step": statistics.summary([2.0, 3.0]), "images_per_minute": statistics.summary([20.0, 30.0])}
    row = dict(CASE._asdict(), name=cases.ENGINE, engine=cases.ENGINE, seconds=[2.0, 3.0], tissue=0.25, **measured)
    rows = [
        dict(row, peak_bytes=2 * 10**9, predicted_bytes=10**9, predicted_seconds=5.0),
        dict(row, name=cases.ALL_OFF, mode="train", peak_bytes=10**9),
        dict(CASE._asdict(), name="direct", tissue=0.25, refused="it needs <9> GB", predicted_bytes=10**10),
        dict(CASE._asdict(), name="unified", mode="predict", tissue=0.25, left_out="0 s were left"),
    ]
    macs = {"forward_macs": 10**9, "step_macs": 4 * 10**9, "step_kept_macs": 3 * 10**9}
    facts = {"cpu": "a CPU", "cores": 2, "gpus": [], "date": "today", "commit": "c0ffee"}
    return {
        "rows": rows,
        "floors": {"96": macs},
        "convolutions": {"flops": 4e9, "side": 1024},
        "machine": facts,
        "options": vars(throughput.parse([])),
        "slide": "noise",
    }


def test_the_page_holds_everything_and_needs_nothing():
    text = page.html(report())
    assert text.count("data:image/png;base64,") == 2 and "http" not in text and "<script" not in text
    assert "refused: it needs &lt;9&gt; GB" in text and "left out: 0 s were left" in text
    assert "c0ffee" in text and "0.153" in text


def test_rows_say_how_far_the_prediction_is():
    cells = dict(zip(page.HEADINGS, page.cells(report()["rows"][0])))
    assert (cells["s per step"], cells["predicted s"], cells["peak MB"]) == ("2.5", "5", "2,000")
    assert [cell for cell in page.cells(report()["rows"][0]) if cell.endswith("%")] == ["25%", "+100%", "-50%"]


def test_floors_are_compared_at_the_measured_rate():
    first = page.floor_rows(report())[0]
    assert (first["floor_s"], first["times"], first["kept_times"]) == (2.0, 1.25, pytest.approx(5 / 3))
    assert "4 GFLOP/s" in page.floor_text(report())
