"""The study of small and large lesions: its order, what it does again, and what it reports."""

import json
import os

import lungmosaic
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from whole_slide_cnn import heatmap, synthesize, test, train
from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.provenance import describe_file
from whole_slide_cnn.synthesis.photographs import ProceduralPhotographs

CLASSES = ("normal", "adenocarcinoma", "squamous")
GROUPS = 4


class Commands:
    """Stand-ins for the commands of the package, which write what the study reads of theirs, and record their calls.

    The scores of a test slide are a function of its name and of the pooling; a pixel AUC is a hundredth of the number
    of calls that scored before.
    """

    def __init__(self):
        self.calls = []

    def synthesize(self, arguments):
        given = _options(arguments)
        self.calls.append(("synthesize", os.path.basename(given["--output"])))
        slides = []
        for split, count in (("val", 1), ("test", GROUPS)):
            lines = ["case_id,slide_id,label,mpp"]
            for block in range(count):
                for label in CLASSES:
                    name = "{}-{}-{}".format(split, label, block)
                    lines.append("{0},{0}.tiff,{1},1.0".format(name, label))
                    sources = {"surroundings": ["normal/{}".format(block)], "lesion": [label + "/{}".format(block)]}
                    slides.append({"slide_id": name + ".tiff", "sources": sources})
            _write(given["--output"], split + ".csv", "\n".join(lines) + "\n")
        found = {"auc": 0.5, "low": 0.4, "high": 0.6}
        _write(given["--output"], "colour_baseline.json", {"splits": {"test": {label: found for label in CLASSES}}})
        numbers = {key: int(given["--" + key]) for key in ("size", "group", "seed", "train", "val", "test")}
        known = dict(numbers, classes=list(CLASSES), lesion=[float(share) for share in given["--lesion"]])
        _write(given["--output"], "dataset.json", {"complete": True, "arguments": known, "slides": slides})
        return 0

    def train(self, arguments):
        assert "--resume" in arguments
        folder, settings = self._record("train", arguments)
        if os.path.basename(folder).startswith("small"):
            assert settings["model.weights"] == os.path.join(folder.replace("small", "large"), "best.h5")
            assert settings["train.epochs"] == "8"
        else:
            assert not {"model.weights", "train.epochs"} & set(settings)
        if not os.path.exists(os.path.join(folder, "best.npz")):
            _write(folder, "best.npz", "weights")
            _write(folder, "log.csv", "epoch,val_loss\n1,0.9\n2,0.7\n3,0.8\n")
        return 0

    def test(self, arguments):
        split = _options(arguments)["--split"]
        folder, settings = self._record("test " + split, arguments)
        lines = ["case_id,slide_id,label,p_normal,p_adenocarcinoma,p_squamous,prediction"]
        for name, label, values in scores_of(split, settings["model.pooling"]):
            row = [name, name + ".tiff", label] + [repr(value) for value in values] + [CLASSES[np.argmax(values)]]
            lines.append(",".join(row))
        _write(folder, split + "/scores.csv", "\n".join(lines) + "\n")
        self._write_origin(os.path.join(folder, split), folder)
        _write(folder, split + "/summary.md", "")
        return 0

    def heatmap(self, arguments):
        given = _options(arguments)
        assert os.path.basename(given["--masks"]) == "masks"
        with open(given["--slides"]) as stream:
            drawn = [line.split(",") for line in stream.read().splitlines()[1:]]
        assert {row[2] for row in drawn} == set(CLASSES[1:])
        name = "heatmap {} {}".format(os.path.basename(given["--output"]), given["--threshold"])
        self._write_origin(given["--output"], self._record(name, arguments)[0])
        rows = ["slide_id,label,iou,pixel_auc,threshold,lesion_pixels,tissue_pixels"]
        rows += [
            "{},1,{},{},0.1,{},10".format(row[1], 0.01 * k, 0.02 * k if k else "", k) for k, row in enumerate(drawn)
        ]
        _write(given["--output"], "localisation.csv", "\n".join(rows) + "\n")
        _write(given["--output"], "thresholds.csv", "threshold,mean_iou\n0.1,0.2\n0.2,0.5\n0.3,0.5\n0.4,0.1\n")
        return 0

    def _write_origin(self, folder, results):
        _write(folder, "provenance.json", {"checkpoint": describe_file(os.path.join(results, "best.npz"))})

    def _record(self, name, arguments):
        settings = dict(arguments[k + 1].split("=") for k, word in enumerate(arguments) if word == "--set")
        folder = settings["result_dir"]
        data = os.path.join(os.path.dirname(folder), os.path.basename(folder).split("-")[0])
        assert settings["data.test"] == os.path.join(data, "test.csv")
        assert os.path.basename(folder).endswith(settings["model.pooling"])
        self.calls.append((name, os.path.basename(folder)))
        return folder, settings


def scores_of(split, pooling):
    """(slide, label, probabilities) of a list as the stand-in scores it."""
    for block in range(1 if split == "val" else GROUPS):
        for index, label in enumerate(CLASSES):
            values = np.random.RandomState([block, index, pooling == "gap"]).uniform(size=3)
            values[index] += 0.3
            yield "{}-{}-{}".format(split, label, block), label, [float(value) for value in values / values.sum()]


def _options(arguments):
    """Values by option; a list where there are several."""
    found = {}
    for word in arguments:
        if word.startswith("--"):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _write(folder, name, content):
    path = os.path.join(folder, name)
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path))
    with open(path, "w") as stream:
        stream.write(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def commands(monkeypatch):
    commands = Commands()
    for module, function in (
        (synthesize, commands.synthesize),
        (train, commands.train),
        (test, commands.test),
        (heatmap, commands.heatmap),
    ):
        monkeypatch.setattr(module, "main", function)
    return commands


@pytest.fixture
def study(commands, tmp_path):
    assert lungmosaic.main(["--output", str(tmp_path)]) == 0
    return json.loads((tmp_path / "study.json").read_text())


def test_test_lists_are_read_last_and_with_the_threshold_of_validation(commands, tmp_path):
    lungmosaic.main(["--output", str(tmp_path), "--sets", "small", "large", "--poolings", "gap"])
    runs = ["large-gap", "small-gap"]
    before = [(call, run) for run in runs for call in ("train", "test val", "heatmap heatmaps-val 0.5")]
    after = [(call, run) for run in runs for call in ("test test", "heatmap heatmaps-test 0.2")]
    assert commands.calls == [("synthesize", "large"), ("synthesize", "small")] + before + after


def test_no_test_list_is_read_where_others_still_train(commands, tmp_path):
    lungmosaic.main(["--output", str(tmp_path), "--poolings", "gap", "--no-test"])
    assert commands.calls and not [call for call, _ in commands.calls if call.endswith(("test", "0.2"))]
    assert not (tmp_path / "study.json").exists()


def test_only_training_looks_at_what_is_finished(commands, study, tmp_path):
    commands.calls.clear()
    lungmosaic.main(["--output", str(tmp_path)])
    assert [call for call, _ in commands.calls] == ["train"] * 4
    (tmp_path / "large-gap" / "best.npz").write_text("other weights")  # trained further
    os.utime(str(tmp_path / "small-gmp" / "test" / "summary.md"), (1, 1))  # left by an earlier attempt
    commands.calls.clear()
    lungmosaic.main(["--output", str(tmp_path)])
    assert [call for call, run in commands.calls if run == "large-gap"][1:] == [
        *("test val", "heatmap heatmaps-val 0.5", "test test", "heatmap heatmaps-test 0.2")
    ]
    assert [call for call, run in commands.calls if run == "small-gmp"] == ["train", "test test"]
    assert [call for call, run in commands.calls if run == "small-gap"] == ["train"]


def test_every_network_is_reported(study):
    assert [(run["set"], run["pooling"]) for run in study["runs"]] == [
        *(("large", "gmp"), ("large", "gap"), ("small", "gmp"), ("small", "gap"))
    ]
    for run in study["runs"]:
        assert (run["slides"], run["slides_with_lesion"], run["groups"], run["epoch"]) == (12, 8, GROUPS, 2)
        scores = list(scores_of("test", run["pooling"]))
        for index, entry in enumerate(run["classes"]):
            truth = [label == CLASSES[index] for _, label, _ in scores]
            expected = roc_auc_score(truth, [values[index] for _, _, values in scores])
            assert entry["groups"]["value"] == entry["delong"]["value"] == pytest.approx(expected)
            assert entry["groups"]["low"] < expected < entry["groups"]["high"]
            assert entry["colour"]["auc"] == 0.5
        assert run["threshold"] == 0.2
        assert run["iou"]["value"] == pytest.approx(0.01 * np.arange(8).mean())
        assert run["iou_of_all_tissue"] == pytest.approx(0.1 * np.arange(8).mean())
        assert run["pixel_auc"]["value"] == pytest.approx(0.02 * np.arange(1, 8).mean())  # the first is undefined
    for name, runs in (("large", study["runs"][:2]), ("small", study["runs"][2:])):
        (found,) = [entry for entry in study["differences"] if entry["set"] == name]
        first, second = (run["classes"][0]["groups"]["value"] for run in runs)
        assert found["classes"][0]["groups"]["value"] == pytest.approx(first - second)
        assert found["classes"][0]["delong"]["difference"] == pytest.approx(first - second)


def test_the_tables_show_each_number(study, tmp_path):
    text = (tmp_path / "study.md").read_text()
    for run in study["runs"]:
        for entry in run["classes"]:
            start = "| {} | {} | {} | ".format(run["set"], run["pooling"].upper(), entry["name"])
            (line,) = [line for line in text.splitlines() if line.startswith(start)]
            numbers = "{value:.3f} ({low:.3f} to {high:.3f}) | ".format(**entry["delong"])
            numbers += "{low:.3f} to {high:.3f} | 0.500 (0.400 to 0.600) |".format(**entry["groups"])
            assert line == start + numbers
    assert text.count("\n| small |") == text.count("\n| large |") == 6 + 2 + 3


def test_undefined_numbers_are_said_to_be(study):
    run = dict(study["runs"][0], pixel_auc=dict(study["runs"][0]["pixel_auc"], value=None))
    run["classes"] = [dict(entry, colour={"auc": None, "samples": 3}) for entry in run["classes"]]
    difference = json.loads(json.dumps(study["differences"][0]))
    for entry, p_value in zip(difference["classes"], (None, 0.0004, 0.0126)):
        entry["delong"]["p_value"] = p_value
    text = lungmosaic.to_markdown({"runs": [run], "differences": [difference]})
    assert text.count("| undefined |") == 5
    assert text.count("| < 0.001 |") == text.count("| 0.013 |") == 1


def test_another_data_set_is_not_mistaken_for_the_study(study, tmp_path):
    with pytest.raises(WholeSlideError, match="large was made with test 60, not 5"):
        lungmosaic.main(["--output", str(tmp_path), "--test", "5"])


@pytest.mark.slow
def test_the_study_runs_on_small_slides_and_is_not_done_again(tmp_path):
    source = ProceduralPhotographs(CLASSES, 24, 1, size=72)
    for photograph in source.photographs:
        path = tmp_path / "photographs" / photograph.label / (photograph.name + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.load(photograph)).save(str(path))
    results = tmp_path / "results"
    arguments = ["--photographs", str(tmp_path / "photographs"), "--output", str(results), "--sets", "large"]
    arguments += ["--size", "128", "--train", "2", "--val", "1", "--test", "4"]
    for text in ("data.mpp=2", "data.canvas=64", "train.epochs=1", "train.updates_per_epoch=2"):
        arguments += ["--set", text]
    assert lungmosaic.main(arguments) == 0
    (gmp, gap) = json.loads((results / "study.json").read_text())["runs"]
    assert gmp["groups"] == gap["groups"] == 2 and gmp["slides_with_lesion"] == 8
    for run in (gmp, gap):
        report = json.loads((results / ("large-" + run["pooling"]) / "test" / "report.json").read_text())
        assert report["accuracy"] == run["accuracy"]["value"]
    kept = {path: path.stat().st_mtime for name in ("scores.csv", "map.npy", "*.tiff") for path in results.rglob(name)}
    assert len(kept) > 30
    assert lungmosaic.main(arguments) == 0
    assert [path for path, time in kept.items() if path.stat().st_mtime != time] == []
