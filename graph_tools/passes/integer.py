"""The choice between keeping, moving and recomputing as an integer program, solved by SciPy's HiGHS."""

from typing import List, Tuple

import numpy as np

from graph_tools.errors import BudgetError, SolverError
from graph_tools.passes.evict import KEEP, MOVE, RECOMPUTE, Problem, check_host
from graph_tools.sizes import readable

# The solver stops at the gap or after so many nodes, never by the clock: one problem gives one plan.
_GAP = 0.005
_MOST_NODES = 200
_MOST_COEFFICIENTS = 400000  # beyond, minutes pass before the first solution


def has_solver() -> bool:
    """Whether this machine's SciPy solves integer programs: 1.9 and newer do, which Python 3.7 does not get."""
    try:
        from scipy.optimize import milp  # noqa: F401
    except ImportError:
        return False
    return True


def choose_by_program(problem: Problem) -> Tuple[int, ...]:
    """Choose for all candidates at once.

    Minimises the sum over groups of the slowest of computing, copying in and copying out, plus the cost of paging what
    exceeds the device, under the budget of the host (see :mod:`graph_tools.passes.evict`).

    Returns:
        One of ``KEEP``, ``MOVE`` and ``RECOMPUTE`` for each candidate.

    Raises:
        BudgetError: the host is too small for every choice.
        SolverError: there is no solver, or the program is too large for it.
    """
    if not has_solver():
        raise SolverError("the integer program needs scipy 1.9 or newer; choose greedily instead")
    if not problem.candidates:
        check_host(problem, ())
        return ()
    from scipy.optimize import Bounds, LinearConstraint, milp

    coefficients = 2 * sum(item.needed - item.last for item in problem.candidates)
    if coefficients > _MOST_COEFFICIENTS:
        raise SolverError(
            "an integer program of {} coefficients takes too long; choose greedily, or leave more tensors out by their "
            "size".format(coefficients)
        )
    program = _Program(problem)
    result = milp(
        program.cost,
        integrality=program.integrality,
        bounds=Bounds(0, program.upper),
        constraints=LinearConstraint(program.matrix(), -np.inf, program.limits),
        options={"mip_rel_gap": _GAP, "node_limit": _MOST_NODES},
    )
    if result.status == 2:
        raise BudgetError(
            "no choice of tensors to move or recompute fits {} of host memory; give it more, use half precision, or "
            "shrink the input".format(readable(problem.machine.host_bytes))
        )
    if result.x is None:
        raise SolverError("the integer program has no solution within its work; choose greedily instead")
    actions = program.actions(result.x)
    check_host(problem, actions)
    return actions


class _Program:
    """Columns: for each candidate whether it is moved and whether it is recomputed, for each group its seconds and the
    bytes that the device has no room for, and last the bytes that are paged. Bytes are in units of the device's."""

    def __init__(self, problem: Problem):
        self._problem = problem
        count, groups = len(problem.candidates), len(problem.compute)
        self._count, self._groups = count, groups
        self._unit = float(problem.machine.device_bytes)
        self._room = problem.room()
        self._columns = 2 * count + 2 * groups + 1
        self.cost = np.zeros(self._columns)
        self.cost[2 * count : 2 * count + groups] = 1
        self.cost[-1] = problem.paging_cost * self._unit
        self.integrality = np.zeros(self._columns)
        self.integrality[: 2 * count] = 1
        self.upper = np.full(self._columns, np.inf)
        for number in range(count):
            allowed = problem.allowed(number)
            self.upper[number] = float(MOVE in allowed)
            self.upper[count + number] = float(RECOMPUTE in allowed)
        self._entries: List[Tuple[int, int, float]] = []  # row, column, value
        self._bounds: List[float] = []
        for group in range(groups):
            self._add_group(group)
        self._add_choices()
        self.limits = np.array(self._bounds)

    def matrix(self):
        """Coefficients of the constraints, sparse; each row is at most its limit."""
        from scipy.sparse import csr_matrix

        rows, columns, values = zip(*self._entries)
        return csr_matrix((values, (rows, columns)), shape=(len(self._bounds), self._columns))

    def actions(self, solution: np.ndarray) -> Tuple[int, ...]:
        """The choice of a solution."""
        moved, again = np.round(solution[: 2 * self._count]).astype(bool).reshape(2, self._count)
        return tuple(MOVE if m else RECOMPUTE if r else KEEP for m, r in zip(moved, again))

    def _row(self, limit, entries):
        row = len(self._bounds)
        self._bounds.append(limit)
        self._entries += [(row, column, value) for column, value in entries]

    def _add_group(self, group):
        problem, count = self._problem, self._count
        seconds, excess, paged = 2 * count + group, 2 * count + self._groups + group, self._columns - 1
        compute, copied_in, copied_out, device, host = [], [], [], [], []
        wanted = float(problem.held[group])
        for number, item in enumerate(problem.candidates):
            copy, size = item.bytes / problem.machine.copy_rate, item.bytes / self._unit
            if item.needed == group:
                compute.append((count + number, item.seconds))
            if item.last + 1 == group:
                copied_out.append((number, copy))
            if item.needed - 1 == group:
                copied_in.append((number, copy))
            if item.last < group < item.needed:
                wanted += item.bytes
                device.append((count + number, -size))
                if item.last + 1 < group < item.needed - 1:
                    device.append((number, -size))
                    host.append((number, size))
        self._row(-problem.compute[group], compute + [(seconds, -1)])
        self._row(0, copied_in + [(seconds, -1)])
        self._row(0, copied_out + [(seconds, -1)])
        self._row(1 - wanted / self._unit, device + [(excess, -1)])
        self._row((self._room[group] - wanted) / self._unit, device + [(paged, -1)])
        self._row(problem.machine.host_bytes / self._unit, host + [(excess, 1)])

    def _add_choices(self):
        count = self._count
        for number in range(count):
            self._row(1, [(number, 1), (count + number, 1)])
        for number, source, also_move in self._problem.conflicts():
            entries = [(count + number, 1), (count + source, 1)]
            self._row(1, entries + [(source, 1)] if also_move else entries)
