"""Checks, on what TensorFlow made of an edited graph and on how it ran, that the plan was kept."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, DefaultDict, Dict, List, Mapping, NamedTuple, Sequence, Tuple, Union

import tensorflow.compat.v1 as tf

from graph_tools.errors import PlanError
from graph_tools.graph.optypes import is_free
from graph_tools.plan import Eviction, Plan, Prefetch
from graph_tools.tensorflow.apply import eviction_name, prefetch_name

# Operations of a group that are there, by group, and copies of the plan with the names of their operations.
_Members = Sequence[Sequence[str]]
_Copies = Sequence[Tuple[str, Union[Prefetch, Eviction]]]


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    Attributes:
        groups: groups that were checked.
        ops: operations that were checked, after Grappler.
        vanished: operations of the plan that Grappler folded, fused or pruned; nothing can be said about them.
        copies: prefetches and evictions that were checked.
        overlapped: of these, those that started while operations of their group were still to end.
        edge_violations: sentences: what the edges of the graph that ran allow to run at another time than planned.
        time_violations: sentences: what did run at another time, by the recorded times. These are the system's, so
            that a clock that is set during the run shows here although the plan was kept.
    """

    groups: int
    ops: int
    vanished: int
    copies: int
    overlapped: int
    edge_violations: Tuple[str, ...] = ()
    time_violations: Tuple[str, ...] = ()

    @property
    def violations(self) -> Tuple[str, ...]:
        """All of them; none where the plan was kept."""
        return self.edge_violations + self.time_violations

    def check(self) -> None:
        """Raise where the plan was not kept.

        Raises:
            PlanError: names the first violation.
        """
        if self.violations:
            raise PlanError(
                "the plan was not kept: {} ({} violations); open the session with session_config()".format(
                    "; ".join(self.violations[:1]), len(self.violations)
                )
            )


class Interval(NamedTuple):
    """When an operation ran, in nanoseconds."""

    start: int
    end: int


def trace_options() -> tf.RunOptions:
    """Options of the run whose metadata :func:`verify` needs."""
    return tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE, output_partition_graphs=True)


def verify(plan: Plan, metadata: tf.RunMetadata) -> VerifyReport:
    """Check a run of an edited graph that was made with :func:`trace_options`.

    On the graph after Grappler: every operation of a group has all of the group before among its ancestors. On the
    recorded times: no operation starts before the last of the group before has ended; each prefetch and eviction starts
    after the group before its own has ended, and before the group after its own starts.

    Raises:
        PlanError: the metadata hold no partition graphs or no times.
    """
    nodes = {node.name: node for graph in metadata.partition_graphs for node in graph.node}
    times = _times(metadata)
    if not nodes or not times:
        raise PlanError("the run recorded no graphs or no times; run it with trace_options()")
    members = [[name for name in group.ops if name in nodes and not _is_free(nodes, name)] for group in plan.groups]
    checked = sum(map(len, members))
    vanished = sum(name not in nodes for group in plan.groups for name in group.ops)
    copies = [(name, copy) for name, copy in _named_copies(plan) if name in nodes]
    late, overlapped = _check_copies(members, copies, times)
    return VerifyReport(
        groups=len(plan.groups),
        ops=checked,
        vanished=vanished,
        copies=len(copies),
        overlapped=overlapped,
        edge_violations=tuple(_check_edges(nodes, members)),
        time_violations=tuple(_check_times(members, times) + late),
    )


def _named_copies(plan: Plan) -> _Copies:
    """Copies of a plan with the names of their operations."""
    prefetches = [(prefetch_name(number), copy) for number, copy in enumerate(plan.prefetches)]
    return [*prefetches, *((eviction_name(number), copy) for number, copy in enumerate(plan.evictions))]


def _is_free(nodes: Mapping[str, Any], name: str) -> bool:
    node = nodes[name]
    first = _input_name(node.input[0]) if node.input else ""
    return is_free(node.op, nodes[first].op if first in nodes else "")


def _input_name(text: str) -> str:
    return text.lstrip("^").split(":")[0]


def _times(metadata: tf.RunMetadata) -> Dict[str, Interval]:
    """When operations ran on the devices that own them; entries of libraries and copies of streams are left out."""
    times = {}
    for device in metadata.step_stats.dev_stats:
        if "/device:" in device.device and "stream" not in device.device:
            for node in device.node_stats:
                end = node.all_start_nanos + node.all_end_rel_nanos
                times[node.node_name] = Interval(node.all_start_nanos, end)
    return times


def _edges(nodes: Mapping[str, Any]) -> Dict[str, List[str]]:
    """Sources of each node; what one device receives comes from where another sends it."""
    senders = {node.attr["tensor_name"].s: node.name for node in nodes.values() if node.op in ("_Send", "_HostSend")}
    sources: Dict[str, List[str]] = {}
    for name, node in nodes.items():
        sources[name] = [_input_name(text) for text in node.input if _input_name(text) in nodes]
        if node.op in ("_Recv", "_HostRecv") and node.attr["tensor_name"].s in senders:
            sources[name].append(senders[node.attr["tensor_name"].s])
    return sources


def _check_edges(nodes: Mapping[str, Any], members: _Members) -> List[str]:
    """Operations that do not have all of the group before among their ancestors.

    Each node carries the last group of which, and of all before, it has every operation among its ancestors and itself,
    and which operations of the next group it has: so groups are compared in one pass instead of pair by pair.
    """
    group_of = {name: number for number, names in enumerate(members) for name in names}
    bit = {name: 1 << index for names in members for index, name in enumerate(names)}
    full = [(1 << len(names)) - 1 for names in members]
    sources = _edges(nodes)
    found: List[str] = []
    state: Dict[str, Tuple[int, int]] = {}
    for name in _topological(sources):
        done = max((state[source][0] for source in sources[name]), default=-1)
        part = 0
        for source in sources[name]:
            if state[source][0] == done:
                part |= state[source][1]
        done, part = _complete(done, part, full)
        if name in group_of:
            if done < group_of[name] - 1:
                found.append("{} of group {} does not wait for all of the group before".format(name, group_of[name]))
            elif group_of[name] == done + 1:
                done, part = _complete(done, part | bit[name], full)
        state[name] = (done, part)
    return found


def _complete(done: int, part: int, full: List[int]) -> Tuple[int, int]:
    while done + 1 < len(full) and part == full[done + 1]:
        done, part = done + 1, 0
    return done, part


def _topological(sources: Mapping[str, Sequence[str]]) -> List[str]:
    waits = {name: len(set(others)) for name, others in sources.items()}
    followers: DefaultDict[str, List[str]] = defaultdict(list)
    for name, others in sources.items():
        for other in set(others):
            followers[other].append(name)
    order = [name for name, count in waits.items() if not count]
    for name in order:
        for follower in followers[name]:
            waits[follower] -= 1
            if not waits[follower]:
                order.append(follower)
    return order


def _spans(members: _Members, times: Mapping[str, Interval]) -> List[Interval]:
    """First start and last end of each group; a group of which nothing was recorded takes no time."""
    spans: List[Interval] = []
    last = 0
    for names in members:
        ran = [times[name] for name in names if name in times]
        first = min((interval.start for interval in ran), default=last)
        last = max((interval.end for interval in ran), default=last)
        spans.append(Interval(first, last))
    return spans


def _check_times(members: _Members, times: Mapping[str, Interval]) -> List[str]:
    spans = _spans(members, times)
    found: List[str] = []
    for number in range(1, len(spans)):
        if spans[number].start < spans[number - 1].end:
            found.append("group {} started before group {} had ended".format(number, number - 1))
    return found


def _check_copies(members: _Members, copies: _Copies, times: Mapping[str, Interval]) -> Tuple[List[str], int]:
    spans = _spans(members, times)
    found: List[str] = []
    overlapped = 0
    for name, copy in copies:
        if name not in times:
            found.append("{} did not run".format(name))
            continue
        start, during = times[name].start, copy.during
        if during and start < spans[during - 1].end:
            found.append("{} started before group {} had ended".format(name, during - 1))
        elif start > spans[during + 1].start:
            found.append("{} started after group {} had begun".format(name, during + 1))
        overlapped += start < spans[during].end
    return found, overlapped
