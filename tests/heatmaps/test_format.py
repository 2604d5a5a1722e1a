"""What is written is read back to the bit; what is not understood, or does not belong together, is refused."""

import json
import re

import numpy as np
import pytest

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.heatmaps import files
from whole_slide_cnn.heatmaps.cells import grid_of
from whole_slide_cnn.heatmaps.format import FORMAT, VERSION, read_heatmap
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import open_canvas
from whole_slide_cnn.slides.pyramid import write_pyramid
from whole_slide_cnn.slides.settings import SlideSettings

ORIGIN = {"checkpoint": {"path": "best.npz", "sha256": "0" * 64}, "epoch": 3, "commit": None, "versions": {}}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A slide's folder of heat maps, and what was written: probabilities, network, grid and placement."""
    folder = tmp_path_factory.mktemp("format")
    write_pyramid(str(folder / "slide.tiff"), np.full((271, 223, 3), 200, np.uint8), 0.5)
    network = Network("tiny", "gmp", "sigmoid", 2)
    probabilities = np.random.RandomState(0).random_sample((7, 8, 2)).astype(np.float32)
    settings = files.HeatmapSettings(network, ("normal", "tu/mor"), (1,), 0.3, ORIGIN)
    with open_canvas(str(folder / "slide.tiff"), (197, 230), SlideSettings(mpp=0.73), "slide") as canvas:
        files.write_heatmap(str(folder / "maps"), canvas, probabilities, settings)
        return folder / "maps", probabilities, network, grid_of(network.trunk, canvas), canvas.placement


@pytest.fixture
def stored(written, tmp_path):
    """A function (**changes) -> folder: the numbers with keys of ``map.json`` changed, or left out where None."""

    def store(**changes):
        np.save(str(tmp_path / "map.npy"), written[1])
        description = json.loads((written[0] / "map.json").read_text(encoding="utf-8"))
        description.update(changes)
        text = json.dumps({key: value for key, value in description.items() if value is not None or key not in changes})
        (tmp_path / "map.json").write_text(text, encoding="utf-8")
        return tmp_path

    return store


@pytest.mark.parametrize("name", ["", "map.json", "map.npy"])
def test_everything_comes_back(written, name):
    folder, probabilities, network, grid, placement = written
    found = read_heatmap(str(folder / name))
    assert found.probabilities.dtype == np.float32
    np.testing.assert_array_equal(found.probabilities, probabilities)
    assert (found.slide, found.classes, found.activation) == ("slide", ("normal", "tu/mor"), "sigmoid")
    assert found.grid == grid and found.placement == placement  # floats too: JSON keeps every bit
    assert (found.threshold, found.canvas, found.level0_mpp) == (0.3, Size(197, 230), (0.5, 0.5))
    assert found.receptive_field == tuple(field.size for field in network.receptive_field(found.canvas))
    assert found.origin == ORIGIN and found.version == VERSION
    listed = {entry["name"] for entry in found.files}
    assert listed == {path.name for path in folder.iterdir()} - {"map.json"}


def test_files_from_before_there_were_versions(stored, written):
    found = read_heatmap(str(stored(format=None, version=None, values_sha256=None)))
    assert found.version == 0 and found.grid == written[3]
    np.testing.assert_array_equal(found.probabilities, written[1])


def test_the_version_stands_first(written):
    described = json.loads((written[0] / "map.json").read_text(encoding="utf-8"))
    assert list(described)[:2] == ["format", "version"]
    assert (described["format"], described["version"]) == (FORMAT, VERSION)


@pytest.mark.parametrize("version", [VERSION + 1, 0, "1", True, [1], 1.5])
def test_an_unknown_version_is_refused_in_one_sentence(stored, version):
    sentence = "is of version {!r} of the heat map format; this program reads versions up to 1".format(version)
    with pytest.raises(WholeSlideError, match=re.escape(sentence)):
        read_heatmap(str(stored(version=version)))


@pytest.mark.parametrize("changes", [{"format": "zarr"}, {"format": None}])
def test_another_format_is_refused(stored, changes):
    with pytest.raises(WholeSlideError, match="is of the format .*, not 'whole_slide_cnn heat map'"):
        read_heatmap(str(stored(**changes)))


def test_values_of_another_map_are_refused(stored, written):
    """A run that was stopped in between leaves new values beside an old description."""
    folder = stored()
    np.save(str(folder / "map.npy"), 1 - written[1])
    with pytest.raises(WholeSlideError, match="is not the one that .* describes; draw the slide again"):
        read_heatmap(str(folder))
    np.save(str(folder / "map.npy"), written[1][1:])
    with pytest.raises(WholeSlideError, match=re.escape("does not hold the float32 (7, 8, 2)")):
        read_heatmap(str(folder))
    np.save(str(folder / "map.npy"), written[1].astype(np.float64))
    with pytest.raises(WholeSlideError, match="does not hold the float32"):
        read_heatmap(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"cells": None},
        {"cells": [7]},
        {"cells": 7},
        {"level0_size": ["a", "b"]},
        {"shown_level0": [[0, 1, 2], [0, 1]]},
        {"origin": 3},
        {"classes": 5},
    ],
)
def test_a_broken_description_is_refused(stored, changes):
    with pytest.raises(WholeSlideError, match="does not describe a heat map"):
        read_heatmap(str(stored(**changes)))


def test_files_that_are_none(stored, tmp_path):
    with pytest.raises(WholeSlideError, match="map.json cannot be read: No such file or directory"):
        read_heatmap(str(tmp_path))
    folder = stored()
    (folder / "map.npy").write_bytes(b"no array")
    with pytest.raises(WholeSlideError, match="map.npy cannot be read"):
        read_heatmap(str(folder))
    (folder / "map.json").write_text("[]", encoding="utf-8")
    with pytest.raises(WholeSlideError, match="does not describe a heat map"):
        read_heatmap(str(folder))
    (folder / "map.json").write_text("{", encoding="utf-8")
    with pytest.raises(WholeSlideError, match="map.json cannot be read"):
        read_heatmap(str(folder))
