"""Whole plans: that they compute what the graph computes, what is asked of them, and their files of before."""

import warnings
from dataclasses import replace

import pytest
from graphs import PlainMemory, graphs, net, runs_in_order
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_tools.errors import BudgetError, FileError, PlanError
from graph_tools.graph.opgraph import OpGraph, TensorRef, stable_order
from graph_tools.graph_edit import copy_name, with_recomputes
from graph_tools.passes.order import peak_bytes
from graph_tools.passes.planner import FORMER_POLICIES, MEMORY_POLICIES, make_plan, resolve_policy
from graph_tools.plan import Eviction, Group, Plan, Prefetch
from graph_tools.serial import from_json, to_json
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import simulate

FEW = settings(deadline=None, max_examples=40)
MACHINE = Machine(160, 10**6, 1.0, 2.0, 50.0, 20.0, 1.0, 0.0, 4)


def evaluate(graph, order):
    """A number for every tensor that depends on its operation and on the numbers of its inputs."""
    ops, values = graph.by_name(), {}
    for name in order:
        inputs = tuple(values[ref] for ref in ops[name].inputs)
        kind = name.split("/recomputed_")[0]
        for index in range(len(ops[name].outputs)):
            values[TensorRef(name, index)] = hash((kind, index, inputs))
    return values


@FEW
@given(graphs(), st.integers(10, 60), st.integers(20, 100), st.sampled_from(MEMORY_POLICIES))
def test_any_plan_computes_what_the_graph_computes(graph, limit, device, policy):
    machine = replace(MACHINE, device_bytes=max(device, graph.persistent_bytes))
    try:
        plan = make_plan(graph, limit, memory_policy=policy, machine=machine)
    except BudgetError as error:
        assert "smaller than a page" in str(error)
        return
    changed = with_recomputes(graph, plan.recomputes)
    assert runs_in_order(changed, plan.op_order)
    before, after = evaluate(graph, stable_order(graph)), evaluate(changed, plan.op_order)
    assert {ref: after[ref] for ref in before} == before
    assert plan == make_plan(graph, limit, memory_policy=policy, machine=machine)
    assert from_json(Plan, to_json(plan)) == plan
    memory = PlainMemory(changed, plan.op_order)
    assert plan.peak_bytes == peak_bytes(changed, plan.op_order)
    assert_dropped(plan, memory)
    for copy in plan.evictions:
        home, start = memory.home[copy.tensor], 0
        for number, group in enumerate(plan.groups):
            touched = set().union(*memory.touched[start : start + len(group.ops)])
            start += len(group.ops)
            if copy.during <= number < copy.needed_by:
                assert home not in touched
            elif number == copy.needed_by:
                assert home in touched


def assert_dropped(plan, memory):
    """What is computed again is touched by nothing once its copy begins."""
    for number, item in enumerate(plan.recomputes):
        if not item.ops:  # another output of an operation that was copied before, for something else
            continue
        home, begin = memory.home[item.tensor], memory.order.index(copy_name(item.ops[0], number))
        assert max(p for p, touched in enumerate(memory.touched) if home in touched) < begin


def test_recomputed_tensors_are_dropped_even_where_others_are_made_from_them():
    graph = net(12, flops=1)
    plan = make_plan(graph, 120, memory_policy="recompute", machine=MACHINE)
    assert plan.recomputes
    memory = PlainMemory(with_recomputes(graph, plan.recomputes), plan.op_order)
    assert_dropped(plan, memory)
    dropped = {memory.home[item.tensor] for item in plan.recomputes}
    for name, touched in zip(memory.order, memory.touched):
        assert "/recomputed_" not in name or not dropped & touched  # else it would have to be kept for that


def test_arguments_that_contradict_each_other_are_refused():
    with pytest.raises(PlanError, match="unknown memory policy 'all'; use one of keep, recompute"):
        make_plan(net(2), 80, memory_policy="all")
    with pytest.raises(PlanError, match="give a machine"):
        make_plan(net(2), 80, memory_policy="recompute")


@pytest.mark.parametrize("policy", MEMORY_POLICIES)
def test_nothing_is_planned_as_nothing(policy):
    plan = make_plan(OpGraph(()), 80, memory_policy=policy, machine=MACHINE)
    assert plan.groups == plan.recomputes == () and simulate(OpGraph(()), plan, MACHINE).seconds == 0


@pytest.mark.parametrize("name", FORMER_POLICIES)
def test_memory_policies_of_before_mean_the_nearest_kept_one(name):
    graph, (policy, note) = net(12), resolve_policy(name)
    assert policy == "recompute"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = make_plan(graph, 120, memory_policy=name, machine=MACHINE)
    assert plan == make_plan(graph, 120, memory_policy="recompute", machine=MACHINE)
    expected = "" if name == "remat" else "the memory policy '{}' is gone; recompute is planned instead".format(name)
    assert note == expected and [str(warning.message) for warning in caught] == [note][: bool(note)]


def test_a_plan_of_before_is_still_read():
    plan = make_plan(net(12), 120, memory_policy="recompute", machine=MACHINE)
    text = to_json(plan)
    assert text.count('"memory_policy"') == 1
    assert from_json(Plan, text.replace('"memory_policy"', '"choice"')) == plan
    with pytest.raises(FileError, match="a field is there under two names"):
        from_json(Plan, text.replace('"memory_policy"', '"choice":"","memory_policy"'))


@pytest.mark.parametrize("kind, name", [(Prefetch, "prefetches"), (Eviction, "evictions")])
def test_a_copy_that_its_plan_has_no_groups_for_is_refused(kind, name):
    groups = (Group(("a",), 1), Group(("b",), 1))
    assert Plan(groups, 1, "", "", 0, **{name: (kind(TensorRef("a", 0), 1, 0, 1),)})
    for during, needed_by in ((-1, 1), (1, 1), (0, 2)):
        with pytest.raises(PlanError, match="does not fit a plan of 2 groups"):
            Plan(groups, 1, "", "", 0, **{name: (kind(TensorRef("a", 0), 1, during, needed_by),)})
