"""Replays a plan against a model of unified memory: pages, links and compute; nothing is run."""

from collections import deque
from dataclasses import dataclass
from typing import Deque, Dict, List, Optional, Sequence, Tuple, Union

from graph_tools.errors import BudgetError
from graph_tools.graph.lifetimes import Lifetimes, lifetimes, touched_bytes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.graph_edit import with_recomputes
from graph_tools.plan import Eviction, Plan, Prefetch
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.pager import Moved, Pager
from graph_tools.simulation.pages import small_peak_bytes
from graph_tools.units import readable


@dataclass(frozen=True)
class Event:
    """One entry of the timeline, for :mod:`graph_tools.simulation.chrome_trace`.

    Attributes:
        track: ``compute``, ``stall``, ``copy in`` or ``copy out``.
        name: operation or tensor.
        start: in seconds.
        seconds: how long.
        group: number of the group that it belongs to.
    """

    track: str
    name: str
    start: float
    seconds: float
    group: int


@dataclass(frozen=True)
class Simulation:
    """What one step costs.

    Attributes:
        seconds: length of the step.
        compute_seconds: of it, computing.
        stall_seconds: of it, waiting for pages.
        bytes_in: moved from host to device, whole pages.
        bytes_out: moved from device to host.
        on_demand_bytes: of ``bytes_in``, by page faults.
        peak_device_bytes: the most that the device held.
        peak_host_bytes: the most that the host held.
        group_ends: when each group was done, in seconds.
        group_device_bytes: what the device held then.
        group_host_bytes: what the host held then.
        events: the timeline, where it was asked for.
    """

    seconds: float
    compute_seconds: float
    stall_seconds: float
    bytes_in: int
    bytes_out: int
    on_demand_bytes: int
    peak_device_bytes: int
    peak_host_bytes: int
    group_ends: Tuple[float, ...]
    group_device_bytes: Tuple[int, ...]
    group_host_bytes: Tuple[int, ...]
    events: Tuple[Event, ...] = ()


def simulate(graph: OpGraph, plan: Plan, machine: Machine, record: bool = False) -> Simulation:
    """Replay one step.

    Operations run one after another. What they touch comes by page fault, during which they wait, unless a prefetch
    has brought it; to make room the least recently used pages leave. Faults and copies do not slow each other. Which
    pages move depends on the plan alone, not on any rate, so that a faster machine never takes longer. Variables are on
    the device at the start as far as they fit; tensors smaller than a page share pages that stay on the device.

    Args:
        graph: the graph that was planned.
        record: whether to keep the timeline.

    Raises:
        BudgetError: the variables exceed the device, or what is held exceeds device and host together.
        PlanError: the plan is not one of this graph.
    """
    return replay(with_recomputes(graph, plan.recomputes), plan, machine, record)


def replay(
    graph: OpGraph, plan: Plan, machine: Machine, record: bool = False, life: Optional[Lifetimes] = None
) -> Simulation:
    """What :func:`simulate` does, for a graph that has the copies of recomputed operations already.

    Args:
        life: of the plan's order, where it is known.
    """
    return _Replay(graph, plan, machine, record, life or lifetimes(graph, plan.op_order)).run()


class _Replay:
    def __init__(self, graph: OpGraph, plan: Plan, machine: Machine, record: bool, life: Lifetimes):
        self._machine, self._plan = machine, plan
        self._named = graph.by_name()
        self._life = life
        self._touched = touched_bytes(graph, self._life)
        self._check_variables()
        workspaces = [op.workspace_bytes for op in (self._named[name] for name in self._life.order)]
        sizes = [storage.bytes for storage in self._life.storages]
        self._first_workspace = len(sizes)  # a workspace is a storage that one operation makes and drops
        pages = [machine.pages(size) if size >= machine.page_bytes else 0 for size in sizes + workspaces]
        self._pages = pages
        self._reserve = machine.pages(small_peak_bytes(self._life, workspaces, machine.page_bytes))
        capacity = machine.device_bytes // machine.page_bytes - self._reserve
        if capacity < 1:
            raise BudgetError(
                "tensors smaller than a page need {} pages of the {} that {} of device memory have; give more".format(
                    self._reserve, capacity + self._reserve, readable(machine.device_bytes)
                )
            )
        self._pager = Pager(capacity, pages)
        self._links = _Links(machine, capacity)
        self._arrival: Dict[int, float] = {}  # when the pages of a prefetched storage are there
        self._events: Optional[List[Event]] = [] if record else None
        self._now = self._computed = self._stalled = 0.0
        self._faults = self._in = self._out = 0
        self._peak_device = self._peak_host = 0
        self._group = 0

    def run(self) -> Simulation:
        self._place_variables()
        dies: List[List[int]] = [[] for _ in self._life.order]
        for number, storage in enumerate(self._life.storages):
            if storage.last < len(dies):
                dies[storage.last].append(number)
        incoming, outgoing = self._by_group(self._plan.prefetches), self._by_group(self._plan.evictions)
        position = 0
        ends: List[Tuple[float, int, int]] = []
        for number, group in enumerate(self._plan.groups):
            self._group = number
            for copy in outgoing[number]:
                self._evict(*copy)
            for copy in incoming[number]:
                self._prefetch(*copy)
            for name in group.ops:
                self._run_op(position, name)
                for dead in dies[position]:
                    self._drop(dead)
                position += 1
            ends.append((self._now, self._device_bytes(), self._host_bytes()))
        page = self._machine.page_bytes
        return Simulation(
            seconds=self._now,
            compute_seconds=self._computed,
            stall_seconds=self._stalled,
            bytes_in=self._in * page,
            bytes_out=self._out * page,
            on_demand_bytes=self._faults * page,
            peak_device_bytes=self._peak_device,
            peak_host_bytes=self._peak_host,
            group_ends=tuple(end for end, _, _ in ends),
            group_device_bytes=tuple(device for _, device, _ in ends),
            group_host_bytes=tuple(host for _, _, host in ends),
            events=tuple(self._events or ()),
        )

    def _check_variables(self) -> None:
        held = sum(storage.bytes for storage in self._life.storages if storage.made < 0)
        if held > self._machine.device_bytes:
            raise BudgetError(
                "variables and constants take {}, and the device has {}; give it more memory or make the model "
                "smaller".format(readable(held), readable(self._machine.device_bytes))
            )

    def _place_variables(self) -> None:
        for number, storage in enumerate(self._life.storages):
            if storage.made < 0 and self._pages[number]:
                if self._pages[number] <= self._pager.free:
                    self._links.take(self._pager.make(number).taken, 0.0)
                else:
                    self._pager.start_on_host(number)
        self._check_room("the start")

    def _by_group(self, copies: Sequence[Union[Prefetch, Eviction]]) -> List[List[Tuple[int, str]]]:
        """Storages to copy at the start of each group, with the names of their tensors."""
        found: List[List[Tuple[int, str]]] = [[] for _ in self._plan.groups]
        for copy in copies:
            found[copy.during].append((self._life.holder[copy.tensor], str(copy.tensor)))
        return found

    def _evict(self, number: int, name: str) -> None:
        self._make_room(self._pager.evict(number), name)

    def _prefetch(self, number: int, name: str) -> None:
        if not self._pages[number]:
            return
        moved = self._pager.prefetch(number)
        self._in += moved.came
        there = self._make_room(moved, name)
        if moved.came:
            start, seconds = self._links.receive(moved.came, there)
            self._arrival[number] = start + seconds
            self._note("copy in", name, start, seconds)

    def _make_room(self, moved: Moved, name: str) -> float:
        """Send what leaves the device and fill what is filled; returns when there is room for all of it."""
        self._out += moved.left
        self._note("copy out", name, *self._links.send(moved.left, self._now))
        self._check_room(name)
        return self._links.take(moved.taken, self._now)

    def _run_op(self, position: int, name: str) -> None:
        machine, begin = self._machine, self._now
        used = self._life.touches[position] + (self._first_workspace + position,)
        start, came = begin, 0
        for number in used:
            if not self._pages[number]:
                continue
            new = number >= self._first_workspace or self._life.storages[number].made == position
            moved = self._pager.make(number) if new else self._pager.touch(number)
            start = max(start, self._arrival.pop(number, start), self._make_room(moved, name))
            came += moved.came
        self._drop(self._first_workspace + position)
        self._in += came
        self._faults += came
        op = self._named[name]
        fault = came * machine.page_bytes / machine.on_demand_rate
        compute = machine.seconds(op, self._touched[position])
        stall = start - begin + fault
        self._now = begin + stall + compute
        self._computed += compute
        self._stalled += stall
        self._note("stall", name, begin, stall)
        self._note("compute", name, begin + stall, compute)

    def _drop(self, number: int) -> None:
        if self._pages[number]:
            self._links.release(self._pager.drop(number))
            self._arrival.pop(number, None)

    def _device_bytes(self) -> int:
        return (self._pager.capacity - self._pager.free + self._reserve) * self._machine.page_bytes

    def _host_bytes(self) -> int:
        return self._pager.on_host * self._machine.page_bytes

    def _check_room(self, name: str) -> None:
        self._peak_device = max(self._peak_device, self._device_bytes())
        self._peak_host = max(self._peak_host, self._host_bytes())
        if self._host_bytes() > self._machine.host_bytes:
            raise BudgetError(
                "at {} the step holds {} on the device and {} on the host, and the host has {}; give it more memory, "
                "use half precision, recompute, or shrink the input".format(
                    name, *(readable(n) for n in (self._device_bytes(), self._host_bytes(), self._machine.host_bytes))
                )
            )

    def _note(self, track: str, name: str, start: float, seconds: float) -> None:
        if self._events is not None and seconds > 0:
            self._events.append(Event(track, name, start, seconds, self._group))


class _Links:
    """When both directions of the link are free, and from when on the free pages of the device can be used.

    Pages that an operation's end freed are usable at once and taken first; those that are leaving are taken in the
    order in which they leave, and not before they have left.
    """

    def __init__(self, machine: Machine, free: int):
        self._seconds_per_page = machine.page_bytes / machine.copy_rate
        self._in_free = self._out_free = 0.0
        self._usable = free
        self._leaving: Deque[Tuple[float, int]] = deque()  # (when they have left, pages)

    def send(self, pages: int, now: float) -> Tuple[float, float]:
        """Pages leave the device; returns start and length of the copy."""
        start, seconds = max(self._out_free, now), pages * self._seconds_per_page
        if pages:
            self._out_free = start + seconds
            self._leaving.append((self._out_free, pages))
        return start, seconds

    def receive(self, pages: int, now: float) -> Tuple[float, float]:
        """Pages come to the device; returns start and length of the copy."""
        start, seconds = max(self._in_free, now), pages * self._seconds_per_page
        if pages:
            self._in_free = start + seconds
        return start, seconds

    def release(self, pages: int) -> None:
        """Pages became free because nobody needs them any more."""
        self._usable += pages

    def take(self, pages: int, now: float) -> float:
        """Fill free pages; returns when the last of them is free."""
        at_once = min(self._usable, pages)
        self._usable -= at_once
        missing, ready = pages - at_once, now
        while missing:
            when, leaving = self._leaving.popleft()
            ready = max(ready, when)
            if leaving > missing:
                self._leaving.appendleft((when, leaving - missing))
            missing -= min(leaving, missing)
        return ready
