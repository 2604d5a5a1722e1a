"""For each large tensor: keep it on the device, move it to the host, or drop it and compute it again.

Time is predicted group by group: computing and both directions of the link run beside each other, so that a group
takes as long as the slowest of the three; what does not fit on the device at the worst time is paged once, at the cost
of a stall. A moved tensor leaves during the group after its last near use and comes back during the group before its
next one. Both solvers, greedy and integer program, minimise this prediction.
"""

from dataclasses import dataclass
from typing import Sequence, Tuple

import numpy as np

from graph_tools.errors import BudgetError
from graph_tools.graph.lifetimes import lifetimes, touched_bytes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.candidates import Candidate, find_candidates
from graph_tools.passes.group import Group, group_of, op_order
from graph_tools.simulation.machine import Machine
from graph_tools.sizes import readable

KEEP, MOVE, RECOMPUTE = range(3)


@dataclass(frozen=True)
class Problem:
    """What the choice is about.

    Attributes:
        candidates: tensors to choose for.
        compute: seconds of each group.
        held: bytes on the device during each group whatever is chosen.
        machine: budgets and rates.
    """

    candidates: Tuple[Candidate, ...]
    compute: Tuple[float, ...]
    held: Tuple[int, ...]
    machine: Machine

    def device_bytes(self, actions: Sequence[int]) -> np.ndarray:
        """Bytes wanted on the device during each group."""
        wanted = np.array(self.held, np.int64)
        for item, action in zip(self.candidates, actions):
            if action == KEEP:
                wanted[item.last + 1 : item.needed] += item.bytes
            elif action == MOVE:
                wanted[item.last + 1] += item.bytes
                wanted[item.needed - 1] += item.bytes
        return wanted

    def host_bytes(self, actions: Sequence[int]) -> np.ndarray:
        """Bytes on the host during each group: what was moved there, and what the device has no room for."""
        held = np.maximum(self.device_bytes(actions) - self.machine.device_bytes, 0)
        for item, action in zip(self.candidates, actions):
            if action == MOVE:
                held[item.last + 2 : item.needed - 1] += item.bytes
        return held

    def seconds(self, actions: Sequence[int]) -> float:
        """Predicted time of the step."""
        compute, copied_in, copied_out = self.loads(actions)
        paged = (self.device_bytes(actions) - np.array(self.room(), np.int64)).max(initial=0)
        return float(np.maximum(np.maximum(compute, copied_in), copied_out).sum() + paged * self.paging_cost)

    def room(self) -> Tuple[int, ...]:
        """Bytes in each group beyond which choices cause paging: the device's, or what is held whatever is chosen."""
        return tuple(max(self.machine.device_bytes, held) for held in self.held)

    def loads(self, actions: Sequence[int]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seconds of computing, of copying in and of copying out in each group."""
        compute, copied_in, copied_out = np.array(self.compute), *np.zeros((2, len(self.compute)))
        for item, action in zip(self.candidates, actions):
            if action == RECOMPUTE:
                compute[item.needed] += item.seconds
            elif action == MOVE:
                copied_out[item.last + 1] += item.bytes / self.machine.copy_rate
                copied_in[item.needed - 1] += item.bytes / self.machine.copy_rate
        return compute, copied_in, copied_out

    @property
    def paging_cost(self) -> float:
        """Seconds per byte that is pushed out for lack of room and comes back by page fault."""
        return 1 / self.machine.copy_rate + 1 / self.machine.on_demand_rate

    def allowed(self, number: int) -> Tuple[int, ...]:
        """What can be chosen for a candidate by itself."""
        item = self.candidates[number]
        movable = item.needed - item.last >= 3  # else it would come back while it leaves
        return (KEEP,) + ((MOVE,) if movable else ()) + ((RECOMPUTE,) if item.ops else ())

    def conflicts(self) -> Tuple[Tuple[int, int, bool], ...]:
        """Pairs (recomputed, source, also_move): the source shall not be recomputed, nor, if so marked, moved.

        A recomputation reads its sources when its tensor is needed: they must still, or again, be there.
        """
        found = []
        for number, item in enumerate(self.candidates):
            for source in item.sources:
                other = self.candidates[source]
                if other.last < item.needed and source != number:
                    found.append((number, source, item.needed < other.needed))
        return tuple(found)


def make_problem(graph: OpGraph, groups: Sequence[Group], machine: Machine, smallest: int) -> Problem:
    """The choice for a grouped graph; tensors smaller than so many bytes are kept."""
    candidates = find_candidates(graph, groups, machine, smallest)
    life, named, number_of = lifetimes(graph, op_order(groups)), graph.by_name(), group_of(groups)
    compute = np.zeros(len(groups))
    for name, touched in zip(life.order, touched_bytes(graph, life)):
        compute[number_of[name]] += machine.seconds(named[name], touched)
    held = np.array([group.bytes + group.carried_bytes for group in groups], np.int64)
    for item in candidates:
        held[item.last + 1 : item.needed] -= item.bytes
    return Problem(candidates, tuple(compute.tolist()), tuple(held.tolist()), machine)


def check_host(problem: Problem, actions: Sequence[int]):
    """Refuse a choice that the host has no room for.

    Raises:
        BudgetError: says how much is missing.
    """
    peak = int(problem.host_bytes(actions).max(initial=0))
    if peak > problem.machine.host_bytes:
        raise BudgetError(
            "the step needs {} of host memory and there are {}; give it more, use half precision, or shrink the "
            "input".format(readable(peak), readable(problem.machine.host_bytes))
        )


def choose_greedily(problem: Problem) -> Tuple[int, ...]:
    """Take tensors off the device, one at a time, until every group fits or nothing helps.

    The group that exceeds the device most is relieved by the choice that adds the least time per byte, as long as that
    is less than paging costs; what exceeds device and host together is relieved first, by recomputation alone.

    Returns:
        One of ``KEEP``, ``MOVE`` and ``RECOMPUTE`` for each candidate.

    Raises:
        BudgetError: the host is too small.
    """
    actions = _Greedy(problem).run()
    check_host(problem, actions)
    return actions


class _Greedy:
    """The state of the choice: what is chosen, what can still be, and the load of each group."""

    def __init__(self, problem: Problem):
        self._problem = problem
        items = problem.candidates
        self._actions = [KEEP] * len(items)
        self._last, self._needed, self._bytes = (
            np.array([getattr(item, name) for item in items], np.int64) for name in ("last", "needed", "bytes")
        )
        self._again = np.array([item.seconds for item in items])
        self._copy = self._bytes / problem.machine.copy_rate
        self._can = {
            action: np.array([action in problem.allowed(n) for n in range(len(items))], bool)
            for action in (MOVE, RECOMPUTE)
        }
        self._blocks = self._blocked_by()
        self._compute, self._in, self._out = problem.loads(self._actions)
        self._device, self._total = problem.device_bytes(self._actions), problem.device_bytes(self._actions)

    def run(self) -> Tuple[int, ...]:
        machine = self._problem.machine
        if self._actions:
            self._relieve(self._total, machine.device_bytes + machine.host_bytes, (RECOMPUTE,), np.inf)
            self._relieve(self._device, machine.device_bytes, (MOVE, RECOMPUTE), self._problem.paging_cost)
        return tuple(self._actions)

    def _blocked_by(self):
        """For each choice the choices that it rules out."""
        blocks = {}
        for number, source, also_move in self._problem.conflicts():
            for action in (RECOMPUTE, MOVE) if also_move else (RECOMPUTE,):
                blocks.setdefault((number, RECOMPUTE), []).append((source, action))
                blocks.setdefault((source, action), []).append((number, RECOMPUTE))
        return blocks

    def _relieve(self, held, budget, actions, worth):
        """Choose until every group fits the budget, or no choice adds less than so many seconds per byte."""
        hopeless = np.zeros(len(held), bool)
        while True:
            over = np.where(hopeless, 0, held - budget)
            group = int(over.argmax())
            if over[group] <= 0:
                return
            best = min(self._best(group, action) for action in actions)
            if best[0] >= worth:
                hopeless[group] = True
            else:
                self._take(*best[1:])

    def _best(self, group, action) -> Tuple[float, int, int]:
        """Added seconds per byte, number and action of the best choice that relieves a group."""
        reach = 1 if action == MOVE else 0
        covers = (self._last + reach < group) & (group < self._needed - reach) & self._can[action]
        numbers = np.flatnonzero(covers)
        if not len(numbers):
            return np.inf, 0, action
        cost = self._added(action, numbers) / self._bytes[numbers]
        numbers = numbers[cost == cost.min()]
        number = numbers[(self._needed - self._last)[numbers].argmax()]  # of equals, what stays away for longest
        return float(cost.min()), int(number), action

    def _added(self, action, numbers):
        """Seconds that a choice adds to the step, for some candidates."""
        if action == RECOMPUTE:
            return self._grows(self._compute, self._needed[numbers], self._again[numbers])
        copy = self._copy[numbers]
        leaving = self._grows(self._out, self._last[numbers] + 1, copy)
        return leaving + self._grows(self._in, self._needed[numbers] - 1, copy)

    def _grows(self, load, groups, seconds):
        bound = np.maximum(np.maximum(self._compute[groups], self._in[groups]), self._out[groups])
        return np.maximum(bound, load[groups] + seconds) - bound

    def _take(self, number, action):
        self._actions[number] = action
        last, needed, size = self._last[number], self._needed[number], self._bytes[number]
        self._device[last + 1 : needed] -= size
        if action == MOVE:
            self._device[[last + 1, needed - 1]] += size
            self._out[last + 1] += self._copy[number]
            self._in[needed - 1] += self._copy[number]
        else:
            self._total[last + 1 : needed] -= size
            self._compute[needed] += self._again[number]
        for other in (MOVE, RECOMPUTE):
            self._can[other][number] = False
        for other, ruled_out in self._blocks.get((number, action), ()):
            self._can[ruled_out][other] = False
