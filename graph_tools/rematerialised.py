"""Plans that recompute runs of layers and move what remains: a few are made, and the one that simulates fastest taken.

They differ in how much is left to the link. A first choice does not know how much room the copies themselves take when
they are made; where they exceed the device, the choice is made again with so much less to hold.
"""

from dataclasses import replace
from typing import Optional, Sequence, Tuple

import numpy as np

from graph_tools.errors import BudgetError
from graph_tools.group import group_ops
from graph_tools.lifetimes import lifetimes, live_bytes
from graph_tools.machine import Machine
from graph_tools.moves import plan_moves
from graph_tools.opgraph import OpGraph
from graph_tools.order import Order, choose_order
from graph_tools.pages import held_pages
from graph_tools.plan import Plan, Recompute
from graph_tools.recompute import insert_copies, with_recomputes
from graph_tools.remat import Rematerialiser
from graph_tools.simulate import Simulation, replay

_LINK_SHARES = (0.9, 0.6, 0.3)  # of what the link can carry by each time
_ROOMS = (1.0, 0.95, 0.9, 0.8, 0.7)  # parts of the device to aim at where a plan for all of it does not fit
_ROUNDS = 4  # of choosing again


def rematerialised(graph: OpGraph, order: str, limit: int, machine: Machine, smallest: int) -> Plan:
    """The fastest plan found.

    Args:
        order: kind of the order; ``auto`` means ``demand``.
        limit: bytes of a group.
        smallest: smaller tensors, in bytes, are neither moved nor recomputed.

    Raises:
        BudgetError: no plan fits the device and the host.
    """
    ordered = choose_order(graph, "demand" if order == "auto" else order)
    return _Search(graph, ordered, limit, machine, smallest).run()


class _Search:
    def __init__(self, graph: OpGraph, order: Order, limit: int, machine: Machine, smallest: int):
        self._graph, self._order, self._limit = graph, order, limit
        self._machine, self._smallest = machine, smallest
        groups = group_ops(graph, order.names, limit)
        self._chooser = Rematerialiser(graph, groups, machine, smallest)

    def run(self) -> Plan:
        best, refused = None, None
        attempts = [(share, 1.0) for share in _LINK_SHARES] if self._machine.host_bytes else []
        for share, room in attempts + [(0.0, room) for room in _ROOMS]:
            if best is not None and room < 1:
                break
            try:
                seconds, plan = self._best_of(share, room)
            except BudgetError as error:
                refused = refused or error
                continue
            if best is not None and seconds >= best[0]:
                break  # with less moved it only takes longer
            best = seconds, plan
            if not plan.recomputes:
                break
        if best is None:
            raise refused
        return best[1]

    def _best_of(self, share: float, room: float) -> Tuple[float, Plan]:
        """The fastest plan that uses the link to some share and aims at a part of the device, and its time."""
        best: Optional[Tuple[float, Plan]] = None
        refused = None
        wanted = target = self._chooser.target(share) * room
        for _ in range(_ROUNDS):
            recomputes = self._chooser.recomputes(self._chooser.choose(target))
            copied = _Copied(self._graph, self._order.names, recomputes, self._machine)
            excess = np.maximum(self._chooser.by_original(copied.names, copied.held) - wanted, 0)
            try:
                plan, result = self._moved(copied)
            except BudgetError as error:
                refused = error
            else:
                if best is None or result.seconds < best[0]:
                    told = "remat, link planned to {:.0%}, simulated {:.4g} s".format(share, result.seconds)
                    best = result.seconds, replace(plan, choice=told)
            if not excess.any():
                break
            target = target - excess
        if best is None:
            raise refused
        return best

    def _moved(self, copied: "_Copied") -> Tuple[Plan, Simulation]:
        """The plan for some recomputations, with the moves that they leave to do."""
        groups = group_ops(copied.graph, copied.names, self._limit, copied.life)
        moves = plan_moves(copied.graph, groups, self._machine, self._smallest, life=copied.life)
        plan = Plan(
            groups=groups,
            limit_bytes=self._limit,
            order=self._order.kind,
            order_reason=self._order.reason,
            peak_bytes=copied.peak_bytes,
            prefetches=moves.prefetches,
            evictions=moves.evictions,
            recomputes=copied.recomputes,
        )
        return plan, replay(copied.graph, plan, self._machine, life=copied.life)


class _Copied:
    """A graph with its copies, in order, and what is held when."""

    def __init__(self, graph: OpGraph, order: Sequence[str], recomputes: Tuple[Recompute, ...], machine: Machine):
        self.recomputes = recomputes
        self.graph, self.names = with_recomputes(graph, recomputes), insert_copies(order, recomputes)
        self.life = lifetimes(self.graph, self.names)
        self.held = held_pages(self.graph, self.life, machine) * machine.page_bytes
        self.peak_bytes = int(live_bytes(self.graph, self.life).max(initial=0))
