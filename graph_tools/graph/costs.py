"""Arithmetic and workspaces of operations, from their shapes alone."""

from dataclasses import dataclass
from typing import Sequence, Tuple

Shape = Tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What one operation needs.

    Attributes:
        flops: multiplications and additions.
        workspace_bytes: memory it needs only while it runs.
    """

    flops: int
    workspace_bytes: int = 0


def elements(shape: Shape) -> int:
    """Number of elements; Python's integers do not overflow past 2^31, as NumPy's on some machines do."""
    count = 1
    for side in shape:
        count *= side
    return count


# Of each kind: positions of the filter's shape and of the tensor that has a value per application of the filter. A
# negative position counts among the outputs.
_CONVOLUTIONS = {
    "Conv2D": (1, -1),
    "Conv3D": (1, -1),
    "Conv2DBackpropInput": (1, 2),
    "Conv3DBackpropInputV2": (1, 2),
    "Conv2DBackpropFilter": (-1, 2),
    "Conv3DBackpropFilterV2": (-1, 2),
}
_DEPTHWISE = {
    "DepthwiseConv2dNative": (1, -1),
    "DepthwiseConv2dNativeBackpropInput": (1, 2),
    "DepthwiseConv2dNativeBackpropFilter": (-1, 2),
}
_POSITION_BYTES = 8  # of the maximum, while a gradient of pooling runs


def cost_of(
    op_type: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    value_bytes: int,
    window: Sequence[int] = (),
    transposed: bool = False,
    workspace_limit: int = 0,
) -> Cost:
    """Cost of one operation.

    Convolutions and their gradients count two operations per weight and application, and as workspace their unrolled
    patches, up to a limit, unless the filter covers one pixel; matrix products two per product; pooling one per pixel
    of its window, and its gradient the positions of the maxima; everything else one per element of its largest output.

    Args:
        value_bytes: bytes of an element of the first output.
        window: sides of a pooling window.
        transposed: whether a matrix product reads its first operand transposed.
        workspace_limit: most bytes of unrolled patches that a convolution may hold. cuDNN holds at most 4 GiB under
            TensorFlow; implicit algorithms, and oneDNN, none.
    """
    shapes = {**dict(enumerate(inputs)), **{-1 - index: shape for index, shape in enumerate(outputs)}}
    if op_type in _CONVOLUTIONS:
        filter_shape, applied = (shapes[position] for position in _CONVOLUTIONS[op_type])
        per_application = elements(filter_shape[:-1])
        patches = elements(applied[:-1]) * per_application * value_bytes
        one_pixel = elements(filter_shape[:-2]) == 1
        return Cost(2 * elements(applied) * per_application, 0 if one_pixel else min(patches, workspace_limit))
    if op_type in _DEPTHWISE:
        filter_shape, applied = (shapes[position] for position in _DEPTHWISE[op_type])
        return Cost(2 * elements(applied) * elements(filter_shape[:-2]))
    if op_type in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        inner = inputs[0][-2 if transposed else -1]
        return Cost(2 * elements(outputs[0]) * inner)
    most = max((elements(shape) for shape in outputs), default=0)
    if op_type in ("MaxPool", "AvgPool", "MaxPoolWithArgmax", "MaxPool3D", "AvgPool3D"):
        return Cost(elements(outputs[0]) * elements(tuple(window)))
    if op_type == "MaxPoolGrad":
        return Cost(
            elements(inputs[1]) * elements(tuple(window)), elements(inputs[1]) * (_POSITION_BYTES + value_bytes)
        )
    return Cost(most)
