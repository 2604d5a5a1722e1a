"""GPUs by name: memory and rates from their makers' data sheets, and what of these a training sustains.

All assumptions of the planner about hardware are here. None of them is fitted to a published row.
"""

from dataclasses import dataclass, replace
from typing import Dict, Optional

from graph_tools.simulation.machine import Machine
from tf_um_patch.host import HOST_SHARE, GpuInfo
from whole_slide_cnn.engines.costs import Target
from whole_slide_cnn.errors import ConfigError

GIB = 2**30

# Of the peak in the data sheet; assumed for all GPUs alike.
CONVOLUTION_SHARE = 0.75  # float32 convolutions of cuDNN
HALF_SHARE = 0.45  # half precision on tensor cores, whose inputs are often too small to fill them
BANDWIDTH_SHARE = 0.8

# Of the memory: what the driver keeps for itself (3 %), and CUDA's context with its libraries' code.
USABLE_SHARE = 0.97
CONTEXT_BYTES = 500 * 10**6

# Measured by the paper of 2021 on PCI Express 3; for newer generations scaled like the link, which nobody has measured.
_COPY_RATE, _ON_DEMAND_RATE = 10.3e9, 3.6e9


@dataclass(frozen=True)
class Gpu:
    """One model of GPU, as in its data sheet.

    Attributes:
        gib: memory in GiB, which data sheets call GB.
        float32_tflops: 10^12 multiplications and additions per second in float32, without TF32.
        half_tflops: the same in float16, sums in float32, dense.
        memory_gbs: 10^9 bytes per second of its memory.
        pcie: generation of its link to the host, 16 lanes.
        float64_share: rate in float64 over that in float32.
        bfloat16: whether it computes in bfloat16, at the rate of float16, and in TensorFloat-32, at half that rate.
    """

    gib: float
    float32_tflops: float
    half_tflops: float
    memory_gbs: float
    pcie: int
    float64_share: float
    bfloat16: bool


GPUS: Dict[str, Gpu] = {
    "P100-16GB": Gpu(16, 9.3, 18.7, 732, 3, 1 / 2, False),
    "V100-16GB": Gpu(16, 15.7, 125, 900, 3, 1 / 2, False),
    "V100-32GB": Gpu(32, 15.7, 125, 900, 3, 1 / 2, False),
    "T4": Gpu(16, 8.1, 65, 320, 3, 1 / 32, False),
    "RTX-2080-Ti": Gpu(11, 13.4, 53.8, 616, 3, 1 / 32, False),
    "RTX-3090": Gpu(24, 35.6, 71, 936, 4, 1 / 64, True),
    "RTX-4090": Gpu(24, 82.6, 165, 1008, 4, 1 / 64, True),
    "RTX-A6000": Gpu(48, 38.7, 155, 768, 4, 1 / 64, True),
    "A40": Gpu(48, 37.4, 150, 696, 4, 1 / 64, True),
    "A100-40GB": Gpu(40, 19.5, 312, 1555, 4, 1 / 2, True),
    "A100-80GB": Gpu(80, 19.5, 312, 2039, 4, 1 / 2, True),
    "L4": Gpu(24, 30.3, 121, 300, 4, 1 / 64, True),
    "L40S": Gpu(48, 91.6, 362, 864, 4, 1 / 64, True),
    "H100-80GB": Gpu(80, 66.9, 989, 3350, 5, 1 / 2, True),
    "H200": Gpu(141, 66.9, 989, 4800, 5, 1 / 2, True),
}


def gpu_named(name: str) -> Gpu:
    """A GPU of the table.

    Raises:
        ConfigError: the table has none of this name.
    """
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return gpu
    raise ConfigError(
        "unknown device '{}' (known: {}); name one that is like yours and give what differs, such as "
        "--device-memory".format(name, ", ".join(GPUS))
    )


def machine_of(gpu: Gpu, host_bytes: int, compute: str = "float32") -> Machine:
    """What plans are simulated on: a GPU in a host with so many bytes of memory.

    Args:
        compute: type that a network computes in: the rate of what is not half precision is that of float64 for it, or
            of tensorfloat32; bfloat16 and tensorfloat32 have the rate of float32 on a GPU without them.
    """
    link = 2.0 ** (gpu.pcie - 3)
    full = gpu.float32_tflops * 1e12 * CONVOLUTION_SHARE
    half = gpu.half_tflops * 1e12 * HALF_SHARE
    if compute == "tensorfloat32" and gpu.bfloat16:
        full = max(full, half / 2)
    return Machine(
        device_bytes=int(gpu.gib * GIB * USABLE_SHARE) - CONTEXT_BYTES,
        host_bytes=int(host_bytes * HOST_SHARE),
        on_demand_rate=_ON_DEMAND_RATE * link,
        copy_rate=_COPY_RATE * link,
        memory_rate=gpu.memory_gbs * 1e9 * BANDWIDTH_SHARE,
        float32_flops=full * gpu.float64_share if compute == "float64" else full,
        half_flops=full if compute == "bfloat16" and not gpu.bfloat16 else half,
    )


def target_of_card(card: GpuInfo, host_bytes: int, compute: str = "float32") -> Target:
    """A GPU of this machine, in a host with so many bytes of memory for a run.

    How much memory it has is always known; how fast it is only where the table has it. A slice of a GPU (MIG) is not in
    the table.
    """
    known = match_gpu(card)
    if known is not None:
        machine = machine_of(GPUS[known], host_bytes, compute)
    else:
        machine = Machine(card.total_bytes - CONTEXT_BYTES, int(host_bytes * HOST_SHARE))
    free = max(card.free_bytes - CONTEXT_BYTES, 1)  # what others use of it is not there
    machine = replace(machine, device_bytes=min(machine.device_bytes, free))
    return Target(known or card.name, machine, True, rates_known=known is not None)


def match_gpu(card: GpuInfo) -> Optional[str]:
    """Name, in the table, of a card such as ``Tesla V100-SXM2-32GB`` with 32,510 MiB; None where it has nothing like
    it."""
    words = card.name.replace(" ", "-").replace("_", "-").upper().split("-")
    gib = card.total_bytes / GIB
    for known, gpu in GPUS.items():
        # of a model that is sold with several sizes, the size in its name is told by the memory instead
        parts = [part for part in known.upper().split("-") if not part.endswith("GB")]
        if all(part in words for part in parts) and 0.9 * gpu.gib <= gib <= 1.05 * gpu.gib:
            return known
    return None
