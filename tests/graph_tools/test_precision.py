import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tf_graphs import Net, conv_net, run_steps, same_bits

from graph_tools.errors import PlanError
from graph_tools.passes.precision import plan_precision, to_half_precision
from graph_tools.plan import PrecisionPlan
from graph_tools.serial import from_json, to_json
from graph_tools.tensorflow.extract import extract


def ops_of(net):
    return extract(net.graph, net.fetches + [net.train])


def rewritten(net, plan):
    """The same network in half precision, imported into a graph of its own."""
    with net.graph.as_default():
        meta = tf.train.export_meta_graph()
    before = meta.SerializeToString(deterministic=True)
    changed = to_half_precision(meta, plan)
    assert meta.SerializeToString(deterministic=True) == before
    graph = tf.Graph()
    with graph.as_default():
        tf.train.import_meta_graph(changed)
        named = {variable.name: variable for variable in tf.global_variables()}
    image = graph.get_tensor_by_name(net.image.name)
    fetches = [graph.get_tensor_by_name(tensor.name) for tensor in net.fetches]
    train = graph.get_operation_by_name(net.train.name)
    return Net(graph, image, fetches, [named[variable.name] for variable in net.variables], train)


@pytest.mark.parametrize("resource", [True, False])
def test_half_precision_gives_the_same_whole_numbers(resource):
    net = conv_net(layers=2, resource=resource)
    plan = plan_precision(ops_of(net))
    half = rewritten(net, plan)
    assert [tensor.dtype for tensor in half.fetches] == [tf.float32] * len(net.fetches)
    values, _ = run_steps(net, steps=1)
    assert max(np.abs(value).max() for value in values) <= 2048  # all whole numbers up to here are half-precision ones
    assert same_bits(run_steps(half, steps=1)[0], values)


def test_what_is_half_and_what_is_not():
    net = conv_net(layers=4)
    ops = ops_of(net)
    plan = plan_precision(ops)
    half = set(plan.half)
    types = {name: {op.name for op in ops.ops if op.type == name} for name in {op.type for op in ops.ops}}
    for name in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "BiasAdd"):
        assert types[name] <= half, name
    assert not half & (types["Max"] | types["Sum"] | types["ReadVariableOp"] | types["AssignSubVariableOp"])
    map_before_pooling = {ref.op for op in ops.ops if op.type == "Max" for ref in op.inputs}
    assert map_before_pooling and not half & map_before_pooling
    assert types["Conv2DBackpropFilter"] <= set(plan.raised)  # gradients of variables leave as float32
    held = {op.name: op.outputs[0].bytes for op in extract(rewritten(net, plan).graph, ["train"]).ops if op.outputs}
    full = {op.name: op.outputs[0].bytes for op in ops.ops if op.outputs}
    assert all(held[name] * 2 == full[name] for name in half - set(plan.raised) if name in held)


def test_gradients_of_shared_variables_are_summed_in_float32():
    graph = tf.Graph()
    with graph.as_default():
        image = tf.placeholder(tf.float32, (1, 8, 8, 2))
        kernel = tf.get_variable("kernel", (3, 3, 2, 2), use_resource=True)
        at = image
        for _ in range(2):
            at = tf.nn.conv2d(at, kernel, strides=1, padding="SAME")
        (gradient,) = tf.gradients(tf.reduce_mean(at), [kernel])
    ops = extract(graph, [gradient])
    (total,) = [op for op in ops.ops if op.type == "AddN"]
    plan = plan_precision(ops)
    assert total.name not in plan.half and {ref.op for ref in total.inputs} <= set(plan.raised)


def test_names_to_keep_stay_float32_and_json_gives_the_plan_back():
    ops = ops_of(conv_net(layers=2))
    (first,) = [op.name for op in ops.ops if op.type == "Conv2D"][:1]
    plan = plan_precision(ops, "bfloat16", keep=[first])
    assert first not in plan.half and plan.dtype == "bfloat16"
    assert from_json(PrecisionPlan, to_json(plan)) == plan == plan_precision(ops, "bfloat16", keep=[first])


def test_bad_requests_are_refused():
    net = conv_net(layers=2)
    ops = ops_of(net)
    with pytest.raises(PlanError, match="unknown half precision 'float8'"):
        plan_precision(ops, "float8")
    with pytest.raises(PlanError, match="no operation nothing"):
        plan_precision(ops, keep=["nothing"])
    with pytest.raises(PlanError, match="which the graph does not have"):
        rewritten(net, plan_precision(ops_of(conv_net(layers=3))))
    plan = plan_precision(ops)
    with pytest.raises(PlanError, match="is not one of float32"):
        rewritten(rewritten(net, plan), PrecisionPlan("float16", plan.half, (), ()))
