import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.sizes import Window
from whole_slide_cnn.synthesis.layout import draw_layout, magnify
from whole_slide_cnn.synthesis.noise import SmoothNoise, random_stream


@given(st.integers(0, 10**6), st.sampled_from([128, 200, 300, 2000]), st.floats(0.1, 0.75), st.floats(0.02, 1.0))
@settings(max_examples=12, deadline=None)
def test_tissue_and_lesion_are_connected_and_of_the_wanted_area(seed, size, tissue_share, lesion_share):
    layout = draw_layout(random_stream(seed), size, tissue_share, lesion_share)
    assert layout.tissue.shape == layout.lesion.shape == (min(size, 512),) * 2
    assert ndimage.label(layout.tissue)[1] == 1
    assert (ndimage.binary_fill_holes(layout.tissue) == layout.tissue).all()
    assert abs(layout.tissue.mean() - tissue_share) < 0.1
    assert not (layout.lesion & ~layout.tissue).any()
    assert ndimage.label(layout.lesion)[1] == 1
    assert layout.lesion.sum() == round(lesion_share * layout.tissue.sum())


def test_the_tissue_area_is_nearly_always_met():
    shares = np.linspace(0.1, 0.75, 40)
    areas = [draw_layout(random_stream(seed), 128, share, 0.2).tissue.mean() for seed, share in enumerate(shares)]
    assert np.sort(np.abs(areas - shares))[-4] < 0.01


def test_outlines_are_irregular():
    """The border has clearly more pixels than that of a disc of the same area."""
    for seed in range(5):
        layout = draw_layout(random_stream(seed), 512, 0.4, 0.3)
        for region in (layout.tissue, layout.lesion):
            disc = np.hypot(*(np.indices((512, 512)) - 255.5)) < np.sqrt(region.sum() / np.pi)
            borders = [(area & ~ndimage.binary_erosion(area)).sum() for area in (region, disc)]
            assert borders[0] > 1.15 * borders[1]


def test_a_lesion_without_a_pixel_is_refused():
    with pytest.raises(WholeSlideError, match="no pixel"):
        draw_layout(random_stream(0), 128, 0.3, 1e-6)


@given(st.integers(0, 700), st.integers(0, 700), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_windows_of_fields_equal_crops_of_the_whole(top, left, height, width):
    grid = np.random.RandomState(0).uniform(0, 1, (37, 37))
    whole, window = Window(0, 0, 1000, 1000), Window(top, left, height, width)
    crop = np.s_[top : top + height, left : left + width]
    np.testing.assert_array_equal(magnify(grid, 1000, window), magnify(grid, 1000, whole)[crop])
    noise = SmoothNoise(random_stream(1), 1000, 31.0)
    np.testing.assert_array_equal(noise.window(window), noise.window(whole)[crop])


def test_magnify_keeps_a_grid_of_the_same_size_and_a_plane():
    grid = np.random.RandomState(0).uniform(0, 1, (50, 50)).astype(np.float32)
    np.testing.assert_array_equal(magnify(grid, 50, Window(0, 0, 50, 50)), grid)
    plane = np.add.outer(np.arange(10.0), 2 * np.arange(10.0))
    fine = magnify(plane, 40, Window(4, 4, 32, 32))
    np.testing.assert_allclose(np.diff(fine, axis=0), 0.25, atol=1e-5)
    np.testing.assert_allclose(np.diff(fine, axis=1), 0.5, atol=1e-5)


def test_noise_has_mean_zero_and_variance_one():
    values = SmoothNoise(random_stream(2), 1500, 8.0).window(Window(0, 0, 1500, 1500))
    assert abs(values.mean()) < 0.03
    assert values.var() == pytest.approx(1.0, abs=0.05)
    assert np.abs(np.diff(values, axis=0)).max() < 1.0  # smooth


def test_streams_depend_on_every_key_and_its_type():
    keys = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), ("0", "a", 1), (0, "a"), ("a", 0, 1)]
    draws = [random_stream(*key).randint(2**31) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws[0] == random_stream(0, "a", 1).randint(2**31)
