"""The unified engine: its plan is kept, dozens of groups bound what is touched, and prefetches are issued."""

import numpy as np
import pytest

from graph_tools.verify import trace_options, verify
from tf_um_patch.ops import load_ops
from whole_slide_cnn.engines.direct import DirectEngine
from whole_slide_cnn.engines.memory import engine_memory
from whole_slide_cnn.engines.unified import UnifiedEngine, UnifiedOptions, step_plan
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas
from whole_slide_cnn.training.optimisers import Adam

NETWORK, SIZE = Network("tiny", "gmp", "softmax", 3), Size(333, 290)
SMALL = {"strip_mb": 0.3, "group_mb": 4.0}


def canvas():
    return ArrayCanvas(np.random.RandomState(0).randint(0, 256, tuple(SIZE) + (3,)).astype(np.uint8))


@pytest.fixture(scope="module")
def engine():
    with UnifiedEngine(NETWORK, SIZE, "float64", Adam(1e-3), **SMALL) as made:
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
    import tensorflow.compat.v1 as tf

    metadata = tf.RunMetadata()
    feed = engine._feed(canvas(), 1)
    feed[engine._share] = 1.0
    engine._session.run(engine._trained, feed, trace_options(), metadata)
    report = verify(engine.plan, metadata)
    assert not [text for text in report.violations if "started" not in text]  # times need a clock that nobody sets
    assert report.groups == len(engine.plan.groups) and report.ops > 500


def test_prediction_computes_no_gradient(engine):
    """Nothing of it waits for a group, whose operations would all have to run."""
    needed, found = [engine._predicted[0].op, engine._class_map.op], set()
    while needed:
        op = needed.pop()
        if op not in found:
            found.add(op)
            needed += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    assert not found & {engine._graph.get_operation_by_name(name) for name in engine.plan.op_order if "grad" in name}


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
    with DirectEngine(NETWORK, SIZE, "float64") as direct:
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


def test_what_cannot_be_planned_is_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError, match="engine unified: a prefetch depth of -1"):
        step_plan(NETWORK, SIZE, "float32", UnifiedOptions(prefetch_depth=-1))
