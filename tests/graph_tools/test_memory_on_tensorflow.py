"""Which tensors share memory, as planned and as TensorFlow's allocator recorded it."""

import pytest
import tensorflow.compat.v1 as tf
from tf_graphs import CHANNELS, conv_net, run_steps

from graph_tools.graph.lifetimes import lifetimes
from graph_tools.graph.opgraph import TensorRef, dependencies, stable_order
from graph_tools.passes.planner import make_plan
from graph_tools.tensorflow.apply import apply, session_config
from graph_tools.tensorflow.extract import extract
from graph_tools.tensorflow.verify import trace_options

SIDE = 64
MAP = SIDE * SIDE * CHANNELS * 4


def recorded(metadata):
    """Names of operations by their start, and the address of every output."""
    starts, addresses = {}, {}
    for device in metadata.step_stats.dev_stats:
        if "/device:" in device.device:
            for node in device.node_stats:
                starts[node.node_name] = node.all_start_nanos
                for output in node.output:
                    ref = TensorRef(node.node_name, output.slot)
                    addresses[ref] = output.tensor_description.allocation_description.ptr
    return sorted(starts, key=starts.get), addresses


def executed_order(graph, names):
    """A topological order of the graph in which recorded operations keep their order."""
    ops, order, seen = graph.by_name(), [], set()

    def put(name):
        if name not in seen:
            seen.add(name)
            for other in dependencies(ops[name]):
                put(other)
            order.append(name)

    for name in [name for name in names if name in ops] + list(stable_order(graph)):
        put(name)
    return order


@pytest.mark.parametrize("resource", [True, False])
@pytest.mark.parametrize("planned", [True, False])
def test_tensors_share_memory_as_planned(resource, planned):
    net = conv_net(side=SIDE, layers=6, resource=resource)
    graph = extract(net.graph, net.fetches + [net.train])
    if planned:
        apply(net.graph, make_plan(graph, 3 * MAP + 3000))
    config = session_config(tf.ConfigProto(inter_op_parallelism_threads=1))  # one operation at a time
    _, metadata = run_steps(net, config=config, options=trace_options())
    names, addresses = recorded(metadata)
    life = lifetimes(graph, executed_order(graph, names))
    shared = set()
    for ref, number in life.holder.items():
        home = life.storages[number].tensor
        if ref != home and ref in addresses and home in addresses and life.storages[number].bytes == MAP:
            assert addresses[ref] == addresses[home], "{} is not {}".format(ref, home)
            shared.add(graph.by_name()[ref.op].type)
    assert {"ReluGrad", "AddN"} <= shared
