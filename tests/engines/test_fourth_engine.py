"""A fourth engine, in this file alone: its description and one entry in the table are all that it takes.

It computes as ``direct`` does. What matters here is that its options become a section of the configuration, and that it
is planned, stated, recommended, chosen, refused and trained like any other.
"""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import yaml

from whole_slide_cnn import plan
from whole_slide_cnn.config import config_class, config_from_dict, config_help, config_to_dict, load_config
from whole_slide_cnn.config.options import Section, option
from whole_slide_cnn.engines.costs import Estimate
from whole_slide_cnn.engines.description import EngineDescription
from whole_slide_cnn.engines.direct.engine import DirectEngine
from whole_slide_cnn.engines.memory import GB, MemoryPlan, engine_memory
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import ConfigError, MemoryBudgetError
from whole_slide_cnn.models.network import make_network
from whole_slide_cnn.running import assembly
from whole_slide_cnn.slides.canvas import ArrayCanvas


@dataclasses.dataclass(frozen=True)
class FourthOptions(Section):
    """The fourth engine."""

    pieces: int = option("Pieces that a canvas is thought of as.", 4, at_least=1)


class FourthEngine(DirectEngine):
    """As direct, and it knows its option."""

    def __init__(self, network, canvas_size, compute="float32", optimiser=None, training=None, **options):
        self.options = FourthOptions(**options)
        super().__init__(network, canvas_size, compute, optimiser, training)


class Fourth(EngineDescription):
    """What it says of itself: a megabyte a piece, and a microsecond a slide."""

    name = "fourth"
    summary = "pieces"
    options = FourthOptions
    remedy = "use fewer fourth.pieces"

    def engine_class(self):
        return FourthEngine

    def memory(self, work):
        return MemoryPlan(self.name, (("pieces", 10**6 * self.options_in(work.options).pieces),), self.remedy)

    def estimates(self, work, target, configured=False):
        pieces, needed = self.options_in(work.options).pieces, self.memory(work).total
        reason = "" if needed <= target.machine.device_bytes else self.remedy
        yield Estimate(self.name, work.compute, 0, needed, 1e-6, reason, settings=(("pieces", pieces),))


@pytest.fixture
def fourth(monkeypatch):
    monkeypatch.setitem(ENGINES, "fourth", Fourth())


def test_the_configuration_has_its_section(fourth, slide_set, tmp_path):
    config = slide_set.config(tmp_path, "engine=fourth", "fourth.pieces=7")
    assert (config.engine, config.fourth.pieces, config.streaming.window) == ("fourth", 7, 96)
    assert config_from_dict(config_to_dict(config)) == config == pickle.loads(pickle.dumps(config))
    assert "fourth.pieces: a whole number at least 1 (default 4)" in config_help()
    assert "fourth (pieces)" in " ".join(config_help().split())
    with pytest.raises(ConfigError, match="fourth.pieces: expected a value at least 1, got 0"):
        slide_set.config(tmp_path, "fourth.pieces=0")


def test_without_its_entry_there_is_no_such_engine(slide_set, tmp_path):
    with pytest.raises(ConfigError, match="engine: expected one of auto, direct, streaming, unified, staged, got"):
        slide_set.config(tmp_path, "engine=fourth")
    with pytest.raises(ConfigError, match="unknown key fourth"):
        slide_set.config(tmp_path, "fourth.pieces=7")
    assert not hasattr(config_class(), "fourth")


def test_its_memory_is_stated_and_checked(fourth, slide_set, tmp_path):
    config, said = slide_set.config(tmp_path, "engine=fourth", "fourth.pieces=7", "memory_gb=0.005"), []
    network = make_network(config)
    assert engine_memory("fourth", network, config.data.canvas, "float32", True, pieces=3).total == 3 * 10**6
    with pytest.raises(MemoryBudgetError, match="engine fourth needs 0.01 GB .* use fewer fourth.pieces"):
        assembly.make_engine(config, network, assembly.make_optimiser(config), said.append)
    assert said == ["engine fourth: predicted peak memory 0.01 GB (pieces 0.01)"]


def test_it_is_planned_and_recommended_with_its_keys(fourth, slide_set, tmp_path, capsys):
    command = ["--config", slide_set.path("config.yaml"), "--set", "unified.strip_mb=1", "--device", "host"]
    assert plan.main(command + ["--host-memory", "8GB", "--json", str(tmp_path / "plan.json")]) == 0
    (found,) = json.loads((tmp_path / "plan.json").read_text())
    assert [item["engine"] for item in found["estimates"]] == ["direct", "streaming", "unified", "staged", "fourth"]
    assert found["recommended"] == "fourth"
    out = capsys.readouterr().out
    keys = [line.strip() for line in out.splitlines() if line.startswith("  ")]
    assert keys == ["engine: fourth", "fourth: {pieces: 4}"] and "\nfourth " in out
    path = tmp_path / "run.yaml"
    base = {"base": slide_set.path("config.yaml"), "result_dir": "out", **yaml.safe_load("\n".join(keys))}
    path.write_text(yaml.safe_dump(base), encoding="utf-8")
    assert load_config(str(path)).fourth == FourthOptions(4)


def test_auto_may_mean_it(fourth, slide_set, tmp_path):
    said = []
    config = slide_set.config(tmp_path, "engine=auto", "memory_gb=1")
    assert assembly.resolve(config, True, said.append).engine == "fourth" and "engine auto: fourth (" in said[0]
    small = slide_set.config(tmp_path, "engine=auto", "memory_gb=1", "fourth.pieces={}".format(int(2 * GB // 10**6)))
    assert assembly.resolve(small, True, said.append).engine != "fourth"


def test_it_trains(fourth, slide_set, tmp_path):
    weights = {}
    for name in ("direct", "fourth"):
        config = slide_set.config(tmp_path, "engine=" + name, "fourth.pieces=5")
        network = make_network(config)
        pixels = np.random.RandomState(0).randint(0, 256, config.data.canvas + (3,)).astype(np.uint8)
        optimiser = assembly.make_optimiser(config)
        with assembly.make_engine(config, network, optimiser, lambda text: None) as engine:
            engine.train_batch([ArrayCanvas(pixels)], [1])
            weights[name] = engine.weights()
            assert name == "direct" or engine.options.pieces == 5
    for name, value in weights["direct"].items():
        np.testing.assert_array_equal(weights["fourth"][name], value, name)
