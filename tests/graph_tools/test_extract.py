import resource as resources

import pytest
import tensorflow.compat.v1 as tf
from tf_graphs import CHANNELS, conv_net

from graph_tools.errors import CycleError, DanglingInputError, FileError, UnknownSizeError, UnsupportedOpError
from graph_tools.graph.lifetimes import lifetimes
from graph_tools.graph.opgraph import TensorRef, stable_order
from graph_tools.passes.group import group_ops
from graph_tools.tensorflow.extract import default_fetches, extract, load_meta_graph

MAP = 16 * 16 * CHANNELS * 4


def by_type(graph):
    found = {}
    for op in graph.ops:
        found.setdefault(op.type, []).append(op)
    return found


@pytest.mark.parametrize("resource", [True, False])
def test_a_training_step_by_hand(resource):
    net = conv_net(layers=2, resource=resource)
    graph = extract(net.graph, net.fetches + [net.train], workspace_limit=10**9)
    types = by_type(graph)
    assert graph.fetches[0] == TensorRef("loss", 0) and len(graph.fetches) == 5
    applied = 16 * 16 * CHANNELS * 3 * 3 * CHANNELS
    for name, count in (("Conv2D", 2), ("Conv2DBackpropInput", 1), ("Conv2DBackpropFilter", 2)):
        assert [op.flops for op in types[name]] == [2 * applied] * count
        assert [op.workspace_bytes for op in types[name]] == [applied // CHANNELS * 4] * count
    assert [op.outputs[0].bytes for op in types["Relu"]] == [MAP] * 2
    assert types["MaxPool2D" if "MaxPool2D" in types else "MaxPool"][0].flops == 8 * 8 * CHANNELS * 4
    variables = 2 * (9 * CHANNELS * CHANNELS + CHANNELS) * 4
    kind = "VarHandleOp" if resource else "VariableV2"
    assert sum(op.outputs[0].bytes for op in types[kind]) == variables
    assert all(op.persistent and op.pure for op in types[kind])
    updates = types["AssignSubVariableOp" if resource else "AssignSub"]
    assert len(updates) == 4 and not any(op.pure for op in updates)
    assert all(op.pure for op in types["ReadVariableOp" if resource else "Identity"])
    assert not types["Placeholder"][0].pure


@pytest.mark.parametrize("resource", [True, False])
def test_aliases_and_updates_in_place_share_one_storage(resource):
    net = conv_net(layers=2, resource=resource)
    graph = extract(net.graph, net.fetches + [net.train])
    life = lifetimes(graph, stable_order(graph))
    storage = {ref: life.storages[number].tensor for ref, number in life.holder.items()}
    for op in graph.ops:
        first = op.inputs[0] if op.inputs else None
        if op.type in ("Identity", "ReadVariableOp", "AssignSub", "Reshape"):
            assert storage[TensorRef(op.name, 0)] == storage[first]
        if op.type in ("BiasAdd", "Relu"):  # the convolution's map, biased and rectified in place
            assert storage[TensorRef(op.name, 0)] == storage[first]
    maps = [s for s in life.storages if s.bytes == MAP]
    assert 4 <= len(maps) <= 8


def test_a_saved_graph_gives_the_same_and_shapes_fill_in_what_it_leaves_open(tmp_path):
    graph = tf.Graph()
    with graph.as_default():
        image = tf.placeholder(tf.float32, (None, None, None, 3), "image")
        tf.reduce_mean(tf.nn.conv2d(image, tf.ones((3, 3, 3, 8)), strides=2, padding="VALID"), name="out")
        tf.train.export_meta_graph(str(tmp_path / "open.meta"))
        tf.train.export_meta_graph(str(tmp_path / "open.pbtxt"), as_text=True)
    for name in ("open.meta", "open.pbtxt"):
        meta = load_meta_graph(str(tmp_path / name))
        with pytest.raises(UnknownSizeError, match="not known before the run; give a shape to placeholder image"):
            extract(meta, ["out:0"])
        found = extract(meta, ["out"], {"image": (1, 65, 33, 3)})
        (conv,) = [op for op in found.ops if op.type == "Conv2D"]
        assert conv.outputs[0].bytes == 32 * 16 * 8 * 4
        with pytest.raises(DanglingInputError, match="no placeholder picture"):
            extract(meta, ["out"], {"picture": (1,)})
    net = conv_net()
    with net.graph.as_default():
        meta = tf.train.export_meta_graph(str(tmp_path / "net.meta"))
    assert default_fetches(meta) == ("train",)
    names = [tensor.name for tensor in net.fetches]
    assert extract(meta, names + ["train"]) == extract(net.graph, net.fetches + [net.train])


def test_tensors_past_the_kernels_range_are_planned_without_memory():
    before = resources.getrusage(resources.RUSAGE_SELF).ru_maxrss
    net = conv_net(side=2**16, layers=4)
    graph = extract(net.graph, net.fetches + [net.train])
    sizes = [out.bytes for op in graph.ops for out in op.outputs]
    assert max(sizes) == 2**32 * CHANNELS * 4
    (conv,) = by_type(graph)["Conv2D"][:1]
    assert conv.flops == 2 * 2**32 * CHANNELS * CHANNELS * 9
    groups = group_ops(graph, stable_order(graph), 300 * 10**9)
    assert len(groups) > 4 and not any(group.oversized for group in groups)
    grown = resources.getrusage(resources.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 200 * 1024


def test_loops_functions_and_unknown_fetches_are_refused():
    graph = tf.Graph()
    with graph.as_default():
        tf.disable_control_flow_v2()
        loop = tf.while_loop(lambda i: i < 3, lambda i: i + 1, [tf.constant(0)])
    with pytest.raises(UnsupportedOpError, match="is control flow or a function"):
        extract(graph, [loop])
    with pytest.raises(DanglingInputError, match="no tensor or operation nothing"):
        extract(graph, ["nothing"])
    with pytest.raises(DanglingInputError, match="tensor or operation Tensor|no tensor or operation"):
        extract(tf.Graph(), [loop])
    with pytest.raises(UnsupportedOpError, match="cannot be replaced"):
        extract(graph, ["Const"], {"image": (1,)})


def test_a_cyclic_graph_and_an_unknown_operation_are_refused():
    graph = tf.Graph()
    with graph.as_default():
        first = tf.ones((2,), name="first")
        second = tf.negative(first, name="second")
        third = tf.negative(second, name="third")
    second.op._add_control_inputs([third.op])
    with pytest.raises(CycleError, match="circle: (second, third|third, second);"):
        extract(graph, [third])
    meta = tf.MetaGraphDef()
    node = meta.graph_def.node.add()
    node.name, node.op = "odd", "NoSuchOperation"
    with pytest.raises(UnsupportedOpError, match="cannot import the graph: .*NoSuchOperation"):
        extract(meta, ["odd"])


def test_unknown_sizes_without_a_placeholder_are_named():
    graph = tf.Graph()
    with graph.as_default():
        found = tf.where(tf.constant([True, False]), name="found")
    with pytest.raises(UnknownSizeError, match=r"tensor found:0 \(Where\) .*build it with static shapes"):
        extract(graph, [found])


def test_files_that_are_no_graphs_are_refused(tmp_path):
    for name, data in (("text", b"hello"), ("empty", b""), ("binary", b"\xff\xfe\x00")):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(FileError, match="is not a MetaGraphDef"):
            load_meta_graph(str(path))
    with pytest.raises(FileError, match="cannot read .*: No such file"):
        load_meta_graph(str(tmp_path / "nothing"))
