"""Stain vectors: what goes in comes out, single pixels decide, and every array module computes the same."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whole_slide_cnn.stains import RUIFROK, StainMatrix, amounts_of, density_of, recolouring, to_density, to_pixels

OTHER = types.ModuleType("an array module that is not NumPy")
OTHER.__dict__.update({name: value for name, value in vars(np).items() if not name.startswith("__")})
MACENKO_LIKE = StainMatrix.of((0.56, 0.72, 0.41), (0.21, 0.90, 0.38))


def picture(seed=0, size=(37, 53)):
    return np.random.RandomState(seed).randint(0, 256, size + (3,)).astype(np.uint8)


def test_density_is_the_negative_logarithm():
    levels = np.arange(1, 256, dtype=np.uint8)
    exact = -np.log(levels / 255.0)
    np.testing.assert_allclose(to_density(levels), exact, atol=0.5 / 1024 + 1e-6)
    assert to_density(np.uint8([[0, 1, 255]])).tolist()[0][0] == to_density(np.uint8([[1]]))[0, 0] > 5.5
    assert to_density(np.uint8([[255]]))[0, 0] == 0.0


def test_pixels_come_back_from_their_densities():
    pixels = picture()
    found = to_pixels(to_density(pixels)).astype(int)
    assert np.abs(found - np.maximum(pixels, 1)).max() == 0
    assert to_pixels(np.float32([-0.3, 0.0, 100.0])).tolist() == [255, 255, 0]
    assert to_pixels(to_density(np.empty((0, 5, 3), np.uint8))).shape == (0, 5, 3)


@pytest.mark.parametrize("stains", [RUIFROK, MACENKO_LIKE], ids=["ruifrok", "other"])
def test_amounts_and_back(stains):
    density = to_density(picture())
    amounts = amounts_of(density, stains)
    assert amounts.dtype == np.float32 and amounts.shape == density.shape
    np.testing.assert_allclose(density_of(amounts, stains), density, atol=1e-5)
    np.testing.assert_array_equal(to_pixels(density_of(amounts, stains)), to_pixels(density))


def test_amounts_of_a_hand_worked_pixel():
    """Two units of haematoxylin and half a unit of eosin, and nothing else."""
    haematoxylin, eosin = RUIFROK.vectors()
    density = (2 * haematoxylin + 0.5 * eosin).astype(np.float32)
    np.testing.assert_allclose(amounts_of(density, RUIFROK), [2, 0.5, 0], atol=1e-5)


@given(top=st.integers(0, 30), left=st.integers(0, 45), height=st.integers(1, 7), width=st.integers(1, 8))
def test_a_pixel_has_one_value_in_every_window(top, left, height, width):
    pixels, change = picture(), recolouring(RUIFROK, MACENKO_LIKE, (0.7, 1.3))

    def chain(part):
        return to_pixels(density_of(amounts_of(to_density(part), RUIFROK) * np.float32(1.1), MACENKO_LIKE))

    def changed(part):
        return np.stack(change([np.ascontiguousarray(part[..., channel]) for channel in range(3)]), axis=-1)

    for function in (chain, changed):
        whole = function(pixels)[top : top + height, left : left + width]
        np.testing.assert_array_equal(function(pixels[top : top + height, left : left + width]), whole)


def test_every_array_module_computes_the_same():
    pixels, change = picture(1), recolouring(RUIFROK, MACENKO_LIKE, (0.7, 1.3))
    planes = [np.ascontiguousarray(pixels[..., channel]) for channel in range(3)]
    np.testing.assert_array_equal(change(planes, OTHER), change(planes))
    found, expected = (
        to_pixels(density_of(amounts_of(to_density(pixels, xp), RUIFROK, xp), MACENKO_LIKE, xp), xp)
        for xp in (OTHER, np)
    )
    np.testing.assert_array_equal(found, expected)


def test_recolouring_in_whole_numbers_is_the_chain_of_amounts():
    pixels = picture(2)
    planes = [np.ascontiguousarray(pixels[..., channel]) for channel in range(3)]
    found = np.stack(recolouring(RUIFROK, MACENKO_LIKE, (0.8, 1.2))(planes), axis=-1).astype(int)
    amounts = amounts_of(to_density(pixels), RUIFROK).astype(np.float64)
    haematoxylin, eosin = (vector * factor for vector, factor in zip(MACENKO_LIKE.vectors(), (0.8, 1.2)))
    density = amounts[..., :1] * haematoxylin + amounts[..., 1:2] * eosin + amounts[..., 2:] * RUIFROK.rest()
    assert np.abs(found - to_pixels(density)).max() <= 1
    same = recolouring(RUIFROK, RUIFROK)(planes)
    np.testing.assert_array_equal(np.stack(same, axis=-1), np.maximum(pixels, 1))


def test_tilting_turns_by_the_angle():
    tilted = RUIFROK.tilted((10.0, -4.0), (30.0, 200.0))
    for before, after, angle in zip(RUIFROK.vectors(), tilted.vectors(), (10.0, 4.0)):
        assert np.linalg.norm(after) == pytest.approx(1.0)
        assert np.degrees(np.arccos(before.dot(after))) == pytest.approx(angle)
    assert hash(tilted) != hash(RUIFROK) and RUIFROK.tilted((0.0, 0.0), (0.0, 0.0)) == RUIFROK


@pytest.mark.parametrize(
    "haematoxylin, eosin",
    [
        ((0.0, 0.0, 0.0), (0.1, 0.9, 0.1)),
        ((float("nan"), 0.7, 0.3), (0.1, 0.9, 0.1)),
        ((float("inf"), 0.7, 0.3), (0.1, 0.9, 0.1)),
        ((0.6, 0.7, 0.3), (1.2, 1.4, 0.6)),
        ((0.6, 0.7), (0.1, 0.9)),
    ],
)
def test_what_is_no_pair_of_stains_is_refused(haematoxylin, eosin):
    with pytest.raises(ValueError):
        StainMatrix.of(haematoxylin, eosin)
    with pytest.raises(ValueError):
        StainMatrix(haematoxylin, eosin)
