"""What TensorFlow's operations do to memory, by type, as its kernels have it."""

from typing import FrozenSet, Optional, Tuple


def type_set(text: str) -> FrozenSet[str]:
    """Types of operations, written as words."""
    return frozenset(text.split())


# Their outputs are there before the step and after it.
PERSISTENT = type_set("Const Variable VariableV2 VarHandleOp")

# Fed from outside: nothing computes them, and they cannot be recomputed.
FED = type_set("Placeholder PlaceholderV2")

# The first output is the memory of the first input. Updates of variables give out the variable itself.
ALIAS = type_set(
    "Identity RefIdentity Reshape Squeeze ExpandDims StopGradient PreventGradient Bitcast EnsureShape Snapshot "
    "PlaceholderWithDefault ReadVariableOp CheckNumerics Assign AssignAdd AssignSub"
)
# Each output is the memory of the input at its position.
ALIAS_EACH = type_set("IdentityN")

_UNARY = (
    "Abs BiasAdd Elu Erf Exp FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 FusedBatchNormGrad FusedBatchNormGradV2 "
    "FusedBatchNormGradV3 LeakyRelu Log Log1p LogSoftmax Neg Reciprocal Relu Relu6 Round Rsqrt Selu Sigmoid Sign "
    "Softmax Softplus Sqrt Square Tanh"
)
_BINARY = (
    "Add AddV2 Div EluGrad LeakyReluGrad Maximum Minimum Mul Pow RealDiv Relu6Grad ReluGrad RsqrtGrad SeluGrad "
    "SigmoidGrad SoftplusGrad SqrtGrad SquaredDifference Sub TanhGrad"
)
_IN_PLACE = dict([(name, 1) for name in _UNARY.split()] + [(name, 2) for name in _BINARY.split()])

# Frames of the old control flow, and functions, whose inner memory the graph does not show.
CONTROL_FLOW = type_set(
    "Enter Exit NextIteration Merge Switch LoopCond RefEnter RefExit RefNextIteration RefMerge RefSwitch While "
    "StatelessWhile If StatelessIf Case StatelessCase For PartitionedCall StatefulPartitionedCall "
    "RemoteCall SymbolicGradient"
)


def alias_of(op_type: str, output: int) -> Optional[int]:
    """Position of the input whose memory an output is, or None where it is no input's."""
    if op_type in ALIAS or op_type.startswith("Apply"):
        return 0 if output == 0 else None
    return output if op_type in ALIAS_EACH else None


def in_place_of(op_type: str, output: int, inputs: int) -> Tuple[int, ...]:
    """Positions of inputs whose memory an output may take over: an operation's kernel forwards them to its first."""
    if output:
        return ()
    return tuple(range(inputs if op_type == "AddN" else min(_IN_PLACE.get(op_type, 0), inputs)))


def reads_variable(op_type: str, first_input_type: str) -> bool:
    """Whether an operation only hands out a variable or a constant: it computes nothing and belongs to no group.

    Savers and ``session.run(variable)`` read such operations too; a control edge would make them run the whole step.
    """
    return op_type in ("Identity", "ReadVariableOp") and first_input_type in PERSISTENT


def is_free(op_type: str, first_input_type: str = "") -> bool:
    """Whether an operation runs outside all groups."""
    return op_type in PERSISTENT or op_type in FED or reads_variable(op_type, first_input_type)
