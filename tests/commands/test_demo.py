"""The demo, with fewer and smaller slides than it has, and few updates."""

import json
import os
import re

from whole_slide_cnn import demo
from whole_slide_cnn.config import load_config


def test_replaces_an_earlier_demo_and_says_how_it_went(call, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SLIDES", {"train": 4, "val": 2, "test": 3})
    monkeypatch.setattr(demo, "SYNTHESIS", ("--size", "160", "--workers", "1"))
    quick = demo.CONFIG.replace("epochs: 14", "epochs: 1").replace("updates_per_epoch: 100", "updates_per_epoch: 2")
    monkeypatch.setattr(demo, "CONFIG", quick)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}", encoding="utf-8")
    (tmp_path / "data" / "train.csv").write_text("an earlier list", encoding="utf-8")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "best.npz").write_text("an earlier checkpoint", encoding="utf-8")
    (tmp_path / "results" / "stale.txt").write_text("left over", encoding="utf-8")

    outcome = call(demo.main, "--output", tmp_path, "--seed", "5")

    assert outcome.code == 0, outcome.stderr
    summary = outcome.stdout[outcome.stdout.index("18 synthetic slides of two classes") :]
    auc = r"\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\)"
    report = json.loads((tmp_path / "results" / "test" / "report.json").read_text(encoding="utf-8"))
    of_network = re.search("AUC of the network: +({})\n".format(auc), summary).group(1)
    assert of_network.startswith("{:.3f} (".format(report["classes"][1]["auc"]["value"]))
    assert re.search("AUC of a regression on colour and tissue area: {}\n".format(auc), summary)
    assert "tested on 6 others" in summary and re.search(r"The whole took \d+\.\d minutes\.$", summary.strip())
    named = [path for path in re.findall(r"/[\w./-]+", summary) if path.startswith(str(tmp_path))]
    assert len(named) >= 8 and [path for path in named if not os.path.exists(path)] == []

    config = load_config(str(tmp_path / "config.yaml"))
    assert (config.seed, config.result_dir) == (5, str(tmp_path / "results"))
    assert len(os.listdir(str(tmp_path / "data" / "slides"))) == 18
    assert not (tmp_path / "results" / "stale.txt").exists()


def test_leaves_other_peoples_folders_alone(call, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("years of work", encoding="utf-8")
    sentence = call(demo.main, "--output", tmp_path).sentence()
    assert sentence == "{} is not empty and holds no earlier demo; name a new folder".format(tmp_path)
    assert os.listdir(str(tmp_path / "results")) == ["mine.txt"]


def test_an_output_that_is_a_file(call, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert (
        "cannot create folder {}".format(tmp_path / "file") in call(demo.main, "--output", tmp_path / "file").sentence()
    )


def test_a_seed_out_of_range(call, tmp_path):
    assert call(demo.main, "--output", tmp_path, "--seed", "-1").sentence().startswith("--seed must be from 0 to ")
