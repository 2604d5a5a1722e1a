import hashlib
import os

import numpy as np
import pytest
from scipy import ndimage

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.synthesis import synthetic
from whole_slide_cnn.synthesis.colour_matching import BRIGHTEST, measure
from whole_slide_cnn.synthesis.photographs import FolderPhotographs, ProceduralPhotographs, split_by_source
from whole_slide_cnn.synthesis.synthetic import SlideComposer, SlideSettings, photograph_colours

CLASSES = ("normal", "adenocarcinoma", "squamous")
TISSUE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "shared", "data", "lung_tissue")


def _composer(source=None, **settings):
    source = source or ProceduralPhotographs(CLASSES, 9, 1, size=144)
    splits = split_by_source(source.photographs, 0)
    return SlideComposer(source, splits, photograph_colours(source, splits), SlideSettings(**settings))


@pytest.fixture(scope="module")
def composer():
    return _composer(size=320, lesion=(0.3, 0.5))


@pytest.fixture(scope="module")
def slides(composer):
    return {label: composer.compose("train", label, 0) for label in CLASSES}


def _tissue(slide):
    return (slide.image < 255).any(axis=2)


def test_background_is_white_and_tissue_is_whole(slides):
    for slide in slides.values():
        assert slide.image.dtype == slide.mask.dtype == np.uint8
        assert slide.image.shape == (320, 320, 3) and slide.mask.shape == (320, 320)
        tissue = _tissue(slide)
        assert ndimage.label(tissue)[1] == 1
        assert (ndimage.binary_fill_holes(tissue) == tissue).all()
        assert tissue.mean() == pytest.approx(slide.tissue_share, abs=0.05)
        inside = ndimage.binary_erosion(tissue, iterations=8)
        assert slide.image[inside].max() <= BRIGHTEST


def test_the_mask_is_the_lesion(slides):
    assert not slides["normal"].mask.any()
    for label in CLASSES[1:]:
        slide = slides[label]
        assert set(np.unique(slide.mask)) == {0, 255}
        assert ndimage.label(slide.mask)[1] == 1
        assert 0.3 <= slide.lesion_share <= 0.5
        assert (slide.mask > 0).sum() / (_tissue(slide).sum()) == pytest.approx(slide.lesion_share, abs=0.03)


def test_slides_of_a_block_share_outline_and_staining_but_no_texture(slides):
    """Surroundings and lesion have the slide's colour, each for itself; sham lesions have it too."""
    normal = slides["normal"]
    lesion = slides["squamous"].mask > 0
    for slide in slides.values():
        np.testing.assert_array_equal(_tissue(slide), _tissue(normal))
        inside = ndimage.binary_erosion(_tissue(slide), iterations=8)
        for region in (inside & ndimage.binary_erosion(lesion, iterations=8), inside & ~lesion):
            colour = measure(slide.image[region])
            np.testing.assert_allclose(colour.mean, slide.colour.mean, atol=6)
            np.testing.assert_allclose(colour.deviation, slide.colour.deviation, rtol=0.3, atol=3)
    for label in CLASSES[1:]:
        np.testing.assert_allclose(
            measure(slides[label].image[_tissue(normal)]).mean, measure(normal.image[_tissue(normal)]).mean, atol=0.7
        )
        assert (slides[label].image != normal.image).any(axis=2)[_tissue(normal)].mean() > 0.9
    np.testing.assert_array_equal(slides["squamous"].mask, slides["adenocarcinoma"].mask)


def test_a_slide_depends_on_nothing_but_its_own_keys(slides):
    """Not on which slides were composed before, by which process, or how large the parts are."""
    again = _composer(size=320, lesion=(0.3, 0.5)).compose("train", "squamous", 0)
    np.testing.assert_array_equal(again.image, slides["squamous"].image)
    np.testing.assert_array_equal(again.mask, slides["squamous"].mask)
    other = _composer(size=320, lesion=(0.3, 0.5), seed=1).compose("train", "squamous", 0)
    assert (other.image != again.image).any()


def test_composing_in_parts_gives_the_same_slide(composer, slides, monkeypatch):
    monkeypatch.setattr(synthetic, "_BLOCK", 128)
    parts = composer.compose("train", "squamous", 0)
    np.testing.assert_array_equal(parts.mask, slides["squamous"].mask)
    np.testing.assert_array_equal(parts.image, slides["squamous"].image)


def test_blocks_splits_and_classes_differ(composer, slides):
    seen = [slide.image.tobytes() for slide in slides.values()]
    seen += [composer.compose(split, "normal", 1).image.tobytes() for split in ("train", "val", "test")]
    assert len(set(seen)) == len(seen)


def test_procedural_slides_are_the_same_everywhere(slides):
    """The digest holds for every NumPy and SciPy version: a data set can be rebuilt on another machine."""
    assert hashlib.md5(slides["adenocarcinoma"].image.tobytes()).hexdigest()[:12] == "f063542b5145"


def test_only_sources_of_the_split_are_used_and_a_sham_lesion_has_its_own():
    source = ProceduralPhotographs(CLASSES, 12, 2, size=96)
    splits = split_by_source(source.photographs, 0)
    composer = SlideComposer(source, splits, {}, SlideSettings(size=128))
    for label in CLASSES:
        for seed in range(5):
            surroundings, lesion = composer._draw_sources(np.random.RandomState(seed), splits["val"], label)
            assert surroundings and lesion
            assert set(surroundings) <= set(splits["val"]["normal"]) and set(lesion) <= set(splits["val"][label])
            assert not {p.source for p in surroundings if p.label == label} & {p.source for p in lesion}


def test_the_sources_of_a_slide_are_named(slides):
    for label, slide in slides.items():
        surroundings, lesion = slide.sources["surroundings"], slide.sources["lesion"]
        assert surroundings and lesion and not set(surroundings) & set(lesion)
        assert {name.split("/")[0] for name in surroundings} == {"normal"}
        assert {name.split("/")[0] for name in lesion} == {label}


def test_grouped_slides_share_sources_within_their_group_alone():
    """Seven sources in groups of three make two groups, of three and of four; block 2 is of the group of block 0."""
    source = ProceduralPhotographs(CLASSES[:2], 28, 1, size=96)
    composer = _composer(source, size=160, group=3)
    used = [set(), set()]
    for block in range(4):
        for label in CLASSES[:2]:
            names = [name for part in composer.compose("test", label, block).sources.values() for name in part]
            used[block % 2].update(names)
    assert not used[0] & used[1]
    ungrouped = _composer(source, size=160)
    everything = set()
    for block in range(4):
        everything.update(*ungrouped.compose("test", "normal", block).sources.values())
    assert len([name for name in used[0] if name.startswith("normal")]) <= 4 < len(everything)
    for composed in zip(*(c.compose("train", "adenocarcinoma", 0) for c in (composer, ungrouped))):
        np.testing.assert_equal(*composed)  # training slides draw from all sources in any case


def test_texture_separates_what_colour_does_not(composer):
    """The lesion is there to be found: fine detail differs between classes where mean and deviation agree."""

    def detail(slide):
        grey = slide.image.astype(np.float64).mean(axis=2)[ndimage.binary_erosion(_tissue(slide), iterations=6)]
        smooth = ndimage.gaussian_filter(slide.image.astype(np.float64).mean(axis=2), 6)
        return smooth[ndimage.binary_erosion(_tissue(slide), iterations=6)].std() / grey.std()

    normal, tumour = ([detail(composer.compose("train", c, block)) for block in range(4)] for c in CLASSES[:2])
    assert min(np.abs(np.subtract(normal, tumour))) > 0.01


@pytest.mark.skipif(not os.path.isdir(TISSUE), reason="the lung photographs are not beside the checkout")
def test_lungmosaic_lesions_have_the_colour_of_their_surroundings():
    source = FolderPhotographs(TISSUE, CLASSES[:2])
    source.photographs = tuple(p for p in source.photographs if p.source < "s015")  # enough, and soon read
    composer = _composer(source, size=512, lesion=(0.4, 0.5))
    for block in range(2):
        normal, tumour = (composer.compose("test", label, block) for label in CLASSES[:2])
        tissue = _tissue(normal)
        np.testing.assert_array_equal(tissue, _tissue(tumour))
        for figure in ("mean", "deviation"):
            values = [getattr(measure(slide.image[tissue]), figure) for slide in (normal, tumour)]
            np.testing.assert_allclose(values[0], values[1], atol=0.7)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"size": 100}, "use 128 or more"),
        ({"tissue": (0.5, 0.4)}, "tissue range"),
        ({"tissue": (0.5, 0.9)}, "tissue range"),
        ({"lesion": (0.0, 0.4)}, "lesion range"),
        ({"lesion": (0.5, 1.2)}, "lesion range"),
        ({"group": 2}, "a group of 2 sources is too small; use 3 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(WholeSlideError, match=words):
        SlideSettings(**change)


def test_the_normal_class_must_have_photographs():
    source = ProceduralPhotographs(CLASSES[1:], 9, 1)
    splits = split_by_source(source.photographs, 0)
    with pytest.raises(WholeSlideError, match="no photographs of 'normal'"):
        SlideComposer(source, splits, {}, SlideSettings())
