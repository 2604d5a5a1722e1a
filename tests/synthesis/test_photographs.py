import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.synthesis.photographs import (
    SPLITS,
    FolderPhotographs,
    Photograph,
    ProceduralPhotographs,
    group_by_source,
    split_by_source,
)

CLASSES = ("normal", "adenocarcinoma", "squamous")
TISSUE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "shared", "data", "lung_tissue")


def _photographs(sources, variants):
    return [
        Photograph(label, "s{:03d}".format(source), "s{:03d}_{}".format(source, variant))
        for label in CLASSES
        for source in range(sources)
        for variant in range(variants)
    ]


@given(st.integers(9, 60), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_no_source_is_in_two_splits_and_none_is_lost(sources, variants, seed):
    photographs = _photographs(sources, variants)
    parts = split_by_source(photographs, seed)
    assert sorted(p for part in parts.values() for group in part.values() for p in group) == sorted(photographs)
    for label in CLASSES:
        owned = [{p.source for p in parts[split][label]} for split in SPLITS]
        assert sum(map(len, owned)) == sources == len(set.union(*owned))
        assert all(len(part) >= 3 for part in owned)
        if sources >= 40:
            assert np.abs(np.array([len(part) / sources for part in owned]) - [0.6, 0.15, 0.25]).max() < 0.03


def test_the_split_depends_on_the_seed_but_not_on_order_or_other_classes():
    photographs = _photographs(20, 2)
    parts = split_by_source(photographs, 3)
    assert split_by_source(photographs[::-1], 3) == parts
    assert split_by_source([p for p in photographs if p.label == "squamous"], 3)["val"] == {
        "squamous": parts["val"]["squamous"]
    }
    assert split_by_source(photographs, 4) != parts


def test_too_few_sources_are_refused_with_the_class():
    with pytest.raises(WholeSlideError, match="'adenocarcinoma' has 8 source photographs; 9 are needed"):
        split_by_source(_photographs(8, 2), 0)


def _save(path, size=(80, 70), mode="RGB"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.new(mode, size, 90).save(path)


@given(st.integers(3, 5), st.integers(5, 20), st.integers(5, 20), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_groups_share_no_source_and_lose_none(size, first, second, seed):
    parts = {
        label: [p for p in _photographs(count, 2) if p.label == label] for label, count in zip(CLASSES, (first, second))
    }
    groups = group_by_source(parts, size, seed)
    assert len(groups) == min(first, second) // size
    for label, photographs in parts.items():
        assert sorted(p for group in groups for p in group[label]) == photographs
        owned = [{p.source for p in group[label]} for group in groups]
        assert sum(map(len, owned)) == len(set.union(*owned))
        assert size <= min(map(len, owned)) and max(map(len, owned)) <= min(map(len, owned)) + 1


def test_groups_depend_on_the_seed_but_not_on_order_and_need_their_sources():
    parts = {"squamous": [p for p in _photographs(12, 2) if p.label == "squamous"]}
    groups = group_by_source(parts, 3, 1)
    backwards = group_by_source({"squamous": parts["squamous"][::-1]}, 3, 1)
    assert [sorted(group["squamous"]) for group in backwards] == [sorted(group["squamous"]) for group in groups]
    assert group_by_source(parts, 3, 2) != groups
    with pytest.raises(WholeSlideError, match="'squamous' has 12 source photographs in a split; a group needs 13"):
        group_by_source(parts, 13, 1)


def test_folder_sources_are_names_up_to_the_last_underscore(tmp_path):
    for name in ("s001_0.jpeg", "s001_1.jpeg", "a_b_2.PNG", "alone.tif"):
        _save(str(tmp_path / "normal" / name))
    (tmp_path / "normal" / "notes.txt").write_text("no image")
    found = FolderPhotographs(str(tmp_path)).photographs
    assert {(p.name, p.source) for p in found} == {
        ("s001_0.jpeg", "s001"),
        ("s001_1.jpeg", "s001"),
        ("a_b_2.PNG", "a_b"),
        ("alone.tif", "alone"),
    }


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_folder_photographs_are_read_as_rgb(tmp_path, mode):
    _save(str(tmp_path / "normal" / "x.png"), mode=mode)
    source = FolderPhotographs(str(tmp_path))
    pixels = source.load(source.photographs[0])
    assert pixels.shape == (70, 80, 3) and pixels.dtype == np.uint8


def test_folder_mistakes_are_named(tmp_path):
    with pytest.raises(WholeSlideError, match="no folder .*absent"):
        FolderPhotographs(str(tmp_path / "absent"))
    _save(str(tmp_path / "normal" / "x.png"), size=(80, 40))
    _save(str(tmp_path / "other" / "y.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WholeSlideError, match="'tumour'; it has empty, normal, other"):
        FolderPhotographs(str(tmp_path), ["normal", "tumour"])
    with pytest.raises(WholeSlideError, match="empty holds no image files"):
        FolderPhotographs(str(tmp_path))
    source = FolderPhotographs(str(tmp_path), ["normal", "other"])
    with pytest.raises(WholeSlideError, match="x.png has 80 x 40 pixels"):
        source.load(source.photographs[0])
    whole = (tmp_path / "other" / "y.png").read_bytes()
    (tmp_path / "other" / "y.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WholeSlideError, match="cannot read photograph .*y.png"):
        source.load(source.photographs[1])


def test_procedural_photographs_are_the_same_everywhere():
    """The digests hold for every NumPy and SciPy version: slides can be rebuilt on another machine."""
    digests = {
        "normal": "b3b584f61947",
        "adenocarcinoma": "47b15bbd4e0b",
        "squamous": "60f6aa7013cb",
    }
    source = ProceduralPhotographs(CLASSES, sources_per_class=1, variants=1)
    for photograph in source.photographs:
        pixels = source.load(photograph)
        assert pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8
        assert hashlib.md5(pixels.tobytes()).hexdigest()[:12] == digests[photograph.label]


def test_procedural_photographs_differ_by_variant_source_and_seed():
    source = ProceduralPhotographs(("normal", "squamous"), 2, 2, size=96)
    images = [source.load(p) for p in source.photographs] + [
        ProceduralPhotographs(("normal",), 1, 1, size=96, seed=1).load(source.photographs[0])
    ]
    for first in range(len(images)):
        for second in range(first):
            assert (images[first] != images[second]).mean() > 0.5


def test_procedural_textures_look_stained():
    """Pink to purple on average, dark nuclei, no white or black picture."""
    source = ProceduralPhotographs(CLASSES, 4, 1, size=128)
    for photograph in source.photographs:
        red, green, blue = source.load(photograph).reshape(-1, 3).mean(axis=0)
        assert green + 15 < red and green + 15 < blue
        assert 100 < green < 210
        assert source.load(photograph).reshape(-1, 3).std(axis=0).min() > 8


def test_an_unknown_procedural_class_is_refused():
    with pytest.raises(WholeSlideError, match="'cat'; use adenocarcinoma, normal, squamous"):
        ProceduralPhotographs(("normal", "cat"))


@pytest.mark.skipif(not os.path.isdir(TISSUE), reason="the lung photographs are not beside the checkout")
def test_lung_photographs_are_grouped_by_source():
    source = FolderPhotographs(TISSUE, CLASSES)
    assert len(source.photographs) == 1326
    parts = split_by_source(source.photographs, 0)
    for label in CLASSES:
        sources = [{p.source for p in parts[split][label]} for split in SPLITS]
        assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
        assert all(len(parts[split][label]) > 2 * len(owned) for split, owned in zip(SPLITS, sources))
