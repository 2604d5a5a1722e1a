"""Plans that recompute runs of layers and evict what remains: a few are made, and the one that simulates fastest taken.

They differ in how much is left to the link. A first choice does not know how much room the copies themselves take when
they are made; where they exceed the device, the choice is made again with so much less to hold.
"""

import gc
from contextlib import contextmanager
from dataclasses import replace
from typing import Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from graph_tools.arrays import Array
from graph_tools.errors import BudgetError
from graph_tools.graph.lifetimes import lifetimes, live_bytes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.graph_edit import insert_copies, with_recomputes
from graph_tools.passes.eviction_schedule import schedule_evictions
from graph_tools.passes.group import group_ops
from graph_tools.passes.order import Order, choose_order
from graph_tools.passes.recompute_candidates import Candidates
from graph_tools.passes.recompute_choice import choose_recomputed, recomputes_of
from graph_tools.plan import Plan, Recompute
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.pages import held_pages
from graph_tools.simulation.simulate import Simulation, replay

_ROUNDS = 4  # of choosing again
_REFINEMENTS = 3  # of scheduling evictions again
_IDLE = 0.005  # part of a step that may be spent waiting


class _Attempt(NamedTuple):
    """What the choice aims at.

    Attributes:
        link_share: how much is evicted: part of what the link can carry by each time.
        ahead: see :func:`graph_tools.passes.recompute_choice.choose_recomputed`.
        room: part of the device to fill.
    """

    link_share: float = 0.0
    ahead: float = 1.0
    room: float = 1.0


_ATTEMPTS = (_Attempt(0.9, 0.1), _Attempt(0.9, 1.0), _Attempt(0.6, 0.1))
_ROOMS = (1.0, 0.95, 0.9, 0.8, 0.7)  # where what was planned for all of the device does not fit


def plan_recomputation(graph: OpGraph, order: str, limit: int, machine: Machine, smallest: int) -> Plan:
    """The fastest plan found.

    Args:
        order: kind of the order; ``auto`` means ``demand``.
        limit: bytes of a group.
        smallest: smaller tensors, in bytes, are neither evicted nor recomputed.

    Raises:
        BudgetError: no plan fits the device and the host.
    """
    ordered = choose_order(graph, "demand" if order == "auto" else order)
    if not graph.ops:
        return Plan((), limit, ordered.kind, ordered.reason, ordered.peak_bytes)
    with _no_collection():
        return _Search(graph, ordered, limit, machine, smallest).run()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's collector from walking through millions of tuples, none in a circle, again and again: a third of
    the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Copied:
    """A graph with its copies, in order, and what is held when."""

    def __init__(self, graph: OpGraph, order: Sequence[str], recomputes: Tuple[Recompute, ...], machine: Machine):
        self.recomputes = recomputes
        self.graph, self.names = with_recomputes(graph, recomputes, check=False), insert_copies(order, recomputes)
        self.life = lifetimes(self.graph, self.names)
        self.held_bytes = held_pages(self.graph, self.life, machine) * machine.page_bytes
        self.peak_bytes = int(live_bytes(self.graph, self.life).max(initial=0))


class _Found(NamedTuple):
    """A plan and what it was made from."""

    copied: _Copied
    attempt: _Attempt
    plan: Plan
    result: Simulation

    @property
    def seconds(self) -> float:
        return self.result.seconds


class _Search:
    def __init__(self, graph: OpGraph, order: Order, limit: int, machine: Machine, smallest: int):
        self._graph, self._order, self._limit = graph, order, limit
        self._machine, self._smallest = machine, smallest
        groups = group_ops(graph, order.names, limit)
        self._candidates = Candidates(graph, groups, machine, smallest)

    def run(self) -> Plan:
        best: Optional[_Found] = None
        refused: Optional[BudgetError] = None
        attempts = _ATTEMPTS if self._machine.host_bytes else ()
        for attempt in attempts + tuple(_Attempt(room=room) for room in _ROOMS):
            if best is not None and (attempt.link_share == 0 or best.result.stall_seconds < _IDLE * best.seconds):
                break  # less to evict would only be more to compute
            try:
                found = self._best_of(attempt)
            except BudgetError as error:
                refused = refused or error
                continue
            if best is None or found.seconds < best.seconds:
                best = found
        if best is None:
            assert refused is not None  # something was tried
            raise refused
        return self._refined(best).plan

    def _best_of(self, attempt: _Attempt) -> _Found:
        """The fastest plan of one attempt."""
        best: Optional[_Found] = None
        refused: Optional[BudgetError] = None
        wanted = target = self._most_held(attempt.link_share) * attempt.room
        for _ in range(_ROUNDS):
            recomputes = recomputes_of(self._candidates, choose_recomputed(self._candidates, target, attempt.ahead))
            copied = _Copied(self._graph, self._order.names, recomputes, self._machine)
            excess = np.maximum(self._by_original(copied) - wanted, 0)
            try:
                found = self._evicted(copied, attempt)
            except BudgetError as error:
                refused = error
            else:
                if best is not None and found.seconds >= best.seconds:
                    break
                best = found
            if not excess.any():
                break
            target = target - excess
        if best is None:
            assert refused is not None
            raise refused
        return best

    def _most_held(self, link_share: float) -> Array:
        """Bytes to hold at most at each position: what the device has room for, and what the link, used to some share,
        can have carried away by then and can still bring back."""
        machine, clock = self._machine, self._candidates.clock
        room = machine.device_bytes // machine.page_bytes * machine.page_bytes
        carried: Array = np.minimum(clock[:-1], clock[-1] - clock[1:]) * machine.copy_rate * link_share
        return room + carried

    def _by_original(self, copied: _Copied) -> Array:
        """The most bytes held while each operation of the order, and the copies right before it, run."""
        starts = np.array([name in self._candidates.position for name in copied.names], bool)
        first = np.concatenate([[0], np.flatnonzero(starts)[:-1] + 1])
        held: Array = np.maximum.reduceat(copied.held_bytes, first)
        return held

    def _refined(self, found: _Found) -> _Found:
        """A plan whose evictions are scheduled again by the times of the simulation, as long as that helps."""
        for _ in range(_REFINEMENTS):
            if not found.result.stall_seconds:
                break
            try:
                later = self._evicted(found.copied, found.attempt, found.result.group_ends)
            except BudgetError:
                break
            if later.seconds >= found.seconds:
                break
            found = later
        return found

    def _evicted(self, copied: _Copied, attempt: _Attempt, ends: Optional[Sequence[float]] = None) -> _Found:
        """The plan for some recomputations, with the evictions that they leave to do."""
        groups = group_ops(copied.graph, copied.names, self._limit, copied.life)
        schedule = schedule_evictions(copied.graph, groups, self._machine, self._smallest, ends, copied.life)
        plan = Plan(
            groups=groups,
            limit_bytes=self._limit,
            order=self._order.kind,
            order_reason=self._order.reason,
            peak_bytes=copied.peak_bytes,
            prefetches=schedule.prefetches,
            evictions=schedule.evictions,
            recomputes=copied.recomputes,
        )
        result = replay(copied.graph, plan, self._machine, life=copied.life)
        told = "recompute, link planned to {:.0%}, simulated {:.4g} s".format(attempt.link_share, result.seconds)
        return _Found(copied, attempt, replace(plan, memory_policy=told), result)
