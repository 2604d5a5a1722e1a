"""How much memory a run needs, told before it (design, law 4).

The forward and backward pass of the largest window, or of the canvas, is replayed buffer by buffer: what each operation
allocates, what it can compute in place, and what the backward pass keeps. Weights, optimiser state and the constant
share of the runtime are added.
"""

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import numpy as np

from tf_um_patch.host import available_host_memory
from whole_slide_cnn.engines.base import has_gpu, unrolls_patches
from whole_slide_cnn.engines.replay import peak_elements
from whole_slide_cnn.engines.streaming.engine import DEFAULT_WINDOW, largest_windows
from whole_slide_cnn.engines.unified import UnifiedOptions, held_bytes, step_plan
from whole_slide_cnn.errors import MemoryBudgetError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.trace import Step, trace_canvas, trace_window
from whole_slide_cnn.sizes import Size

GB = 1e9

_VALUE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_HEAD_BYTES = {"float64": 8, "float32": 4, "bfloat16": 4, "float16": 4}
_POOLING_BYTES = 13

# Measured (benchmarks/memory.py): what does not depend on the model or on the size of anything.
_RUNTIME_BYTES = 60 * 10**6
_OPERATION_BYTES = 16 * 10**3  # of TensorFlow's graph, in Python and below it, for each planned operation...
_OPERATIONS = 700  # ...beyond these, which are as many as the graphs of the other engines have and the runtime includes
_READING_BYTES = 100 * 10**6  # decoded blocks of this slide and the next, and the bands they are resampled in, at most
_READING_PER_PIXEL = 2 * (
    4 + 3 + 3
)  # of a canvas that is smaller: two slides, decoded, as they are read, and resampled
# Holes between live tensors, which are not given back: with oneDNN TensorFlow has a pool, in which replays of a step's
# allocations left 0 to 15 %; without it the C library's heap, where tensors are small, is no better.
_HOLES = 0.1
HOST_PARTS = _RUNTIME_BYTES + _READING_BYTES  # on the host whatever computes


_REMEDIES = {
    "streaming": "use a smaller streaming.window",
    "unified": "give unified.device_gb a budget, or use engine: streaming",
}


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


def check_memory(plan: MemoryPlan, limit_gb: Optional[float] = None, processes: int = 1):
    """Refuse a plan that exceeds a limit in GB, or what the machine has free where no limit is given.

    Args:
        limit_gb: for each process.
        processes: how many on this machine are about to follow the plan.

    Raises:
        MemoryBudgetError: says what is needed, what there is, and what to do.
    """
    if limit_gb is not None:
        available, owner = limit_gb * GB, "memory_gb allows"
    else:
        free, owner = available_host_memory(), "this machine has"
        available = None if free is None else free // processes
        if processes > 1:
            owner += " for each of {} processes".format(processes)
    if available is not None and plan.total > available:
        remedy = _REMEDIES.get(plan.engine, "use engine: streaming")
        raise MemoryBudgetError(
            "engine {} needs {:.2f} GB of memory, and {} {:.2f} GB; {}".format(
                plan.engine,
                plan.total / GB,
                owner,
                available / GB,
                remedy,
            )
        )


def engine_memory(
    engine: str,
    network: Network,
    canvas: Size,
    compute: str,
    training: bool,
    window: int = DEFAULT_WINDOW,
    **unified,
) -> MemoryPlan:
    """Predicted peak memory of an engine.

    Args:
        training: whether gradients and optimiser state are needed.
        window: side of a window's core in pixels (streaming only).
        unified: fields of :class:`~whole_slide_cnn.engines.unified.UnifiedOptions` (unified only).
    """
    trunk, canvas = network.trunk, Size(*canvas)
    if engine == "unified":
        return _unified_memory(network, canvas, compute, training, UnifiedOptions(**unified))
    if engine == "streaming":
        windows = largest_windows(trunk, canvas, window)
        traces = [(geometry.pixels.size, trace_window(trunk, geometry)) for geometry in windows]
    else:
        traces = [(canvas, trace_canvas(trunk, canvas))]
    largest = max((_pass_bytes(steps, pixels, compute, training) for pixels, steps in traces), key=sum)
    weights = _weight_bytes(network, compute, training)
    names = ("feature maps", "pixels", "weights", "slide reading", "runtime")
    return MemoryPlan(engine, tuple(zip(names, largest + (weights, _reading_bytes(canvas), _RUNTIME_BYTES))))


def _unified_memory(network: Network, canvas: Size, compute: str, training: bool, options) -> MemoryPlan:
    plan = step_plan(network, canvas, compute, options, training)
    # the plan has weights and sums of gradients, too
    maps = held_bytes(plan) if options.eviction_dir is not None and not has_gpu() else plan.peak_bytes
    holes = 0 if has_gpu() else int(_HOLES * maps)
    parts = (
        ("feature maps", maps + holes),
        ("pixels", 3 * 3 * canvas.height * canvas.width),  # read, as TensorFlow copies them, and the next slide's
        ("weights", _weight_bytes(network, compute, training) - _values(network, compute) * (1 + training)),
        ("slide reading", _reading_bytes(canvas)),
        ("runtime", _RUNTIME_BYTES + _OPERATION_BYTES * max(0, len(plan.op_order) - _OPERATIONS)),
    )
    return MemoryPlan("unified", parts)


def _reading_bytes(canvas: Size) -> int:
    return min(_READING_BYTES, _READING_PER_PIXEL * canvas.height * canvas.width)


def _pass_bytes(steps: Sequence[Step], pixels: Size, compute: str, training: bool) -> Tuple[int, int]:
    """Bytes of feature maps and of pixels while a window, or the canvas, is computed."""
    value, head = _VALUE_BYTES[compute], _HEAD_BYTES[compute]
    maps = value * peak_elements(steps, training, unrolls_patches(compute))
    # pooling: where the maximum is (a mask, and three maps of 32-bit positions), and the map's gradient, fed
    maps += steps[-1].elements * (_POOLING_BYTES + (2 * head if training else 0))
    area = pixels.height * pixels.width
    # three copies as bytes (this one fed, and the next one read ahead), one normalised in the variables' type, and
    # one in the compute type where that differs
    return maps, 3 * area * (3 + head + (value if value != head else 0))


def _weight_bytes(network: Network, compute: str, training: bool) -> int:
    """Weights with what training keeps beside each: its summed gradient and Adam's two moments; while a step runs also
    the kernel with the normalisation folded in and, with oneDNN, the kernel in an order of its own."""
    kept = 5 if training else 2
    return _values(network, compute) * (kept + (training and not unrolls_patches(compute)))


def _values(network: Network, compute: str) -> int:
    """Bytes of the variables alone."""
    return _HEAD_BYTES[compute] * sum(int(np.prod(spec.shape)) for spec in network.variables)
