"""From a TensorFlow graph to an :class:`~graph_tools.graph.opgraph.OpGraph`: shape arithmetic only, nothing is run.

So the graph may hold tensors that no machine can hold, or no kernel can index: their sizes are all that is asked.
"""

import warnings
from typing import Any, Dict, Iterable, Mapping, Optional, Sequence, Set, Tuple, Union

import tensorflow.compat.v1 as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.framework import types_pb2

from graph_tools.errors import DanglingInputError, FileError, UnknownSizeError, UnsupportedOpError
from graph_tools.graph.costs import Cost, Shape, cost_of, elements
from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef
from graph_tools.graph.optypes import CONTROL_FLOW, FED, PERSISTENT, alias_of, in_place_of

# Held outside the memory that is planned: handles, text, and what variants refer to.
_WITHOUT_SIZE = (types_pb2.DT_RESOURCE, types_pb2.DT_STRING, types_pb2.DT_VARIANT)
# The axes that a gradient is summed over: how many there are turns out when it runs, and the shapes have no more.
_AXES = ("BroadcastGradientArgs",)
_READS_ONLY = ("ReadVariableOp",)  # stateful to TensorFlow, yet a function of the variable

Fetch = Union[str, tf.Tensor, tf.Operation, tf.Variable]


def extract(
    graph: Union[tf.Graph, tf.MetaGraphDef],
    fetches: Iterable[Fetch],
    shapes: Optional[Mapping[str, Sequence[int]]] = None,
    workspace_limit: int = 0,
) -> OpGraph:
    """Everything that some fetches need, with sizes, in the order in which the graph was built.

    Args:
        graph: a graph, or a saved one, which is imported into a graph of its own first.
        fetches: tensors, operations or variables, or their names.
        shapes: shapes of placeholders that replace those of a saved graph, by name.
        workspace_limit: see :func:`graph_tools.graph.costs.cost_of`.

    Raises:
        UnknownSizeError: a tensor's static shape is not known; named with the placeholders that leave it open.
        UnsupportedOpError: the graph has loops, branches or functions, or operations unknown here.
        DanglingInputError: a fetch or placeholder does not exist.
    """
    position = None
    if not isinstance(graph, tf.Graph):
        position = {node.name: index for index, node in enumerate(graph.graph_def.node)}
        graph = _import(graph, dict(shapes or {}))
    elif shapes:
        raise UnsupportedOpError("shapes of a graph that is built cannot be replaced; save it, or build it with them")
    targets = [_find(graph, fetch) for fetch in fetches]
    needed = _needed(targets)
    ops = [op for op in graph.get_operations() if op in needed]
    if position is not None:  # TensorFlow imports operations in an order of its own
        ops.sort(key=lambda op: position[op.name])
    for op in ops:
        if op.type in CONTROL_FLOW:
            raise UnsupportedOpError(
                "operation {} ({}) is control flow or a function, whose memory the graph does not show; inline it or "
                "leave it out of the fetches".format(op.name, op.type)
            )
    tensors = [target for target in targets if isinstance(target, tf.Tensor)]
    return OpGraph(tuple(_convert(op, workspace_limit) for op in ops), tuple(dict.fromkeys(map(_ref, tensors))))


def load_meta_graph(path: str) -> tf.MetaGraphDef:
    """Read a saved ``MetaGraphDef``, binary (``.meta``) or text.

    Raises:
        FileError: the file cannot be read or holds something else.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise FileError("cannot read {}: {}".format(path, error.strerror)) from error
    for parse in (_parse_binary, _parse_text):
        meta = parse(data)
        if meta is not None and meta.graph_def.node:
            return meta
    raise FileError("{} is not a MetaGraphDef; save one with tf.train.export_meta_graph".format(path))


def default_fetches(meta: tf.MetaGraphDef) -> Tuple[str, ...]:
    """Operations that a saved graph names as its training step; none where it does not say."""
    return tuple(meta.collection_def["train_op"].node_list.value) if "train_op" in meta.collection_def else ()


def _parse_binary(data: bytes) -> Optional[tf.MetaGraphDef]:
    meta = tf.MetaGraphDef()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # protobuf 3 warns of some broken files instead of refusing them
        try:
            meta.ParseFromString(data)
        except DecodeError:
            return None
    return meta


def _parse_text(data: bytes) -> Optional[tf.MetaGraphDef]:
    meta = tf.MetaGraphDef()
    try:
        text_format.Parse(data.decode("utf-8"), meta)
    except (text_format.ParseError, UnicodeDecodeError):
        return None
    return meta


def _import(meta: tf.MetaGraphDef, shapes: Dict[str, Sequence[int]]) -> tf.Graph:
    definition = tf.GraphDef()
    definition.CopyFrom(meta.graph_def)
    for node in definition.node:
        node.attr.pop("_output_shapes", None)  # what was inferred when it was saved
        if node.name in shapes and node.op in FED:
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(shapes.pop(node.name)).as_proto())
    if shapes:
        raise DanglingInputError("the graph has no placeholder {}; give shapes of others".format(sorted(shapes)[0]))
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.import_graph_def(definition, name="")
        except (ValueError, tf.errors.OpError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UnsupportedOpError("this TensorFlow cannot import the graph: {}".format(reason[:300])) from error
    return graph


def _find(graph: tf.Graph, fetch: Fetch) -> Union[tf.Tensor, tf.Operation]:
    """The tensor or operation that a fetch means; for a variable the tensor that ``session.run`` would give."""
    try:
        return graph.as_graph_element(fetch, allow_tensor=True, allow_operation=True)
    except (KeyError, ValueError, TypeError) as error:
        name = getattr(fetch, "name", fetch)
        raise DanglingInputError(
            "the graph has no tensor or operation {}; name one that it has".format(name)
        ) from error


def _needed(targets: Iterable[Union[tf.Tensor, tf.Operation]]) -> Set[tf.Operation]:
    """Operations that must run for some tensors and operations."""
    needed: Set[tf.Operation] = set()
    open_ops = [getattr(target, "op", target) for target in targets]
    while open_ops:
        op = open_ops.pop()
        if op not in needed:
            needed.add(op)
            open_ops.extend(tensor.op for tensor in op.inputs)
            open_ops.extend(op.control_inputs)
    return needed


def _ref(tensor: tf.Tensor) -> TensorRef:
    return TensorRef(tensor.op.name, tensor.value_index)


def _convert(op: tf.Operation, workspace_limit: int) -> Op:
    outputs = tuple(_output(op, index, tensor) for index, tensor in enumerate(op.outputs))
    cost = _cost(op, workspace_limit)
    return Op(
        name=op.name,
        type=op.type,
        inputs=tuple(_ref(tensor) for tensor in op.inputs),
        outputs=outputs,
        control_inputs=tuple(sorted(other.name for other in op.control_inputs)),  # TensorFlow keeps them as a set
        workspace_bytes=cost.workspace_bytes,
        flops=cost.flops,
        persistent=op.type in PERSISTENT,
        pure=_is_pure(op),
    )


def _output(op: tf.Operation, index: int, tensor: tf.Tensor) -> Output:
    return Output(
        bytes=_handle_bytes(op) if op.type == "VarHandleOp" else _tensor_bytes(tensor),
        dtype=tensor.dtype.base_dtype.name,
        alias=alias_of(op.type, index),
        in_place=in_place_of(op.type, index, len(op.inputs)),
    )


def _tensor_bytes(tensor: tf.Tensor) -> int:
    if tensor.dtype.base_dtype.as_datatype_enum in _WITHOUT_SIZE:
        return 0
    if tensor.op.type in _AXES:
        return max(elements(_shape(shape)) for shape in tensor.op.inputs) * _item_bytes(tensor.dtype)
    return elements(_shape(tensor)) * _item_bytes(tensor.dtype)


def _item_bytes(dtype: tf.DType) -> int:
    return int(dtype.base_dtype.size)


def _handle_bytes(op: tf.Operation) -> int:
    shape, dtype = tf.TensorShape(op.get_attr("shape")), tf.as_dtype(op.get_attr("dtype"))
    if not shape.is_fully_defined():
        raise UnknownSizeError("the shape of variable {} is not known before the run; declare it".format(op.name))
    return elements(tuple(shape.as_list())) * _item_bytes(dtype)


def _shape(tensor: tf.Tensor) -> Shape:
    if not tensor.shape.is_fully_defined():
        raise UnknownSizeError(_unknown(tensor))
    return tuple(tensor.shape.as_list())


def _unknown(tensor: tf.Tensor) -> str:
    fed = sorted(op.name for op in _needed([tensor]) if op.type in FED and not op.outputs[0].shape.is_fully_defined())
    if fed:
        remedy = "give a shape to placeholder {}".format(", ".join(fed))
    else:
        remedy = "build it with static shapes"
    return "tensor {} ({}) has the shape {}, which is not known before the run; {}".format(
        tensor.name, tensor.op.type, tensor.shape, remedy
    )


def _cost(op: tf.Operation, workspace_limit: int) -> Cost:
    if op.type in PERSISTENT or op.type in FED or not op.outputs or alias_of(op.type, 0) == 0:
        return Cost(0)
    first = op.outputs[0].dtype.base_dtype
    sized = first.as_datatype_enum not in _WITHOUT_SIZE
    return cost_of(
        op.type,
        [_known(tensor) for tensor in op.inputs],
        [_known(tensor) for tensor in op.outputs],
        first.size if sized else 0,
        window=_attribute(op, "ksize", ()),
        transposed=_attribute(op, "transpose_a", False) or _attribute(op, "adj_x", False),
        workspace_limit=workspace_limit,
    )


def _known(tensor: tf.Tensor) -> Shape:
    """A shape where it is known; what has no size counts as a scalar."""
    return tuple(tensor.shape.as_list()) if tensor.shape.is_fully_defined() else ()


def _attribute(op: tf.Operation, name: str, default: Any) -> Any:
    return op.get_attr(name) if name in op.node_def.attr else default


def _is_pure(op: tf.Operation) -> bool:
    """Whether an operation is a function of its inputs, so that it can be recomputed."""
    writes = any(argument.is_ref for argument in op.op_def.input_arg)
    if op.type in PERSISTENT or op.type in _READS_ONLY:
        return True
    return not (op.op_def.is_stateful or writes or op.type in FED)
