"""Extract, plan, simulate and show the graph of any saved ``MetaGraphDef``, from the command line."""

import argparse
import sys
from dataclasses import fields

from graph_tools.errors import GraphToolsError
from graph_tools.files import read_text, write_text
from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.order import ORDERS
from graph_tools.passes.planner import CHOICES, make_plan, unplanned
from graph_tools.plan import Plan, plan_table
from graph_tools.serial import from_json, to_json
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import Simulation, simulate
from graph_tools.simulation.trace import chrome_trace
from graph_tools.sizes import parse_bytes, readable

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


def main(arguments=None) -> int:
    """Run one of the commands; returns the exit code. Errors of the input are one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except GraphToolsError as error:
        print("error: {}".format(error), file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser():
    parser = argparse.ArgumentParser(prog="python -m graph_tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True

    extract = commands.add_parser("extract", help="read a saved MetaGraphDef and write its operations as JSON")
    extract.add_argument("meta", help="a MetaGraphDef, binary (.meta) or text")
    extract.add_argument("graph", help="the JSON file to write")
    extract.add_argument(
        "--fetch",
        action="append",
        default=[],
        metavar="NAME",
        help="a tensor or operation that a step asks for; may be repeated (default: the saved training step)",
    )
    extract.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1,512,512,3",
        help="shape of a placeholder, where the graph leaves it open; may be repeated",
    )
    extract.add_argument(
        "--workspace", default="0", metavar="SIZE", help="most bytes of unrolled patches of a convolution (default: 0)"
    )
    extract.set_defaults(run=_extract)

    plan = commands.add_parser("plan", help="group operations under a memory limit and write the plan as JSON")
    plan.add_argument("graph", help="JSON of extract")
    plan.add_argument("plan", help="the JSON file to write")
    plan.add_argument("--limit", required=True, metavar="SIZE", help="what a group may touch, such as 12GB")
    plan.add_argument("--order", choices=ORDERS, default="auto", help="order of operations (default: %(default)s)")
    plan.add_argument("--depth", type=int, default=1, help="groups ahead that a prefetch may run (default: 1)")
    plan.add_argument(
        "--choice",
        choices=CHOICES,
        default="keep",
        help="how tensors to move out or recompute are chosen (default: keep all)",
    )
    plan.add_argument("--smallest", default="2MiB", metavar="SIZE", help="smaller tensors stay (default: %(default)s)")
    _add_machine(plan)
    plan.set_defaults(run=_plan)

    simulate_parser = commands.add_parser("simulate", help="replay a plan against a model of unified memory")
    simulate_parser.add_argument("graph", help="JSON of extract")
    simulate_parser.add_argument("plan", nargs="?", help="JSON of plan (default: plain unified memory)")
    simulate_parser.add_argument("--trace", metavar="FILE", help="write a Chrome trace for ui.perfetto.dev")
    simulate_parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    _add_machine(simulate_parser)
    simulate_parser.set_defaults(run=_simulate)

    show = commands.add_parser("show", help="print a graph or a plan, or draw it")
    show.add_argument("graph", help="JSON of extract")
    show.add_argument("plan", nargs="?", help="JSON of plan")
    show.add_argument("--draw", metavar="FILE", help="write a picture of the plan, such as .png or .svg")
    show.add_argument("--groups", type=int, default=24, help="groups to list (default: %(default)s)")
    show.set_defaults(run=_show)
    return parser


def _add_machine(parser):
    group = parser.add_argument_group("machine", "The defaults are the paper's V100 with 768 GB of host memory.")
    defaults = Machine()
    for name, option, text in _MACHINE:
        value = getattr(defaults, name)
        shown = readable(value) if name.endswith("bytes") else "{:.3g}".format(value)
        group.add_argument(option, dest=name, metavar="N", help="{} (default: {})".format(text, shown))


def _machine(options) -> Machine:
    given = {}
    for field in fields(Machine):
        text = getattr(options, field.name, None)
        if text is not None:
            given[field.name] = parse_bytes(text) if field.type is int else _rate(text)
    return Machine(**given)


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float(parse_bytes(text))


def _extract(options):
    from graph_tools.tensorflow.extract import default_fetches, extract, load_meta_graph  # imports TensorFlow

    meta = load_meta_graph(options.meta)
    fetches = options.fetch or default_fetches(meta)
    if not fetches:
        raise GraphToolsError("{} names no training step; give what a step asks for with --fetch".format(options.meta))
    limit = 0 if options.workspace == "0" else parse_bytes(options.workspace)
    graph = extract(meta, fetches, _shapes(options.shape), limit)
    write_text(options.graph, to_json(graph))
    print(_graph_summary(graph))


def _shapes(texts):
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


def _plan(options):
    graph = from_json(OpGraph, read_text(options.graph))
    plan = make_plan(
        graph,
        parse_bytes(options.limit),
        order=options.order,
        depth=options.depth,
        choice=options.choice,
        machine=_machine(options),
        smallest=parse_bytes(options.smallest),
    )
    write_text(options.plan, to_json(plan))
    print(plan_table(plan))


def _simulate(options):
    graph = from_json(OpGraph, read_text(options.graph))
    plan = from_json(Plan, read_text(options.plan)) if options.plan else unplanned(graph)
    result = simulate(graph, plan, _machine(options), record=bool(options.trace))
    if options.trace:
        write_text(options.trace, chrome_trace(result))
    if options.json:
        write_text(options.json, to_json(result))
    print(_simulation_table(result))


def _show(options):
    graph = from_json(OpGraph, read_text(options.graph))
    print(_graph_summary(graph))
    plan = from_json(Plan, read_text(options.plan)) if options.plan else None
    if plan is not None:
        print(plan_table(plan, options.groups))
    if options.draw:
        from graph_tools.draw import draw_plan  # imports matplotlib

        draw_plan(graph, plan or unplanned(graph), options.draw)


def _graph_summary(graph: OpGraph) -> str:
    largest = max(graph.ops, key=lambda op: sum(out.bytes for out in op.outputs), default=None)
    lines = [
        "operations {}".format(len(graph.ops)),
        "variables  {}".format(readable(graph.persistent_bytes)),
        "arithmetic {:.4g} operations".format(sum(op.flops for op in graph.ops)),
    ]
    if largest is not None:
        size = sum(out.bytes for out in largest.outputs)
        lines.append("largest    {} makes {}".format(largest.name, readable(size)))
    return "\n".join(lines)


def _simulation_table(result: Simulation) -> str:
    return "\n".join(
        (
            "step       {:.4g} s: {:.4g} s computing, {:.4g} s waiting for pages".format(
                result.seconds, result.compute_seconds, result.stall_seconds
            ),
            "to device  {}, of it {} by page faults".format(
                readable(result.bytes_in), readable(result.on_demand_bytes)
            ),
            "to host    {}".format(readable(result.bytes_out)),
            "peak       {} on the device, {} on the host".format(
                readable(result.peak_device_bytes), readable(result.peak_host_bytes)
            ),
        )
    )
