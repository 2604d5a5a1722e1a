"""``python -m tf_um_patch gpu-check``: the checks that need a GPU, in one command, safe on a card that others use."""

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
from typing import Any, Dict, List, Tuple

from tf_um_patch.build import build_shim
from tf_um_patch.child import bare_environment, run_for
from tf_um_patch.driver import HOST
from tf_um_patch.errors import BuildError, OptionError
from tf_um_patch.gpu_check import figures, framework, measure
from tf_um_patch.gpu_check.card import refusal
from tf_um_patch.gpu_check.result import FAIL, PASS, SKIPPED, Check, measured, verdict
from tf_um_patch.host import GpuInfo
from tf_um_patch.options import parse_size
from tf_um_patch.probe import run_probe
from tf_um_patch.routes import effect_of_shim

EXIT_PASS, EXIT_FAIL, EXIT_NO_GPU = 0, 1, 77
REQUIRE_VARIABLE = "TF_UM_PATCH_REQUIRE_GPU"
NO_GPU = "no GPU"
OUTPUT = os.path.join("results", "gpu-check")
FILE = "gpu-check.json"

# Settings by which a framework would take memory past the shim, or take all that there is.
_SETTINGS_OF_FRAMEWORKS = (
    "CUPY_GPU_MEMORY_LIMIT",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TF_FORCE_UNIFIED_MEMORY",
    "TF_GPU_ALLOCATOR",
)


def main(arguments: List[str]) -> int:
    """Print and write the report; 0 where all passes, 1 where something fails, 77 without a GPU."""
    options = _parser().parse_args(arguments)
    budget, seconds = _budget(options.budget), _seconds(options.timeout)
    required = _required()
    _make_folder(options.output)
    report = examine(budget, seconds, options.output)
    path = os.path.join(options.output, FILE)
    _write(report, path)
    print(json.dumps(report, indent=2))
    for check in report["checks"]:
        if check["status"] == FAIL:
            print("{} fails: {}".format(check["name"], check["sentence"]), file=sys.stderr)
    print("{}; the report is {}".format(report["sentence"], path), file=sys.stderr)
    if report["status"] == NO_GPU:
        return EXIT_FAIL if required else EXIT_NO_GPU
    return EXIT_PASS if report["status"] == PASS else EXIT_FAIL


def examine(budget: int, seconds: float, folder: str) -> Dict[str, Any]:
    """The whole report.

    Args:
        budget: bytes of device memory that the checks may have allocated at one time.
        seconds: after which a process is ended that does not come to an end.
        folder: for figures.

    Raises:
        OptionError: the budget is no small part of what the card has free.
    """
    facts = run_probe()
    report: Dict[str, Any] = {
        "status": FAIL,
        "sentence": "",
        "gpu": {name: facts.get(name) for name in ("name", "capability", "total", "free")},
        "driver": facts.get("version"),
        "python": platform.python_version(),
        "budget": measured(budget, "bytes"),
        "checks": [],
        "figures": [],
    }
    if facts["absent"]:
        report["status"] = NO_GPU
        why = facts["error"] or "the driver sees none"
        report["sentence"] = "there is no GPU here, so nothing was checked ({})".format(why)
        figures.draw([], "", folder)
        return report
    if facts.get("free") is None:
        report["sentence"] = "the GPU cannot be used: {}".format(facts["error"])
        figures.draw([], "", folder)
        return report
    refused = refusal(budget, facts["free"], facts["name"])
    if refused:
        raise OptionError(refused)
    report["shared"] = GpuInfo(facts["name"], facts["total"], facts["free"]).in_use
    checks = driver_checks(budget, seconds) + shim_checks(budget, seconds)
    report["checks"] = [check.to_json() for check in checks]
    report["status"], report["sentence"] = _summary(checks, facts["name"])
    report["figures"] = figures.draw(checks, "{}, {} bytes".format(facts["name"], budget), folder)
    return report


def driver_checks(budget: int, seconds: float) -> List[Check]:
    """What :mod:`tf_um_patch.gpu_check.measure` finds in a process of its own."""
    command = [sys.executable, "-m", "tf_um_patch.gpu_check.measure", str(budget)]
    done = run_for(command, _environment(), seconds)
    # A process that was ended may have left half a line.
    found = [Check(**json.loads(line)) for line in done.output.splitlines(True) if line.endswith("}\n")]
    if done.code != 0 or len(found) != len(measure.NAMES):
        why = "the process of the checks did not end well: {}".format(done.why(seconds))
        found = found[: len(measure.NAMES) - 1]  # to give everything back is the last check, and to end is part of it
        unknown = measure.NAMES[len(found) :]
        found += [Check(name, FAIL if name == unknown[0] else SKIPPED, why) for name in unknown]
    return found


def shim_checks(budget: int, seconds: float) -> List[Check]:
    """The shim under a small program, and under the first framework that sees the GPU."""
    try:
        shim = build_shim()
    except BuildError as error:
        return [Check(name, SKIPPED, str(error)) for name in ("shim", "framework", "framework_moves")]
    facts = run_probe(shim)
    effect = effect_of_shim(facts)
    active = verdict(
        "shim",
        effect == "managed",
        "an allocation of a program that knows nothing of the shim became managed memory",
        "an allocation of a program under the shim did not become managed memory ({}): see python -m tf_um_patch "
        "doctor".format(facts["error"] or effect),
        {"effect": measured(effect, "of managed, plain, broken, none, unproven")},
    )
    return [active] + framework_checks(budget, seconds)


def framework_checks(budget: int, seconds: float) -> List[Check]:
    """The shim and the moves under the first framework that sees the GPU, started as ``run`` starts a program."""
    reasons = []
    for name in framework.NAMES:
        if importlib.util.find_spec(name) is None:
            reasons.append("{} is not installed".format(name))
            continue
        facts, counted = _try_framework(name, budget, seconds)
        if "skipped" in facts:
            reasons.append(facts["skipped"])
            continue
        if "failed" in facts:
            sentence = "{} under the shim: {}".format(name, facts["failed"])
            return [Check("framework", FAIL, sentence), Check("framework_moves", SKIPPED, sentence)]
        return [judge_framework(name, facts, counted, budget), judge_framework_moves(name, facts)]
    reason = "no framework is there that sees the GPU: {}".format("; ".join(reasons))
    return [Check(name, SKIPPED, reason) for name in ("framework", "framework_moves")]


def judge_framework(name: str, facts: Dict[str, Any], counted: Dict[str, int], budget: int) -> Check:
    """Whether a framework computed in managed memory under the shim.

    Args:
        name: of the framework.
        facts: what :func:`tf_um_patch.gpu_check.framework.report` returned.
        counted: the shim's own report, written at the process's end.
        budget: the ceiling in bytes.
    """
    routes = {key: value for key, value in counted.items() if "Alloc" in key.split(".")[0] and "." in key and value}
    routes.update({key: value for key, value in counted.items() if key.startswith("cudaMalloc.") and value})
    values = {
        "version": measured(facts["version"], name),
        "mean": measured(facts["mean"], "1 is right"),
        "peak": measured(counted.get("peak_bytes", 0), "bytes"),
        "managed_allocations": measured(counted.get("managed_allocations", 0), "count"),
        "refused_by_ceiling": measured(counted.get("refused_by_ceiling", 0), "count"),
        "routes": measured(routes, "calls by function and route"),
    }
    faults = [
        text
        for text, wrong in (
            ("the shim is not in its process", not facts["shim"]),
            ("it computed {} instead of 1".format(facts["mean"]), facts["mean"] != 1),
            ("none of its allocations was managed memory", not counted.get("managed_allocations")),
            ("no route of its allocations was counted", not routes),
            ("its allocations passed the ceiling", counted.get("peak_bytes", 0) > budget),
            ("the ceiling refused allocations", counted.get("refused_by_ceiling", 0) > 0),
        )
        if wrong
    ]
    good = "{} {} computed in managed memory under the shim".format(name, facts["version"])
    return verdict("framework", not faults, good, "under {}: {}".format(name, "; ".join(faults)), values)


def judge_framework_moves(name: str, facts: Dict[str, Any]) -> Check:
    """Whether a framework's tensor was where UmEvict and UmPrefetch moved it, with its contents."""
    if facts["reason"]:
        return Check("framework_moves", SKIPPED, facts["reason"])
    evict, prefetch = facts["evict"], facts["prefetch"]
    values = {
        "bytes": measured(evict["bytes"], "bytes"),
        "after_evict": measured(evict["location"], "location"),
        "after_prefetch": measured(prefetch["location"], "location"),
    }
    what = "UmEvict and UmPrefetch" if name == "tensorflow" else "the code of UmEvict and UmPrefetch"
    return verdict(
        "framework_moves",
        evict["bytes"] > 0
        and (evict["location"], prefetch["location"]) == (HOST, 0)
        and evict["mean"] == prefetch["mean"] == 1,
        "{} moved a tensor of {} to the host and back".format(what, name),
        "{} did not move a tensor of {} to the host and back with its contents".format(what, name),
        values,
    )


def _try_framework(name: str, budget: int, seconds: float) -> Tuple[Dict[str, Any], Dict[str, int]]:
    """What a framework's process printed, or {"failed": why}; and the shim's report of it."""
    module = [sys.executable, "-m", "tf_um_patch.gpu_check.framework", name, str(budget)]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "report")
        run = [sys.executable, "-m", "tf_um_patch", "run", "--host-memory", "0", "--ceiling", str(budget)]
        done = run_for(run + ["--report", path, "--"] + module, _environment(), seconds)
        lines = [line for line in done.output.splitlines() if line.startswith("{")]
        if done.code != 0 or not lines:
            return {"failed": done.why(seconds)}, {}
        facts = json.loads(lines[-1])
        if not os.path.exists(path):
            return dict(facts, failed="the shim wrote no report at its end"), {}
        with open(path, encoding="ascii") as stream:
            return facts, {key: int(value) for key, value in (line.split() for line in stream)}


def _environment() -> Dict[str, str]:
    """The environment of a process that uses the first GPU and no other."""
    environment = bare_environment()
    for name in _SETTINGS_OF_FRAMEWORKS:
        environment.pop(name, None)
    environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environment


def _summary(checks: List[Check], gpu: str) -> Tuple[str, str]:
    counts = {status: sum(check.status == status for check in checks) for status in (PASS, FAIL, SKIPPED)}
    sentence = "on {} {} checks pass, {} fail and {} were skipped".format(
        gpu, counts[PASS], counts[FAIL], counts[SKIPPED]
    )
    return FAIL if counts[FAIL] else PASS, sentence


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tf_um_patch gpu-check",
        description="Check on a GPU what this package says of one, within a small budget of memory. Exits with 0 where "
        "nothing fails, 1 where something does, 2 where it refuses, and 77 without a GPU ({}=1 makes that 1).".format(
            REQUIRE_VARIABLE
        ),
        epilog="Sizes are bytes, or have a unit: 1GB is 10^9, 1GiB is 2^30 bytes.",
    )
    parser.add_argument(
        "--budget",
        metavar="SIZE",
        default="256MB",
        help="device memory that it may have allocated at one time, at most a quarter of what is free (default: 256MB)",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", default=OUTPUT, help="for report and figures (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", default="300", help="for each process that uses the GPU (default: 300)"
    )
    return parser


def _budget(text: str) -> int:
    try:
        budget = parse_size(text)
    except OptionError as error:
        raise OptionError("--budget: {}".format(error)) from None
    if budget < measure.LEAST_BUDGET:
        raise OptionError(
            "--budget {} is too small to time anything: give {} or more".format(text, measure.LEAST_BUDGET)
        )
    return budget


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise OptionError("--timeout {} cannot be used: give a number of seconds above 0".format(text))
    return seconds


def _required() -> bool:
    value = os.environ.get(REQUIRE_VARIABLE, "0")
    if value not in ("0", "1"):
        raise OptionError("{}={} cannot be used: set it to 0 or 1, or unset it".format(REQUIRE_VARIABLE, value))
    return value == "1"


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(
            "--output {} cannot be written ({}): give another folder".format(folder, error.strerror)
        ) from error


def _write(report: Dict[str, Any], path: str) -> None:
    """Replace the file when it is complete."""
    scratch = "{}.{}".format(path, os.getpid())
    with open(scratch, "w", encoding="utf-8") as stream:
        json.dump(report, stream, indent=2)
        stream.write("\n")
    os.replace(scratch, path)
