"""Training steps and scores on a real Aperio slide, at its own and at a coarser resolution."""

import csv
import os

import numpy as np
import pytest

from whole_slide_cnn.config import load_config
from whole_slide_cnn.test import test as score
from whole_slide_cnn.train import train

SLIDE = os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "data", "slides", "CMU-1-Small-Region.svs")

CONFIG = """\
result_dir: results
data:
  classes: [normal, tumor]
  train: train.csv
  slides: {folder}
  extension: .svs
  mpp: {mpp}
  canvas: [{height}, {width}]
model: {{backbone: tiny}}
streaming: {{window: 512}}
train: {{learning_rate: 1.0e-3, epochs: 1, updates_per_epoch: 2}}
"""


@pytest.mark.skipif(not os.path.exists(SLIDE), reason="needs CMU-1-Small-Region.svs of the shared test data")
@pytest.mark.parametrize("mpp, height, width", [(0.499, 3008, 2272), (1.0, 1536, 1152)])
def test_trains_and_scores(tmp_path, mpp, height, width):
    folder = os.path.dirname(os.path.abspath(SLIDE))
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=folder, mpp=mpp, height=height, width=width))
    (tmp_path / "train.csv").write_text("case_id,slide_id,label\ncmu-1,CMU-1-Small-Region,tumor\n")
    config = load_config(str(tmp_path / "config.yaml"))
    train(config)
    with open(str(tmp_path / "results" / "log.csv"), newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert np.isfinite(float(row["train_loss"]))
    report, failed, _ = score(config, split="train")
    assert report.slides == 1 and not failed
    with open(str(tmp_path / "results" / "train" / "scores.csv"), newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["p_normal"]) + float(row["p_tumor"]) == pytest.approx(1.0)
    # the loss after two steps is that of the probability given to the label
    assert report.loss == pytest.approx(-np.log(float(row["p_tumor"])), rel=1e-5)
