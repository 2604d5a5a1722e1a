"""``heatmap`` as a user calls it, and proof that what a network sees is drawn where it is."""

import collections
import csv
import json
import os
import shutil

import numpy as np
import pytest
from matplotlib.path import Path
from PIL import Image
from scipy import ndimage

from whole_slide_cnn import heatmap
from whole_slide_cnn import test as scoring
from whole_slide_cnn.config import load_config
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.evaluation.scores import read_scores
from whole_slide_cnn.heatmaps import files
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.running import slides
from whole_slide_cnn.running.checkpoint import save_checkpoint
from whole_slide_cnn.slides.canvas import SlideCanvas
from whole_slide_cnn.slides.pyramid import write_pyramid
from whole_slide_cnn.slides.reader import open_slide
from whole_slide_cnn.synthesis.photographs import ProceduralPhotographs, split_by_source
from whole_slide_cnn.synthesis.synthetic import SlideComposer, SlideSettings, photograph_colours

SIDE = 640  # of the synthetic slide, in pixels of 1 um
FILES = {
    *("map.npy", "map.json", "contours.geojson", "overlay-normal.png", "overlay-tumor.png"),
    *("heatmap-normal.tiff", "heatmap-tumor.tiff"),
}
CONFIG = """\
result_dir: results
data:
  classes: [normal, tumor]
  test: test.csv
  slides: slides
  extension: .tiff
  mpp: 0.5
  canvas: [{height}, {width}]
model: {{backbone: tiny, activation: {activation}}}
streaming: {{window: 1024}}
"""


def green_detector(network):
    """Weights under which a cell's logit is how much more green than red there is in its middle: everything but one
    channel from the first convolution through the shortcuts to the dense layer is nought."""
    weights = {spec.name: np.zeros(spec.shape) for spec in network.variables}
    weights["conv1_conv/kernel"][2:5, 2:5, 0, 0] = -1 / 9
    weights["conv1_conv/kernel"][2:5, 2:5, 1, 0] = 1 / 9
    for name in weights:
        if name.endswith("_0_conv/kernel"):
            weights[name][0, 0, 0, 0] = 1.0
    weights["output/kernel"][0] = [-20.0, 20.0]
    weights["output/bias"][:] = [8.5, -8.5]
    return weights


@pytest.fixture(scope="module")
def lesion_slide(tmp_path_factory):
    """A folder with a procedural slide whose lesion is green, its mask, and a result folder of a network that sees
    green. Working pixels are half as wide as those of the slide, and the canvas is larger than the slide."""
    folder = tmp_path_factory.mktemp("lesion")
    source = ProceduralPhotographs(("normal", "squamous"), 9, 1, size=144)
    splits = split_by_source(source.photographs, 0)
    composer = SlideComposer(
        source, splits, photograph_colours(source, splits), SlideSettings(SIDE, lesion=(0.3, 0.5), seed=3)
    )
    slide = composer.compose("train", "squamous", 0)
    image, lesion = slide.image.copy(), slide.mask > 0
    image[lesion] = (0.3 * image[lesion] + 0.7 * np.array([90, 190, 90])).astype(np.uint8)
    write_pyramid(str(folder / "slides" / "lesion.tiff"), image, 1.0)
    os.makedirs(str(folder / "masks"))
    Image.fromarray(slide.mask).save(str(folder / "masks" / "lesion.png"))
    (folder / "test.csv").write_text("case_id,slide_id,label\nc1,lesion,tumor\n", encoding="utf-8")
    results = folder / "results"
    results.mkdir()
    text = CONFIG.format(height=2 * SIDE + 65, width=2 * SIDE + 161, activation="softmax")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    config = load_config(str(folder / "config.yaml"))
    network = Network("tiny", "gmp", "softmax", 2)
    save_checkpoint(str(results / "best.npz"), network, green_detector(network), {"epoch": 4})
    return folder, config, lesion


def test_the_lesion_is_found_where_it_is(lesion_slide, call):
    folder, config, lesion = lesion_slide
    output = folder / "maps"
    outcome = call(
        heatmap.main,
        *["--config", folder / "config.yaml", "--masks", folder / "masks", "--output", output, "--class", "tumor"],
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.startswith("engine streaming: predicted peak memory ")
    assert "class map" in outcome.stdout.splitlines()[0]

    # by the command itself
    (row,) = read_csv(output / "localisation.csv")
    assert (row["slide_id"], row["label"]) == ("lesion", "1")
    assert float(row["iou"]) > 0.95 and float(row["pixel_auc"]) > 0.995
    assert int(row["lesion_pixels"]) == lesion.sum()
    ious = {float(row["threshold"]): float(row["mean_iou"]) for row in read_csv(output / "thresholds.csv")}
    assert len(ious) == 19 and ious[0.5] == float(row["iou"]) > ious[0.95]
    assert "lesions of 1 slides: mean IoU {:.3f}".format(float(row["iou"])) in outcome.stdout

    # by the contours, without our own code
    rings = []
    for entry in read_json(output / "lesion" / "contours.geojson")["features"]:
        rings += [np.array(ring) for ring in entry["geometry"]["coordinates"]]
    y, x = np.indices(lesion.shape) + 0.5
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    marked = np.zeros(len(points), bool)
    for ring in rings:
        marked ^= Path(ring).contains_points(points)
    marked = marked.reshape(lesion.shape)
    assert (marked & lesion).sum() / (marked | lesion).sum() > 0.9
    # and the whole map lies no more than a cell (16 level-0 pixels) beside the lesion
    shift = np.subtract(ndimage.center_of_mass(marked), ndimage.center_of_mass(lesion))
    assert np.abs(shift).max() < 4
    cell = 16
    assert not (marked & ~ndimage.binary_dilation(lesion, iterations=2 * cell)).any()

    # by the pyramid, through OpenSlide
    with open_slide(str(folder / "slides" / "lesion.tiff")) as slide, open_slide(
        str(output / "lesion" / "heatmap-tumor.tiff"), reader="openslide"
    ) as pyramid:
        extents = [[n * mpp for n, mpp in zip(image.level_sizes[0], image.mpp)] for image in (slide, pyramid)]
        np.testing.assert_allclose(*extents, atol=pyramid.mpp[0])


def test_a_result_folder_suffices_and_engines_agree(lesion_slide, call):
    """``--checkpoint`` brings its configuration along; the direct engine draws the same map."""
    folder, config, _ = lesion_slide
    shutil.copy(str(folder / "config.yaml"), str(folder / "results" / "config.yaml"))
    settings = ["--set", "data.slides={}".format(folder / "slides"), "--set", "data.canvas=[700,733]"]
    settings += ["--slides", folder / "test.csv", "--set", "data.mpp=1.0"]
    maps = []
    for engine in ("streaming", "direct"):
        output = folder / engine
        arguments = ["--checkpoint", folder / "results", "--output", output, "--set", "engine=" + engine]
        outcome = call(heatmap.main, *(arguments + settings))
        assert outcome.code == 0, outcome.stderr
        assert set(os.listdir(str(output / "lesion"))) == FILES
        maps.append(np.load(str(output / "lesion" / "map.npy")))
        np.testing.assert_allclose(maps[-1].sum(axis=-1), 1.0, atol=1e-6)
        record = read_json(output / "lesion" / "map.json")
        assert record["origin"]["epoch"] == 4 and len(record["origin"]["checkpoint"]["sha256"]) == 64
        assert read_json(output / "provenance.json")["data_lists"]["slides"]["rows"] == 1
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)
    features = read_json(folder / "direct" / "lesion" / "contours.geojson")["features"]
    assert {entry["properties"]["classification"]["name"] for entry in features} == {"normal", "tumor"}


@pytest.fixture
def study(own_slides):
    """A data set that a test may spoil, with a checkpoint of random weights."""
    config = load_config(str(own_slides / "config.yaml"))
    network = Network("tiny", "gmp", "softmax", 2, 0.0)
    save_checkpoint(os.path.join(config.result_dir, "best.npz"), network, network.initial_weights(1), {"epoch": 1})
    return own_slides


@pytest.fixture
def draw(call, study):
    """A function (*arguments) -> Outcome of ``heatmap`` on the study, into ``maps``."""

    def run(*arguments):
        return call(heatmap.main, "--config", study / "config.yaml", "--output", study / "maps", *arguments)

    return run


def test_broken_slides_are_listed_at_the_end_and_the_others_drawn(draw, study):
    os.truncate(str(study / "slides" / "test-1.tif"), 2000)
    os.remove(str(study / "slides" / "test-4.tif"))
    outcome = draw("--class", "tumor")
    assert outcome.code == 1
    listed = [line for line in outcome.stderr.splitlines() if line.startswith("not drawn: slide ")]
    assert [line.split(":")[1].strip() for line in listed] == ["slide test-1", "slide test-4"]
    assert "heat maps of 4 slides: {}".format(study / "maps") in outcome.stdout
    folders = sorted(name for name in os.listdir(str(study / "maps")) if name.startswith("test"))
    assert folders == ["test-0", "test-2", "test-3", "test-5"]
    assert set(os.listdir(str(study / "maps" / "test-0"))) == {name for name in FILES if "normal" not in name}


def test_the_activation_is_the_models(draw, study, make_list):
    network = Network("tiny", "gmp", "sigmoid", 2, 0.0)
    save_checkpoint(str(study / "sigmoid.npz"), network, network.initial_weights(1), {})
    make_list(str(study / "one.csv"), [("val-0", "normal")])
    chosen = ("--class", "tumor", "--slides", study / "one.csv")
    arguments = ("--set", "model.activation=sigmoid", "--checkpoint", study / "sigmoid.npz")
    assert draw(*(chosen + arguments)).code == 0
    sigmoid = np.load(str(study / "maps" / "val-0" / "map.npy")).astype(np.float64)
    assert draw(*chosen).code == 0
    soft = np.load(str(study / "maps" / "val-0" / "map.npy")).astype(np.float64)
    odds = sigmoid / (1 - sigmoid)
    np.testing.assert_allclose(soft, odds / odds.sum(axis=-1, keepdims=True), rtol=1e-4)


@pytest.fixture
def score(call, study):
    """A function (*settings) -> Outcome of ``test`` on the study, whose maps are to go to ``drawn``."""

    def run(*settings, split="test"):
        settings = ("outputs.heatmaps={}".format(study / "drawn"),) + settings
        words = [word for setting in settings for word in ("--set", setting)]
        return call(scoring.main, "--config", study / "config.yaml", "--split", split, *words)

    return run


def scored_slides(study):
    """Names in the scores of the test list."""
    scores, _ = read_scores(str(study / "results" / "test" / "scores.csv"))
    return [entry.slide_id for entry in scores]


def test_testing_draws_what_it_scored(score, draw, study):
    os.truncate(str(study / "slides" / "test-1.tif"), 2000)
    outcome = score("outputs.heatmap_size=[100,60]")
    assert outcome.code == 1
    assert [line.split(" (")[0] for line in outcome.stderr.splitlines() if line.startswith("not ")] == [
        "not scored: slide test-1: OpenSlide cannot open {}".format(study / "slides" / "test-1.tif")
    ]
    assert "class map" in outcome.stdout.splitlines()[0]
    assert outcome.stdout.splitlines()[-1] == "heat maps of 5 slides: {}".format(study / "drawn")
    left = ["test-{}".format(index) for index in (0, 2, 3, 4, 5)]
    assert sorted(os.listdir(str(study / "drawn"))) == ["provenance.json"] + left
    assert draw().code == 1
    for name in left:
        assert set(os.listdir(str(study / "drawn" / name))) == FILES
        np.testing.assert_array_equal(*(np.load(str(study / to / name / "map.npy")) for to in ("drawn", "maps")))
        sizes = [read_json(study / to / name / "map.json")["files"][2]["size"] for to in ("drawn", "maps")]
        assert sizes == [[53, 60], [150, 170]]  # of 150 x 170 px; by default no smaller
    assert read_json(study / "drawn" / "provenance.json")["data_lists"]["test"]["rows"] == 6


def test_a_slide_that_breaks_after_it_was_scored(score, study, monkeypatch):
    """It keeps its score, is named as not drawn, and the others are drawn."""
    thumbnail = files.thumbnail

    def breaking(slide, size):
        if slide.name == "test-4":
            raise SlideError(slide.name, "gone")
        return thumbnail(slide, size)

    monkeypatch.setattr(files, "thumbnail", breaking)
    outcome = score()
    assert outcome.code == 1
    assert [line for line in outcome.stderr.splitlines() if line.startswith("not ")] == [
        "not drawn: slide test-4: gone"
    ]
    assert "test-4" in scored_slides(study) and not (study / "drawn" / "test-4").exists()
    assert "heat maps of 5 slides" in outcome.stdout and (study / "drawn" / "test-5" / "map.json").exists()
    assert "Not scored" not in (study / "results" / "test" / "summary.md").read_text(encoding="utf-8")


@pytest.fixture
def counted(monkeypatch):
    """A function () -> how often each slide was opened, and how many pixels of each canvas were read, since its last
    call."""
    opened, pixels = collections.Counter(), collections.Counter()
    open_canvas, read = slides.open_canvas, SlideCanvas.read

    def opening(path, *arguments, **options):
        opened[os.path.basename(path)] += 1
        return open_canvas(path, *arguments, **options)

    def reading(canvas, window):
        pixels[canvas.name] += window.height * window.width
        return read(canvas, window)

    monkeypatch.setattr(slides, "open_canvas", opening)
    monkeypatch.setattr(SlideCanvas, "read", reading)

    def take():
        found = dict(opened), dict(pixels)
        opened.clear()
        pixels.clear()
        return found

    return take


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_slide_is_opened_and_read_once_for_score_and_map(score, study, counted, engine):
    """Drawing reads no more of a canvas than scoring alone, and changes no score."""
    settings = "engine=" + engine, "data.canvas=[160,192]"
    assert score("outputs.heatmaps=null", *settings).code == 0
    opened, pixels = counted()
    assert set(opened.values()) == {1} and len(opened) == len(pixels) == 6
    alone = (study / "results" / "test" / "scores.csv").read_bytes()
    assert score(*settings).code == 0
    assert counted() == (opened, pixels)
    assert (study / "results" / "test" / "scores.csv").read_bytes() == alone
    assert (study / "drawn" / "test-5" / "map.json").exists()


@pytest.mark.parametrize("setting", ["outputs.weights=none.h5", "memory_gb=0.001"])
def test_the_source_is_closed_on_error(score, monkeypatch, setting):
    closed = []
    monkeypatch.setattr(slides.SlideSource, "close", lambda self: closed.append(self))
    assert score(setting).code == 2
    assert len(closed) == 1


def test_scores_are_kept_where_a_map_cannot_be_written(score, study):
    (study / "drawn").mkdir()
    (study / "drawn" / "test-2").write_text("in the way", encoding="utf-8")
    outcome = score()
    assert "cannot create folder {}".format(study / "drawn" / "test-2") in outcome.sentence()
    assert outcome.code == 2 and len(scored_slides(study)) == 6


def test_a_folder_of_maps_that_cannot_be_made_is_refused_before_scoring(score, study):
    (study / "drawn").write_text("in the way", encoding="utf-8")
    assert "cannot create folder {}".format(study / "drawn") in score().sentence()
    assert not (study / "results" / "test").exists()


def test_only_the_test_list_is_drawn(score, study):
    assert score(split="val").code == 0
    assert not (study / "drawn").exists()


def test_overlays_too_large_for_the_memory_are_refused(score):
    assert "memory_gb allows 1.00 GB" in score("outputs.heatmap_size=20000", "memory_gb=1").sentence()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--class", "tumour"], "there is no class 'tumour'; the classes are normal, tumor"),
        (["--threshold", "1"], "--threshold must be above 0 and below 1, not 1.0"),
        (["--threshold", "nan"], "--threshold must be above 0 and below 1, not nan"),
        (["--checkpoint", "none.npz"], "checkpoint none.npz does not exist; train first, or name another one"),
        (["--slides", "none.csv"], "cannot read data list none.csv (No such file or directory)"),
        (["--masks", "nowhere"], "there is no folder nowhere of masks"),
        (["--set", "data.test=null"], "data.test must name a data list for this command, or --slides one"),
        (["--set", "data.slides=elsewhere"], "none of the 6 slides can be read"),
        (["--set", "memory_gb=0.001"], "memory_gb allows 0.00 GB; use a smaller streaming.window"),
        (["--set", "model.pooling=gap"], "is of another model: pooling is gmp, the configuration says gap"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_sentence(draw, arguments, sentence):
    outcome = draw(*arguments)
    assert sentence in outcome.sentence() and outcome.code == 2


def test_neither_configuration_nor_checkpoint(call, tmp_path):
    sentence = call(heatmap.main, "--output", tmp_path).sentence()
    assert sentence == "name a configuration (--config) or the result folder of a training (--checkpoint)"
    sentence = call(heatmap.main, "--output", tmp_path, "--checkpoint", tmp_path).sentence()
    assert "{}: cannot read the configuration".format(tmp_path / "config.yaml") in sentence


def test_an_output_that_cannot_be_written(call, study):
    (study / "file").write_text("", encoding="utf-8")
    sentence = call(heatmap.main, "--config", study / "config.yaml", "--output", study / "file").sentence()
    assert "cannot create folder {}".format(study / "file") in sentence


def test_broken_weights(draw, study):
    network = Network("tiny", "gmp", "softmax", 2, 0.0)
    weights = network.initial_weights(0)
    weights["output/bias"][0] = np.nan
    save_checkpoint(str(study / "results" / "best.npz"), network, weights, {})
    sentence = draw().sentence()
    assert sentence == "the class map of slide test-0 is not finite; the weights are broken"


def read_json(path):
    with open(str(path), encoding="utf-8") as stream:
        return json.load(stream)


def read_csv(path):
    with open(str(path), encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
