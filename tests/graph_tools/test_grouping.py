from unittest import mock

import pytest
from graphs import PlainMemory, chain, graphs, plain_group_bytes, runs_in_order
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_tools.errors import BudgetError, PlanError
from graph_tools.graph.lifetimes import lifetimes, live_bytes
from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef, stable_order
from graph_tools.passes.group import group_ops
from graph_tools.passes.order import choose_order, depth_first_order, peak_bytes
from graph_tools.passes.prefetch import plan_prefetches
from graph_tools.plan import Prefetch

FEW = settings(deadline=None, max_examples=60)


def op(name, *inputs, size=10, **options):
    return Op(name, "Relu", tuple(TensorRef(other, 0) for other in inputs), (Output(size),), **options)


@FEW
@given(graphs())
def test_memory_agrees_with_a_replay_tensor_by_tensor(graph):
    order = stable_order(graph)
    life, plain = lifetimes(graph, order), PlainMemory(graph, order)
    assert {ref: life.storages[number].tensor for ref, number in life.holder.items()} == plain.home
    assert [{life.storages[n].tensor for n in touched} for touched in life.touches] == plain.touched
    ops = graph.by_name()
    expected = [sum(plain.size[h] for h in held) + ops[n].workspace_bytes for held, n in zip(plain.held, order)]
    assert live_bytes(graph, life).tolist() == expected


@FEW
@given(graphs(), st.integers(1, 120))
def test_groups_hold_every_operation_once_in_order_and_under_the_limit(graph, limit):
    order = stable_order(graph)
    groups = group_ops(graph, order, limit)
    assert tuple(name for group in groups for name in group.ops) == order
    plain, start = PlainMemory(graph, order), 0
    for group in groups:
        end = start + len(group.ops)
        assert group.bytes == plain_group_bytes(graph, plain, start, end)
        assert group.oversized == (group.bytes > limit)
        assert not group.oversized or len(group.ops) == 1
        if end < len(order):  # the prefix is the longest
            assert plain_group_bytes(graph, plain, start, end + 1) > limit
        assert group.carried_bytes == carried(graph, plain, order, start, end)
        start = end


def carried(graph, plain, order, start, end):
    touched = set().union(*plain.touched[start:end])
    before = {home for home in plain.held[start] if graph.by_name()[home.op].persistent or home.op in order[:start]}
    return sum(plain.size[home] for home in before - touched)


@FEW
@given(graphs())
def test_depth_first_order_runs_and_auto_is_never_worse(graph):
    order = depth_first_order(graph)
    assert runs_in_order(graph, order) and order == depth_first_order(graph)
    best = choose_order(graph)
    assert best.peak_bytes == min(peak_bytes(graph, order), peak_bytes(graph, stable_order(graph)))
    assert runs_in_order(graph, best.names)


def test_depth_first_follows_a_chain_and_says_what_it_saves():
    ops = tuple(op("wide{}".format(i), size=100) for i in range(4))
    graph = OpGraph(ops + tuple(op("thin{}".format(i), "wide{}".format(i), size=1) for i in range(4)))
    chosen = choose_order(graph)
    assert chosen.kind == "depth-first" and chosen.names[:2] == ("wide0", "thin0")
    assert chosen.reason == "holds 101 B at its peak, the topological order 401 B"
    assert choose_order(chain(1, 2)).kind == "topological"


def test_auto_makes_only_the_orders_that_it_compares():
    with mock.patch("graph_tools.passes.order.demand_order", side_effect=AssertionError("made and thrown away")):
        assert choose_order(chain(1, 2)).kind == "topological"


def test_depth_first_frees_a_gradient_before_it_goes_on():
    ops = [op("start")]
    for layer in range(4):
        below = ops[-1 if not layer else -2].name
        ops += [op("down{}".format(layer), below), op("weight{}".format(layer), below, size=1)]
    graph = OpGraph(tuple(ops), tuple(TensorRef("weight{}".format(i), 0) for i in range(4)))
    order = depth_first_order(graph)
    assert all(order.index("weight{}".format(i)) <= order.index("down{}".format(i)) + 1 for i in range(4))


def test_unknown_orders_and_orders_of_other_graphs_are_refused():
    with pytest.raises(PlanError, match="unknown order 'best'"):
        choose_order(chain(1), "best")
    for order in (("op0",), ("op1", "op0"), ("op0", "op1", "op1"), ("op0", "op1", "op2")):
        with pytest.raises(PlanError, match="plan this graph again"):
            group_ops(chain(1, 2), order, 10)


def test_no_limit_is_refused():
    with pytest.raises(BudgetError, match="limit of 0 bytes"):
        group_ops(chain(1), ("op0",), 0)


def expected_prefetches(graph, groups, depth):
    """The definition, group by group."""
    order = [name for group in groups for name in group.ops]
    plain, ops, start = PlainMemory(graph, order), graph.by_name(), 0
    touched = []
    for group in groups:
        touched.append(set().union(*plain.touched[start : start + len(group.ops)]))
        start += len(group.ops)
    found = set()
    for number in range(len(groups)):
        for home in touched[number]:
            before = [other for other in range(number) if home in touched[other]]
            if ops[home.op].persistent or not before or before[-1] == number - 1 or not plain.size[home]:
                continue
            found.add((home, max(number - depth, before[-1] + 1), number))
    return found


@FEW
@given(graphs(), st.integers(1, 80), st.integers(1, 3))
def test_prefetches_are_those_of_the_definition(graph, limit, depth):
    order = stable_order(graph)
    groups = group_ops(graph, order, limit)
    found = plan_prefetches(graph, groups, depth)
    home, position = PlainMemory(graph, order).home, {name: index for index, name in enumerate(order)}
    assert {(home[copy.tensor], copy.during, copy.needed_by) for copy in found} == expected_prefetches(
        graph, groups, depth
    )
    assert len(found) == len({(home[copy.tensor], copy.needed_by) for copy in found})
    for copy in found:
        started = sum(len(group.ops) for group in groups[: copy.during])
        assert position[copy.tensor.op] < started  # a copy of what is not made yet would wait for it
        readers = [name for name in groups[copy.needed_by].ops if copy.tensor in graph.by_name()[name].inputs]
        assert readers  # so that no tensor is kept alive for its copy alone


def test_the_paper_example():
    graph = OpGraph(
        (op("a"), op("b", "a"), op("c", "b"), op("d", "c"), op("e", "d", "a"), op("f", "e", "c")),
    )
    groups = group_ops(graph, stable_order(graph), 20)
    assert [group.ops for group in groups] == [("a", "b"), ("c",), ("d",), ("e",), ("f",)]
    assert [group.oversized for group in groups] == [False, False, False, True, True]
    assert plan_prefetches(graph, groups, 1) == (
        Prefetch(TensorRef("a", 0), 10, during=2, needed_by=3),
        Prefetch(TensorRef("c", 0), 10, during=3, needed_by=4),
    )
    assert plan_prefetches(graph, groups, 2)[0] == Prefetch(TensorRef("a", 0), 10, during=1, needed_by=3)
    assert plan_prefetches(graph, groups, 0) == ()
    assert plan_prefetches(graph, groups, 1, smallest=11) == ()
    assert plan_prefetches(graph, groups, 1, capacity=30) == (plan_prefetches(graph, groups, 1)[0],)
    with pytest.raises(PlanError, match="depth of -1"):
        plan_prefetches(graph, groups, -1)
