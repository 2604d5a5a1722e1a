"""What unified memory costs on a GPU: ``python benchmarks/gpu_probe.py --output FILE``.

Measures rates of managed memory in both directions, faults, the host's time for a move, moves beside kernels, pages
that move with others, discarded pages, a schedule of 40 kernels with evictions and prefetches, and how PyTorch, JAX and
TensorFlow fare under the shim where they are installed. It needs nothing but Python and ``tf_um_patch`` (NumPy for the
frameworks), about two minutes, and writes one JSON file, again after each part. docs/gpu.md has what was found.

It is as safe as ``gpu-check``: at most the budget is allocated at one time, which may be no more than a quarter of what
the card has free; pages move because they are told to, never because the card is full; and every part is a process of
its own that is ended when it takes too long. Exits with 77 where there is no GPU, and with 1 where a part failed.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from typing import Any, Dict

from gpu import card, frameworks, pages, rates, schedule

from tf_um_patch.child import bare_environment, run_for
from tf_um_patch.driver import Driver
from tf_um_patch.errors import OptionError, UnifiedMemoryError
from tf_um_patch.gpu_check.card import refusal
from tf_um_patch.gpu_check.command import EXIT_FAIL, EXIT_NO_GPU, EXIT_PASS
from tf_um_patch.options import parse_size
from tf_um_patch.probe import run_probe

BUDGET = "4.3GB"  # units of 1 GiB
EXIT_REFUSED = 2
PARTS = {
    "plain_copies": rates.plain_copies,
    "rates": rates.rates,
    "enqueue": rates.enqueue,
    "overlap": rates.overlap,
    "faults": pages.faults,
    "neighbours": pages.neighbours,
    "discard": pages.discard,
    "schedule": schedule.schedule,
}
NAMES = list(PARTS) + list(frameworks.PROGRAMS)


def measure(name: str, budget: int, repeats: int) -> Any:
    """One part, in this process."""
    if name in frameworks.PROGRAMS:
        return frameworks.program(name, budget * 5 // 8)  # the ceiling is half of the budget
    with contextlib.closing(card.ProbeCard(Driver(), budget)) as gpu:
        return PARTS[name](gpu, card.unit_of(budget), repeats)


def command_of(name: str, budget: int, repeats: int) -> list:
    """The command that measures one part; a framework is started by ``run``, as a user's program is."""
    part = [sys.executable, os.path.abspath(__file__), "--one", name]
    part += ["--budget", str(budget), "--repeats", str(repeats), "--output", os.devnull]
    if name not in frameworks.PROGRAMS:
        return part
    run = [sys.executable, "-m", "tf_um_patch", "run", "--host-memory", "0", "--ceiling", str(budget // 2), "--"]
    return run + part


def environment() -> Dict[str, str]:
    """The environment of a part: the first GPU alone, and frameworks take memory as they need it."""
    found = bare_environment()
    found["CUDA_VISIBLE_DEVICES"] = found.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    found.update(XLA_PYTHON_CLIENT_PREALLOCATE="false", TF_FORCE_GPU_ALLOW_GROWTH="true")
    return found


def measured_in_child(name: str, options) -> Dict[str, Any]:
    """What a part found, or {"error": why}; with the seconds it took."""
    began = time.time()
    done = run_for(command_of(name, options.budget, options.repeats), environment(), options.timeout)
    lines = [line for line in done.output.splitlines() if line.startswith("{")]
    if done.code != 0 or not lines:
        return {"error": done.why(options.timeout), "seconds": round(time.time() - began, 1)}
    return {"found": json.loads(lines[-1])["found"], "seconds": round(time.time() - began, 1)}


def refused(budget: int, free: int, name: str):
    """Why a budget may not be used on a card with so many free bytes, or None where it may."""
    if not card.LEAST_BUDGET <= budget <= card.MOST_BUDGET:
        return "--budget {} cannot be used: give {} to {} bytes".format(budget, card.LEAST_BUDGET, card.MOST_BUDGET)
    return refusal(budget, free, name)


def size(text: str) -> int:
    """An option that is a number of bytes."""
    try:
        return parse_size(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output", metavar="FILE", required=True, help="JSON")
    arguments.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="PART", help=", ".join(NAMES))
    arguments.add_argument(
        "--budget",
        type=size,
        default=BUDGET,
        help="device memory at one time, at most 8 GB and a quarter of what is free (default: %(default)s)",
    )
    arguments.add_argument("--repeats", type=int, default=4, help="medians are taken of so many (default: 4)")
    arguments.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="of each part (default: 60)")
    arguments.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    return arguments


def main(arguments) -> int:
    options = parser().parse_args(arguments)
    if options.one:
        print(json.dumps({"found": measure(options.one, options.budget, options.repeats)}))
        return EXIT_PASS
    facts = run_probe()
    if facts["absent"] or facts.get("free") is None:
        what = "there is no GPU here" if facts["absent"] else "the GPU cannot be used"
        print(
            "{}, so nothing was measured ({})".format(what, facts["error"] or "the driver sees none"), file=sys.stderr
        )
        return EXIT_NO_GPU if facts["absent"] else EXIT_FAIL
    reason = refused(options.budget, facts["free"], facts["name"])
    if reason:
        print(reason, file=sys.stderr)
        return EXIT_REFUSED
    report: Dict[str, Any] = {
        "gpu": {key: facts[key] for key in ("name", "capability", "total", "free")},
        "driver": facts["version"],
        "python": platform.python_version(),
        "budget": options.budget,
        "unit": card.unit_of(options.budget),
        "repeats": options.repeats,
    }
    failed = []
    for name in options.only:
        part = measured_in_child(name, options)
        report[name] = part.get("found", {"error": part.get("error")})
        print("{:<14} {:>6.1f} s  {}".format(name, part["seconds"], part.get("error") or "measured"), flush=True)
        failed += [name] if "error" in part else []
        with open(options.output, "w", encoding="utf-8") as stream:
            json.dump(report, stream, indent=1)
            stream.write("\n")
    return EXIT_FAIL if failed else EXIT_PASS


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UnifiedMemoryError as error:
        sys.exit(str(error))
