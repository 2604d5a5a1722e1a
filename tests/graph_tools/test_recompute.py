"""Recomputation from shared copies, evictions spread over the step, and the order that follows strips."""

from dataclasses import replace

import pytest
from graphs import chain, graphs, runs_in_order
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graph_tools.errors import BudgetError, PlanError
from graph_tools.graph.lifetimes import lifetimes, live_bytes
from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef, stable_order
from graph_tools.graph_edit import copies_by_op, insert_copies, with_recomputes
from graph_tools.passes.eviction_schedule import schedule_evictions
from graph_tools.passes.group import group_ops
from graph_tools.passes.order import choose_order, demand_order, peak_bytes
from graph_tools.passes.planner import make_plan
from graph_tools.passes.recompute_candidates import Candidates
from graph_tools.plan import Plan, Recompute
from graph_tools.serial import from_json, to_json
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.pages import held_pages
from graph_tools.simulation.simulate import simulate

FEW = settings(deadline=None, max_examples=40)
MAP = 40  # bytes
MACHINE = Machine(
    device_bytes=700,
    host_bytes=10**6,
    on_demand_rate=1.0,
    copy_rate=2.0,
    memory_rate=50.0,
    float32_flops=20.0,
    half_flops=20.0,
    launch_seconds=0.0,
    page_bytes=4,
)


def strips(layers, count=4, flops=100):
    """Layers forward and backward on maps of some strips; each strip reads the one above it as well."""

    def ref(kind, layer, strip):
        return TensorRef("{}{}_{}".format(kind, layer, strip), 0)

    def op(at, kind, inputs):
        return Op(at.op, kind, tuple(inputs), (Output(MAP),), flops=flops)

    ops = [Op(ref("map", 0, s).op, "Placeholder", (), (Output(MAP),), pure=False) for s in range(count)]
    for layer in range(1, layers + 1):
        for s in range(count):
            ops.append(op(ref("map", layer, s), "Conv2D", [ref("map", layer - 1, o) for o in (s - 1, s) if o >= 0]))
    loss = Op("loss", "Sum", tuple(ref("map", layers, s) for s in range(count)), (Output(4),))
    ops.append(loss)
    for layer in reversed(range(layers)):
        for s in range(count):
            above = (
                [TensorRef("loss", 0)]
                if layer == layers - 1
                else [ref("grad", layer + 1, o) for o in (s, s + 1) if o < count]
            )
            ops.append(op(ref("grad", layer, s), "Grad", above + [ref("map", layer, s)]))
    return OpGraph(tuple(ops), tuple(ref("grad", 0, s) for s in range(count)))


@FEW
@given(graphs())
def test_demand_order_runs_every_operation_after_what_it_needs(graph):
    order = demand_order(graph)
    assert runs_in_order(graph, order) and order == demand_order(graph)
    assert choose_order(graph, "demand").peak_bytes == peak_bytes(graph, order)


def test_demand_order_follows_strips_through_the_layers():
    graph = strips(8)
    order = demand_order(graph)
    assert order.index("grad0_0") < order.index("grad7_3") + 32 and order.index("map8_0") < order.index("map1_3")
    gradients = [bytes_of_gradients(graph, names) for names in (stable_order(graph), order)]
    assert gradients[1] <= gradients[0]


def bytes_of_gradients(graph, order):
    life = lifetimes(graph, order)
    own = [s for s in life.storages if s.tensor.op.startswith("grad")]
    return max(sum(s.bytes for s in own if s.made <= p <= s.last) for p in range(len(order)))


@pytest.mark.parametrize("device", [1000, 800])
def test_a_step_several_times_the_device_neither_faults_nor_waits_long(device):
    graph, machine = strips(16), replace(MACHINE, device_bytes=device)
    in_memory = simulate(graph, make_plan(graph, 200, "topological"), replace(machine, device_bytes=10**5))
    plan = make_plan(graph, 200, memory_policy="recompute", machine=machine)
    result = simulate(graph, plan, machine)
    paper = simulate(graph, make_plan(graph, 200, "topological", machine=machine), machine)
    assert in_memory.peak_device_bytes > 2 * device
    assert result.on_demand_bytes == 0 and result.peak_device_bytes <= device
    assert result.seconds < paper.seconds / 2
    forward = 16 * 4 * 100 / MACHINE.float32_flops
    assert 0 < result.compute_seconds - in_memory.compute_seconds <= forward  # at most one forward pass more


def test_no_operation_is_copied_twice_and_copies_read_copies():
    graph = strips(16, flops=1)
    machine = replace(MACHINE, device_bytes=1500, host_bytes=0)
    plan = make_plan(graph, 200, memory_policy="recompute", machine=machine)
    names = [name for item in plan.recomputes for name in item.ops]
    assert names and len(names) == len(set(names))
    assert any(item.sources for item in plan.recomputes)
    assert not plan.prefetches and not plan.evictions
    changed = with_recomputes(graph, plan.recomputes)
    assert runs_in_order(changed, plan.op_order)
    assert int(live_bytes(changed, lifetimes(changed, plan.op_order)).max()) == plan.peak_bytes <= machine.device_bytes
    assert from_json(Plan, to_json(plan)) == plan


@FEW
@given(graphs(), st.integers(10, 60))
def test_a_candidate_is_made_by_pure_operations_from_what_is_there(graph, limit):
    groups = group_ops(graph, stable_order(graph), limit)
    candidates = Candidates(graph, groups, MACHINE, 1)
    for item in candidates.items:
        names = [candidates.order[position] for position in item.ops]
        assert names and all(graph.by_name()[name].pure for name in names)
        assert names == sorted(names, key=candidates.position.get)
        late = [name for name in candidates.order[item.first :] if item.tensor in graph.by_name()[name].inputs]
        assert list(item.readers) == late
        made = {TensorRef(name, i) for name in names for i in range(len(graph.by_name()[name].outputs))}
        read = {ref for name in names for ref in graph.by_name()[name].inputs} - made
        assert item.tensor in made and all(candidates.there(ref, item.first) for ref in read)
        changed = with_recomputes(graph, (Recompute(item.tensor, item.bytes, tuple(names), item.readers),))
        assert not [op for op in changed.ops if op.name in late and item.tensor in op.inputs]


def conv(name, *inputs, size=MAP):
    return Op(name, "Conv2D", tuple(TensorRef(other, 0) for other in inputs), (Output(size),))


def test_a_chain_is_computed_again_from_its_own_copies():
    image = Op("image", "Placeholder", (), (Output(MAP),), pure=False)
    ops = (image, conv("half", "image", size=20), conv("full", "half"), conv("next", "full"), conv("wait", "next"))
    graph = OpGraph(ops + (conv("more", "wait", size=4 * MAP), conv("use", "full", "more", "image")))
    candidates = Candidates(graph, group_ops(graph, stable_order(graph), 1), MACHINE, 1)
    (item,) = [i for i in candidates.items if i.tensor.op == "full"]
    names = tuple(candidates.order[position] for position in item.ops)
    assert names == ("half", "full") and item.readers == ("use",)
    changed = with_recomputes(graph, (Recompute(item.tensor, item.bytes, names, item.readers),)).by_name()
    assert changed["half/recomputed_0"].inputs == (TensorRef("image", 0),)
    assert changed["full/recomputed_0"].inputs == (TensorRef("half/recomputed_0", 0),)
    assert changed["use"].inputs[0] == TensorRef("full/recomputed_0", 0)


@pytest.mark.parametrize("late", [True, False])
def test_a_variable_that_was_written_meanwhile_is_not_read_again(late):
    weight = TensorRef("weight", 0)
    ops = [
        Op("weight", "VariableV2", (), (Output(4),), persistent=True),
        Op("image", "Placeholder", (), (Output(MAP),), pure=False),
        conv("map", "image", "weight"),
        conv("a", "map"),
        conv("b", "a", "image"),
        conv("c", "b", "image", size=4 * MAP),
        conv("use", "map", "c", "image", size=4),
    ]
    write = Op("write", "ApplyGradientDescent", (weight,), (), pure=False)
    ops.insert(len(ops) if late else 4, replace(write, control_inputs=("use",) if late else ()))
    graph = OpGraph(tuple(ops))
    candidates = Candidates(graph, group_ops(graph, stable_order(graph), 1), MACHINE, 1)
    assert [item.tensor.op for item in candidates.items if item.tensor.op == "map"] == ["map"] * late


@FEW
@given(graphs(), st.integers(10, 60), st.integers(20, 100))
def test_where_nothing_can_leave_a_plan_fits_the_device_or_is_refused(graph, limit, device):
    assume(graph.persistent_bytes <= device)
    machine = replace(MACHINE, device_bytes=device, host_bytes=0)
    try:
        plan = make_plan(graph, limit, memory_policy="recompute", machine=machine)
    except BudgetError as error:
        assert "give" in str(error) and "\n" not in str(error)
        return
    assert not plan.evictions and not plan.prefetches
    result = simulate(graph, plan, machine)
    assert result.peak_device_bytes <= device and result.bytes_out == 0


def test_what_cannot_fit_without_a_host_is_refused():
    with pytest.raises(BudgetError, match="the host has 0 B"):
        make_plan(strips(16), 200, memory_policy="recompute", machine=replace(MACHINE, device_bytes=200, host_bytes=0))


def test_what_fits_is_left_alone():
    plan = make_plan(strips(6), 200, memory_policy="recompute", machine=replace(MACHINE, device_bytes=10**5))
    assert (plan.prefetches, plan.evictions, plan.recomputes) == ((), (), ())


@FEW
@given(graphs(), st.integers(10, 60), st.integers(20, 100))
def test_evictions_touch_nothing_that_is_in_use(graph, limit, device):
    machine = replace(MACHINE, device_bytes=device)
    groups = group_ops(graph, stable_order(graph), limit)
    schedule = schedule_evictions(graph, groups, machine)
    back = {(copy.tensor, copy.needed_by): copy for copy in schedule.prefetches}
    assert len(back) == len(schedule.evictions) == len(schedule.prefetches)  # what leaves comes back
    life = lifetimes(graph, stable_order(graph))
    ops = graph.by_name()
    for copy in schedule.evictions:
        again = back[copy.tensor, copy.needed_by]
        assert copy.during < again.during < copy.needed_by
        home = life.holder[copy.tensor]
        for group in groups[copy.during : copy.needed_by]:
            refs = [ref for name in group.ops for ref in ops[name].inputs]
            assert home not in {life.holder[ref] for ref in refs}
    assert schedule == schedule_evictions(graph, groups, machine, life=life)


def test_pages_held_are_those_of_the_tensors():
    graph = chain(40, 41, 2)
    order = stable_order(graph)
    life = lifetimes(graph, order)
    assert held_pages(graph, life, MACHINE).tolist() == [10 + 1, 10 + 11 + 1, 11 + 1]


def test_recomputations_in_a_wrong_order_are_refused():
    item = Recompute(TensorRef("op1", 0), 10, ("op1",), ("op2",))
    with pytest.raises(PlanError, match="recomputation 0 reads copies of number 0"):
        copies_by_op((replace(item, sources=(0,)),))
    with pytest.raises(PlanError, match="nothing in the plan computes op1:0 again"):
        with_recomputes(chain(1, 2, 3), (replace(item, ops=("op0",)),))
    with pytest.raises(PlanError, match="recomputes op9, which the graph does not have"):
        with_recomputes(chain(1, 2, 3), (replace(item, ops=("op9", "op1")),))


def test_copies_come_before_the_first_copy_that_reads_them():
    one = Recompute(TensorRef("a", 0), 10, ("a",), ("z",))
    other = Recompute(TensorRef("b", 0), 10, ("b",), ("y",), sources=(0,))
    order = insert_copies(("a", "b", "x", "y", "z"), (one, other))
    assert order == ("a", "b", "x", "a/recomputed_0", "b/recomputed_1", "y", "z")
