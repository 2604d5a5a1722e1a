"""``python -m tf_um_patch doctor``: what this machine can do about memory beyond the device, in plain words."""

import argparse
import json
from typing import List, Optional

from tf_um_patch.host import HOST_SHARE
from tf_um_patch.routes import Findings, Route, choose_route, examine

EXIT_NO_ROUTE = 1


def main(arguments: List[str]) -> int:
    """Print the report; 0 where some route to memory beyond the device exists, 1 where none does."""
    parser = argparse.ArgumentParser(
        prog="python -m tf_um_patch doctor",
        description="Say what this machine can do about memory beyond the device. Exits with 1 where that is nothing.",
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    options = parser.parse_args(arguments)
    found = examine()
    route = choose_route(found)
    if options.json:
        print(json.dumps({"machine": found.to_json(), "shared": found.shared, "route": route._asdict()}, indent=2))
    else:
        print(describe(found, route))
    return 0 if route.name != "none" else EXIT_NO_ROUTE


def describe(found: Findings, route: Route) -> str:
    """The report, one fact per line."""
    rows = [
        ("GPU", _gpu(found)),
        ("driver", "CUDA {}".format(found.driver) if found.driver else "none"),
        ("managed memory", _yes_no(found.managed)),
        ("concurrent managed access", _yes_no(found.concurrent)),
        ("compiler", found.c_compiler or "none, so the shim cannot be built"),
        ("C++ compiler", found.cxx_compiler or "none, so tensors cannot be moved ahead of their use"),
        ("shim", "built" if found.shim else found.shim_error),
        ("effect of the shim", _EFFECTS[found.effect]),
        (
            "host memory",
            "{:.1f} GB available, {:.1f} GB ({:.0%}) of it for one process".format(
                found.host.available_bytes / 1e9, found.host_budget / 1e9, HOST_SHARE
            ),
        ),
        ("route", "{}: {}".format(route.name, route.reason)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join("{}  {}".format(name.ljust(width), text) for name, text in rows)


_EFFECTS = {
    "managed": "an allocation became managed memory and kept what was written to it",
    "plain": "none: an allocation stayed plain device memory",
    "broken": "an allocation lost what was written to it",
    "none": "none: the dynamic linker did not load it",
    "unproven": "unproven: nothing could be allocated here",
}


def _gpu(found: Findings) -> str:
    if found.gpu_name is None:
        return "none: {}".format(found.driver_error or "the driver sees no device")
    if found.gpu is None:
        return "{}, which cannot be used: {}".format(found.gpu_name, found.driver_error)
    text = "{} (compute capability {}), {:.1f} of {:.1f} GB free".format(
        found.gpu_name, found.capability, found.gpu.free_bytes / 1e9, found.gpu.total_bytes / 1e9
    )
    if found.gpus > 1:
        text = "{} devices, the first is {}".format(found.gpus, text)
    if found.driver_error:
        text += "; {}".format(found.driver_error)
    return text + ("; others seem to use it: do not oversubscribe it" if found.shared else "")


def _yes_no(value: Optional[bool]) -> str:
    return {None: "unknown without a GPU", True: "yes", False: "no"}[value]
