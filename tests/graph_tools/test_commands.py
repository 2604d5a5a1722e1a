import json
import os
import subprocess
import sys

import pytest
from graphs import chain, net

from graph_tools.cli import main
from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef
from graph_tools.passes.precision import plan_precision
from graph_tools.plan import Plan, PrecisionPlan
from graph_tools.serial import from_json, to_json
from graph_tools.simulation.simulate import Simulation

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def saved(tmp_path):
    import tensorflow.compat.v1 as tf
    from tf_graphs import conv_net

    net = conv_net(side=256)
    with net.graph.as_default():
        tf.train.export_meta_graph(str(tmp_path / "net.meta"))
    return tmp_path


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_from_a_saved_graph_to_pictures(saved, capsys):
    graph, plan, trace, result = (saved / name for name in ("graph.json", "plan.json", "trace.json", "result.json"))
    assert call(capsys, "extract", saved / "net.meta", graph)[0] == 0
    memory = ("--device-memory", "5MB", "--page", "64KiB")
    options = ("--limit", "4MB", "--memory-policy", "recompute", "--smallest", "64KiB")
    code, out, _ = call(capsys, "plan", graph, plan, *options, *memory)
    assert code == 0 and "recompute, link planned to" in out and "group " in out
    made = from_json(Plan, plan.read_text())
    assert len(made.groups) > 5 and made.prefetches
    code, out, _ = call(capsys, "simulate", graph, plan, "--trace", trace, "--json", result, *memory)
    assert code == 0 and "s computing" in out
    planned = from_json(Simulation, result.read_text())
    code, out, _ = call(capsys, "simulate", graph, "--json", result, *memory)
    assert from_json(Simulation, result.read_text()).seconds > planned.seconds
    check_trace(json.loads(trace.read_text()), planned)
    for name, start in (("plan.png", b"\x89PNG"), ("plan.svg", b"<?xml")):
        code, out, _ = call(capsys, "show", graph, plan, "--draw", saved / name, "--groups", "2")
        assert code == 0 and "more groups" in out
        assert (saved / name).read_bytes().startswith(start)
    first = (saved / "plan.svg").read_bytes()
    assert call(capsys, "show", graph, "--draw", saved / "plain.svg")[0] == 0
    assert (saved / "plain.svg").read_bytes() != first


def check_trace(trace, result):
    """Perfetto's needs: complete events with times, in rows that have names, none overlapping in its row."""
    rows = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert sorted(rows.values()) == ["compute", "copy in", "copy out", "stall"]
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    computing = sum(event["dur"] for event in bars if rows[event["tid"]] == "compute")
    assert computing == pytest.approx(result.compute_seconds * 1e6)
    for row in rows:
        own = sorted((event["ts"], event["dur"]) for event in bars if event["tid"] == row)
        assert all(a[0] + a[1] <= b[0] + 1e-3 for a, b in zip(own, own[1:]))
    counters = [event for event in trace["traceEvents"] if event["ph"] == "C"]
    assert len(counters) == len(result.group_ends)


def write(path, graph):
    path.write_text(to_json(graph))
    return path


def test_bad_input_is_one_sentence_and_an_exit_code(tmp_path, capsys):
    graph = write(tmp_path / "graph.json", chain(10, 20, 30))
    other = write(tmp_path / "other.json", chain(10, 20))
    big = Op("weights", "VariableV2", (), (Output(10**6),), persistent=True)
    heavy = write(tmp_path / "heavy.json", OpGraph((big,)))
    cyclic = tmp_path / "cyclic.json"
    loop = to_json(chain(10, 20)).replace('"name":"op0"', '"control_inputs":["op1"],"name":"op0"')
    cyclic.write_text(loop)
    plan = tmp_path / "plan.json"
    assert call(capsys, "plan", graph, plan, "--limit", "25")[0] == 0
    for said, arguments in (
        ("circle: op", ("plan", cyclic, plan, "--limit", "25")),
        ("cannot read", ("plan", tmp_path / "nothing", plan, "--limit", "25")),
        ("cannot write", ("plan", graph, tmp_path / "no" / "plan.json", "--limit", "25")),
        ("is not a size", ("plan", graph, plan, "--limit", "much")),
        ("not the JSON of a OpGraph", ("plan", plan, plan, "--limit", "25")),
        ("not exactly once in the order", ("simulate", other, plan)),
        ("variables and constants take 1 MB", ("simulate", heavy, "--device-memory", "1kB", "--page", "100")),
        ("depth of -1", ("plan", graph, plan, "--limit", "25", "--depth", "-1")),
    ):
        code, out, err = call(capsys, *arguments)
        assert code == 2 and not out
        assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_an_operation_larger_than_the_limit_is_reported(tmp_path, capsys):
    graph = write(tmp_path / "graph.json", chain(10, 2000, 30))
    code, out, _ = call(capsys, "plan", graph, tmp_path / "plan.json", "--limit", "100")
    assert code == 0 and "too large  operation op1 touches 2.01 kB" in out


def test_extraction_refuses_in_one_sentence(saved, capsys):
    for said, arguments in (
        ("no tensor or operation gone", ("--fetch", "gone")),
        ("'image' is not a shape", ("--shape", "image")),
        ("no placeholder picture", ("--shape", "picture=1,2")),
    ):
        code, _, err = call(capsys, "extract", saved / "net.meta", saved / "graph.json", *arguments)
        assert code == 2 and err.startswith("error: ") and said in err and err.count("\n") == 1


def test_precision_tells_what_computes_in_half(saved, capsys):
    graph, plan = saved / "graph.json", saved / "precision.json"
    assert call(capsys, "extract", saved / "net.meta", graph)[0] == 0
    ops = from_json(OpGraph, graph.read_text())
    code, out, err = call(capsys, "precision", graph, "--json", plan)
    assert code == 0 and not err
    made = from_json(PrecisionPlan, plan.read_text())
    assert made == plan_precision(ops)
    lines = out.splitlines()
    assert lines[:2] == ["type       float16", "half       {} of {} operations".format(len(made.half), len(ops.ops))]
    assert "      4       4  Conv2D" in lines and not [line for line in lines if line.endswith("  AssignSub")]
    code, out, _ = call(capsys, "precision", graph, "--type", "bfloat16", "--keep", "net/Conv2D", "--json", plan)
    assert code == 0 and "type       bfloat16" in out and "      3       4  Conv2D" in out
    assert from_json(PrecisionPlan, plan.read_text()) == plan_precision(ops, "bfloat16", ["net/Conv2D"])
    code, out, err = call(capsys, "precision", graph, "--keep", "gone")
    assert (code, out) == (2, "") and err.startswith("error: the graph has no operation gone to keep in float32")


def test_a_dropped_choice_is_planned_as_the_nearest_kept_one(tmp_path, capsys):
    graph, plans = write(tmp_path / "graph.json", net(12)), []
    options = ("--limit", "120", "--smallest", "1", "--device-memory", "400", "--page", "4", "--host-memory", "0")
    for arguments in (["--memory-policy", "recompute"], ["--choice", "remat"], ["--choice", "best"]):
        code, _, err = call(capsys, "plan", graph, tmp_path / "plan.json", *options, *arguments)
        assert code == 0
        assert err == "warning: the memory policy 'best' is gone; recompute is planned instead\n" * (
            "best" in arguments
        )
        plans.append(from_json(Plan, (tmp_path / "plan.json").read_text()))
    assert plans[0].recomputes and not plans[0].evictions and plans == plans[:1] * 3
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    shown = capsys.readouterr().out
    assert "{keep,recompute}" in shown and "greedy" not in shown


def test_help_loads_no_tensorflow():
    check = (
        "import sys\nfrom graph_tools.cli import main\ntry:\n    main(['plan', '--help'])\nexcept SystemExit as end:\n"
    )
    check += "    assert not end.code and not {'tensorflow', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run([sys.executable, "-m", "graph_tools"], cwd=ROOT, stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"usage: python -m graph_tools" in done.stderr


def test_output_that_nobody_reads_on_is_no_error(tmp_path):
    graph = write(tmp_path / "graph.json", net(600))
    assert main(["plan", str(graph), str(tmp_path / "plan.json"), "--limit", "100", "--smallest", "1"]) == 0
    show = [sys.executable, "-m", "graph_tools", "show", str(graph), str(tmp_path / "plan.json"), "--groups", "2000"]
    shown = subprocess.Popen(show, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.stdout.readline().startswith(b"operations")
    shown.stdout.close()
    assert (shown.stderr.read(), shown.wait()) == (b"", 0)
    shown.stderr.close()


def test_a_graph_survives_its_file(tmp_path):
    graph = chain(1, 2, 3)
    assert from_json(OpGraph, write(tmp_path / "graph.json", graph).read_text()) == graph
    assert graph.ops[1].inputs == (TensorRef("op0", 0),)
