"""The unified engine: its plan is kept, dozens of groups bound what is touched, and prefetches are issued."""

import numpy as np
import pytest
import run_metadata
import tensorflow.compat.v1 as tf

from graph_tools.errors import PlanError
from graph_tools.graph_edit import copy_name
from graph_tools.tensorflow.verify import trace_options, verify
from tf_um_patch.ops import load_ops
from whole_slide_cnn.engines.direct.engine import DirectEngine
from whole_slide_cnn.engines.memory import engine_memory
from whole_slide_cnn.engines.unified import steps
from whole_slide_cnn.engines.unified.engine import UnifiedEngine
from whole_slide_cnn.engines.unified.options import UnifiedOptions
from whole_slide_cnn.engines.unified.steps import held_bytes, step_plan
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.running.optimisers import Adam
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

NETWORK, SIZE = Network("tiny", "gmp", "softmax", 3), Size(333, 290)
SMALL = {"strip_mb": 0.3, "group_mb": 4.0}
LESS = dict(SMALL, device_gb=0.022)  # of the 27.8 MB that a step holds otherwise


def canvas():
    return ArrayCanvas(np.random.RandomState(0).randint(0, 256, tuple(SIZE) + (3,)).astype(np.uint8))


@pytest.fixture(scope="module")
def engine():
    with UnifiedEngine(NETWORK, SIZE, "float64", Adam(1e-3), **SMALL) as made:
        made.load_state(NETWORK.initial_weights(0))
        yield made


@pytest.fixture(scope="module")
def recomputing():
    with UnifiedEngine(NETWORK, SIZE, "float64", Adam(1e-3), **LESS) as made:
        made.load_state(NETWORK.initial_weights(0))
        yield made


def test_dozens_of_groups_under_the_limit(engine):
    groups = engine.plan.groups
    assert len(groups) >= 24 and engine.edits.barriers == len(groups)
    assert not engine.plan.oversized
    assert max(group.bytes for group in groups) <= 4e6
    assert len(engine._pixels) >= 2


def test_the_plan_is_kept_when_it_runs(engine):
    """On the graph after Grappler, and in the recorded times."""
    report = verify(engine.plan, run_metadata.traced_step(engine, canvas(), 1))
    assert report.edge_violations == ()  # times need a clock that nobody sets
    assert report.groups == len(engine.plan.groups) and report.ops > 500


def test_the_bytes_that_tensorflow_recorded_of_a_group_are_within_its_limit(engine, recomputing):
    for made in (engine, recomputing):
        touched = run_metadata.touched_bytes(made.plan.groups, run_metadata.traced_step(made, canvas(), 1))
        assert 1e6 < max(touched) <= 1.02 * 4e6  # allocators round up
        assert sum(touched) > 20 * 4e6


def test_recomputation_changes_no_number(engine, recomputing):
    assert len(recomputing.plan.groups) >= 24 and len(recomputing.plan.recomputes) > 10
    _, expected = engine.gradients([canvas()], [1])
    _, found = recomputing.gradients([canvas()], [1])
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], name)


def test_every_copy_of_an_operation_runs_in_its_group(recomputing):
    """TensorFlow merges operations that compute the same, unless they wait for different groups."""
    plan, metadata = recomputing.plan, run_metadata.traced_step(recomputing, canvas(), 1)
    copies = {copy_name(name, number) for number, item in enumerate(plan.recomputes) for name in item.ops}
    types = {name: recomputing._graph.get_operation_by_name(name).type for name in copies}
    assert recomputing.edits.recomputed == len(copies) > 20
    ran = {record.node_name for record in run_metadata.ran(metadata)}
    # a convolution with the bias that follows; offsets of a concatenation, which are constants
    fused = {name for name in copies - ran if types[name] in ("Conv2D", "ConcatOffset", "FloorMod")}
    assert copies - ran == fused
    report = verify(plan, metadata)
    assert report.edge_violations == ()


def test_less_is_allocated_with_recomputation(engine, recomputing):
    """By as much as the plan says; scratch memory of TensorFlow's own CPU kernels comes on top of both."""
    planned = engine.plan.peak_bytes - recomputing.plan.peak_bytes
    peaks = [run_metadata.allocated_peak(run_metadata.traced_step(e, canvas(), 1)) for e in (engine, recomputing)]
    assert planned > 5e6
    assert peaks[0] - peaks[1] > 0.6 * planned


def test_prediction_computes_no_gradient(engine):
    """Nothing of it waits for a group, whose operations would all have to run."""
    needed, found = [engine._predicted[0].op, engine._class_map.op], set()
    while needed:
        op = needed.pop()
        if op not in found:
            found.add(op)
            needed += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    assert not found & {engine._graph.get_operation_by_name(name) for name in engine.plan.op_order if "grad" in name}


def test_prediction_follows_a_plan_of_its_own(engine):
    """With the same groups, on the graph after Grappler; validation keeps the budget that training keeps."""
    plan = engine.prediction_plan
    assert len(plan.groups) > 5 and max(group.bytes for group in plan.groups) <= 4e6
    metadata = tf.RunMetadata()
    engine._session.run(engine._predicted, engine._feed(canvas(), 1), trace_options(), metadata)
    report = verify(plan, metadata)
    assert report.edge_violations == () and report.groups == len(plan.groups) and report.ops > 100
    stated = step_plan(NETWORK, SIZE, "float64", UnifiedOptions(**SMALL), training=False)
    assert [len(group.ops) for group in plan.groups] == [len(group.ops) for group in stated.groups]
    assert plan.peak_bytes == stated.peak_bytes


def test_prediction_keeps_a_budget_or_is_refused(recomputing):
    assert held_bytes(recomputing.prediction_plan) <= 1.1 * 22e6
    options = dict(SMALL, group_mb=2, device_gb=0.004)
    with pytest.raises(ConfigError, match="no choice of tensors brings the step under unified.device_gb"):
        UnifiedEngine(NETWORK, SIZE, "float64", **options)


def test_a_plan_changes_no_number_of_a_prediction(engine):
    with DirectEngine(NETWORK, SIZE, "float64") as direct:
        direct.load_state(NETWORK.initial_weights(0))
        engine.load_state(NETWORK.initial_weights(0))
        expected, found = direct.predict(canvas(), 1), engine.predict(canvas(), 1)
    assert abs(found.loss - expected.loss) <= 1e-9 * expected.loss
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-9)


def test_prefetches_are_issued():
    operations = load_ops()
    if not operations.available:
        pytest.skip(operations.reason)
    with UnifiedEngine(NETWORK, SIZE, "float64", Adam(1e-3), move_ops=operations, **SMALL) as made:
        made.load_state(NETWORK.initial_weights(0))
        operations.reset_counters()
        _, gradients = made.gradients([canvas()], [1])
        assert made.edits.prefetches == len(made.plan.prefetches) > 10
        assert operations.counters()["prefetch_calls"] == len(made.plan.prefetches)
        assert operations.counters()["prefetch_bytes"] == sum(copy.bytes for copy in made.plan.prefetches)
    with DirectEngine(NETWORK, SIZE, "float64", training=True) as direct:
        direct.load_state(NETWORK.initial_weights(0))
        _, expected = direct.gradients([canvas()], [1])
    for name, value in expected.items():
        assert np.linalg.norm(gradients[name] - value) <= 1e-9 * np.linalg.norm(value), name


def test_a_smaller_group_limit_makes_more_groups_and_changes_no_number(engine):
    with UnifiedEngine(NETWORK, SIZE, "float64", Adam(1e-3), strip_mb=0.3, group_mb=1000.0) as whole:
        whole.load_state(NETWORK.initial_weights(0))
        assert len(whole.plan.groups) == 1
        _, expected = whole.gradients([canvas()], [1])
    _, found = engine.gradients([canvas()], [1])
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], name)


def test_memory_is_stated_before_the_run():
    """From a graph that is built and never run: here it has tensors of more bytes than any machine."""
    small = engine_memory("unified", NETWORK, Size(512, 512), "float32", True, strip_mb=1).total
    large = engine_memory("unified", NETWORK, Size(1024, 1024), "float32", True, strip_mb=1).total
    predicting = engine_memory("unified", NETWORK, Size(1024, 1024), "float32", False, strip_mb=1).total
    assert small < large < 4 * small and predicting < large
    plan = step_plan(NETWORK, Size(60000, 60000), "float32", UnifiedOptions(strip_mb=20000, group_mb=10**6))
    assert plan.peak_bytes > 4 * 16 * 30000**2


def test_maps_leave_for_files_and_come_back_without_a_changed_bit(engine, tmp_path):
    operations = load_ops()
    if not operations.available:
        pytest.skip(operations.reason)
    with UnifiedEngine(NETWORK, SIZE, "float64", Adam(1e-3), eviction_dir=str(tmp_path / "new"), **LESS) as made:
        made.load_state(NETWORK.initial_weights(0))
        assert made.edits.evictions == len(made.plan.evictions) > 10
        metadata = run_metadata.traced_step(made, canvas(), 1)
        report = verify(made.plan, metadata)
        assert report.edge_violations == ()
        before = run_metadata.allocated_peak(run_metadata.traced_step(engine, canvas(), 1))
        assert run_metadata.allocated_peak(metadata) < before - 3e6
        _, found = made.gradients([canvas()], [1])
    _, expected = engine.gradients([canvas()], [1])
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], name)
    assert not list((tmp_path / "new").iterdir())


def test_recomputation_lowers_the_stated_memory():
    options = {"strip_mb": 1, "group_mb": 10}
    plain = engine_memory("unified", NETWORK, Size(1024, 1024), "float32", True, **options)
    less = engine_memory("unified", NETWORK, Size(1024, 1024), "float32", True, device_gb=0.088, **options)
    assert less.total < plain.total - 20e6
    options["eviction_dir"] = "."
    filed = engine_memory("unified", NETWORK, Size(1024, 1024), "float32", True, device_gb=0.05, **options)
    assert filed.total < less.total - 25e6


@pytest.mark.parametrize("eviction_dir", [None, "."])
def test_a_plan_that_recomputes_meets_the_budget(eviction_dir):
    options = UnifiedOptions(strip_mb=1, group_mb=6, device_gb=0.024, eviction_dir=eviction_dir)
    plan = step_plan(NETWORK, Size(512, 512), "float32", options)
    # it bounds what is held while each operation runs; what is told here counts all that a group touches
    assert held_bytes(plan) <= 1.1 * 24e6
    assert bool(plan.evictions) == (eviction_dir is not None)
    assert plan.recomputes or plan.evictions


def test_a_budget_that_no_choice_meets_is_refused():
    with pytest.raises(ConfigError, match=r"no choice of tensors brings the step under unified.device_gb, 0.004"):
        step_plan(NETWORK, SIZE, "float32", UnifiedOptions(strip_mb=0.3, group_mb=2, device_gb=0.004))


def test_what_cannot_be_planned_is_a_mistake_of_the_configuration(monkeypatch):
    def refuse(*arguments):
        raise PlanError("a limit of 0")

    monkeypatch.setattr(steps, "make_plan", refuse)
    with pytest.raises(ConfigError, match="engine unified: a limit of 0"):
        step_plan(NETWORK, SIZE, "float32", UnifiedOptions(group_mb=3999))
    with pytest.raises(ConfigError, match="prefetch_depth: expected a value at least 0, got -1"):
        UnifiedOptions(prefetch_depth=-1)
