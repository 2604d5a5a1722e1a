"""Replays a forward and backward pass buffer by buffer, to know its peak memory without running it."""

from collections import Counter
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from whole_slide_cnn.models.shapes import Step
from whole_slide_cnn.sizes import Size

# Operations whose output can take over the memory of an input that nobody else needs.
_IN_PLACE = ("bias", "relu", "add", "multiply", "sum")
# What an operation's gradient reads: its inputs, its output.
_KEEPS_INPUT = ("conv", "pool", "multiply")
_KEEPS_OUTPUT = ("relu", "pool")

# Bytes of a number of a feature map, and of one of variables, head and loss.
VALUE_BYTES = {"float64": 8, "float32": 4, "tensorfloat32": 4, "bfloat16": 2, "float16": 2}
HEAD_BYTES = {"float64": 8, "float32": 4, "tensorfloat32": 4, "bfloat16": 4, "float16": 4}
_POOLING_BYTES = 13


class Operation(NamedTuple):
    """One operation of the replay: what it reads and writes, and what it needs while it runs (in elements)."""

    reads: Tuple[str, ...]
    writes: Optional[str]
    elements: int
    in_place: bool
    workspace: int


def peak_elements(steps: Sequence[Step], training: bool, unrolls: bool) -> int:
    """Most elements that are alive at once.

    Args:
        steps: the forward pass.
        training: whether the backward pass follows.
        unrolls: whether the gradients of a convolution unroll its input into a matrix of patches, as TensorFlow's own
            CPU kernels do; oneDNN and cuDNN do not.
    """
    operations = [
        Operation(tuple(_output(at) for at in step.inputs), _output(i), step.elements, step.kind in _IN_PLACE, 0)
        for i, step in enumerate(steps)
    ]
    if training:
        operations += _backward(steps, unrolls)
    return _replay(operations, _output(len(steps) - 1))


def pass_bytes(steps: Sequence[Step], pixels: Size, compute: str, training: bool, unrolls: bool) -> Tuple[int, int]:
    """Bytes of feature maps and of pixels while a window, or the canvas, is computed.

    Args:
        steps: the forward pass.
        pixels: what it reads.
        compute: type of the maps.
        training, unrolls: see :func:`peak_elements`.
    """
    value, head = VALUE_BYTES[compute], HEAD_BYTES[compute]
    maps = value * peak_elements(steps, training, unrolls)
    # pooling: where the maximum is (a mask, and three maps of 32-bit positions), and the map's gradient, fed
    maps += steps[-1].elements * (_POOLING_BYTES + (2 * head if training else 0))
    area = pixels.height * pixels.width
    # three copies as bytes (this one fed, and the next one read ahead), one normalised in the variables' type, and
    # one in the compute type where that differs
    return maps, 3 * area * (3 + head + (value if value != head else 0))


def _output(position: int) -> str:
    return "output {}".format(position)


def _gradient(position: int) -> str:
    return "gradient {}".format(position)


def _backward(steps: Sequence[Step], unrolls: bool) -> List[Operation]:
    """Gradients in reverse order; a tensor read twice has its gradients added."""
    last = len(steps) - 1
    operations = [Operation((), _gradient(last), steps[last].elements, False, 0)]
    parts: Dict[int, int] = Counter()
    needed = _needs_gradient(steps)
    for i in range(last, -1, -1):
        step = steps[i]
        kept = tuple(_output(at) for at in step.inputs) if step.kind in _KEEPS_INPUT else ()
        kept += (_output(i),) if step.kind in _KEEPS_OUTPUT else ()
        workspace = _workspace(step, unrolls)
        targets = [at for at in step.inputs if at >= 0 and needed[at]]
        if not targets:
            operations.append(Operation((_gradient(i),) + kept, None, 0, False, workspace))
        for at in targets:
            name = _gradient(at) if not parts[at] else _gradient(at) + " more"
            elements = steps[at].elements
            in_place = step.kind in _IN_PLACE
            operations.append(Operation((_gradient(i),) + kept, name, elements, in_place, workspace))
            if parts[at]:
                operations.append(Operation((_gradient(at), name), _gradient(at) + " sum", elements, True, 0))
                operations.append(Operation((_gradient(at) + " sum",), _gradient(at), elements, True, 0))
            parts[at] += 1
    return operations


def _needs_gradient(steps: Sequence[Step]) -> List[bool]:
    """Whether there is anything to train before or at a step."""
    needed: List[bool] = []
    for step in steps:
        trains = step.kind in ("conv", "bias", "add", "multiply")
        needed.append(trains or any(at >= 0 and needed[at] for at in step.inputs))
    return needed


def _workspace(step: Step, unrolls: bool) -> int:
    if step.kind == "multiply":
        return step.elements  # gradient times input, before it is summed to a scalar
    if step.kind == "conv" and unrolls:
        # for the input's gradient, then for the filter's: operations run one after the other
        return step.shape[0] * step.shape[1] * step.kernel**2 * step.channels_in
    return 0


def _replay(operations: Sequence[Operation], result: str) -> int:
    """Peak of live elements; a buffer lives from its writer to its last reader, under all names it goes by."""
    readers = Counter(name for operation in operations for name in operation.reads)
    readers[result] += 1
    buffer_of: Dict[str, int] = {}
    names: Counter = Counter()  # buffer -> names that still have readers
    size: Dict[int, int] = {}
    live = peak = 0
    for number, operation in enumerate(operations):
        reused: Optional[int] = None
        if operation.in_place and operation.writes is not None:
            for name in operation.reads:
                buffer = buffer_of.get(name)
                if buffer is None or readers[name] > 1 or names[buffer] > 1:
                    continue
                if size[buffer] == operation.elements:
                    reused = buffer
                    break
        if operation.writes is not None:
            buffer = reused if reused is not None else number
            if reused is None:
                size[buffer] = operation.elements
                live += operation.elements
            buffer_of[operation.writes] = buffer
            names[buffer] += 1
        peak = max(peak, live + operation.workspace)
        for name in operation.reads:
            readers[name] -= 1
            if readers[name] == 0 and name in buffer_of:
                buffer = buffer_of.pop(name)
                names[buffer] -= 1
                if names[buffer] == 0:
                    live -= size.pop(buffer)
    return peak
