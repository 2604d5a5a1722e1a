"""Edits a TensorFlow graph as a plan says, and says what it did. It decides nothing.

Groups are kept apart by barriers. Every tensor that enters a group passes through one gate, an ``Identity`` that waits
for the barrier before the group and shares the tensor's memory; an operation that no tensor holds back waits for the
barrier itself. The obvious alternative, a control edge to every operation, crashes or hangs TensorFlow 2 on CPU:
oneDNN's layout pass fuses a convolution with its bias, and its gradients with each other, across groups, and insists on
operations that have no control edges.
"""

import gc
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.client.session import BaseSession

from graph_tools.errors import EditError, PlanError
from graph_tools.graph.opgraph import TensorRef
from graph_tools.graph.optypes import is_free
from graph_tools.graph_edit import copied_ref, copies_by_op, copy_name
from graph_tools.plan import Eviction, Plan, Prefetch

SCOPE = "graph_tools"

# Makes the operation that copies a tensor, under the name given; its result is not used.
CopyFactory = Callable[[tf.Tensor, str], tf.Operation]
# Makes what stands for an evicted tensor, from what the factory of its eviction gave, the tensor, and a name.
ReturnFactory = Callable[[tf.Tensor, tf.Tensor, str], tf.Tensor]


@dataclass(frozen=True)
class EditReport:
    """What was added to a graph.

    Attributes:
        barriers: operations between groups.
        gates: operations through which tensors enter groups.
        control_edges: control inputs of operations that were there before, and of barriers.
        prefetches: copies to the device.
        evictions: copies to the host.
        recomputed: copies of operations.
    """

    barriers: int = 0
    gates: int = 0
    control_edges: int = 0
    prefetches: int = 0
    evictions: int = 0
    recomputed: int = 0

    @property
    def modified(self) -> bool:
        """Whether anything was added."""
        return self != EditReport()


def apply(
    graph: tf.Graph,
    plan: Plan,
    make_prefetch: Optional[CopyFactory] = None,
    make_eviction: Optional[CopyFactory] = None,
    make_return: Optional[ReturnFactory] = None,
    scope: str = SCOPE,
) -> EditReport:
    """Make a graph run as planned. Where a factory is not given its copies are left out, and everything else done.

    A session must use :func:`session_config`, else Grappler undoes or breaks the order.

    Args:
        make_prefetch: called as ``make_prefetch(tensor, name)`` for each copy to the device, in the graph and under
            the control dependency that holds it back.
        make_eviction: the same for each copy to the host.
        make_return: where memory does not page: called as ``make_return(evicted, tensor, name)`` with what
            ``make_eviction`` gave, for what the groups that need an evicted tensor read in its place. It runs during
            the group before, and nothing refers to the tensor itself meanwhile.
        scope: what the names of new operations begin with: each of several plans that one graph has for different
            fetches needs its own, and they have no operation in common but placeholders and variables.

    Raises:
        EditError: a session is open on the graph, and would not see what it has run edited; or the graph is finalized.
            Nothing was changed.
        PlanError: the plan is not one of this graph, or was applied before. Nothing was changed.
    """
    _check_editable(graph)
    _check_plan(graph, plan, scope)
    with graph.as_default(), tf.control_dependencies(None), tf.name_scope(None):
        return _Editor(graph, plan, scope).run(make_prefetch, make_eviction, make_return)


def barrier_name(group: int, scope: str = SCOPE) -> str:
    """Name of the operation that is done when a group is."""
    return "{}/group_{}_done".format(scope, group)


def prefetch_name(number: int, scope: str = SCOPE) -> str:
    """Name of the operation of a plan's prefetch."""
    return "{}/prefetch_{}".format(scope, number)


def eviction_name(number: int, scope: str = SCOPE) -> str:
    """Name of the operation of a plan's eviction."""
    return "{}/evict_{}".format(scope, number)


def return_name(number: int, scope: str = SCOPE) -> str:
    """Name of the operation that brings back the tensor of a plan's eviction."""
    return "{}/return_{}".format(scope, number)


def session_config(base: Optional[tf.ConfigProto] = None) -> tf.ConfigProto:
    """The configuration under which a session keeps the planned order: a copy of ``base`` with those of Grappler's
    passes off that prune control edges and barriers, fuse or merge operations of different groups, or swap and
    recompute on their own."""
    config = tf.ConfigProto()
    if base is not None:
        config.CopyFrom(base)
    rewriter, off = config.graph_options.rewrite_options, rewriter_config_pb2.RewriterConfig.OFF
    rewriter.dependency_optimization = off
    rewriter.remapping = off
    rewriter.arithmetic_optimization = off
    rewriter.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    if hasattr(rewriter, "common_subgraph_elimination"):  # newer than TensorFlow 1.15, where arithmetic includes it
        rewriter.common_subgraph_elimination = off
    return config


def _check_editable(graph: tf.Graph) -> None:
    """TensorFlow keeps no list of a graph's sessions in Python, and a session keeps nothing once it is closed."""
    if graph.finalized:
        raise EditError("the graph is finalized; apply the plan before that")
    for candidate in gc.get_objects():
        if issubclass(type(candidate), BaseSession) and getattr(candidate, "_graph", None) is graph:
            if candidate._closed:
                continue
            raise EditError(
                "a session is open on the graph, and what it has run stays as it was; apply the plan before opening "
                "it, or close it first"
            )


def _check_plan(graph: tf.Graph, plan: Plan, scope: str) -> None:
    known = {op.name: op for op in graph.get_operations()}
    if barrier_name(0, scope) in known:
        raise PlanError("a plan was applied to this graph before; build it again")
    copies_by_op(plan.recomputes)  # refuses recomputations in a wrong order
    copies = {copy_name(name, n) for n, item in enumerate(plan.recomputes) for name in item.ops}
    position = {name: index for index, name in enumerate(plan.op_order)}
    for name in list(position) + [name for item in plan.recomputes for name in item.ops + item.readers]:
        if name not in known and name not in copies:
            raise PlanError("the plan names operation {}, which the graph does not have; plan it again".format(name))
    for name, place in position.items():
        op = known.get(name)
        for other in [] if op is None else [t.op for t in op.inputs] + list(op.control_inputs):
            if position.get(other.name, len(position)) >= place:
                raise PlanError(
                    "{} needs {}, which the plan has later or not at all; plan this graph again".format(
                        name, other.name
                    )
                )
    planned: Tuple[Union[Prefetch, Eviction], ...] = plan.prefetches + plan.evictions
    for copy in planned:
        op = known.get(copy.tensor.op)
        if copy.tensor.op not in copies and (op is None or copy.tensor.index >= len(op.outputs)):
            raise PlanError(
                "the plan copies tensor {}, which the graph does not have; plan it again".format(copy.tensor)
            )


class _Editor:
    def __init__(self, graph: tf.Graph, plan: Plan, scope: str):
        self._graph, self._plan, self._scope = graph, plan, scope
        self._leaving = {copy.tensor for copy in plan.evictions}
        self._edges = self._gates = 0
        self._barriers: List[tf.Operation] = []
        self._gates_of: Dict[str, List[Tuple[int, tf.Operation]]] = {}  # tensor -> gates with their groups

    def run(
        self,
        make_prefetch: Optional[CopyFactory],
        make_eviction: Optional[CopyFactory],
        make_return: Optional[ReturnFactory],
    ) -> EditReport:
        recomputed = self._recompute()
        for number in range(len(self._plan.groups)):
            members = self._members(number)
            if number:
                self._hold_back(members, number)
            self._barriers.append(self._add_barrier(number, members))
        return EditReport(
            barriers=len(self._barriers),
            gates=self._gates,
            prefetches=self._prefetch(make_prefetch),
            evictions=self._evict(make_eviction, make_return),
            recomputed=recomputed,
            control_edges=self._edges,  # counted last: copies add some
        )

    def _op(self, name: str) -> tf.Operation:
        return self._graph.get_operation_by_name(name)

    def _tensor(self, ref: TensorRef) -> tf.Tensor:
        return self._op(ref.op).outputs[ref.index]

    def _members(self, number: int) -> List[tf.Operation]:
        ops = [self._op(name) for name in self._plan.groups[number].ops]
        return [op for op in ops if not is_free(op.type, op.inputs[0].op.type if len(op.inputs) else "")]

    def _hold_back(self, members: Sequence[tf.Operation], group: int) -> None:
        """Let no operation of a group start before the barrier of the group before."""
        inside, barrier = set(members), self._barriers[group - 1]
        gates: Dict[str, tf.Tensor] = {}
        for op in members:
            held = any(other in inside for other in op.control_inputs)
            for index, tensor in enumerate(op.inputs):
                if index in _UNGATED.get(op.type, ()) and _ref(tensor) not in self._leaving:
                    continue
                if tensor.op not in inside and _can_gate(tensor):
                    op._update_input(index, self._gate(tensor, barrier, gates))
                    held = True
                held = held or tensor.op in inside
            if not held:
                self._add_edges(op, [barrier])
        for name, tensor in gates.items():
            self._gates_of.setdefault(name, []).append((group, tensor.op))

    def _gate(self, tensor: tf.Tensor, barrier: tf.Operation, gates: Dict[str, tf.Tensor]) -> tf.Tensor:
        if tensor.name not in gates:
            name = "{}/gate_{}".format(self._scope, self._gates)
            with tf.control_dependencies([barrier]), tf.device(tensor.op.device or None):
                gates[tensor.name] = tf.identity(tensor, name)
            self._gates += 1
        return gates[tensor.name]

    def _add_barrier(self, number: int, members: Sequence[tf.Operation]) -> tf.Operation:
        """An operation that is done when all of a group, and all groups before, are."""
        inside = set(members)
        followed = {source for op in members for source in _sources(op) if source in inside}
        barrier = tf.no_op(barrier_name(number, self._scope) + "/")
        self._add_edges(barrier, [op for op in members if op not in followed] + self._barriers[-1:])
        return barrier

    def _add_edges(self, op: tf.Operation, sources: List[tf.Operation]) -> None:
        op._add_control_inputs(sources)
        self._edges += len(sources)

    def _prefetch(self, factory: Optional[CopyFactory]) -> int:
        if factory is None:
            return 0
        for number, copy in enumerate(self._plan.prefetches):
            self._copy(copy, factory, prefetch_name(number, self._scope))
        return len(self._plan.prefetches)

    def _evict(self, factory: Optional[CopyFactory], make_return: Optional[ReturnFactory]) -> int:
        if factory is None:
            return 0
        for number, copy in enumerate(self._plan.evictions):
            evicted = self._copy(copy, factory, eviction_name(number, self._scope))
            if make_return is not None:
                self._return(number, copy, evicted, make_return)
        return len(self._plan.evictions)

    def _copy(self, copy: Union[Prefetch, Eviction], factory: CopyFactory, name: str) -> Any:
        """Add a copy: it waits for the group before the one that it runs during, whose barrier waits for it."""
        before = self._barrier_before(copy.during)
        with tf.control_dependencies(before):
            copied = factory(self._tensor(copy.tensor), name)
        made = getattr(copied, "op", copied)
        self._edges += len(before)
        # a factory may have cleared the dependencies it was called under
        made._add_control_inputs([barrier for barrier in before if barrier not in made.control_inputs])
        self._add_edges(self._barriers[copy.during], [made])
        return copied

    def _return(self, number: int, copy: Eviction, evicted: tf.Tensor, make_return: ReturnFactory) -> None:
        """Let the groups that need an evicted tensor, and those after them, read what comes back."""
        tensor, before = self._tensor(copy.tensor), self._barrier_before(copy.needed_by - 1)
        with tf.control_dependencies(before):
            back = make_return(evicted, tensor, return_name(number, self._scope))
        self._edges += len(before)
        self._add_edges(self._barriers[copy.needed_by - 1], [back.op])
        for group, gate in self._gates_of.get(tensor.name, []):
            if group >= copy.needed_by:
                gate._update_input(0, back)

    def _barrier_before(self, group: int) -> List[tf.Operation]:
        """The barrier that a group waits for; the first waits for none."""
        return self._barriers[group - 1 : group] if group else []

    def _recompute(self) -> int:
        """Import copies of operations, and let their readers read those."""
        count = 0
        for number, (item, copies) in enumerate(zip(self._plan.recomputes, copies_by_op(self._plan.recomputes))):
            self._import_copies(number, item.ops, copies)
            original = self._tensor(item.tensor)
            copy = self._tensor(copied_ref(item.tensor, copies))
            for name in item.readers:
                op = self._op(name)
                for index, tensor in enumerate(op.inputs):
                    if tensor is original:
                        op._update_input(index, copy)
            count += len(item.ops)
        return count

    def _import_copies(self, number: int, names: Sequence[str], copies: Dict[str, int]) -> None:
        definition = tf.GraphDef()
        outside: Dict[str, tf.Tensor] = {}
        # else the whole graph would count as one of an old TensorFlow, where a placeholder of shape () has any shape
        definition.versions.CopyFrom(self._graph.graph_def_versions)
        for name in names:
            op = self._op(name)
            node = definition.node.add()
            node.CopyFrom(op.node_def)
            node.name = copy_name(name, number)
            del node.input[:]
            for tensor in op.inputs:
                ref = copied_ref(TensorRef(tensor.op.name, tensor.value_index), copies)
                node.input.append(str(ref))
                if copies.get(tensor.op.name) != number:
                    outside[str(ref)] = self._tensor(ref)
            node.attr.pop("_class", None)  # an order of its own shall not follow its original's place
        tf.import_graph_def(definition, input_map=outside, name="")


# Inputs that need no gate, since another one of the operation holds it back, unless they leave and come back. oneDNN's
# gradient of pooling is only taken where it reads its pooling directly; TensorFlow's own takes twenty times as long.
_UNGATED = {"MaxPoolGrad": (0, 1)}


def _ref(tensor: tf.Tensor) -> TensorRef:
    return TensorRef(tensor.op.name, tensor.value_index)


def _sources(op: tf.Operation) -> Set[tf.Operation]:
    return {tensor.op for tensor in op.inputs} | set(op.control_inputs)


def _can_gate(tensor: tf.Tensor) -> bool:
    """Whether an Identity may stand between: not for variables that are changed in place, nor for constants, which
    TensorFlow wants to see where shapes are expected."""
    return not tensor.dtype._is_ref_dtype and tensor.dtype != tf.resource and tensor.op.type != "Const"
