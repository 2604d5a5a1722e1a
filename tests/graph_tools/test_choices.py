from dataclasses import replace
from itertools import product
from unittest import mock

import numpy as np
import pytest
from graphs import PlainMemory, graphs, runs_in_order
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_tools.errors import BudgetError, PlanError, SolverError
from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef, stable_order
from graph_tools.passes.candidates import find_candidates
from graph_tools.passes.evict import KEEP, MOVE, RECOMPUTE, choose_greedily, make_problem
from graph_tools.passes.group import group_ops
from graph_tools.passes.integer import choose_by_program, has_solver
from graph_tools.passes.order import peak_bytes
from graph_tools.passes.planner import make_plan, unplanned
from graph_tools.passes.recompute import copy_name, with_recomputes
from graph_tools.plan import Plan, Recompute
from graph_tools.serial import from_json, to_json
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import simulate

FEW = settings(deadline=None, max_examples=40)
MACHINE = Machine(160, 10**6, 1.0, 2.0, 50.0, 20.0, 1.0, 0.0, 4)
needs_solver = pytest.mark.skipif(not has_solver(), reason="scipy before 1.9 has no integer programs")


def net(layers, size=40, flops=100, pure=True):
    """Layers forward, then backward: each backward operation reads the map that its layer read."""
    ops = [Op("map0", "Placeholder", (), (Output(size),), pure=False)]
    for i in range(1, layers + 1):
        below = (TensorRef("map{}".format(i - 1), 0),)
        ops.append(Op("map{}".format(i), "Conv2D", below, (Output(size),), flops=flops, pure=pure))
    gradient = TensorRef(ops[-1].name, 0)
    for i in reversed(range(layers)):
        name = "grad{}".format(i)
        ops.append(Op(name, "Grad", (gradient, TensorRef("map{}".format(i), 0)), (Output(size),), flops=flops))
        gradient = TensorRef(name, 0)
    return OpGraph(tuple(ops), (gradient,))


def problem_of(graph, machine=MACHINE, limit=120):
    return make_problem(graph, group_ops(graph, stable_order(graph), limit), machine, 1)


def allowed_choices(problem):
    """Every choice that breaks no rule and fits the host."""
    for actions in product(*(problem.allowed(number) for number in range(len(problem.candidates)))):
        broken = any(
            actions[n] == RECOMPUTE and (actions[s] == RECOMPUTE or (move and actions[s] == MOVE))
            for n, s, move in problem.conflicts()
        )
        if not broken and problem.host_bytes(actions).max(initial=0) <= problem.machine.host_bytes:
            yield actions


@needs_solver
@pytest.mark.parametrize("host", [10**6, 80, 120])
@pytest.mark.parametrize("flops", [100, 3000])
def test_the_program_finds_the_best_of_all_choices(flops, host):
    problem = problem_of(net(7, flops=flops), replace(MACHINE, host_bytes=host))
    best = min(problem.seconds(actions) for actions in allowed_choices(problem))
    found = choose_by_program(problem)
    assert found in set(allowed_choices(problem))
    assert problem.seconds(found) <= best * 1.006
    assert problem.seconds(found) <= problem.seconds(choose_greedily(problem)) * 1.006


@pytest.mark.parametrize("flops, action", [(1, RECOMPUTE), (10**5, MOVE)])
def test_greedy_recomputes_what_is_cheap_and_moves_what_is_not(flops, action):
    problem = problem_of(net(9, flops=flops))
    actions = choose_greedily(problem)
    keep = [KEEP] * len(actions)
    assert action in actions
    assert problem.device_bytes(actions).max() < problem.device_bytes(keep).max()
    assert problem.seconds(actions) < problem.seconds(keep)


def test_nothing_leaves_where_all_fits():
    problem = problem_of(net(9), replace(MACHINE, device_bytes=10**4))
    assert set(choose_greedily(problem)) == {KEEP}


@FEW
@given(graphs(), st.integers(10, 60), st.integers(20, 100))
def test_choices_on_any_graph_break_no_rule(graph, limit, device):
    problem = problem_of(graph, replace(MACHINE, device_bytes=device), limit)
    solvers = [choose_greedily] + ([choose_by_program] if has_solver() else [])
    for solve in solvers:
        actions = solve(problem)
        assert all(action in problem.allowed(number) for number, action in enumerate(actions))
        for number, source, also_move in problem.conflicts():
            if actions[number] == RECOMPUTE:
                assert actions[source] in ((KEEP,) if also_move else (KEEP, MOVE))
        assert solve(problem) == actions


@FEW
@given(graphs(), st.integers(10, 60))
def test_recomputation_reads_only_what_is_there_and_frees_the_tensor(graph, limit):
    order = stable_order(graph)
    groups = group_ops(graph, order, limit)
    for item in find_candidates(graph, groups, MACHINE, 1):
        if not item.ops:
            continue
        plan = make_plan(graph, limit, "topological")
        recomputed = replace(plan, recomputes=(recompute_of(item),))
        changed = with_recomputes(graph, recomputed.recomputes)
        names = [name for name in changed.by_name() if name not in graph.by_name()]
        assert len(names) == len(item.ops) and all(graph.by_name()[name].pure for name in item.ops)
        used = {ref for op in changed.ops for ref in op.inputs if op.name not in item.readers}
        number_of = {name: number for number, group in enumerate(groups) for name in group.ops}
        late = [op.name for op in graph.ops if item.tensor in op.inputs and number_of[op.name] >= item.needed]
        assert sorted(late) == sorted(item.readers)
        assert all(ref.op in graph.by_name() or ref.op in names for ref in used)


def recompute_of(item):
    return Recompute(item.tensor, item.bytes, item.ops, item.readers)


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
@given(graphs(), st.integers(10, 60), st.integers(20, 100), st.sampled_from(["keep", "greedy", "remat", "best"]))
def test_any_plan_computes_what_the_graph_computes(graph, limit, device, choice):
    machine = replace(MACHINE, device_bytes=max(device, graph.persistent_bytes))
    try:
        plan = make_plan(graph, limit, choice=choice, machine=machine)
    except BudgetError as error:
        assert "smaller than a page" in str(error)
        return
    changed = with_recomputes(graph, plan.recomputes)
    assert runs_in_order(changed, plan.op_order)
    before, after = evaluate(graph, stable_order(graph)), evaluate(changed, plan.op_order)
    assert {ref: after[ref] for ref in before} == before
    assert plan == make_plan(graph, limit, choice=choice, machine=machine)
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


@pytest.mark.parametrize("choice", ["greedy", "best"])
def test_recomputed_tensors_are_dropped_even_where_others_are_made_from_them(choice):
    graph = net(12, flops=1)
    plan = make_plan(graph, 120, choice=choice, machine=MACHINE)
    assert plan.recomputes
    memory = PlainMemory(with_recomputes(graph, plan.recomputes), plan.op_order)
    assert_dropped(plan, memory)
    dropped = {memory.home[item.tensor] for item in plan.recomputes}
    for name, touched in zip(memory.order, memory.touched):
        assert "/recomputed_" not in name or not dropped & touched  # else it would have to be kept for that


def test_a_chain_is_computed_again_from_its_own_copies():
    def op(name, *inputs, size=40):
        return Op(name, "Conv2D", tuple(TensorRef(other, 0) for other in inputs), (Output(size),))

    image = Op("image", "Placeholder", (), (Output(40),), pure=False)
    ops = (image, op("half", "image", size=20), op("full", "half"), op("next", "full"), op("wait", "next"))
    graph = OpGraph(ops + (op("more", "wait"), op("use", "full", "more", "image")))
    groups = group_ops(graph, stable_order(graph), 1)
    (item,) = [i for i in find_candidates(graph, groups, MACHINE, 1) if i.tensor.op == "full"]
    assert item.ops == ("half", "full") and item.readers == ("use",)
    changed = with_recomputes(graph, (recompute_of(item),)).by_name()
    assert changed["half/recomputed_0"].inputs == (TensorRef("image", 0),)
    assert changed["full/recomputed_0"].inputs == (TensorRef("half/recomputed_0", 0),)
    assert changed["use"].inputs[0] == TensorRef("full/recomputed_0", 0)


def test_best_is_no_slower_than_any():
    graph, times = net(12, flops=400), {}
    for choice in ("keep", "greedy", "best"):
        plan = make_plan(graph, 120, choice=choice, machine=MACHINE)
        times[choice] = simulate(graph, plan, MACHINE).seconds
    assert times["best"] == min(times.values()) < simulate(graph, unplanned(graph), MACHINE).seconds
    assert "simulated: keep" in plan.choice and "greedy" in plan.choice


def test_a_variable_that_was_written_meanwhile_is_not_read_again():
    def graph(writer_late):
        weight, image = TensorRef("weight", 0), TensorRef("image", 0)
        ops = [
            Op("weight", "VariableV2", (), (Output(4),), persistent=True),
            Op("image", "Placeholder", (), (Output(40),), pure=False),
            Op("map", "Conv2D", (image, weight), (Output(40),)),
            Op("a", "Conv2D", (TensorRef("map", 0),), (Output(40),)),
            Op("b", "Conv2D", (TensorRef("a", 0), image), (Output(40),)),
            Op("c", "Conv2D", (TensorRef("b", 0), image), (Output(40),)),
            Op("use", "Conv2D", (TensorRef("map", 0), TensorRef("c", 0), image), (Output(4),)),
        ]
        write = Op("write", "ApplyGradientDescent", (weight,), (), pure=False)
        ops.insert(len(ops) if writer_late else 4, replace(write, control_inputs=("use",) if writer_late else ()))
        return OpGraph(tuple(ops))

    for late in (True, False):
        given_graph = graph(late)
        groups = group_ops(given_graph, stable_order(given_graph), 1)
        (item,) = [i for i in find_candidates(given_graph, groups, MACHINE, 1) if i.tensor.op == "map"]
        assert item.ops == (("map",) if late else ())


def test_host_too_small_is_refused_unless_recomputation_helps():
    small = replace(MACHINE, host_bytes=20)
    with pytest.raises(BudgetError, match="of host memory and there are 20 B"):
        choose_greedily(problem_of(net(9, pure=False), small))
    if has_solver():
        with pytest.raises(BudgetError, match="20 B of host memory"):
            choose_by_program(problem_of(net(9, pure=False), small))
        problem = problem_of(net(5), replace(MACHINE, host_bytes=60))
        assert problem.host_bytes([KEEP] * len(problem.candidates)).max() > 60
        assert RECOMPUTE in choose_by_program(problem) and RECOMPUTE in choose_greedily(problem)


@needs_solver
def test_a_program_too_large_is_left_to_greed():
    with mock.patch("graph_tools.passes.integer._MOST_COEFFICIENTS", 10):
        with pytest.raises(SolverError, match="coefficients takes too long; choose greedily"):
            make_plan(net(9), 120, choice="integer", machine=MACHINE)
        told = make_plan(net(9), 120, choice="best", machine=MACHINE).choice
    assert "greedy" in told and "integer" not in told


def test_arguments_that_contradict_each_other_are_refused():
    with pytest.raises(PlanError, match="unknown choice 'all'"):
        make_plan(net(2), 80, choice="all")
    with pytest.raises(PlanError, match="give a machine"):
        make_plan(net(2), 80, choice="greedy")
    if not has_solver():
        with pytest.raises(SolverError, match="scipy 1.9"):
            make_plan(net(2), 80, choice="integer", machine=MACHINE)


def test_prediction_adds_up():
    problem = problem_of(net(5))
    compute, copied_in, copied_out = problem.loads([MOVE] * len(problem.candidates))
    assert np.sum(copied_in) == np.sum(copied_out) == sum(item.bytes for item in problem.candidates) / 2.0
    assert np.sum(compute) == sum(problem.compute)
