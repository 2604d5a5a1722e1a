"""From a graph to a plan: order, groups, what moves or is computed again, what is fetched ahead."""

from dataclasses import replace
from typing import Callable, Dict, Optional, Sequence, Tuple

from graph_tools.errors import BudgetError, PlanError, SolverError
from graph_tools.graph.lifetimes import lifetimes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.evict import KEEP, MOVE, RECOMPUTE, Problem, check_host, choose_greedily, make_problem
from graph_tools.passes.group import Group, group_ops, op_order
from graph_tools.passes.integer import choose_by_program
from graph_tools.passes.order import Order, choose_order, peak_bytes
from graph_tools.passes.prefetch import group_uses, plan_prefetches
from graph_tools.passes.recompute import insert_copies, with_recomputes
from graph_tools.passes.rematerialised import rematerialised
from graph_tools.plan import Eviction, Plan, Recompute
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import simulate

CHOICES = ("keep", "greedy", "integer", "remat", "best")


def make_plan(
    graph: OpGraph,
    limit: int,
    order: str = "auto",
    depth: int = 1,
    choice: str = "keep",
    machine: Optional[Machine] = None,
    smallest: int = 0,
) -> Plan:
    """Plan one step of a graph. One graph and the same arguments always give the same plan.

    Args:
        limit: bytes that the operations of a group may touch together.
        order: see :func:`graph_tools.passes.order.choose_order`; with ``remat`` ``auto`` means ``demand``, since what
            is dropped no longer counts for the memory that the other orders are compared by.
        depth: groups ahead that a prefetch may run; 0 plans none, 1 is the paper's. ``remat`` decides by itself.
        choice: ``keep`` leaves all tensors to the device's own paging, as the paper does; ``greedy`` and ``integer``
            move or recompute single tensors; ``remat`` recomputes whole runs of layers from shared copies and spreads
            moves over the step; ``best`` makes these plans, the integer one where a solver is there, and takes the
            one that simulates fastest.
        machine: budgets and rates; needed for every choice but ``keep``.
        smallest: smaller tensors, in bytes, are neither fetched ahead, moved nor recomputed.

    Raises:
        GraphToolsError: the arguments contradict each other, or memory does not suffice.
    """
    if choice not in CHOICES:
        raise PlanError("unknown choice '{}'; use one of {}".format(choice, ", ".join(CHOICES)))
    if choice != "keep" and machine is None:
        raise PlanError("the choice '{}' needs budgets and rates; give a machine".format(choice))
    if choice == "remat":
        return rematerialised(graph, order, limit, machine, smallest)
    ordered = choose_order(graph, order)
    groups = group_ops(graph, ordered.names, limit)
    planner = _Planner(graph, ordered, limit, depth, machine, smallest)
    if choice == "keep":
        return planner.plan(groups, (), (), "")
    problem = make_problem(graph, groups, machine, max(smallest, 1))
    solvers = {"greedy": choose_greedily, "integer": choose_by_program}
    if choice != "best":
        return planner.chosen(groups, problem, solvers[choice](problem), choice)
    makers = {
        name: lambda name=name, solve=solve: planner.chosen(groups, problem, solve(problem), name)
        for name, solve in {"keep": _keep_all, **solvers}.items()
    }
    makers["remat"] = lambda: rematerialised(graph, order, limit, machine, smallest)
    return _best(graph, machine, makers)


def unplanned(graph: OpGraph, order: str = "topological") -> Plan:
    """Plain unified memory: all operations in one group, nothing fetched ahead."""
    ordered = choose_order(graph, order)
    groups = group_ops(graph, ordered.names, 2**62)
    return Plan(groups, 2**62, ordered.kind, ordered.reason, ordered.peak_bytes)


class _Planner:
    def __init__(self, graph: OpGraph, order: Order, limit: int, depth: int, machine: Optional[Machine], smallest: int):
        self._graph, self._order, self._limit, self._depth = graph, order, limit, depth
        self._machine, self._smallest = machine, smallest

    def plan(self, groups, recomputes: Tuple[Recompute, ...], moved, choice: str) -> Plan:
        """The plan for given choices; recomputation adds operations, and so its groups are made anew."""
        graph, names, peak = self._graph, self._order.names, self._order.peak_bytes
        if recomputes:
            graph, names = with_recomputes(graph, recomputes), insert_copies(names, recomputes)
            groups, peak = group_ops(graph, names, self._limit), peak_bytes(graph, names)
        capacity = None if self._machine is None else self._machine.device_bytes
        return Plan(
            groups=groups,
            limit_bytes=self._limit,
            order=self._order.kind,
            order_reason=self._order.reason,
            peak_bytes=peak,
            prefetches=plan_prefetches(graph, groups, self._depth, self._smallest, capacity),
            evictions=_evictions(graph, groups, moved),
            recomputes=recomputes,
            choice=choice,
        )

    def chosen(self, groups: Sequence[Group], problem: Problem, actions: Sequence[int], solver: str) -> Plan:
        """The plan of a solver's choice."""
        picked = list(zip(problem.candidates, actions))
        recomputes = tuple(
            Recompute(item.tensor, item.bytes, item.ops, item.readers)
            for item, action in sorted(picked, key=lambda pair: pair[0].needed)
            if action == RECOMPUTE
        )
        moved = {item.tensor for item, action in picked if action == MOVE}
        return self.plan(groups, recomputes, moved, "{}, predicted {:.4g} s".format(solver, problem.seconds(actions)))


def _best(graph: OpGraph, machine: Machine, makers: Dict[str, Callable[[], Plan]]) -> Plan:
    """The plan that simulates fastest of those that can be made."""
    plans, times, refused = {}, {}, None
    for name, make in makers.items():
        try:
            plan = make()
            plans[name], times[name] = plan, simulate(graph, plan, machine).seconds
        except SolverError:  # no solver here, or the program is too large for it: the others remain
            continue
        except BudgetError as error:
            refused = error
    if not plans:
        raise refused
    winner = min(times, key=times.get)
    told = ", ".join("{} {:.4g} s".format(name, seconds) for name, seconds in times.items())
    return replace(plans[winner], choice="{}, simulated: {}".format(winner, told))


def _keep_all(problem: Problem) -> Tuple[int, ...]:
    actions = (KEEP,) * len(problem.candidates)
    check_host(problem, actions)
    return actions


def _evictions(graph: OpGraph, groups: Sequence[Group], moved) -> Tuple[Eviction, ...]:
    """Each moved tensor leaves right after the group before the longest time in which no group touches it."""
    if not moved:
        return ()
    life = lifetimes(graph, op_order(groups))
    storages = {life.holder[tensor] for tensor in moved}
    best = {}
    for use in group_uses(graph, life, groups):
        gap = use.group - use.last
        known = best.get(use.storage)
        if use.storage in storages and gap >= 3 and (known is None or gap > known.group - known.last):
            best[use.storage] = use
    leaving = (Eviction(use.tensor, life.storages[use.storage].bytes, use.last + 1, use.group) for use in best.values())
    return tuple(sorted(leaving, key=lambda item: (item.during, item.needed_by, item.tensor)))
