import csv
import json
import os
import subprocess
import sys

import numpy as np
import openslide
import pytest
from PIL import Image

from whole_slide_cnn import synthesize
from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.synthesis.photographs import ProceduralPhotographs

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CLASSES = ["normal", "squamous"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of small photographs, so that the command need not draw large ones."""
    folder = tmp_path_factory.mktemp("photographs")
    source = ProceduralPhotographs(tuple(CLASSES), 9, 1, size=72)
    for photograph in source.photographs:
        (folder / photograph.label).mkdir(exist_ok=True)
        Image.fromarray(source.load(photograph)).save(str(folder / photograph.label / (photograph.name + ".png")))
    return str(folder)


def _arguments(output, photographs, *more):
    fixed = ["--output", str(output), "--photographs", photographs, "--size", "128", "--classes"] + CLASSES
    return fixed + ["--val", "1", "--test", "1", "--mpp", "0.5", "--workers", "1"] + list(more)


@pytest.fixture(scope="module")
def made(tmp_path_factory, photographs):
    output = tmp_path_factory.mktemp("sets") / "one"
    assert synthesize.main(_arguments(output, photographs, "--train", "3")) == 0
    return output


def _rows(folder, split):
    with open(str(folder / (split + ".csv")), newline="") as stream:
        return list(csv.DictReader(stream))


def test_lists_slides_and_masks_belong_together(made):
    cases = set()
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        rows = _rows(made, split)
        assert [row["label"] for row in rows] == CLASSES * count
        for row in rows:
            assert row["case_id"] not in cases and float(row["mpp"]) == 0.5
            cases.add(row["case_id"])
            with openslide.OpenSlide(str(made / "slides" / row["slide_id"])) as slide:
                assert slide.dimensions == (128, 128)
                assert float(slide.properties["tiff.XResolution"]) == pytest.approx(20000)
                white = (np.asarray(slide.read_region((0, 0), 0, (128, 128)))[..., :3] == 255).all(axis=2)
            mask = np.asarray(Image.open(str(made / "masks" / (os.path.splitext(row["slide_id"])[0] + ".png"))))
            assert mask.shape == (128, 128) and not (mask[white] > 0).any()
            assert mask.any() == (row["label"] != "normal")
    assert len(os.listdir(str(made / "slides"))) == len(os.listdir(str(made / "masks"))) == len(cases) == 10


def test_the_description_names_what_it_was_made_from(made):
    description = json.loads((made / "dataset.json").read_text())
    assert description["complete"] is True
    assert description["arguments"]["seed"] == 0 and description["arguments"]["size"] == 128
    assert set(description["versions"]) == {"python", "numpy", "scipy", "pillow", "tifffile"}
    for label in CLASSES:
        sources = [source for split in ("train", "val", "test") for source in description["sources"][split][label]]
        assert len(sources) == len(set(sources)) == 9
    assert [slide["slide_id"] for slide in description["slides"] if slide["split"] == "train"] == [
        row["slide_id"] for row in _rows(made, "train")
    ]
    for slide in description["slides"]:
        sources = {label: description["sources"][slide["split"]][label] for label in CLASSES}
        for region, names in slide["sources"].items():
            label = slide["label"] if region == "lesion" else "normal"
            assert names and set(names) <= {"{}/{}".format(label, source) for source in sources[label]}
    assert json.loads((made / "colour_baseline.json").read_text())["passed"] is True


def test_slides_do_not_change_with_their_number_or_the_workers(made, photographs, tmp_path):
    more = tmp_path / "more"
    synthesize.main(_arguments(more, photographs, "--train", "4", "--workers", "2"))
    for name in os.listdir(str(made / "slides")):
        assert (made / "slides" / name).read_bytes() == (more / "slides" / name).read_bytes()
    for name in os.listdir(str(made / "masks")):
        assert (made / "masks" / name).read_bytes() == (more / "masks" / name).read_bytes()


def test_only_an_earlier_data_set_is_overwritten(photographs, tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "precious.tiff").write_text("mine")
    arguments = _arguments(tmp_path, photographs, "--train", "1")
    with pytest.raises(WholeSlideError, match="not empty"):
        synthesize.main(arguments)
    with pytest.raises(WholeSlideError, match="holds no data set to overwrite"):
        synthesize.main(arguments + ["--overwrite"])
    assert (tmp_path / "slides" / "precious.tiff").read_text() == "mine"
    (tmp_path / "slides" / "precious.tiff").unlink()
    (tmp_path / "slides").rmdir()
    synthesize.main(arguments)
    synthesize.main(arguments + ["--seed", "5", "--overwrite"])
    assert json.loads((tmp_path / "dataset.json").read_text())["arguments"]["seed"] == 5
    assert len(os.listdir(str(tmp_path / "slides"))) == 6


def test_an_interrupted_run_can_be_overwritten(photographs, tmp_path, monkeypatch):
    def interrupt(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthesize, "_write_slide", interrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesize.main(_arguments(tmp_path, photographs, "--train", "1"))
    assert json.loads((tmp_path / "dataset.json").read_text())["complete"] is False
    synthesize.main(_arguments(tmp_path, photographs, "--train", "1", "--overwrite"))
    assert json.loads((tmp_path / "dataset.json").read_text())["complete"] is True


@pytest.mark.parametrize(
    "more,words",
    [
        (["--train", "0"], "--train must be 1 or more"),
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--mpp", "-1"], "--mpp must be above 0"),
        (["--classes", "normal"], "two or more different classes"),
        (["--classes", "normal", "normal"], "two or more different classes"),
        (["--classes", "normal", "liver"], "no subfolder for class 'liver'"),
        (["--tissue", "0.9", "0.95"], "tissue range"),
        (["--size", "64"], "use 128 or more"),
        (["--group", "1"], "use 3 or more"),
        (["--group", "4"], "class 'normal' has 3 source photographs in a split; a group needs 4"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(photographs, tmp_path, more, words):
    output = tmp_path / "set"
    with pytest.raises(WholeSlideError, match=words):
        synthesize.main(_arguments(output, photographs, *more))
    assert not output.exists()


def test_the_command_says_one_sentence_and_exits_non_zero(tmp_path):
    command = [sys.executable, "-m", "whole_slide_cnn.synthesize", "--output", str(tmp_path / "x"), "--photographs"]
    result = subprocess.run(command + ["/nowhere"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert result.returncode == 2
    assert result.stderr.decode() == "error: there is no folder /nowhere with photographs\n"
