"""Layers as data: what a network is made of, without TensorFlow.

A trunk is a tuple of these frozen values. Receptive field, padding of a window, FLOPs, memory, variables and the
TensorFlow graph are all computed from the same tuple, so they cannot disagree.
"""

from dataclasses import dataclass
from typing import Iterator, Optional, Tuple, Union

SAME = "same"  # TensorFlow's rule: the padding depends on the parity of the input

Padding = Union[int, str]


@dataclass(frozen=True)
class FixedNorm:
    """Batch normalisation whose statistics are fixed; gamma and beta are trained where ``trainable``."""

    name: str
    epsilon: float
    trainable: bool
    zero_gamma: bool = False


@dataclass(frozen=True)
class Conv:
    """A square 2-D convolution, with an optional bias and an optional normalisation after it.

    ``initial`` is ``he_normal`` (times ``initial_scale``) or ``zeros``.
    """

    name: str
    channels_in: int
    channels: int
    kernel: int
    stride: int = 1
    padding: Padding = 0
    bias: bool = True
    norm: Optional[FixedNorm] = None
    initial: str = "he_normal"
    initial_scale: float = 1.0


@dataclass(frozen=True)
class MaxPool:
    """Maximum over a square neighbourhood; padding never wins."""

    name: str
    kernel: int
    stride: int
    padding: Padding


@dataclass(frozen=True)
class Scalar:
    """Fixup's ``x * weight + bias`` with scalars (Zhang et al. 2019, section 3); ``weight`` only where asked for."""

    name: str
    weight: bool


@dataclass(frozen=True)
class Relu:
    """Rectified linear unit."""


@dataclass(frozen=True)
class Residual:
    """``body(x) + shortcut(x)``; an empty shortcut is the identity."""

    name: str
    body: Tuple["Layer", ...]
    shortcut: Tuple["Layer", ...]


Filter = Union[Conv, MaxPool]
Layer = Union[Conv, MaxPool, Scalar, Relu, Residual]
Trunk = Tuple[Layer, ...]


def is_spatial(layer: Layer) -> bool:
    """Whether the layer looks at neighbours, and so may need padding."""
    return isinstance(layer, (Conv, MaxPool)) and (layer.kernel > 1 or layer.padding not in (0, SAME))


def walk(layers: Trunk) -> Iterator[Layer]:
    """Every layer, residual blocks before their contents, bodies before shortcuts."""
    for layer in layers:
        yield layer
        if isinstance(layer, Residual):
            yield from walk(layer.body)
            yield from walk(layer.shortcut)


@dataclass(frozen=True)
class VariableSpec:
    """Name, shape and first value of a variable. ``initial``: he_normal, glorot_uniform, zeros, ones or class0."""

    name: str
    shape: Tuple[int, ...]
    initial: str
    trainable: bool = True
    scale: float = 1.0


def layer_variables(layer: Layer) -> Tuple[VariableSpec, ...]:
    """The variables a single layer owns (a residual block owns none itself)."""
    if isinstance(layer, Scalar):
        weight = (VariableSpec(layer.name + "/weight", (), "ones"),) if layer.weight else ()
        return weight + (VariableSpec(layer.name + "/bias", (), "zeros"),)
    if not isinstance(layer, Conv):
        return ()
    shape = (layer.kernel, layer.kernel, layer.channels_in, layer.channels)
    specs = [VariableSpec(layer.name + "/kernel", shape, layer.initial, scale=layer.initial_scale)]
    if layer.bias:
        specs.append(VariableSpec(layer.name + "/bias", (layer.channels,), "zeros"))
    if layer.norm is not None:
        norm, per_channel = layer.norm, (layer.channels,)
        gamma = "zeros" if norm.zero_gamma else "ones"
        specs += [
            VariableSpec(norm.name + "/gamma", per_channel, gamma, norm.trainable),
            VariableSpec(norm.name + "/beta", per_channel, "zeros", norm.trainable),
            VariableSpec(norm.name + "/moving_mean", per_channel, "zeros", False),
            VariableSpec(norm.name + "/moving_variance", per_channel, "ones", False),
        ]
    return tuple(specs)
