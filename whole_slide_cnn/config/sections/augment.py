"""``augment``: random changes of the slides that are trained on."""

import dataclasses
from typing import Optional, Tuple

from whole_slide_cnn.config.options import Section, option
from whole_slide_cnn.errors import ConfigError

AUGMENTATIONS = ("none", "paper_2021", "reference_2021", "paper_2022")
AUGMENT_DEVICES = ("cpu", "cuda")


@dataclasses.dataclass(frozen=True)
class Augmentation(Section):
    """Random changes of the slides that are trained on, drawn once per slide and step."""

    preset: str = option(
        "Values of those keys below that are null: none changes nothing; paper_2021 has flips, rotation, shift, "
        "contrast, brightness, hue and value; reference_2021 has saturation in place of value; paper_2022 has flips, "
        "rotation and stains.",
        "none",
        choices=AUGMENTATIONS,
    )
    flip: Optional[bool] = option("Whether to flip slides, along each axis with probability 1/2.", None)
    rotation: Optional[float] = option(
        "Largest rotation about the canvas's centre, in degrees either way.", None, at_least=0, at_most=180
    )
    shift: Optional[float] = option(
        "Largest shift along each axis, as a share of the canvas's height or width.", None, at_least=0, at_most=1
    )
    contrast: Optional[Tuple[float, float]] = option(
        "Smallest and largest factor of a channel's difference from 127.", None, at_least=0
    )
    brightness: Optional[Tuple[float, float]] = option("Smallest and largest factor of all channels.", None, at_least=0)
    hue: Optional[float] = option(
        "Largest change of the hue either way, in 256ths of the full circle.", None, at_least=0, at_most=128
    )
    saturation: Optional[float] = option(
        "Largest change of the saturation (0 to 255) either way; it also tints what has no color.",
        None,
        at_least=0,
        at_most=255,
    )
    value: Optional[float] = option(
        "Largest change of the value (0 to 255), a pixel's strongest channel, either way.",
        None,
        at_least=0,
        at_most=255,
    )
    stain_angle: Optional[float] = option(
        "Largest turn of the colors of hematoxylin and eosin, in degrees of optical density either way.",
        None,
        at_least=0,
        at_most=45,
    )
    stain_strength: Optional[Tuple[float, float]] = option(
        "Smallest and largest factor of the amounts of hematoxylin and eosin.", None, at_least=0, at_most=4
    )
    device: str = option("Where augmentation is computed: cpu, or cuda (needs CuPy).", "cpu", choices=AUGMENT_DEVICES)

    def check_rules(self) -> None:
        for name in ("contrast", "brightness", "stain_strength"):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise ConfigError("augment.{}: the smallest factor, {}, is above the largest, {}".format(name, *limits))
