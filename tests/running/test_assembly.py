"""What a configuration leaves to the machine, and the weights to score."""

import numpy as np
import pytest
from fakes import Threads

from tf_um_patch.host import GpuInfo
from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.memory import engine_memory
from whole_slide_cnn.engines.staged.options import MEMORY_GB
from whole_slide_cnn.errors import ConfigError, ManifestError, MemoryBudgetError, WeightsError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import save_weights
from whole_slide_cnn.planning import auto, targets
from whole_slide_cnn.planning.devices import CONTEXT_BYTES
from whole_slide_cnn.planning.estimate import estimate
from whole_slide_cnn.running import assembly
from whole_slide_cnn.running.checkpoint import save_checkpoint
from whole_slide_cnn.running.communicator import SingleCommunicator

NETWORK = Network("tiny", "gmp", "softmax", 2, 0.0)
SIZE = 192, 208  # of the slide set's canvas


def resolved(config, training=True):
    """The resolved configuration, and what was said."""
    said = []
    return assembly.resolve(config, training, said.append), said


def direct_bytes(training):
    return engine_memory("direct", NETWORK, SIZE, "float32", training).total


@pytest.mark.parametrize("training", [True, False])
def test_auto_is_direct_where_it_fits_into_the_memory_of_the_configuration(slide_set, tmp_path, training):
    needed = direct_bytes(training) / 1e9
    for limit, expected in ((1.01 * needed, "direct"), (0.99 * needed, "streaming")):
        config = slide_set.config(tmp_path, "engine=auto", "memory_gb={}".format(limit))
        found, said = resolved(config, training)
        assert found.engine == expected and len(said) == 1 and said[0].startswith("engine auto: " + expected + " (")


@pytest.mark.parametrize("gpu, free, expected", [(False, 2.1, "direct"), (False, 1.9, "streaming")])
def test_auto_leaves_half_of_the_free_memory(slide_set, tmp_path, monkeypatch, gpu, free, expected):
    monkeypatch.setattr(auto, "has_gpu", lambda: gpu)
    monkeypatch.setattr(auto, "available_host_memory", lambda: int(free * direct_bytes(True)))
    assert resolved(slide_set.config(tmp_path, "engine=auto"))[0].engine == expected


@pytest.mark.parametrize("free, expected", [(6.1, "direct"), (5.9, "streaming")])
def test_auto_shares_the_free_memory_among_processes(slide_set, tmp_path, monkeypatch, free, expected):
    monkeypatch.setattr(auto, "has_gpu", lambda: False)
    monkeypatch.setattr(auto, "available_host_memory", lambda: int(free * direct_bytes(True)))
    config = slide_set.config(tmp_path, "engine=auto")
    assert assembly.resolve(config, True, lambda text: None, processes=3).engine == expected


def test_what_an_engine_leaves_to_the_machine_is_decided(slide_set, tmp_path, monkeypatch):
    found, said = resolved(slide_set.config(tmp_path, "engine=staged", "memory_gb=2.5"))
    assert found.staged.memory_gb == 2.5 and said == ["staged.memory_gb: 2.5"]
    assert resolved(found) == (found, [])
    monkeypatch.setattr(auto, "available_host_memory", lambda: 12 * 10**9)
    free = slide_set.config(tmp_path, "engine=staged")
    assert assembly.resolve(free, True, lambda text: None, processes=3, others=10**9).staged.memory_gb == 1.0
    monkeypatch.setattr(auto, "available_host_memory", lambda: None)
    assert resolved(free)[0].staged.memory_gb == MEMORY_GB


def test_several_processes_begin_with_the_weights_of_the_first(slide_set, tmp_path):
    """The others may not even have the file."""
    weights = {name: np.float32(value + 1) for name, value in NETWORK.initial_weights(3).items()}
    save_weights(str(tmp_path / "0.h5"), NETWORK, weights)

    def begin(group):
        config = slide_set.config(tmp_path, "model.weights={}.h5".format(tmp_path / str(group.rank)))
        with assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), group.say, group=group) as engine:
            return engine.weights()

    for found in Threads(2).run(begin):
        for name in weights:
            np.testing.assert_array_equal(found[name], weights[name], name)


def test_one_of_several_processes_refuses_what_cannot_fit(slide_set, tmp_path):
    def begin(group):
        config = slide_set.config(tmp_path, "memory_gb=1.0e-6")
        assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), group.say, group=group)

    assert [isinstance(error, MemoryBudgetError) for error in Threads(2).run(begin)] == [True, False]


def test_auto_is_streaming_where_memory_is_unknown(slide_set, tmp_path, monkeypatch):
    config = slide_set.config(tmp_path, "engine=auto")
    monkeypatch.setattr(auto, "available_host_memory", lambda: None)
    assert resolved(config)[0].engine == "streaming"
    monkeypatch.setattr(auto, "available_host_memory", lambda: 10**15)
    monkeypatch.setattr(auto, "has_gpu", lambda: True)
    monkeypatch.setattr(auto, "first_gpu", lambda: GpuInfo("NVIDIA Unheard-of", 10**11, 10**11))
    assert resolved(config)[0].engine == "streaming"  # host memory says nothing about that of an unknown GPU


def test_auto_is_streaming_where_a_tensor_would_be_too_large(slide_set, tmp_path):
    config = slide_set.config(tmp_path, "engine=auto", "data.canvas=40000", "streaming.window=1024", "memory_gb=1.0e+9")
    assert resolved(config)[0].engine == "streaming"


@pytest.fixture
def gpu(monkeypatch):
    """As if this machine had a V100: a function that gives it so many bytes of free memory."""

    def give(free=33 * 10**9):
        for module in (auto, targets):
            monkeypatch.setattr(module, "first_gpu", lambda: GpuInfo("Tesla V100-SXM2-32GB", 34 * 10**9, free))

    monkeypatch.setattr(auto, "has_gpu", lambda: True)
    give()
    return give


def needed_on_gpu(config, engine):
    work = targets.work_of(config, True)
    (found,) = estimate(work, auto.run_target(config), (engine,), configured=True)
    return found.device_bytes


def test_auto_on_a_gpu_takes_what_fits_it(slide_set, tmp_path, gpu):
    """As the planner has it for the GPU's name; its memory can be limited, and what others use is not there."""
    config = slide_set.config(tmp_path, "engine=auto")
    assert resolved(config)[0].engine == "direct"
    needed = needed_on_gpu(config, "direct")
    limited = slide_set.config(tmp_path, "engine=auto", "memory_gb={}".format(0.99 * needed / 1e9))
    found, said = resolved(limited)
    assert found.engine == "streaming" and "direct does not fit (needs " in said[0]
    gpu(int(0.99 * needed) + CONTEXT_BYTES)
    assert resolved(config)[0].engine == "streaming"


def test_auto_takes_unified_only_where_memory_may_exceed_the_gpu(slide_set, tmp_path, gpu, monkeypatch):
    config = slide_set.config(
        tmp_path, "engine=auto", "data.canvas=4096", "streaming.window=128", "unified.group_mb=500"
    )
    gpu(int(0.95 * needed_on_gpu(config, "direct")) + CONTEXT_BYTES)
    assert resolved(config)[0].engine == "streaming"
    monkeypatch.setenv("LD_PRELOAD", "/cache/libtfum.so")
    assert resolved(config)[0].engine == "unified"


def test_a_run_that_does_not_fit_its_gpu_is_refused(slide_set, tmp_path, gpu):
    config = slide_set.config(tmp_path, "engine=direct")
    gpu(int(0.99 * needed_on_gpu(config, "direct")) + CONTEXT_BYTES)
    said = []
    with pytest.raises(
        MemoryBudgetError, match="engine direct: needs .* GB of device memory and .* use engine: streaming"
    ):
        assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), said.append)
    assert len(said) == 1 and said[0].startswith("plan for V100-32GB: device memory ")


def test_a_step_that_exceeds_its_gpu_needs_unified_memory(slide_set, tmp_path, gpu, monkeypatch):
    config = slide_set.config(tmp_path, "engine=unified", "data.canvas=2048", "unified.group_mb=50")
    gpu(int(0.6 * needed_on_gpu(config, "direct")) + CONTEXT_BYTES)
    with pytest.raises(MemoryBudgetError, match="no unified memory; start the command with: python -m tf_um_patch run"):
        assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), lambda text: None)
    monkeypatch.setenv("LD_PRELOAD", "/cache/libtfum.so")
    assert auto.estimate_run(config, True, auto.run_target(config)).fits


def test_what_is_decided_already_stays_and_is_not_mentioned(slide_set, tmp_path):
    for engine in ("direct", "streaming"):
        config = slide_set.config(tmp_path, "engine=" + engine, "model.compute=bfloat16")
        assert resolved(config) == (config, [])


def test_bfloat16_on_a_gpu_with_tensorflow_1(slide_set, tmp_path, monkeypatch):
    config = slide_set.config(tmp_path, "engine=direct", "model.compute=bfloat16")
    monkeypatch.setattr(assembly, "has_gpu", lambda: True)
    monkeypatch.setattr(assembly.tf, "__version__", "1.15.5")
    found, said = resolved(config)
    assert found.model.compute == "float32" and "TensorFlow 1 cannot compute on a GPU" in said[0]
    monkeypatch.setattr(assembly.tf, "__version__", "2.21.0")
    assert resolved(config) == (config, [])


def test_tensorfloat32_stays_and_is_mentioned_where_it_is_float32(slide_set, tmp_path, monkeypatch):
    config = slide_set.config(tmp_path, "engine=direct", "model.compute=tensorfloat32")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert resolved(config) == (config, ["compute tensorfloat32 is float32 here: there is no GPU"])
    for module in (assembly, runtime):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    assert resolved(config) == (config, [])
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert resolved(config) == (config, ["compute tensorfloat32 is float32 here: NVIDIA_TF32_OVERRIDE is 0"])


def test_weights_to_score(slide_set, tmp_path):
    """The best checkpoint; before it what the configuration names; before that what the caller names."""
    values = {bias: dict(NETWORK.initial_weights(0), **{"output/bias": np.full(2, bias)}) for bias in (1.0, 2.0, 3.0)}
    named, given = str(tmp_path / "named.h5"), str(tmp_path / "given.h5")
    save_checkpoint(str(tmp_path / "best.npz"), NETWORK, dict(values[1.0], **{"optimiser/x": np.zeros(3)}), {})
    save_weights(named, NETWORK, values[2.0])
    save_weights(given, NETWORK, values[3.0])

    def bias(*overrides, path=None):
        weights = assembly.trained_weights(
            NETWORK, assembly.trained_path(slide_set.config(tmp_path, *overrides), path)
        )[0]
        assert set(weights) == {spec.name for spec in NETWORK.variables}
        return weights["output/bias"][0]

    assert bias() == 1.0
    assert bias("outputs.weights=" + named) == 2.0
    assert bias("outputs.weights=" + named, path=given) == 3.0
    assert bias("outputs.weights=" + named, path=str(tmp_path / "best.npz")) == 1.0


def test_weights_to_score_are_all_there(tmp_path):
    with pytest.raises(WeightsError, match="absent.h5 does not exist; train first, or name another one"):
        assembly.trained_weights(NETWORK, str(tmp_path / "absent.h5"))
    other = Network("tiny", "gmp", "softmax", 5)
    save_weights(str(tmp_path / "five.h5"), other, other.initial_weights(0))
    with pytest.raises(
        WeightsError, match="five.h5 does not hold a whole trained tiny: 2 of its variables are missing"
    ):
        assembly.trained_weights(NETWORK, str(tmp_path / "five.h5"))


def test_cases_in_two_lists_are_refused_or_mentioned(slide_set, tmp_path):
    overrides = "data.test={}".format(slide_set.path("val.csv"))
    with pytest.raises(ManifestError, match="case val-0 is in both val and test"):
        assembly.open_splits(slide_set.config(tmp_path, overrides))
    with pytest.warns(UserWarning, match="case val-0 is in both val and test.*data.allow_shared_cases lets it pass"):
        sources = assembly.open_splits(slide_set.config(tmp_path, overrides, "data.allow_shared_cases=true"))
    assert [record.slide_id for record in sources["test"].records] == ["val-{}".format(i) for i in range(4)]
    for source in sources.values():
        source.close()


def test_the_keys_of_the_unified_engine_reach_it(slide_set, tmp_path):
    keys = "engine=unified", "unified.strip_mb=0.2", "unified.group_mb=2", "unified.prefetch_depth=0"
    config = slide_set.config(tmp_path, *keys)
    with assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), lambda text: None) as engine:
        assert len(engine._pixels) > 1 and len(engine.plan.groups) > 10
        assert engine.plan.limit_bytes == 2 * 10**6 and engine.plan.prefetches == ()


@pytest.mark.parametrize("name", ["NVIDIA Unheard-of", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"])
def test_a_gpu_that_is_not_in_the_table_has_memory_all_the_same(slide_set, tmp_path, monkeypatch, name):
    """What is known of it is checked; how long a slide takes is not said. There is plenty of host memory."""
    monkeypatch.setattr(auto, "has_gpu", lambda: True)
    monkeypatch.setattr(auto, "available_host_memory", lambda: 10**13)
    said = []

    def make(engine, device_bytes):
        monkeypatch.setattr(auto, "first_gpu", lambda: GpuInfo(name, device_bytes, device_bytes))
        config = slide_set.config(tmp_path, "engine=" + engine)
        return assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), said.append)

    for engine in ("direct", "streaming"):
        with pytest.raises(MemoryBudgetError, match="engine {}: needs .* of device memory".format(engine)):
            make(engine, CONTEXT_BYTES + 10**6)
    del said[:]
    make("direct", 10**10).close()
    assert said[0].startswith("plan for {}: device memory 0.".format(name)) and "a slide" not in said[0]


def test_no_weights_are_drawn_that_are_replaced(slide_set, tmp_path, monkeypatch):
    weights, drawn = NETWORK.initial_weights(7), []
    draw = Network.initial_weights
    monkeypatch.setattr(Network, "initial_weights", lambda *given: drawn.append(given) or draw(*given))
    config = slide_set.config(tmp_path, "engine=direct")
    with assembly.make_engine(config, NETWORK, None, lambda text: None, weights) as engine:
        for name, value in engine.weights().items():
            np.testing.assert_array_equal(value, np.float32(weights[name]))
        assert not engine.training
    with assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), lambda text: None, weights):
        pass
    assert not drawn
    with pytest.raises(AssertionError, match="needs weights"):
        assembly.make_engine(config, NETWORK)


def test_predicting_is_not_refused_where_only_training_would_not_fit(slide_set, tmp_path):
    needed = engine_memory("direct", NETWORK, SIZE, "float32", False).total / 1e9
    config = slide_set.config(tmp_path, "engine=direct", "memory_gb={}".format(1.01 * needed))
    weights = NETWORK.initial_weights(0)
    assembly.make_engine(config, NETWORK, None, lambda text: None, weights).close()
    with pytest.raises(MemoryBudgetError, match="use engine: streaming"):
        assembly.make_engine(config, NETWORK, assembly.make_optimiser(config), lambda text: None, weights)


def test_the_c_library_is_asked_once_and_not_by_engines(slide_set, tmp_path, monkeypatch):
    """Its setting holds for the whole process, and so it is a command's."""
    asked, weights = [], NETWORK.initial_weights(0)
    monkeypatch.setattr(assembly, "keep_freed_memory_small", lambda: asked.append("command"))
    monkeypatch.setattr(runtime, "keep_freed_memory_small", lambda: asked.append("engine"))
    config = slide_set.config(tmp_path, "engine=direct")
    assembly.make_engine(config, NETWORK, None, lambda text: None, weights).close()
    assert asked == ["command"]


@pytest.mark.parametrize("engine", ["auto", "streaming", "direct"])
def test_windows_are_shared_by_an_engine_that_can(slide_set, tmp_path, engine):
    group = Threads(2).groups[0]
    config = slide_set.config(tmp_path, "train.share=windows", "engine={}".format(engine))
    with pytest.raises(ConfigError, match="which engine {} cannot; set engine: staged, or".format(engine)):
        assembly.shares_windows(config, group)
    assert not assembly.shares_windows(config, SingleCommunicator())
    assert not assembly.shares_windows(slide_set.config(tmp_path), group)
    assert assembly.shares_windows(slide_set.config(tmp_path, "train.share=windows", "engine=staged"), group)
