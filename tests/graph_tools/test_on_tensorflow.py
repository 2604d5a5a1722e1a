from dataclasses import replace

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tf_graphs import conv_net, run_steps, same_bits

from graph_tools.errors import EditError, PlanError
from graph_tools.graph.opgraph import TensorRef
from graph_tools.graph.optypes import reads_variable
from graph_tools.graph_edit import copy_name
from graph_tools.passes.planner import make_plan
from graph_tools.plan import Eviction, Prefetch
from graph_tools.simulation.machine import Machine
from graph_tools.tensorflow.apply import EditReport, apply, barrier_name, return_name, session_config
from graph_tools.tensorflow.extract import extract
from graph_tools.tensorflow.verify import trace_options, verify

LIMIT = 13000  # bytes: a few feature maps of 4096 bytes
TIGHT = Machine(device_bytes=24000, host_bytes=10**6, page_bytes=256, on_demand_rate=1e6, copy_rate=3e6)

RECOMPUTE = {"memory_policy": "recompute", "machine": TIGHT}
CRAMPED = replace(TIGHT, device_bytes=52000, host_bytes=0)  # 55 % of what is held, and nothing may move


def counting(counts, kind):
    def make(tensor, name):
        counts.append((kind, tensor.name))
        return tf.identity(tensor, name)  # stands for a custom operation: it reads the tensor, nothing reads it

    return make


def plan_for(net, limit=LIMIT, **options):
    ops = extract(net.graph, net.fetches + [net.train])
    return ops, make_plan(ops, limit, **options)


def apply_copies(net, plan):
    counts = []
    report = apply(net.graph, plan, counting(counts, "in"), counting(counts, "out"))
    return report, counts


@pytest.mark.parametrize("resource", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"depth": 2, "order": "depth-first"}, {"memory_policy": "recompute", "machine": TIGHT}]
)
def test_a_planned_training_step_changes_no_bit_and_keeps_the_plan(resource, options):
    expected, _ = run_steps(conv_net(resource=resource))
    net = conv_net(resource=resource)
    _, plan = plan_for(net, **options)
    report, counts = apply_copies(net, plan)
    assert len(plan.groups) >= 12 and plan.prefetches
    assert (report.prefetches, report.evictions) == (len(plan.prefetches), len(plan.evictions))
    assert [kind for kind, _ in counts] == ["in"] * len(plan.prefetches) + ["out"] * len(plan.evictions)
    assert [name for _, name in counts] == [str(copy.tensor) for copy in plan.prefetches + plan.evictions]
    if options.get("memory_policy"):
        assert plan.recomputes and report.recomputed == sum(len(item.ops) for item in plan.recomputes)
        with net.graph.as_default():  # what was imported did not make it a graph of an older TensorFlow
            assert tf.placeholder(tf.float32, []).shape.ndims == 0
    found, metadata = run_steps(net, config=session_config(), options=trace_options())
    assert same_bits(found, expected)
    checked = verify(plan, metadata)
    assert checked.violations == ()
    checked.check()
    assert checked.groups == len(plan.groups) and checked.copies == len(plan.prefetches) + len(plan.evictions)
    assert checked.ops > checked.vanished * 2  # constants are folded, a few convolutions fused with their bias


@pytest.mark.parametrize("order", ["auto", "depth-first"])
@pytest.mark.parametrize("resource", [True, False])
def test_runs_of_layers_computed_again_from_shared_copies_change_no_bit(resource, order):
    expected, _ = run_steps(conv_net(layers=12, resource=resource))
    net = conv_net(layers=12, resource=resource)
    ops, plan = plan_for(net, 9000, memory_policy="recompute", machine=CRAMPED, order=order)
    copies = [name for item in plan.recomputes for name in item.ops]
    assert len(copies) == len(set(copies))  # no operation runs a third time
    run = longest_run(plan)
    assert run >= 3  # so many tensors in a row, each made from the copy of the one before
    report, _ = apply_copies(net, plan)
    assert report.recomputed == len(copies)
    found, metadata = run_steps(net, config=session_config(), options=trace_options())
    assert same_bits(found, expected)
    ran = {node.node_name for device in metadata.step_stats.dev_stats for node in device.node_stats}
    again = [name for number, item in enumerate(plan.recomputes) for name in made_by(item, number, ops)]
    assert again and all(name in ran for name in again)  # nothing merged copies with what they are copies of
    verify(plan, metadata).check()


def longest_run(plan):
    """The most recomputations that read each other's copies, one after another."""
    lengths = []
    for item in plan.recomputes:
        lengths.append(1 + max((lengths[source] for source in item.sources), default=0))
    return max(lengths, default=0)


def made_by(item, number, ops):
    """Copies that a recomputation makes, but those that TensorFlow fuses with the operation after."""
    kinds = {name: ops.by_name()[name].type for name in item.ops}
    return [copy_name(name, number) for name, kind in kinds.items() if kind not in ("Conv2D", "BiasAdd")]


def test_what_comes_back_in_place_of_an_evicted_tensor_is_read_instead():
    expected, _ = run_steps(conv_net())
    net, returned = conv_net(), []
    _, plan = plan_for(net, memory_policy="recompute", machine=replace(TIGHT, copy_rate=1e12))

    def come_back(evicted, tensor, name):
        returned.append(tf.identity(evicted, name))
        return returned[-1]

    apply(net.graph, plan, None, lambda tensor, name: tf.negative(tf.negative(tensor), name), come_back)
    assert len(returned) == len(plan.evictions) > 2
    readers = [[op.type for op in back.consumers()] for back in returned]
    assert all(readers) and {kind for kinds in readers for kind in kinds} == {"Identity"}  # gates of groups
    found, metadata = run_steps(net, config=session_config(), options=trace_options())
    assert same_bits(found, expected)
    assert verify(plan, metadata).violations == ()


def test_what_leaves_in_the_first_group_comes_back_for_the_second():
    expected, _ = run_steps(conv_net())
    net = conv_net()
    _, plan = plan_for(net)
    assert "net/Relu" in plan.groups[0].ops and "net/Conv2D_1" in plan.groups[1].ops
    evicted = Eviction(TensorRef("net/Relu", 0), 4096, during=0, needed_by=1)
    plan = replace(plan, prefetches=(), evictions=(evicted,))
    report = apply(net.graph, plan, None, tf.identity, lambda out, tensor, name: tf.identity(out, name))
    assert report.evictions == 1
    back = net.graph.get_operation_by_name(return_name(0))
    last = net.graph.get_operation_by_name(barrier_name(len(plan.groups) - 1))
    assert last not in back.control_inputs  # the step would wait for its own end
    found, metadata = run_steps(net, config=session_config(), options=trace_options())
    assert same_bits(found, expected)
    assert verify(plan, metadata).edge_violations == ()


def test_dozens_of_groups_from_a_small_limit():
    net = conv_net(layers=10)
    ops, plan = plan_for(net)
    assert len(plan.groups) >= 24
    assert {name for group in plan.groups for name in group.ops} == set(ops.by_name())
    report, _ = apply_copies(net, plan)
    assert report.barriers == len(plan.groups) and report.gates > report.barriers / 2
    found, metadata = run_steps(net, config=session_config(), options=trace_options())
    assert same_bits(found, run_steps(conv_net(layers=10))[0])
    assert verify(plan, metadata).violations == ()


def test_verify_finds_a_graph_that_runs_in_another_order():
    net = conv_net()
    _, plan = plan_for(net)
    _, metadata = run_steps(net, options=trace_options())  # never edited
    report = verify(plan, metadata)
    assert all("does not wait for all of the group before" in text for text in report.edge_violations)
    assert report.edge_violations and report.violations == report.edge_violations + report.time_violations
    with pytest.raises(PlanError, match="plan was not kept: .*session_config"):
        report.check()


def test_verify_finds_a_plan_of_another_order():
    net = conv_net()
    _, plan = plan_for(net)
    apply_copies(net, plan)
    _, metadata = run_steps(net, config=session_config(), options=trace_options())
    swapped = replace(plan, groups=plan.groups[:4] + plan.groups[5:3:-1] + plan.groups[6:])
    report = verify(swapped, metadata)
    names = [text.split(" of group 5 does not wait for all of the group before")[0] for text in report.edge_violations]
    assert set(names) & set(swapped.groups[5].ops)
    assert report.time_violations[0] == "group 5 started before group 4 had ended"


def test_verify_finds_a_prefetch_that_ran_at_another_time():
    net = conv_net()
    _, plan = plan_for(net)
    apply_copies(net, plan)
    _, metadata = run_steps(net, config=session_config(), options=trace_options())
    number, copy = next(pair for pair in enumerate(plan.prefetches) if 3 <= pair[1].during < len(plan.groups) - 4)
    for during, said in ((copy.during - 3, "after group"), (copy.during + 2, "before group")):
        moved = Prefetch(copy.tensor, copy.bytes, during, max(copy.needed_by, during + 1))
        wrong = replace(plan, prefetches=plan.prefetches[:number] + (moved,) + plan.prefetches[number + 1 :])
        report = verify(wrong, metadata)
        assert report.edge_violations == () and len(report.time_violations) == 1
        assert report.time_violations[0].startswith("graph_tools/prefetch_{} started {}".format(number, said))


def test_verify_needs_a_traced_run():
    with pytest.raises(PlanError, match="trace_options"):
        verify(plan_for(conv_net())[1], tf.RunMetadata())


def test_a_graph_that_a_session_has_run_is_refused_and_unchanged():
    net = conv_net()
    _, plan = plan_for(net)
    before = net.graph.as_graph_def()
    with tf.Session(graph=net.graph) as session:
        session.run(net.variables[0].initializer)
        with pytest.raises(EditError, match="a session is open"):
            apply(net.graph, plan)
    assert net.graph.as_graph_def() == before
    assert apply(net.graph, plan).modified  # a new session sees the edited graph
    net.graph.finalize()
    with pytest.raises(EditError, match="the graph is finalized"):
        apply(net.graph, plan)
    _, metadata = run_steps(net, config=session_config(), options=trace_options())
    assert verify(plan, metadata).violations == ()


def test_plans_of_other_graphs_are_refused_and_nothing_is_changed():
    net, other = conv_net(), conv_net(layers=5)
    before = net.graph.as_graph_def()
    _, plan = plan_for(other)
    with pytest.raises(PlanError, match="which the graph does not have"):
        apply(net.graph, plan)
    _, plan = plan_for(net)
    backwards = replace(plan, groups=plan.groups[::-1], prefetches=(), evictions=())
    with pytest.raises(PlanError, match="which the plan has later"):
        apply(net.graph, backwards)
    assert net.graph.as_graph_def() == before
    apply(net.graph, plan)
    with pytest.raises(PlanError, match="applied to this graph before"):
        apply(net.graph, plan)


def test_variables_can_be_read_and_saved_without_running_the_step(tmp_path):
    for resource in (True, False):
        net = conv_net(resource=resource)
        with net.graph.as_default():
            saver = tf.train.Saver(net.variables)
        reads = [
            op.outputs[0]
            for op in net.graph.get_operations()
            if len(op.inputs) and reads_variable(op.type, op.inputs[0].op.type) and not op.control_inputs
        ]
        assert len(reads) >= len(net.variables)
        apply_copies(net, plan_for(net)[1])
        with tf.Session(graph=net.graph, config=session_config()) as session:
            session.run([variable.initializer for variable in net.variables])
            saver.save(session, str(tmp_path / "weights"), write_meta_graph=False)  # feeds no image
            assert all(np.isfinite(session.run(tensor)).all() for tensor in reads)


def test_one_group_needs_no_edges():
    net = conv_net()
    _, plan = plan_for(net, limit=10**9)
    assert apply(net.graph, plan) == EditReport(barriers=1, control_edges=len_of_sinks(plan, net))


def len_of_sinks(plan, net):
    """Operations of the only group that no other operation of it follows."""
    (group,) = plan.groups
    ops = [net.graph.get_operation_by_name(name) for name in group.ops]
    followed = {tensor.op.name for op in ops for tensor in op.inputs}
    followed |= {other.name for op in ops for other in op.control_inputs}
    free = ("Const", "VarHandleOp", "VariableV2", "Placeholder")
    return sum(op.name not in followed and op.type not in free for op in ops)


def test_the_configuration_keeps_what_the_caller_set():
    base = tf.ConfigProto(inter_op_parallelism_threads=3)
    config = session_config(base)
    assert config.inter_op_parallelism_threads == 3
    assert base.graph_options.rewrite_options.dependency_optimization == 0
    assert config.graph_options.rewrite_options.dependency_optimization == 2
