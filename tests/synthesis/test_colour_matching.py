import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.synthesis.colour_matching import (
    BRIGHTEST,
    Colour,
    map_between,
    map_within_scale,
    measure,
    reachable,
)


def _pixels(seed, count=4000):
    """Skewed, correlated colours as of stained tissue, some of them at the ends of the scale."""
    stream = np.random.RandomState(seed)
    stains = stream.gamma(2.0, 0.15, (count, 2)) @ stream.uniform([[0.4, 0.6, 0.2], [0.1, 0.8, 0.1]], 1.0)
    return np.clip(250 * np.exp(-stains) + stream.normal(0, 4, (count, 3)), 0, 255).astype(np.uint8)


def _target(seed):
    return reachable(measure(_pixels(seed)))


def test_measure_agrees_with_numpy():
    pixels = _pixels(0)
    weights = np.random.RandomState(1).randint(0, 4, len(pixels))
    for given_weights, repeated in ((None, pixels), (weights, np.repeat(pixels, weights, axis=0))):
        colour = measure(pixels, given_weights)
        np.testing.assert_allclose(colour.mean, repeated.mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(colour.covariance, np.cov(repeated.T, bias=True), rtol=1e-8)
        np.testing.assert_allclose(colour.deviation, repeated.std(axis=0), rtol=1e-10)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_after_clipping_mean_and_deviation_meet_the_target(seed, target_seed):
    pixels, target = _pixels(seed), _target(target_seed)
    weights = np.random.RandomState(seed).uniform(0, 1, len(pixels))
    mapped = np.clip(map_within_scale(pixels, weights, target).apply(pixels), 0, BRIGHTEST)
    colour = measure(mapped, weights)
    np.testing.assert_allclose(colour.mean, target.mean, atol=0.06)
    np.testing.assert_allclose(colour.deviation, target.deviation, atol=0.06)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_targets_out_of_reach_are_approached_and_never_missed_by_more_than_before(seed, target_seed):
    stream = np.random.RandomState(seed)
    pixels = np.where(stream.uniform(0, 1, (2000, 3)) < 0.04, 255, 0).astype(np.uint8)
    target = _target(target_seed)
    matched = np.clip(map_within_scale(pixels, np.ones(2000), target).apply(pixels), 0, BRIGHTEST)
    errors = [
        max(np.abs(colour.mean - target.mean).max(), np.abs(colour.deviation - target.deviation).max())
        for colour in (measure(np.clip(pixels, 0, BRIGHTEST)), measure(matched))
    ]
    assert errors[1] < errors[0]


def test_the_correlation_of_the_channels_is_matched_too():
    target = Colour(np.array([120.0, 100.0, 130.0]), np.array([[400, 100, 0], [100, 300, 50], [0, 50, 200.0]]))
    pixels = np.clip(np.random.RandomState(0).normal(120, 25, (20000, 3)), 0, 255).astype(np.uint8)
    colour = measure(map_between(measure(pixels), target).apply(pixels))
    np.testing.assert_allclose(colour.mean, target.mean, atol=0.05)
    np.testing.assert_allclose(colour.covariance, target.covariance, atol=2.0)


def test_colours_that_match_already_stay():
    colour = measure(_pixels(5))
    unchanged = map_between(colour, Colour(colour.mean, colour.covariance + np.eye(3)))
    np.testing.assert_allclose(unchanged.matrix, np.eye(3), atol=1e-4)
    np.testing.assert_allclose(unchanged.shift, 0, atol=0.02)


def test_a_single_colour_gets_the_mean_and_no_noise():
    target = _target(1)
    pixels = np.full((100, 3), 77, np.uint8)
    mapped = map_within_scale(pixels, np.ones(100), target).apply(pixels)
    np.testing.assert_allclose(mapped, np.broadcast_to(target.mean, (100, 3)), atol=0.1)


@pytest.mark.parametrize("mean,deviation", [(250, 60), (5, 60), (120, 0), (120, 300), (128, 20)])
def test_reachable_targets_leave_room_at_both_ends(mean, deviation):
    colour = reachable(Colour(np.full(3, float(mean)), np.eye(3) * float(deviation) ** 2))
    assert (colour.mean - 1.59 * colour.deviation >= 0).all()
    assert (colour.mean + 1.59 * colour.deviation <= BRIGHTEST).all()
    if (mean, deviation) == (128, 20):
        np.testing.assert_allclose(colour.mean, 128)
        np.testing.assert_allclose(colour.deviation, 20)
