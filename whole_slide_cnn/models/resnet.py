"""The backbones, as layers.

``fixup_*`` and ``frozenbn_*`` are those of the whole-slide training paper (2021): stride on the first 1 x 1 convolution
of a stage (receptive field 483 px for ResNet-50), biases in all convolutions. ``resnet*`` are in the torchvision
arrangement of the ESCNN paper (2022): stride on the 3 x 3 (427 px), no biases, batch norm with fixed statistics.
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

from whole_slide_cnn.models.layers import SAME, Conv, FixedNorm, Layer, MaxPool, Relu, Residual, Scalar, Trunk

KERAS_EPSILON = 1.001e-5
TORCH_EPSILON = 1e-5

BASIC = ((64, 3), (128, 4), (256, 6), (512, 3))


class _ScalarNames:
    """Scalars are numbered through the network, as Keras does: ``scalar_mul_add_layer``, ``..._1``, ``..._2``."""

    def __init__(self):
        self._count = 0

    def __call__(self) -> str:
        name = "scalar_mul_add_layer" + ("_{}".format(self._count) if self._count else "")
        self._count += 1
        return name


def fixup_trunk(stages: Tuple[Tuple[int, int], ...], bottleneck: bool, depth: int, stem: int = 64) -> Trunk:
    """Fixup ResNet (Zhang et al. 2019): no normalisation, scalar biases, last convolution of a block starts at zero.

    A bottleneck has three convolutions, a basic block two; the others start at He's times
    ``depth ** (-1 / (2 * convolutions - 2))``.
    """
    scalar = _ScalarNames()
    layers = _stem(stem, norm=None, bias=True, pool_padding=SAME)
    channels = stem
    for index, (filters, blocks) in enumerate(stages):
        for block in range(blocks):
            name = "conv{}_block{}".format(index + 2, block + 1)
            stride = 2 if block == 0 and index > 0 else 1
            plan = _bottleneck_plan(filters, stride, 0) if bottleneck else _basic_plan(filters, stride, SAME)
            out = plan[-1][0]
            before = Scalar(scalar(), weight=False)
            body: List[Layer] = []
            width = channels
            scale = depth ** (-1.0 / (2 * len(plan) - 2))
            for position, (count, kernel, step, padding) in enumerate(plan):
                last = position == len(plan) - 1
                if position:
                    body.append(Scalar(scalar(), weight=False))
                conv = "{}_{}_conv".format(name, position + 1)
                initial: Dict[str, Any] = {"initial": "zeros"} if last else {"initial_scale": scale}
                body.append(Conv(conv, width, count, kernel, step, padding, **initial))
                body.append(Scalar(scalar(), weight=True) if last else Relu())
                width = count
            if block == 0:  # a projection sees the biased input, an identity shortcut the unbiased one
                shortcut = (Conv(name + "_0_conv", channels, out, 1, stride),)
                layers += [before, Residual(name, tuple(body), shortcut), Relu()]
            else:
                layers += [Residual(name, (before,) + tuple(body), ()), Relu()]
            channels = out
    return tuple(layers)


def norm_trunk(
    stages: Tuple[Tuple[int, int], ...],
    bottleneck: bool,
    stride_on: int,
    epsilon: float,
    trainable: bool,
    bias: bool,
    pool_padding,
    project_first: bool,
) -> Trunk:
    """ResNet with batch norm of fixed statistics.

    Args:
        stride_on: position of the strided convolution in a block.
        trainable: whether gamma and beta are trained. Where they are, the last gamma of a block starts at zero, else
            its last convolution: with fixed statistics a network that starts from random weights would blow up.
        project_first: whether the first block of the first stage has a projection although its size does not change.
    """

    def norm(name: str, last: bool = False) -> FixedNorm:
        return FixedNorm(name, epsilon, trainable, zero_gamma=last and trainable)

    layers = _stem(64, norm("conv1_bn"), bias, pool_padding)
    channels = 64
    for index, (filters, blocks) in enumerate(stages):
        for block in range(blocks):
            name = "conv{}_block{}".format(index + 2, block + 1)
            stride = 2 if block == 0 and index > 0 else 1
            plan = _bottleneck_plan(filters, stride, stride_on) if bottleneck else _basic_plan(filters, stride, 1)
            out, width = plan[-1][0], channels
            body: List[Layer] = []
            for position, (count, kernel, step, padding) in enumerate(plan):
                last = position == len(plan) - 1
                prefix = "{}_{}".format(name, position + 1)
                initial = "zeros" if last and not trainable else "he_normal"
                body.append(
                    Conv(
                        prefix + "_conv", width, count, kernel, step, padding, bias, norm(prefix + "_bn", last), initial
                    )
                )
                if not last:
                    body.append(Relu())
                width = count
            shortcut: Trunk = ()
            if block == 0 and (project_first or stride > 1 or channels != out):
                shortcut = (Conv(name + "_0_conv", channels, out, 1, stride, 0, bias, norm(name + "_0_bn")),)
            layers += [Residual(name, tuple(body), shortcut), Relu()]
            channels = out
    return tuple(layers)


def _stem(filters: int, norm: Optional[FixedNorm], bias: bool, pool_padding) -> List[Layer]:
    return [
        Conv("conv1_conv", 3, filters, 7, 2, 3, bias, norm),
        Relu(),
        MaxPool("pool1_pool", 3, 2, pool_padding),
    ]


def _bottleneck_plan(filters: int, stride: int, stride_on: int):
    """(channels, kernel, stride, padding) of a bottleneck's convolutions."""
    strides = [stride if position == stride_on else 1 for position in range(3)]
    return [(filters, 1, strides[0], 0), (filters, 3, strides[1], 1), (4 * filters, 1, strides[2], 0)]


def _basic_plan(filters: int, stride: int, padding):
    return [(filters, 3, stride, padding), (filters, 3, 1, padding)]


def _torchvision(stages, bottleneck: bool) -> Trunk:
    return norm_trunk(stages, bottleneck, 1, TORCH_EPSILON, True, False, 1, project_first=False)


TRUNKS: Dict[str, Callable[[], Trunk]] = {
    "tiny": lambda: fixup_trunk(((16, 1), (32, 1), (64, 1), (128, 1)), False, 10, stem=16),
    "resnet18": lambda: _torchvision(tuple((filters, 2) for filters, _ in BASIC), False),
    "resnet50": lambda: _torchvision(BASIC, True),
    "fixup_resnet34": lambda: fixup_trunk(BASIC, False, 34),
    "fixup_resnet50": lambda: fixup_trunk(BASIC, True, 50),
    "frozenbn_resnet50": lambda: norm_trunk(BASIC, True, 0, KERAS_EPSILON, False, True, SAME, project_first=True),
}
