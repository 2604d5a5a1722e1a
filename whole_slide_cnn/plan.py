"""Tell memory and time of a run before it: ``python -m whole_slide_cnn.plan --config FILE``."""

import argparse
import json

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.files import write_text


def parser() -> argparse.ArgumentParser:
    """The command line of ``plan``."""
    arguments = argparse.ArgumentParser(prog="python -m whole_slide_cnn.plan", description=__doc__.splitlines()[0])
    arguments.add_argument("--config", metavar="FILE", required=True, help="configuration (YAML)")
    arguments.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a key, such as data.canvas=11000"
    )
    arguments.add_argument(
        "--device",
        metavar="GPU",
        action="append",
        help="a GPU to plan for, such as V100-32GB (--list-devices shows all), or host for none; may be repeated "
        "(default: this machine's)",
    )
    arguments.add_argument("--list-devices", action=_ListDevices, nargs=0, help="list the known GPUs and exit")
    sizes = arguments.add_argument_group("the machine", "What differs from the table; sizes as in 32GB (10^9 bytes).")
    sizes.add_argument("--device-memory", metavar="SIZE", help="device memory that a run may use")
    sizes.add_argument("--host-memory", metavar="SIZE", help="host memory (default: what this machine has free)")
    for name, text in _RATES:
        sizes.add_argument("--" + name.replace("_", "-"), metavar="N", type=_positive, help=text)
    arguments.add_argument(
        "--tissue",
        metavar="SHARE",
        type=_positive,
        default=1.0,
        help="share of a canvas that is not blank (default: 1)",
    )
    arguments.add_argument("--predict", action="store_true", help="plan testing instead of training")
    arguments.add_argument(
        "--measure",
        action="store_true",
        help="without a GPU: measure a step of the network on a small canvas here, for times that hold",
    )
    arguments.add_argument("--json", metavar="FILE", help="write the plan there as well")
    return arguments


_RATES = (
    ("copy_rate", "bytes per second of explicit copies over the link, in each direction"),
    ("on_demand_rate", "bytes per second of page faults"),
    ("memory_rate", "bytes per second of the device's memory, as sustained"),
    ("float32_flops", "operations per second in float32, as sustained by convolutions"),
    ("half_flops", "the same in half precision"),
)


class _ListDevices(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from whole_slide_cnn.planning.devices import GPUS

        print(
            "{:<12} {:>10} {:>14} {:>12} {:>12} {:>5}".format(
                "GPU", "memory GiB", "float32 TFLOPS", "half TFLOPS", "memory GB/s", "PCIe"
            )
        )
        for name, gpu in GPUS.items():
            print("{:<12} {:>10g} {:>14g} {:>12g} {:>12g} {:>5}".format(name, *vars(gpu).values()))
        parser.exit()


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("expected a number above 0, got '{}'".format(text))
    return value


def main(arguments):
    """Parse, load the configuration, print a plan for each device. Exit code 1 where on some device nothing fits."""
    options = parser().parse_args(arguments)
    from whole_slide_cnn.config import load_config
    from whole_slide_cnn.engines.runtime import keep_freed_memory_small
    from whole_slide_cnn.planning import targets
    from whole_slide_cnn.planning.recommend import recommend

    config = load_config(options.config, options.set)
    work = targets.work_of(config, not options.predict, options.tissue)
    given = targets.Overrides(
        options.device_memory, options.host_memory, **{name: getattr(options, name) for name, _ in _RATES}
    )
    machines = [targets.target_of(name, work.compute, given, config.memory_gb) for name in options.device or [None]]
    if options.measure:
        keep_freed_memory_small()
        machines = [targets.measured(target, work) for target in machines]
    plans = []
    for target in machines:
        estimates = _show(work, target)
        plans.append(targets.plan_json(work, target, estimates, recommend(work, estimates)))
    if options.json:
        write_text(options.json, json.dumps(plans, indent=2) + "\n")
    return 0 if all(plan["recommended"] for plan in plans) else 1


def _show(work, target):
    """Print a plan, each row as soon as it is known; returns its estimates."""
    from dataclasses import replace

    from whole_slide_cnn.engines.table import ENGINES
    from whole_slide_cnn.planning.estimate import HALF, estimate
    from whole_slide_cnn.planning.recommend import conclusion, heading, row

    print(heading(work, target), flush=True)
    found = []
    parts = [(work, list(ENGINES))]
    if target.gpu and work.compute in ("float32", "tensorfloat32"):
        parts.append((replace(work, compute=HALF), [name for name, it in ENGINES.items() if it.planned_in_half]))
    for part, engines in parts:
        for item in estimate(part, target, engines):
            found.append(item)
            print(row(item), flush=True)
    print("\n" + conclusion(work, target, found) + "\n", flush=True)
    return found


if __name__ == "__main__":
    run_command(main)
