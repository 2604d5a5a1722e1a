"""What is done to one slide in one step: presets, ranges, and random numbers that a seed and a position decide."""

import dataclasses
from typing import NamedTuple, Tuple

import numpy as np

from whole_slide_cnn.config import Augmentation

# Keeps these streams apart from others of the same seed; the length of the key does so as well.
_STREAM = 0xA06
_NUMBERS = 16  # of one slide and step: always all of them, so that no range moves the numbers of another


class Ranges(NamedTuple):
    """What may be drawn: the keys of :class:`whole_slide_cnn.config.Augmentation`, none of them null."""

    flip: bool = False
    rotation: float = 0.0
    shift: float = 0.0
    contrast: Tuple[float, float] = (1.0, 1.0)
    brightness: Tuple[float, float] = (1.0, 1.0)
    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    stain_angle: float = 0.0
    stain_strength: Tuple[float, float] = (1.0, 1.0)


_GEOMETRY_2021 = Ranges(flip=True, rotation=180.0, shift=0.025, contrast=(0.5, 1.5), brightness=(0.65, 1.35))

PRESETS = {
    "none": Ranges(),
    # 2021, Methods, "MIL methods on lung cancer type classification"; the whole-slide method has the same augmentation.
    "paper_2021": _GEOMETRY_2021._replace(hue=32.0, value=32.0),
    # What the implementation published with that paper does.
    "reference_2021": _GEOMETRY_2021._replace(hue=32.0, saturation=32.0),
    # 2022, Methods, "Model training".
    "paper_2022": Ranges(flip=True, rotation=180.0, stain_angle=10.0, stain_strength=(0.5, 1.5)),
}


def ranges_of(settings: Augmentation) -> Ranges:
    """The ranges a configuration asks for: its preset's, but for the keys it gives itself."""
    given = {name: getattr(settings, name) for name in Ranges._fields if getattr(settings, name) is not None}
    return PRESETS[settings.preset]._replace(**given)


@dataclasses.dataclass(frozen=True)
class TransformParameters:
    """One augmentation, the same for every window of a slide. The defaults change nothing.

    The slide is flipped, then rotated about the canvas's centre, then shifted; then its colours change: stains,
    contrast, brightness, and last hue, saturation and value together.

    Attributes:
        flip_rows: whether the first row becomes the last.
        flip_columns: whether the first column becomes the last.
        angle: rotation in degrees, counter-clockwise.
        shift: ``(down, right)`` as shares of the canvas's height and width.
        contrast: factor of the difference from 127.
        brightness: factor of all channels.
        hue: added to the hue, in 256ths of the full circle.
        saturation: added to the saturation, which goes from 0 to 255.
        value: added to the value, the largest of the three channels, from 0 to 255.
        stain_angles: turns of the colours of haematoxylin and eosin, in degrees.
        stain_directions: the directions they are turned to, in degrees about each colour.
        stain_strengths: factors of the amounts of haematoxylin and eosin.
    """

    flip_rows: bool = False
    flip_columns: bool = False
    angle: float = 0.0
    shift: Tuple[float, float] = (0.0, 0.0)
    contrast: float = 1.0
    brightness: float = 1.0
    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    stain_angles: Tuple[float, float] = (0.0, 0.0)
    stain_directions: Tuple[float, float] = (0.0, 0.0)
    stain_strengths: Tuple[float, float] = (1.0, 1.0)


def sample_parameters(ranges: Ranges, seed: int, position: int) -> TransformParameters:
    """The augmentation of one slide in one step.

    Args:
        seed: the run's seed, from 0 to 2^32 - 1.
        position: how many slides the run has drawn before this one; it alone decides, whatever the thread or the order.
    """
    shares = iter(np.random.RandomState([seed, _STREAM, position]).random_sample(_NUMBERS).tolist())

    def between(low, high):
        return low + (high - low) * next(shares)

    def around(largest):
        return between(-largest, largest)

    return TransformParameters(
        flip_rows=next(shares) < 0.5 and ranges.flip,
        flip_columns=next(shares) < 0.5 and ranges.flip,
        angle=around(ranges.rotation),
        shift=(around(ranges.shift), around(ranges.shift)),
        contrast=between(*ranges.contrast),
        brightness=between(*ranges.brightness),
        hue=around(ranges.hue),
        saturation=around(ranges.saturation),
        value=around(ranges.value),
        stain_angles=(around(ranges.stain_angle), around(ranges.stain_angle)),
        stain_directions=(between(0.0, 360.0), between(0.0, 360.0)),
        stain_strengths=(between(*ranges.stain_strength), between(*ranges.stain_strength)),
    )
