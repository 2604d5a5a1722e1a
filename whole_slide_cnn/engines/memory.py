"""How much memory a run needs, told before it (design, law 4).

The forward and backward pass of the largest window, or of the canvas, is replayed buffer by buffer: what each operation
allocates, what it can compute in place, and what the backward pass keeps. Weights, optimiser state and the constant
share of the runtime are added.
"""

import os
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from whole_slide_cnn.engines.streaming import DEFAULT_WINDOW, largest_windows
from whole_slide_cnn.errors import MemoryBudgetError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.trace import Step, trace_canvas, trace_window
from whole_slide_cnn.sizes import Size

GB = 1e9

_VALUE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted peak memory of a run in bytes, above that of a process that has only loaded TensorFlow.

    Attributes:
        engine: name of the engine.
        parts: bytes by what they are for.
    """

    engine: str
    parts: Tuple[Tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)

    def sentence(self) -> str:
        """One line for a user."""
        parts = ", ".join("{} {:.2f}".format(name, size / GB) for name, size in self.parts)
        return "engine {}: predicted peak memory {:.2f} GB ({})".format(self.engine, self.total / GB, parts)


def check_memory(plan: MemoryPlan, limit_gb: Optional[float] = None):
    """Refuse a plan that exceeds a limit in GB, or what the machine has free where no limit is given.

    Raises:
        MemoryBudgetError: says what is needed, what there is, and what to do.
    """
    available = limit_gb * GB if limit_gb is not None else free_host_memory()
    if available is not None and plan.total > available:
        remedy = "use a smaller streaming.window" if plan.engine == "streaming" else "use engine: streaming"
        raise MemoryBudgetError(
            "engine {} needs {:.2f} GB of memory, and {} {:.2f} GB; {}".format(
                plan.engine,
                plan.total / GB,
                "memory_gb allows" if limit_gb is not None else "this machine has",
                available / GB,
                remedy,
            )
        )


def free_host_memory() -> Optional[int]:
    """Bytes of host memory that a new process could use, or None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def engine_memory(
    engine: str, network: Network, canvas: Size, compute: str, training: bool, window: int = DEFAULT_WINDOW
) -> MemoryPlan:
    """Predicted peak memory of an engine.

    Args:
        training: whether gradients and optimiser state are needed.
        window: side of a window's core in pixels (streaming only).
    """
    trunk = network.trunk
    if engine == "streaming":
        traces = [
            (geometry.pixels.size, trace_window(trunk, geometry)) for geometry in largest_windows(trunk, canvas, window)
        ]
    else:
        traces = [(Size(*canvas), trace_canvas(trunk, canvas))]
    value = _VALUE_BYTES[compute]
    head = 8 if compute == "float64" else 4
    passes = [
        (_pass_bytes(steps, pixels, value, head, network, training), _pixel_bytes(engine, pixels))
        for pixels, steps in traces
    ]
    maps, pixels = max(passes, key=sum)
    return MemoryPlan(engine, (("feature maps", maps), ("pixels", pixels)) + _constant_parts(network, head, training))
