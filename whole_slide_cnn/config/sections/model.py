"""``model``: the network."""

import dataclasses
from typing import Optional

from whole_slide_cnn.config.options import Section, option

BACKBONES = ("tiny", "resnet18", "resnet50", "fixup_resnet34", "fixup_resnet50", "frozenbn_resnet50")
POOLINGS = ("gmp", "gap")
ACTIVATIONS = ("softmax", "sigmoid")
COMPUTE_TYPES = ("float32", "tensorfloat32", "float64", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Model(Section):
    """The network."""

    backbone: str = option("Convolutional network from image to embedding map.", "fixup_resnet50", choices=BACKBONES)
    pooling: str = option("Global pooling: gmp (maximum) or gap (average).", "gmp", choices=POOLINGS)
    activation: str = option(
        "Output: softmax (classes exclude each other) or sigmoid (each class on its own).",
        "softmax",
        choices=ACTIVATIONS,
    )
    compute: str = option(
        "Type of convolutions and feature maps; variables, the head and the loss have at least float32. tensorfloat32 "
        "is float32 whose products a GPU rounds to 10 bits, where it can (NVIDIA Ampere and newer). float16 scales the "
        "loss, and leaves out an update whose gradients are not finite.",
        "float32",
        choices=COMPUTE_TYPES,
    )
    weights: Optional[str] = option(
        "File of initial weights (.h5, .npz or .safetensors); null starts from random weights.", None, path=True
    )
    class0_bias: float = option("Initial bias of the first class's output, which favors that class at the start.", 1.0)
