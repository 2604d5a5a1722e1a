"""Asks the driver what this machine can do, and prints it as JSON: ``python -m tf_um_patch.probe``.

It runs in a process of its own, because CUDA can neither be shut down nor survive a fork, and may hang. With the shim
preloaded it shows whether the shim took effect: it allocates as a program would and asks the driver what it was given.
"""

import ctypes
import json
import sys
from typing import Any, Dict, Optional

from tf_um_patch import driver as cuda
from tf_um_patch.child import bare_environment, run_for
from tf_um_patch.errors import DriverError
from tf_um_patch.options import settings
from tf_um_patch.shim import statistics

PROBE_BYTES = 4 << 20  # two pages of managed memory
LEAST_FREE = 16 * PROBE_BYTES  # on a fuller card nothing is allocated
PROBE_SECONDS = 120
_PATTERN = 0x5A


def probe() -> Dict[str, Any]:
    """Facts about the driver and its first device; ``error`` holds what ended the probe early, or None.

    ``devices`` is the number of GPUs, ``version`` that of CUDA which the driver supports, ``name``, ``capability``,
    ``total`` and ``free`` (bytes), ``managed`` and ``concurrent`` are of the first GPU, ``shim`` says whether the shim
    is in this process, and ``allocation`` how a small allocation fared: ``{"managed": bool, "touched": bool}``.
    ``absent`` is True where there is no driver, or it sees no GPU, rather than one that cannot be used.
    """
    facts: Dict[str, Any] = {
        "error": None,
        "absent": False,
        "devices": 0,
        "shim": statistics() is not None,
        "allocation": None,
    }
    try:
        _ask(cuda.Driver(), facts)
    except DriverError as error:
        facts["error"] = str(error)
        facts["absent"] = facts["devices"] == 0 and error.result in (None, cuda.NO_DEVICE)
    return facts


def _ask(driver: cuda.Driver, facts: Dict[str, Any]) -> None:
    version = driver.value("cuDriverGetVersion")
    facts["version"] = "{}.{}".format(version // 1000, version % 1000 // 10)
    driver.cuInit(0)
    facts["devices"] = driver.value("cuDeviceGetCount")
    if facts["devices"] == 0:
        facts["absent"] = True
        return
    device = driver.value("cuDeviceGet", 0)
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), device)
    facts["name"] = name.value.decode("utf-8", "replace")

    def attribute(number: int) -> int:
        return driver.value("cuDeviceGetAttribute", number, device)

    facts["capability"] = "{}.{}".format(attribute(cuda.CAPABILITY_MAJOR), attribute(cuda.CAPABILITY_MINOR))
    facts["managed"] = bool(attribute(cuda.MANAGED_MEMORY))
    facts["concurrent"] = bool(attribute(cuda.CONCURRENT_MANAGED_ACCESS))
    with driver.primary_context(device):
        facts["free"], facts["total"] = driver.memory()
        if facts["free"] >= LEAST_FREE:
            facts["allocation"] = _allocate(driver)


def _allocate(driver: cuda.Driver) -> Dict[str, Any]:
    """Allocates a little, writes to it on the device and reads it back, and asks the driver what the pointer is."""
    address = driver.value("cuMemAlloc_v2", PROBE_BYTES, kind=ctypes.c_uint64)
    try:
        managed = driver.is_managed(address)
        driver.cuMemsetD8_v2(address, _PATTERN, PROBE_BYTES)
        copy = (ctypes.c_ubyte * PROBE_BYTES)()
        driver.cuMemcpyDtoH_v2(copy, address, PROBE_BYTES)
        return {"managed": managed, "touched": bytes(copy) == bytes([_PATTERN]) * PROBE_BYTES}
    finally:
        driver.cuMemFree_v2(address)


def run_probe(shim: Optional[str] = None) -> Dict[str, Any]:
    """What :func:`probe` finds in a fresh process, with the shim preloaded in it or not.

    Never more managed memory is asked for than a small part of what the card has free.
    """
    environment = bare_environment()
    if shim:
        environment["LD_PRELOAD"] = shim
        environment.update(settings(ceiling=LEAST_FREE, threshold=PROBE_BYTES))
    done = run_for([sys.executable, "-m", "tf_um_patch.probe"], environment, PROBE_SECONDS)
    if done.code is None:
        error = "the driver did not answer within {} s: look at the card with nvidia-smi".format(PROBE_SECONDS)
    else:
        try:
            return json.loads(done.output.strip().splitlines()[-1])
        except (IndexError, ValueError):
            error = "the driver ended the process that asked it ({}): reinstall the NVIDIA driver".format(done.code)
    return {"error": error, "absent": False, "devices": 0, "shim": False, "allocation": None}


if __name__ == "__main__":
    print(json.dumps(probe()))
