"""Extract, plan, simulate and show the graph of any saved ``MetaGraphDef``, from the command line."""

import argparse
import os
import sys
from dataclasses import fields
from typing import Any, Dict, List, Optional, Sequence

from graph_tools.errors import GraphToolsError
from graph_tools.files import read_text, write_text
from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.order import ORDERS
from graph_tools.passes.planner import FORMER_POLICIES, MEMORY_POLICIES, make_plan, resolve_policy, unplanned
from graph_tools.passes.precision import HALF_TYPES, plan_precision
from graph_tools.plan import Plan
from graph_tools.serial import from_json, to_json
from graph_tools.simulation.chrome_trace import chrome_trace
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import simulate
from graph_tools.text import SHOWN_GROUPS, graph_summary, plan_table, precision_table, simulation_table
from graph_tools.units import parse_bytes, readable

EXIT_USER_ERROR = 2

# Options of the machine: field, what a user gives, and what it is.
_MACHINE = (
    ("device_bytes", "--device-memory", "memory of the device"),
    ("host_bytes", "--host-memory", "host memory for its pages"),
    ("on_demand_rate", "--on-demand-rate", "bytes per second of page faults"),
    ("copy_rate", "--copy-rate", "bytes per second of explicit copies, each direction"),
    ("memory_rate", "--memory-rate", "bytes per second of the device's memory"),
    ("float32_flops", "--float32-flops", "operations per second in float32"),
    ("half_flops", "--half-flops", "operations per second in half precision"),
    ("page_bytes", "--page", "size of a page"),
)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one of the commands; returns the exit code. Errors of the input are one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough, as ``head`` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except GraphToolsError as error:
        print("error: {}".format(error), file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m graph_tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    _add_extract(commands.add_parser("extract", help="read a saved MetaGraphDef and write its operations as JSON"))
    _add_plan(commands.add_parser("plan", help="group operations under a memory limit and write the plan as JSON"))
    _add_precision(commands.add_parser("precision", help="decide which operations compute in half precision"))
    _add_simulate(commands.add_parser("simulate", help="replay a plan against a model of unified memory"))
    _add_show(commands.add_parser("show", help="print a graph or a plan, or draw it"))
    return parser


def _add_extract(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("meta", help="a MetaGraphDef, binary (.meta) or text")
    parser.add_argument("graph", help="the JSON file to write")
    parser.add_argument(
        "--fetch",
        action="append",
        default=[],
        metavar="NAME",
        help="a tensor or operation that a step asks for; may be repeated (default: the saved training step)",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1,512,512,3",
        help="shape of a placeholder, where the graph leaves it open; may be repeated",
    )
    parser.add_argument(
        "--workspace", default="0", metavar="SIZE", help="most bytes of unrolled patches of a convolution (default: 0)"
    )
    parser.set_defaults(run=_extract)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", help="JSON of extract")
    parser.add_argument("plan", help="the JSON file to write")
    parser.add_argument("--limit", required=True, metavar="SIZE", help="what a group may touch, such as 12GB")
    parser.add_argument("--order", choices=ORDERS, default="auto", help="order of operations (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=1, help="groups ahead that a prefetch may run (default: 1)")
    parser.add_argument(
        "--memory-policy",
        "--choice",
        choices=MEMORY_POLICIES + FORMER_POLICIES,
        default="keep",
        metavar="{{{}}}".format(",".join(MEMORY_POLICIES)),
        help="what happens to tensors that the device has no room for: unified memory pages them, or they are evicted "
        "and recomputed by plan (default: %(default)s)",
    )
    parser.add_argument(
        "--smallest", default="2MiB", metavar="SIZE", help="smaller tensors stay (default: %(default)s)"
    )
    _add_machine(parser)
    parser.set_defaults(run=_plan)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", help="JSON of extract, in float32")
    parser.add_argument("--type", choices=HALF_TYPES, default=HALF_TYPES[0], help="default: %(default)s")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME",
        help="an operation that stays in float32; may be repeated",
    )
    parser.add_argument("--json", metavar="FILE", help="write the plan as JSON")
    parser.set_defaults(run=_precision)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", help="JSON of extract")
    parser.add_argument("plan", nargs="?", help="JSON of plan (default: plain unified memory)")
    parser.add_argument("--trace", metavar="FILE", help="write a Chrome trace for ui.perfetto.dev")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    _add_machine(parser)
    parser.set_defaults(run=_simulate)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", help="JSON of extract")
    parser.add_argument("plan", nargs="?", help="JSON of plan")
    parser.add_argument("--draw", metavar="FILE", help="write a picture of the plan, such as .png or .svg")
    parser.add_argument("--groups", type=int, default=SHOWN_GROUPS, help="groups to list (default: %(default)s)")
    parser.set_defaults(run=_show)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine", "The defaults are the paper's V100 with 768 GB of host memory.")
    defaults = Machine()
    for name, option, text in _MACHINE:
        value = getattr(defaults, name)
        shown = readable(value) if name.endswith("bytes") else "{:.3g}".format(value)
        group.add_argument(option, dest=name, metavar="N", help="{} (default: {})".format(text, shown))


def _machine(options: argparse.Namespace) -> Machine:
    given: Dict[str, Any] = {}
    for field in fields(Machine):
        text = getattr(options, field.name, None)
        if text is not None:
            given[field.name] = parse_bytes(text, least=0) if field.type is int else _rate(text)
    return Machine(**given)


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float(parse_bytes(text))


def _extract(options: argparse.Namespace) -> None:
    from graph_tools.tensorflow.extract import default_fetches, extract, load_meta_graph  # imports TensorFlow

    meta = load_meta_graph(options.meta)
    fetches = options.fetch or default_fetches(meta)
    if not fetches:
        raise GraphToolsError("{} names no training step; give what a step asks for with --fetch".format(options.meta))
    graph = extract(meta, fetches, _shapes(options.shape), parse_bytes(options.workspace, least=0))
    write_text(options.graph, to_json(graph))
    print(graph_summary(graph))


def _shapes(texts: Sequence[str]) -> Dict[str, List[int]]:
    shapes = {}
    for text in texts:
        name, _, sides = text.rpartition("=")
        try:
            shapes[name] = [int(side) for side in sides.split(",")] if sides else []
        except ValueError:
            name = ""
        if not name:
            raise GraphToolsError("'{}' is not a shape; write it as in image=1,512,512,3".format(text))
    return shapes


def _read_graph(options: argparse.Namespace) -> OpGraph:
    return from_json(OpGraph, read_text(options.graph))


def _read_plan(options: argparse.Namespace) -> Optional[Plan]:
    return from_json(Plan, read_text(options.plan)) if options.plan else None


def _plan(options: argparse.Namespace) -> None:
    policy = resolve_policy(options.memory_policy)
    if policy.note:
        print("warning: {}".format(policy.note), file=sys.stderr)
    plan = make_plan(
        _read_graph(options),
        parse_bytes(options.limit),
        order=options.order,
        depth=options.depth,
        memory_policy=policy.name,
        machine=_machine(options),
        smallest=parse_bytes(options.smallest),
    )
    write_text(options.plan, to_json(plan))
    print(plan_table(plan))


def _precision(options: argparse.Namespace) -> None:
    graph = _read_graph(options)
    plan = plan_precision(graph, options.type, options.keep)
    if options.json:
        write_text(options.json, to_json(plan))
    print(precision_table(graph, plan))


def _simulate(options: argparse.Namespace) -> None:
    graph = _read_graph(options)
    plan = _read_plan(options) or unplanned(graph)
    result = simulate(graph, plan, _machine(options), record=bool(options.trace))
    if options.trace:
        write_text(options.trace, chrome_trace(result))
    if options.json:
        write_text(options.json, to_json(result))
    print(simulation_table(result))


def _show(options: argparse.Namespace) -> None:
    graph, plan = _read_graph(options), _read_plan(options)
    print(graph_summary(graph))
    if plan is not None:
        print(plan_table(plan, options.groups))
    if options.draw:
        from graph_tools.draw import draw_plan  # imports matplotlib

        draw_plan(graph, plan or unplanned(graph), options.draw)
