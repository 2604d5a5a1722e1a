"""Colour changes: what they mean, and that they look at one pixel only."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.augment.colour import ColourMap
from whole_slide_cnn.augment.parameters import PRESETS, TransformParameters, sample_parameters

GREYS = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)


def colours(count, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (1, count, 3)).astype(np.uint8)


def test_no_change_gives_the_same_array():
    change = ColourMap(TransformParameters(angle=30.0, flip_rows=True))
    pixels = colours(10)
    assert change.is_identity and change(pixels) is pixels


@pytest.mark.parametrize("contrast, brightness", [(0.5, 1.0), (1.5, 1.0), (1.0, 0.65), (1.3, 1.35), (0.0, 1.0)])
def test_contrast_turns_about_127_and_brightness_multiplies(contrast, brightness):
    found = ColourMap(TransformParameters(contrast=contrast, brightness=brightness))(GREYS)
    exact = np.clip(127 + contrast * (np.arange(256) - 127.0), 0, 255) * brightness
    assert np.abs(np.clip(exact, 0, 255) - found[0, :, 0]).max() <= 0.5 * brightness + 0.5
    assert (found[..., :1] == found).all()


@pytest.mark.parametrize("hue, saturation, value", [(32, 0, 0), (-20, 0, 32), (0, 32, 0), (128, -32, -32), (7, 30, 5)])
def test_hue_saturation_and_value_are_those_of_colorsys(hue, saturation, value):
    pixels = colours(3000)
    found = ColourMap(TransformParameters(hue=hue, saturation=saturation, value=value))(pixels)
    for (red, green, blue), new in zip(pixels[0] / 255.0, found[0].astype(np.float64)):
        h, s, v = colorsys.rgb_to_hsv(red, green, blue)
        s, v = (min(max(old + added / 255.0, 0.0), 1.0) for old, added in ((s, saturation), (v, value)))
        exact = np.array(colorsys.hsv_to_rgb((h + hue / 256.0) % 1.0, s, v)) * 255
        assert np.abs(exact - new).max() <= 1.5


def test_greys_turn_into_a_tint_only_by_saturation():
    assert (
        ColourMap(TransformParameters(hue=100.0, value=10.0))(GREYS) == np.minimum(GREYS.astype(int) + 10, 255)
    ).all()
    tinted = ColourMap(TransformParameters(saturation=32.0))(GREYS)
    assert tuple(tinted[0, 255]) == (255, 223, 223)


def test_stains_are_turned_and_diluted():
    # haematoxylin alone, eosin alone, white, in light that passes
    stains = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.0, 0.0, 0.0]])
    pixels = np.rint(255 * np.exp(-0.8 * stains))[None].astype(np.uint8)
    doubled = ColourMap(TransformParameters(stain_strengths=(2.0, 2.0)))(pixels)
    assert np.abs(doubled[0] - 255 * np.exp(-1.6 * stains)).max() < 2
    only_first = ColourMap(TransformParameters(stain_strengths=(0.5, 1.0)))(pixels)[0]
    assert np.abs(only_first - 255 * np.exp(-np.array([[0.4], [0.8], [0]]) * stains)).max() < 2
    turned = ColourMap(TransformParameters(stain_angles=(10.0, 0.0), stain_directions=(45.0, 0.0)))(pixels)[0]
    old, new = (-np.log(rows[0] / 255.0) for rows in (pixels[0], turned))
    cosine = old.dot(new) / np.linalg.norm(old) / np.linalg.norm(new)
    assert abs(np.degrees(np.arccos(cosine)) - 10) < 0.7
    assert np.abs(turned[1:].astype(int) - pixels[0, 1:]).max() <= 1


def test_without_a_change_of_stains_every_colour_returns():
    barely = ColourMap(TransformParameters(stain_strengths=(1.0, 1.0 + 1e-9)))
    pixels = colours(20000)
    assert np.abs(barely(pixels).astype(int) - np.maximum(pixels, 1)).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    position=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    data=st.data(),
)
def test_a_pixel_alone_has_the_colour_it_has_among_others(preset, position, shape, data):
    change = ColourMap(sample_parameters(PRESETS[preset], 0, position))
    pixels = colours(shape[0] * shape[1], position).reshape(shape + (3,))
    found = change(pixels)
    assert found.shape == pixels.shape and found.dtype == np.uint8
    row, column = (data.draw(st.integers(0, side - 1)) for side in shape)
    np.testing.assert_array_equal(change(pixels[row:, column:]), found[row:, column:])
    np.testing.assert_array_equal(change(pixels[row : row + 1, column : column + 1])[0, 0], found[row, column])
    np.testing.assert_array_equal(change(pixels[::-1, ::-1]), found[::-1, ::-1])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_other_array_modules_give_the_same_colours(preset, other_module):
    pixels = colours(5000).reshape(50, 100, 3)
    for position in range(10):
        drawn = sample_parameters(PRESETS[preset], 1, position)
        np.testing.assert_array_equal(ColourMap(drawn, other_module)(pixels), ColourMap(drawn)(pixels))


def test_empty_arrays_stay_empty():
    assert ColourMap(TransformParameters(contrast=0.5))(np.empty((0, 5, 3), np.uint8)).shape == (0, 5, 3)
