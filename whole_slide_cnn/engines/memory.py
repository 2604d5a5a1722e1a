"""How much memory a run needs, told before it (architecture, law 4).

An engine says what its maps and pixels take (:meth:`~.description.EngineDescription.memory`); what is alike for all
(weights, optimiser state, reading, and the constant share of the runtime) is here, and so is the refusal of what cannot
fit.
"""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np

from tf_um_patch.host import host_memory
from whole_slide_cnn.engines.replay import HEAD_BYTES
from whole_slide_cnn.errors import MemoryBudgetError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size

GB = 1e9

# Measured (benchmarks/memory.py): what does not depend on the model or on the size of anything.
RUNTIME_BYTES = 60 * 10**6
_READING_BYTES = 100 * 10**6  # decoded blocks of this slide and the next, and the bands they are resampled in, at most
_READING_PER_PIXEL = 2 * (
    4 + 3 + 3
)  # of a canvas that is smaller: two slides, decoded, as they are read, and resampled
HOST_PARTS = RUNTIME_BYTES + _READING_BYTES  # on the host whatever computes

OTHER_ENGINE = "use engine: streaming"  # the remedy of engines whose memory grows with the canvas


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted peak memory of a run in bytes, above that of a process that has only loaded TensorFlow.

    Attributes:
        engine: name of the engine.
        parts: bytes by what they are for.
        remedy: what to do where that does not fit.
    """

    engine: str
    parts: Tuple[Tuple[str, int], ...]
    remedy: str = OTHER_ENGINE

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)

    def sentence(self) -> str:
        """One line for a user."""
        parts = ", ".join("{} {:.2f}".format(name, size / GB) for name, size in self.parts)
        return "engine {}: predicted peak memory {:.2f} GB ({})".format(self.engine, self.total / GB, parts)


def check_memory(plan: MemoryPlan, limit_gb: Optional[float] = None, processes: int = 1):
    """Refuse a plan that exceeds a limit in GB, or what the machine has free where no limit is given.

    Args:
        limit_gb: for each process.
        processes: how many on this machine are about to follow the plan.

    Raises:
        MemoryBudgetError: says what is needed, what there is, and what to do.
    """
    available: Optional[float]
    if limit_gb is not None:
        available, owner = limit_gb * GB, "memory_gb allows"
    else:
        memory = host_memory()
        available = None if memory is None else memory.available_bytes // processes
        owner = "this machine has" if memory is None or memory.group is None else "the job's control group leaves"
        if processes > 1:
            owner += " for each of {} processes".format(processes)
    if available is not None and plan.total > available:
        raise MemoryBudgetError(
            "engine {} needs {:.2f} GB of memory, and {} {:.2f} GB; {}".format(
                plan.engine,
                plan.total / GB,
                owner,
                available / GB,
                plan.remedy,
            )
        )


def engine_memory(
    engine: str, network: Network, canvas: Size, compute: str, training: bool, **options: Any
) -> MemoryPlan:
    """Predicted peak memory of an engine.

    Args:
        engine: its name.
        training: whether gradients and optimiser state are needed.
        options: of the engine.
    """
    from whole_slide_cnn.engines.costs import Work
    from whole_slide_cnn.engines.table import ENGINES

    description = ENGINES[engine]
    given = {engine: description.options(**options)}
    return description.memory(Work(network, Size(*canvas), compute, training, options=given))


def reading_bytes(canvas: Size) -> int:
    """Of this slide and the next, as they are read."""
    return min(_READING_BYTES, _READING_PER_PIXEL * canvas.height * canvas.width)


def weight_bytes(network: Network, compute: str, training: bool, unrolls: bool) -> int:
    """Weights with what training keeps beside each: its summed gradient and Adam's two moments; while a step runs also
    the kernel with the normalisation folded in and, with oneDNN, the kernel in an order of its own."""
    kept = 5 if training else 2
    return variable_bytes(network, compute) * (kept + (training and not unrolls))


def variable_bytes(network: Network, compute: str) -> int:
    """Bytes of the variables alone."""
    return HEAD_BYTES[compute] * sum(int(np.prod(spec.shape)) for spec in network.variables)
