"""Networks small enough for tests, and weights under which no layer is trivial."""

import contextlib

import numpy as np

from whole_slide_cnn.models import resnet
from whole_slide_cnn.models.layers import SAME, layer_variables, walk

# One trunk of every family, with projection and identity shortcuts, a strided and an unstrided stage.
SMALL_TRUNKS = {
    "fixup_basic": lambda: resnet.fixup_trunk(((8, 2), (8, 2)), False, 10, stem=8),
    "fixup_bottleneck": lambda: resnet.fixup_trunk(((4, 2), (6, 2)), True, 10, stem=8),
    "reference_norm": lambda: resnet.norm_trunk(((4, 2), (6, 2)), True, 0, 1.001e-5, False, True, SAME, True),
    "torchvision_basic": lambda: resnet.norm_trunk(((64, 2), (8, 2)), False, 1, 1e-5, True, False, 1, False),
    "torchvision_bottleneck": lambda: resnet.norm_trunk(((4, 2), (6, 2)), True, 1, 1e-5, True, False, 1, False),
}

SLIM_FILTERS = (64, 8, 12, 16)


@contextlib.contextmanager
def slim_backbones():
    """All real backbones with few channels: every layer is there, under its name, and costs next to nothing.

    The first stage keeps its 64, those of the stem, since ResNet-18 has no projection there for that reason.
    """
    full = resnet.BASIC
    resnet.BASIC = tuple((filters, blocks) for filters, (_, blocks) in zip(SLIM_FILTERS, full))
    try:
        yield
    finally:
        resnet.BASIC = full


def variables_of(trunk):
    """Specifications of a trunk's variables."""
    return [spec for layer in walk(trunk) for spec in layer_variables(layer)]


def random_weights(specs, seed=0):
    """Values for all variables, float64: none of them zero or one, activations neither vanish nor blow up."""
    random = np.random.RandomState(seed)
    values = {}
    for spec in specs:
        value = random.standard_normal(spec.shape)
        part = spec.name.split("/")[-1]
        if part == "kernel":
            value = value * np.sqrt(1.0 / np.prod(spec.shape[:-1]))
        elif part == "moving_variance":
            value = 1.0 + 0.5 * np.tanh(value)
        else:
            value = 0.1 * value + (part in ("gamma", "weight"))
        values[spec.name] = np.asarray(value)
    return values
