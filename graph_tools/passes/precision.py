"""Which operations of a training step compute in half precision (mixed precision of the paper of 2021).

Convolutions and matrix products, their gradients, and what lies between them, compute and store in half precision.
Float32 stay: variables; gradients with respect to them, from where they are summed; the map that is pooled; and the
loss. The plan is made from the graph before it is run; :func:`to_half_precision` rewrites a saved graph by it, since
the type of an operation that is built cannot change. Scaling the loss is left to whoever trains.
"""

from typing import Any, Iterable, Mapping, Set

from graph_tools.errors import PlanError
from graph_tools.graph.opgraph import Op, OpGraph, TensorRef, stable_order
from graph_tools.graph.optypes import type_set
from graph_tools.plan import PrecisionPlan

HALF_TYPES = ("float16", "bfloat16")

_PRODUCTS = type_set(
    "Conv2D Conv2DBackpropInput Conv2DBackpropFilter DepthwiseConv2dNative DepthwiseConv2dNativeBackpropInput "
    "DepthwiseConv2dNativeBackpropFilter MatMul BatchMatMul BatchMatMulV2"
)
# Half where something half enters them.
_BETWEEN = type_set(
    "Add AddN AddV2 AvgPool AvgPoolGrad BiasAdd BiasAddGrad ConcatV2 Identity MaxPool MaxPoolGrad MirrorPad "
    "MirrorPadGrad Mul Pad PadV2 Relu Relu6 Relu6Grad ReluGrad Reshape Slice Squeeze StridedSlice StridedSliceGrad "
    "Sub Transpose"
)
# What comes out of them is a gradient of a variable, and no map.
_OF_VARIABLES = type_set("Conv2DBackpropFilter DepthwiseConv2dNativeBackpropFilter BiasAddGrad")
# What pools the embedding map, by average or by maximum.
_HEAD = type_set("ArgMax Gather GatherNd GatherV2 Max Mean")

# Numbers of types in a GraphDef; the attribute T is the type of all operations above.
_DT_FLOAT, _DT = 1, {"float16": 19, "bfloat16": 14}


def plan_precision(graph: OpGraph, dtype: str = "float16", keep: Iterable[str] = ()) -> PrecisionPlan:
    """Decide for each operation of a float32 graph.

    Products are half. What lies between them is half where it reads something half, except what a pooling head reads
    and what sums gradients of variables.

    Args:
        keep: names of further operations that stay float32.

    Raises:
        PlanError: the type is none of ``HALF_TYPES``, or a name to keep does not exist.
    """
    if dtype not in HALF_TYPES:
        raise PlanError("unknown half precision '{}'; use one of {}".format(dtype, ", ".join(HALF_TYPES)))
    named, kept = graph.by_name(), set(keep)
    unknown = sorted(kept - set(named))
    if unknown:
        raise PlanError("the graph has no operation {} to keep in float32; name one that it has".format(unknown[0]))
    half: Set[str] = set()
    entering_head = _entering_head(graph)
    order = stable_order(graph)
    for name in order:
        op = named[name]
        if name in kept or not op.outputs or op.outputs[0].dtype != "float32":
            continue
        reads_half = any(ref.op in half and named[ref.op].type not in _OF_VARIABLES for ref in op.inputs)
        if op.type in _PRODUCTS or (op.type in _BETWEEN and reads_half and name not in entering_head):
            half.add(name)
    names = tuple(name for name in order if name in half)
    crossing = [(ref, op.name in half) for op in graph.ops for ref in op.inputs] + [
        (ref, False) for ref in graph.fetches
    ]
    crossing = [(ref, to_half) for ref, to_half in crossing if _is_float32(named, ref) and (ref.op in half) != to_half]
    lowered = tuple(dict.fromkeys(ref for ref, to_half in crossing if to_half))
    raised = {ref.op for ref, to_half in crossing if not to_half}
    return PrecisionPlan(dtype, names, lowered, tuple(name for name in names if name in raised))


def _is_float32(named: Mapping[str, Op], ref: TensorRef) -> bool:
    return named[ref.op].outputs[ref.index].dtype == "float32"


def _entering_head(graph: OpGraph) -> Set[str]:
    """Operations between products whose output a head reads: the map before pooling."""
    named = graph.by_name()
    return {ref.op for op in graph.ops if op.type in _HEAD for ref in op.inputs if named[ref.op].type in _BETWEEN}


def to_half_precision(meta: Any, plan: PrecisionPlan) -> Any:
    """A saved graph with the plan's operations in half precision, to be imported.

    An operation whose output float32 operations read, be they of the plan or not, is renamed, and a cast takes its
    name: who reads or fetches it by name goes on getting float32.

    Args:
        meta: a ``MetaGraphDef`` of float32; it is left as it is.

    Returns:
        Another ``MetaGraphDef``.

    Raises:
        PlanError: the plan is not one of this graph.
    """
    result = type(meta)()
    result.CopyFrom(meta)
    nodes = {node.name: node for node in result.graph_def.node}
    for name in plan.half + tuple(ref.op for ref in plan.lowered):
        if name not in nodes:
            raise PlanError("the precision plan names {}, which the graph does not have; plan it again".format(name))
    half = set(plan.half)
    raised = set(plan.raised).union(
        *(half.intersection(node.input) for node in nodes.values() if node.name not in half)
    )
    lowered = {_input_text(ref): "{}/{}_{}".format(ref.op, plan.dtype, ref.index) for ref in plan.lowered}
    for node in list(result.graph_def.node):
        node.attr.pop("_output_shapes", None)
        if node.name in half:
            if node.attr["T"].type != _DT_FLOAT:
                raise PlanError("operation {} is not one of float32; plan this graph again".format(node.name))
            node.attr["T"].type = _DT[plan.dtype]
            for index, text in enumerate(node.input):
                node.input[index] = _inner(text, plan.dtype) if text in raised else lowered.get(text, text)
    for text, name in lowered.items():
        _add_cast(result.graph_def, name, text, _DT_FLOAT, _DT[plan.dtype])
    for name in sorted(raised):
        nodes[name].name = _inner(name, plan.dtype)
        _add_cast(result.graph_def, name, _inner(name, plan.dtype), _DT[plan.dtype], _DT_FLOAT)
    return result


def _inner(name: str, dtype: str) -> str:
    """Name of an operation whose own name its cast has."""
    return "{}/{}".format(name, dtype)


def _input_text(ref: TensorRef) -> str:
    """A tensor as GraphDefs write it."""
    return str(ref) if ref.index else ref.op


def _add_cast(graph_def: Any, name: str, source: str, before: int, after: int) -> None:
    node = graph_def.node.add()
    node.name, node.op = name, "Cast"
    node.input.append(source)
    node.attr["SrcT"].type, node.attr["DstT"].type = before, after
    node.attr["Truncate"].b = False
