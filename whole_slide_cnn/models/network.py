"""A whole network: preprocessing, trunk and head, with everything that follows from them without TensorFlow."""

import zlib
from dataclasses import dataclass
from typing import Dict, Tuple

import numpy as np

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.layers import Conv, Residual, Trunk, VariableSpec, layer_variables, walk
from whole_slide_cnn.models.resnet import TRUNKS
from whole_slide_cnn.sizes import Size

BACKBONES = tuple(TRUNKS)
POOLINGS = ("gmp", "gap")
ACTIVATIONS = ("softmax", "sigmoid")

# A standard normal cut at two deviations has this deviation; He's initialisation corrects for it.
_TRUNCATED_DEVIATION = 0.87962566103423978


@dataclass(frozen=True)
class Preprocessing:
    """Pixel ``v`` (0 to 255) becomes ``(v - mean) / deviation`` per channel, channels reversed first for BGR."""

    mean: Tuple[float, float, float]
    deviation: Tuple[float, float, float]
    bgr: bool = False


UNIT_RANGE = Preprocessing((127.5,) * 3, (127.5,) * 3)
CAFFE = Preprocessing((103.939, 116.779, 123.68), (1.0,) * 3, bgr=True)
IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

_PREPROCESSING = {"frozenbn_resnet50": CAFFE, "resnet18": IMAGENET, "resnet50": IMAGENET}


@dataclass(frozen=True)
class Network:
    """One network definition that every engine computes.

    Attributes:
        backbone: name of the trunk, one of ``BACKBONES``.
        pooling: ``gmp`` (global maximum) or ``gap`` (global average).
        activation: ``softmax`` with cross-entropy, or ``sigmoid`` with binary cross-entropy, one output per class,
            averaged over classes.
        classes: number of classes.
        class0_bias: first bias of class 0 in the dense layer (the 2021 paper's data are mostly normal).
    """

    backbone: str
    pooling: str
    activation: str
    classes: int
    class0_bias: float = 1.0

    def __post_init__(self):
        for value, known, what in (
            (self.backbone, BACKBONES, "backbone"),
            (self.pooling, POOLINGS, "pooling"),
            (self.activation, ACTIVATIONS, "activation"),
        ):
            if value not in known:
                raise ConfigError("unknown {} '{}' (known: {})".format(what, value, ", ".join(known)))
        if self.classes < 2:
            raise ConfigError("a network needs at least 2 classes, not {}".format(self.classes))

    @property
    def trunk(self) -> Trunk:
        return TRUNKS[self.backbone]()

    @property
    def preprocessing(self) -> Preprocessing:
        return _PREPROCESSING.get(self.backbone, UNIT_RANGE)

    @property
    def channels(self) -> int:
        """Channels of the embedding map."""
        return _channels(self.trunk)

    @property
    def variables(self) -> Tuple[VariableSpec, ...]:
        """All variables, trunk first, then ``output/kernel`` and ``output/bias``."""
        trunk = tuple(spec for layer in walk(self.trunk) for spec in layer_variables(layer))
        return trunk + (
            VariableSpec("output/kernel", (self.channels, self.classes), "glorot_uniform"),
            VariableSpec("output/bias", (self.classes,), "class0", scale=self.class0_bias),
        )

    def receptive_field(self, canvas: Size) -> Tuple[geometry.Field, geometry.Field]:
        """Receptive fields of a cell along rows and columns."""
        trunk = self.trunk
        return geometry.field_of(trunk, canvas.height), geometry.field_of(trunk, canvas.width)

    def flops(self, canvas: Size) -> int:
        """Floating-point operations (multiplications and additions) of one forward pass over a canvas."""
        return _flops(self.trunk, canvas) + 2 * self.channels * self.classes

    def initial_weights(self, seed: int) -> Dict[str, np.ndarray]:
        """First values of all variables, float64; the same for a seed on every machine and runtime."""
        return {spec.name: _initial_value(spec, seed) for spec in self.variables}


def make_network(config: TrainConfig) -> Network:
    """The network a configuration asks for."""
    model = config.model
    return Network(model.backbone, model.pooling, model.activation, len(config.data.classes), model.class0_bias)


def _channels(trunk: Trunk) -> int:
    """Channels after the last convolution on the main path."""
    channels = 0
    for layer in trunk:
        if isinstance(layer, Conv):
            channels = layer.channels
        elif isinstance(layer, Residual):
            channels = _channels(layer.body)
    return channels


def _flops(trunk: Trunk, size: Size) -> int:
    total = 0
    for layer in trunk:
        after = Size(*(geometry.extent_after(layer, side) for side in size))
        if isinstance(layer, Conv):
            total += 2 * layer.kernel**2 * layer.channels_in * layer.channels * after.height * after.width
        elif isinstance(layer, Residual):
            total += _flops(layer.body, size) + _flops(layer.shortcut, size)
        size = after
    return total


def _initial_value(spec: VariableSpec, seed: int) -> np.ndarray:
    # one stream per variable, so that a value does not depend on the variables before it
    random = np.random.RandomState([seed & 0xFFFFFFFF, zlib.crc32(spec.name.encode())])
    if spec.initial == "he_normal":
        fan_in = np.prod(spec.shape[:-1])
        deviation = np.sqrt(2.0 / fan_in) / _TRUNCATED_DEVIATION
        return spec.scale * deviation * _truncated_normal(random, spec.shape)
    if spec.initial == "glorot_uniform":
        limit = np.sqrt(6.0 / sum(spec.shape))
        return random.uniform(-limit, limit, spec.shape)
    value = np.full(spec.shape, 1.0 if spec.initial == "ones" else 0.0)
    if spec.initial == "class0":
        value[0] = spec.scale
    return value


def _truncated_normal(random: np.random.RandomState, shape) -> np.ndarray:
    values = random.standard_normal(shape)
    while True:
        outside = np.abs(values) > 2.0
        if not outside.any():
            return values
        values[outside] = random.standard_normal(int(outside.sum()))
