import json
import os
import subprocess
import sys

import numpy as np
import pytest

from whole_slide_cnn.colour_baseline import main
from whole_slide_cnn.errors import ManifestError, SlideError
from whole_slide_cnn.slides.pyramid import write_pyramid
from whole_slide_cnn.synthesis import colour_baseline
from whole_slide_cnn.synthesis.colour_baseline import (
    FEATURES,
    Sample,
    baseline,
    check_folder,
    format_report,
    slide_features,
)

SPLITS = ("train", "val", "test")


def _samples(shift, count=40, labels=("normal", "tumour")):
    """Random features; one of them is moved by ``shift`` deviations from class to class."""
    stream = np.random.RandomState(0)
    parts = {}
    for split in SPLITS:
        parts[split] = []
        for index in range(count):
            for number, label in enumerate(labels):
                features = stream.standard_normal(5)
                features[2] += shift * number
                parts[split].append(Sample(features, label, str(index)))
    return parts


def test_features_are_means_deviations_and_area(tmp_path):
    image = np.full((300, 200, 3), 255, np.uint8)
    image[40:140, 30:130] = np.random.RandomState(0).randint(0, 255, (100, 100, 3))
    path = str(tmp_path / "slide.tiff")
    write_pyramid(path, image, 1.0)
    tissue, everything = image[(image < 255).any(axis=2)], image.reshape(-1, 3)
    expected = [figure for p in (tissue, everything) for figure in (p.mean(axis=0), p.std(axis=0))] + [[1 / 6.0]]
    features = slide_features(path)
    np.testing.assert_allclose(features, np.concatenate(expected), rtol=1e-9)
    assert len(FEATURES) == len(features)
    np.testing.assert_array_equal(features, _features_in_tiles_of(64, path))


def _features_in_tiles_of(side, path):
    before, colour_baseline._TILE = colour_baseline._TILE, side
    try:
        return slide_features(path)
    finally:
        colour_baseline._TILE = before


def test_a_leak_is_found_and_noise_is_not():
    for shift, low, high in ((4.0, 0.98, 1.0), (0.0, 0.3, 0.7)):
        for part in baseline(_samples(shift)).values():
            for result in part.values():
                assert low <= result["auc"] <= high
                assert result["low"] <= result["auc"] <= result["high"]
                assert result["judged"] and result["samples"] == 40


def test_the_interval_is_hanley_and_mcneils():
    """AUC 0.893 of 58 diseased and 51 normal: standard error 0.0306 by their formula."""
    area = 0.893
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    expected = np.sqrt((area * (1 - area) + (58 - 1) * (q1 - area**2) + (51 - 1) * (q2 - area**2)) / (58 * 51))
    assert colour_baseline._standard_error(area, 58, 51) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.032, abs=0.002)


def test_groups_stay_together_in_cross_validation():
    """Each sample has a twin of the other class with equal features: apart, a fold would learn from the held out."""
    stream = np.random.RandomState(1)
    twins = [
        Sample(features, label, str(k)) for k, features in enumerate(stream.standard_normal((30, 4))) for label in "ab"
    ]
    together = baseline({"train": twins})["train"]["a"]["auc"]
    apart = baseline({"train": [s._replace(group=str(k)) for k, s in enumerate(twins)]})["train"]["a"]["auc"]
    assert together == pytest.approx(0.5, abs=0.02)
    assert apart < 0.4


def test_splits_without_enough_slides_are_not_judged():
    results = baseline(_samples(9.0, count=1))
    assert results["train"]["normal"]["auc"] is None
    results = baseline(_samples(9.0, count=4))
    assert results["test"]["normal"]["auc"] == 1.0 and not results["test"]["normal"]["judged"]
    alone = _samples(0.0)
    alone["val"] = [sample for sample in alone["val"] if sample.label == "normal"]
    assert baseline(alone)["val"]["normal"]["auc"] is None


def _write_set(folder, tumour_red):
    """A tiny data set whose tumour slides are redder by some grey levels."""
    stream = np.random.RandomState(0)
    slides = []
    for split in SPLITS:
        rows = ["case_id,slide_id,label,mpp"]
        for block in range(10):
            base = stream.randint(60, 160, 3)
            for label in ("normal", "tumour"):
                image = np.full((64, 64, 3), 255, np.uint8)
                tissue = base + stream.randint(-20, 20, (40, 40, 3))
                tissue[..., 0] += tumour_red * (label == "tumour")
                image[10:50, 10:50] = tissue
                name = "{}-{}-{}.tiff".format(split, label, block)
                write_pyramid(os.path.join(folder, "slides", name), image, 1.0)
                slides.append({"slide_id": name, "split": split, "block": block})
                rows.append("{},{},{},1.0".format(name, name, label))
        with open(os.path.join(folder, split + ".csv"), "w") as stream_:
            stream_.write("\n".join(rows) + "\n")
    with open(os.path.join(folder, "dataset.json"), "w") as stream_:
        json.dump({"slides": slides, "raw_photographs": baseline(_samples(4.0))}, stream_)


@pytest.mark.parametrize("red,code", [(0, 0), (60, 1)])
def test_the_command_fails_where_colour_tells(tmp_path, capsys, red, code):
    _write_set(str(tmp_path), red)
    assert main([str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert ("FAILED" in printed) == bool(code)
    report = json.loads((tmp_path / "colour_baseline.json").read_text())
    assert report["passed"] is not bool(code)
    assert report["highest"] == max(r["auc"] for part in report["splits"].values() for r in part.values())
    assert format_report(report) == printed.rstrip("\n")


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="dataset.json"):
        check_folder(str(tmp_path))
    _write_set(str(tmp_path), 0)
    slide = tmp_path / "slides" / "val-normal-3.tiff"
    slide.write_bytes(b"no slide")
    with pytest.raises(SlideError, match="val-normal-3.tiff: cannot be read"):
        check_folder(str(tmp_path))
    write_pyramid(str(slide), np.full((64, 64, 3), 255, np.uint8), 1.0)
    with pytest.raises(SlideError, match="val-normal-3.tiff: is white"):
        check_folder(str(tmp_path))
    (tmp_path / "val.csv").write_text("case_id,slide_id,label,mpp\nx,stranger.tiff,normal,1.0\n")
    with pytest.raises(ManifestError, match="val.csv"):
        check_folder(str(tmp_path))


@pytest.mark.parametrize("module", ["colour_baseline", "slides.colour_baseline"])
def test_the_command_and_its_former_name(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-m", "whole_slide_cnn." + module, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert done.returncode == 2
    assert "does not describe a complete data set; make it with whole_slide_cnn.synthesize" in done.stderr
