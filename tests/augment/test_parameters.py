"""Parameters of an augmentation: a seed and a position decide, and nothing else."""

import concurrent.futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.augment.parameters import PRESETS, Ranges, TransformParameters, ranges_of, sample_parameters
from whole_slide_cnn.config import Augmentation, config_from_dict
from whole_slide_cnn.config.sections.augment import AUGMENTATIONS
from whole_slide_cnn.errors import ConfigError

# Of seed 7 at position 1234 under paper_2021: the same in every version of NumPy, or runs could not be repeated.
GOLDEN = {
    "flip_rows0": False,
    "flip_columns0": False,
    "angle0": 24.788432487799497,
    "shift0": -0.02151432738224482,
    "shift1": 0.012117649230921387,
    "contrast0": 1.1280747488160774,
    "brightness0": 1.153115060039866,
    "hue0": 11.098406496320038,
    "saturation0": 0.0,
    "value0": 7.790795351674326,
    "stain_angles0": 0.0,
    "stain_angles1": 0.0,
    "stain_directions0": 55.40723285431826,
    "stain_directions1": 117.90453948186757,
    "stain_strengths0": 1.0,
    "stain_strengths1": 1.0,
}


def values_of(drawn):
    """All numbers of some parameters by name."""
    named = {}
    for name, value in vars(drawn).items():
        for index, number in enumerate(value if isinstance(value, tuple) else (value,)):
            named["{}{}".format(name, index)] = number
    return named


def test_every_preset_of_the_configuration_is_defined():
    assert set(PRESETS) == set(AUGMENTATIONS)
    assert ranges_of(Augmentation()) == Ranges()
    fields = set(Augmentation.__dataclass_fields__) - {"preset", "device"}
    assert fields == set(Ranges._fields)


def test_presets_are_those_of_the_papers():
    paper, reference = PRESETS["paper_2021"], PRESETS["reference_2021"]
    assert (paper.contrast, paper.brightness, paper.shift) == ((0.5, 1.5), (0.65, 1.35), 0.025)
    assert (paper.hue, paper.value, paper.saturation) == (32, 32, 0)
    assert (reference.hue, reference.value, reference.saturation) == (32, 0, 32)
    assert paper.flip and paper.rotation == 180
    assert PRESETS["paper_2022"] == Ranges(flip=True, rotation=180, stain_angle=10, stain_strength=(0.5, 1.5))


def test_given_keys_go_before_the_preset():
    chosen = ranges_of(Augmentation(preset="paper_2021", flip=False, hue=0, contrast=[0.9, 1.1]))
    assert chosen == PRESETS["paper_2021"]._replace(flip=False, hue=0.0, contrast=(0.9, 1.1))
    assert ranges_of(Augmentation(rotation=90)) == Ranges(rotation=90.0)


@pytest.mark.parametrize(
    "given_values, message",
    [
        ({"preset": "strong"}, "augment.preset: expected one of none, paper_2021, reference_2021, paper_2022"),
        ({"contrast": [1.5, 0.5]}, "augment.contrast: the smallest factor, 1.5, is above the largest, 0.5"),
        ({"brightness": [-1, 1]}, "augment.brightness: expected a value at least 0, got -1"),
        ({"rotation": 270}, "augment.rotation: expected a value at least 0 and at most 180"),
        ({"hues": 3}, "unknown key augment.hues; did you mean augment.hue?"),
    ],
)
def test_rules_of_the_section(given_values, message):
    data = {"classes": ["a", "b"], "canvas": 64, "mpp": 1.0}
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"result_dir": "out", "data": data, "augment": given_values})
    assert message in str(caught.value)


def test_the_same_parameters_everywhere_and_always():
    drawn = values_of(sample_parameters(PRESETS["paper_2021"], 7, 1234))
    assert drawn == GOLDEN


def test_parameters_depend_on_neither_order_nor_thread():
    ranges, positions = PRESETS["paper_2022"], list(range(200))
    one_by_one = [sample_parameters(ranges, 3, position) for position in positions]
    order = np.random.RandomState(0).permutation(200).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        shuffled = list(pool.map(lambda position: sample_parameters(ranges, 3, position), order))
    assert [shuffled[order.index(position)] for position in positions] == one_by_one
    assert len({str(drawn) for drawn in one_by_one}) == 200
    assert sample_parameters(ranges, 4, 0) != one_by_one[0]


def test_parameters_fill_their_ranges():
    ranges = Ranges(True, 180.0, 0.025, (0.5, 1.5), (0.65, 1.35), 32.0, 16.0, 8.0, 10.0, (0.25, 2.0))
    drawn = [values_of(sample_parameters(ranges, 0, position)) for position in range(2000)]
    limits = {
        "angle": (-180, 180),
        "shift": (-0.025, 0.025),
        "contrast": (0.5, 1.5),
        "brightness": (0.65, 1.35),
        "hue": (-32, 32),
        "saturation": (-16, 16),
        "value": (-8, 8),
        "stain_angles": (-10, 10),
        "stain_directions": (0, 360),
        "stain_strengths": (0.25, 2.0),
    }
    for name in drawn[0]:
        numbers = np.array([values[name] for values in drawn])
        if name.startswith("flip"):
            assert 0.46 < numbers.mean() < 0.54
            continue
        low, high = limits[name[:-1]]
        assert low <= numbers.min() and numbers.max() <= high
        assert abs((numbers - low).mean() / (high - low) - 0.5) < 0.03, name
        assert np.ptp(numbers) > 0.99 * (high - low)
    table = np.corrcoef(np.array([list(values.values()) for values in drawn]).T)
    assert np.abs(table - np.eye(len(table))).max() < 0.1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), position=st.integers(0, 10**9), name=st.sampled_from(Ranges._fields))
def test_one_range_does_not_move_the_numbers_of_another(seed, position, name):
    full = values_of(sample_parameters(PRESETS["paper_2021"], seed, position))
    less = values_of(
        sample_parameters(PRESETS["paper_2021"]._replace(**{name: getattr(Ranges(), name)}), seed, position)
    )
    changed = {key for key in full if full[key] != less[key]}
    own = {"rotation": ("angle",), "flip": ("flip_rows", "flip_columns"), "stain_angle": ("stain_angles",)}
    own["stain_strength"] = ("stain_strengths",)
    assert all(key[:-1] in own.get(name, (name,)) for key in changed)


def test_the_defaults_are_no_change():
    neutral = values_of(sample_parameters(Ranges(), 0, 0))
    expected = values_of(TransformParameters())
    assert {key for key in neutral if neutral[key] != expected[key]} == {"stain_directions0", "stain_directions1"}
