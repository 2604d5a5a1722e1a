from dataclasses import replace
from unittest import mock

import pytest
from graphs import chain, graphs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graph_tools.errors import BudgetError, GraphToolsError
from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef, stable_order
from graph_tools.passes.group import group_ops
from graph_tools.passes.prefetch import plan_prefetches
from graph_tools.plan import Eviction, Plan
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.pager import Moved, Pager
from graph_tools.simulation.simulate import simulate

FEW = settings(deadline=None, max_examples=60)
ACTIONS = st.lists(st.tuples(st.sampled_from(["touch", "prefetch", "evict", "drop"]), st.integers(0, 4)), max_size=40)


class PageByPage:
    """The same pages, each on its own: the definition that the pager counts in runs."""

    def __init__(self, capacity, pages):
        self.capacity, self.pages = capacity, pages
        self.on_device, self.host = [], set()  # pages as (storage, page), oldest touch first

    @property
    def free(self):
        return self.capacity - len(self.on_device)

    @property
    def on_host(self):
        return len(self.host)

    def start_on_host(self, storage):
        self.host.update((storage, page) for page in range(self.pages[storage]))

    def make(self, storage):
        return self.sweep(storage, range(self.pages[storage]))

    def touch(self, storage):
        return self.sweep(storage, range(self.pages[storage]))

    def prefetch(self, storage):
        own = [page for page in self.on_device if page[0] == storage]
        self.on_device = [page for page in self.on_device if page[0] != storage] + own
        absent = sorted(page for who, page in self.host if who == storage)
        absent = absent[max(0, len(absent) - (self.capacity - len(own))) :]
        moved = self.sweep(storage, absent)
        return moved if not own else self._settle(storage, moved)

    def _settle(self, storage, moved):
        own = sorted(page for page in self.on_device if page[0] == storage)
        self.on_device = [page for page in self.on_device if page[0] != storage] + own
        return moved

    def sweep(self, storage, pages):
        taken = came = left = 0
        for page in ((storage, number) for number in pages):
            if page in self.on_device:
                self.on_device.remove(page)
            else:
                if len(self.on_device) == self.capacity:
                    self.host.add(self.on_device.pop(0))
                    left += 1
                came += page in self.host
                self.host.discard(page)
                taken += 1
            self.on_device.append(page)
        return Moved(taken, came, left)

    def evict(self, storage):
        gone = [page for page in self.on_device if page[0] == storage]
        self.on_device = [page for page in self.on_device if page[0] != storage]
        self.host.update(gone)
        return Moved(0, 0, len(gone))

    def drop(self, storage):
        before = len(self.on_device)
        self.on_device = [page for page in self.on_device if page[0] != storage]
        self.host = {page for page in self.host if page[0] != storage}
        return before - len(self.on_device)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=5, max_size=5), ACTIONS)
def test_the_pager_counts_what_moves_page_by_page(capacity, pages, actions):
    runs, single, known = Pager(capacity, pages), PageByPage(capacity, pages), set()
    for action, storage in actions:
        if storage not in known:
            action = "make"
        (known.discard if action == "drop" else known.add)(storage)
        assert getattr(runs, action)(storage) == getattr(single, action)(storage)
        assert runs.free == single.free >= 0
        assert runs.on_host == single.on_host


def plan_of(graph, limit=30, depth=1):
    order = stable_order(graph)
    groups = group_ops(graph, order, limit)
    return Plan(groups, limit, "topological", "", 0, plan_prefetches(graph, groups, depth))


def machine(device=60, **rates):
    options = dict(on_demand_rate=1.0, copy_rate=2.0, memory_rate=50.0, float32_flops=20.0, launch_seconds=0.0)
    options.update(rates)
    return Machine(device_bytes=device, host_bytes=10**6, page_bytes=4, half_flops=1.0, **options)


def fits(graph, device):
    return graph.persistent_bytes <= device


@FEW
@given(graphs(), st.integers(1, 80), st.integers(0, 2), st.integers(1, 4))
def test_simulation_conserves_bytes_stays_in_memory_and_gains_from_faster_links(graph, limit, depth, faster):
    plan, slow = plan_of(graph, limit, depth), machine()
    assume(fits(graph, slow.device_bytes))
    try:
        result = simulate(graph, plan, slow, record=True)
    except BudgetError as error:
        assert "smaller than a page" in str(error)
        return
    assert result.peak_device_bytes <= slow.device_bytes
    with mock.patch("graph_tools.simulation.simulate.Pager", PageByPage):
        assert simulate(graph, plan, slow, record=True) == result
    assert result.seconds == pytest.approx(result.compute_seconds + result.stall_seconds)
    assert 0 <= result.on_demand_bytes <= result.bytes_in
    assert list(result.group_ends) == sorted(result.group_ends) and len(result.group_ends) == len(plan.groups)
    assert sum(e.seconds for e in result.events if e.track == "compute") == pytest.approx(result.compute_seconds)
    copied = sum(e.seconds for e in result.events if e.track == "copy in") * slow.copy_rate
    assert copied == pytest.approx(result.bytes_in - result.on_demand_bytes)
    left = sum(e.seconds for e in result.events if e.track == "copy out") * slow.copy_rate
    assert left == pytest.approx(result.bytes_out)
    for name in ("on_demand_rate", "copy_rate", "memory_rate", "float32_flops"):
        quick = simulate(graph, plan, replace(slow, **{name: getattr(slow, name) * faster}))
        assert quick.seconds <= result.seconds * (1 + 1e-9)
        assert (quick.bytes_in, quick.bytes_out) == (result.bytes_in, result.bytes_out)
    assert simulate(graph, plan, slow) == replace(result, events=())


def reader(name, *inputs, size):
    return Op(name, "Conv2D", tuple(TensorRef(other, 0) for other in inputs), (Output(size),), flops=200)


def there_and_back():
    """A 40-byte map, 40 bytes that push it out, two small steps, and a use of the map."""
    ops = (reader("map", size=40), reader("push", size=40), reader("sum", "push", size=8))
    ops += (reader("wait", "sum", size=8), reader("rest", "wait", size=8), reader("use", "map", "rest", size=8))
    return OpGraph(ops, (TensorRef("use", 0),))


def test_a_fault_stalls_at_its_rate():
    graph, device = there_and_back(), machine(60)
    plan = plan_of(graph, 48, depth=0)
    plain = simulate(graph, plan, device)
    assert plain.compute_seconds == 60.0
    assert (plain.bytes_in, plain.on_demand_bytes) == (28, 28)
    assert plain.bytes_out == 28
    assert plain.stall_seconds == 28 / 2 + 28 / 1  # bytes that leave to make room, then those that fault in


def test_a_prefetch_hides_behind_the_group_before():
    graph, device = there_and_back(), machine(60)
    plan = plan_of(graph, 48, depth=1)
    result = simulate(graph, plan, device)
    assert [group.ops for group in plan.groups] == [("map",), ("push", "sum"), ("wait", "rest"), ("use",)]
    assert result.on_demand_bytes == 0
    assert result.seconds < simulate(graph, plan_of(graph, 48, depth=0), device).seconds


def test_evicting_frees_the_device_in_time():
    graph, device = there_and_back(), machine(60)
    plan = plan_of(graph, 48, depth=1)
    evicting = replace(plan, evictions=(Eviction(TensorRef("map", 0), 40, during=1, needed_by=3),))
    result = simulate(graph, evicting, device)
    assert result.bytes_out == result.bytes_in == 40


def test_budgets_are_refused_in_one_sentence():
    weights = OpGraph((Op("w", "VariableV2", (), (Output(100),), persistent=True),))
    with pytest.raises(BudgetError, match="variables and constants take 100 B, and the device has 60 B"):
        simulate(weights, plan_of(weights), machine(60))
    graph = there_and_back()
    with pytest.raises(BudgetError, match="the host has 8 B; give it more memory"):
        simulate(graph, plan_of(graph), replace(machine(60), host_bytes=8))
    small = chain(*[3] * 30)
    small = OpGraph(small.ops, tuple(TensorRef(op.name, 0) for op in small.ops))
    with pytest.raises(BudgetError, match="smaller than a page need 23 pages of the 15"):
        simulate(small, plan_of(small), machine(60))
    with pytest.raises(GraphToolsError, match="copy_rate = 0"):
        machine(copy_rate=0)
