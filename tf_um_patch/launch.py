"""``python -m tf_um_patch run -- COMMAND``: a command with the shim under it."""

import argparse
import os
import shutil
import sys
from typing import Dict, List, Optional

from tf_um_patch.build import build_shim
from tf_um_patch.errors import BuildError, OptionError
from tf_um_patch.host import host_budget, launched
from tf_um_patch.options import check_environment, parse_size, settings
from tf_um_patch.routes import choose_route, examine

# For the command: the fraction with which its TensorFlow sessions should be made where the shim cannot be.
FRACTION_VARIABLE = "TF_UM_PATCH_MEMORY_FRACTION"


def main(arguments: List[str]) -> int:
    """Replace this process by the command."""
    options = _parser().parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise OptionError("no command is given: name it after --, as in: python -m tf_um_patch run -- python train.py")
    if shutil.which(command[0]) is None:
        raise OptionError("the command {} is not found: check its name, or give its path".format(command[0]))
    environment = dict(os.environ)
    check_environment(environment)
    environment.update(_environment(options))
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def memory_fraction() -> Optional[float]:
    """What ``run`` tells this process to use as ``per_process_gpu_memory_fraction``, or None where it does not.

    It is set where the shim could not be built and TensorFlow's own managed memory takes its place.
    """
    text = os.environ.get(FRACTION_VARIABLE)
    try:
        return float(text) if text else None
    except ValueError:
        raise OptionError("{}={} is no number: unset it".format(FRACTION_VARIABLE, text)) from None


def exceeds_device() -> bool:
    """Whether this process was started by ``run``, so that what it allocates may exceed its GPU."""
    preloaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return memory_fraction() is not None or any("libtfum" in os.path.basename(path) for path in preloaded)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tf_um_patch run",
        description="Run a command whose CUDA allocations are managed memory, which may exceed the device.",
        epilog="Sizes are bytes, or have a unit: 1GB is 10^9, 1GiB is 2^30 bytes.",
    )
    parser.add_argument(
        "--host-memory",
        metavar="SIZE",
        help="host memory that counts as device memory, per process (default: nine tenths of what is available, "
        "divided by --processes; 0 on a GPU that others use)",
    )
    parser.add_argument("--processes", metavar="N", default="1", help="processes of the command that share it")
    parser.add_argument("--ceiling", metavar="SIZE", help="never allocate more (default: free device + host memory)")
    parser.add_argument("--threshold", metavar="SIZE", help="smaller allocations stay device memory (default: 2MiB)")
    parser.add_argument("--show", action="store_true", help="every process says that the shim is active in it")
    parser.add_argument(
        "--report", metavar="FILE", help="write statistics at exit; -: standard error, %%p: the process"
    )
    parser.add_argument("--trace", metavar="FILE", help="write every allocation and free; %%p: the process")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="with its arguments")
    return parser


def _environment(options: argparse.Namespace) -> Dict[str, str]:
    """The variables for the command: the shim with its options, or else TensorFlow's own route."""
    ceiling, threshold = _size("--ceiling", options.ceiling), _size("--threshold", options.threshold)
    try:
        shim = build_shim()
    except BuildError as error:
        return _without_shim(error)
    given = settings(
        ceiling=ceiling,
        host_budget=_host_memory(options),
        threshold=threshold,
        show=options.show,
        report=options.report,
        trace=options.trace,
    )
    given["LD_PRELOAD"] = " ".join([shim] + os.environ.get("LD_PRELOAD", "").split())
    return given


def _without_shim(error: BuildError) -> Dict[str, str]:
    route = choose_route(examine())
    print("warning: {}; {}".format(error, route.reason), file=sys.stderr)
    return {FRACTION_VARIABLE: str(route.memory_fraction)} if route.memory_fraction else {}


def _host_memory(options: argparse.Namespace) -> Optional[int]:
    """Bytes for TFUM_HOST_BUDGET; None where the environment has them already."""
    if options.host_memory is not None:
        return _size("--host-memory", options.host_memory)
    if "TFUM_HOST_BUDGET" in os.environ:
        return None
    processes = _processes(options.processes)
    launch = launched()
    if (launch.local_size or launch.size) > 1:
        raise OptionError(
            "this is one of several processes, which cannot tell each other's memory from that of others: give "
            "--host-memory, or start them all by one python -m tf_um_patch run --processes N -- mpirun ..."
        )
    found = examine()
    if found.gpu_name is None:
        print("warning: no GPU can be used here, so the shim has nothing to do", file=sys.stderr)
    if found.shared:
        print(
            "warning: others seem to use {}, and oversubscribing it could hang it for them: no host memory is added; "
            "give --host-memory if the GPU is yours alone".format(found.gpu_name),
            file=sys.stderr,
        )
        return 0
    return host_budget(found.host.available_bytes, processes)


def _processes(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise OptionError("--processes {} cannot be used: give a whole number, 1 or more".format(text))
    return int(text)


def _size(option: str, text: Optional[str]) -> Optional[int]:
    try:
        return None if text is None else parse_size(text)
    except OptionError as error:
        raise OptionError("{}: {}".format(option, error)) from None
