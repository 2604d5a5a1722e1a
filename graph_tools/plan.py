"""Everything that a plan consists of, as frozen values: they can be printed, drawn, simulated, compared and saved.

Passes make these values, :mod:`graph_tools.simulation` replays them and :mod:`graph_tools.tensorflow.apply` edits a
graph by them. They name operations and tensors instead of holding them, and nothing here decides anything.
"""

from dataclasses import dataclass
from typing import Dict, Sequence, Tuple, Union

from graph_tools.errors import PlanError
from graph_tools.graph.opgraph import TensorRef


@dataclass(frozen=True)
class Group:
    """Operations that may run at the same time, one group after another (Group Execution, paper of 2021).

    Attributes:
        ops: names, in order.
        bytes: everything they touch, each storage once, and their largest workspace: what must be on the device
            together.
        carried_bytes: what earlier groups, or variables, hold meanwhile and this group does not touch.
        oversized: whether this is a single operation that exceeds the limit alone.
    """

    ops: Tuple[str, ...]
    bytes: int
    carried_bytes: int = 0
    oversized: bool = False


@dataclass(frozen=True)
class Prefetch:
    """One explicit copy to the device (Group Prefetch, paper of 2021).

    Attributes:
        tensor: what to copy, as the first operation that needs it reads it.
        bytes: its size.
        during: number of the group during which the copy runs: it is issued when the group before that one is done.
        needed_by: number of the group that needs it.
    """

    tensor: TensorRef
    bytes: int
    during: int
    needed_by: int


@dataclass(frozen=True)
class Eviction:
    """One explicit copy to the host, or to a file.

    Attributes:
        tensor: what leaves the device.
        bytes: its size.
        during: number of the group during which the copy runs: it is issued when the group before that one is done.
        needed_by: number of the group that needs it again.
    """

    tensor: TensorRef
    bytes: int
    during: int
    needed_by: int


@dataclass(frozen=True)
class Recompute:
    """A tensor that is dropped after its last near use and recomputed before its next one.

    Attributes:
        tensor: what is recomputed.
        bytes: its size.
        ops: the operations to copy, in order. The tensor comes from the last of them, or from a copy that one of
            the sources made.
        readers: operations that read the copy instead of the tensor.
        sources: numbers of earlier recomputations of the plan whose copies these operations read where there are any.
    """

    tensor: TensorRef
    bytes: int
    ops: Tuple[str, ...]
    readers: Tuple[str, ...]
    sources: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How one step of a graph runs.

    Attributes:
        groups: operations in execution order; copies of recomputed ones included.
        limit_bytes: limit of a group.
        order: kind of the order: ``topological``, ``depth-first`` or ``demand``.
        order_reason: why this one.
        peak_bytes: the most bytes held at once, on device and host together, when operations run one after another.
        prefetches: explicit copies to the device.
        evictions: explicit copies to the host.
        recomputes: tensors that are dropped and recomputed, in the order in which their copies are made.
        memory_policy: how evictions and recomputations were chosen, in words; empty where all tensors are kept.

    Raises:
        PlanError: a copy is issued for a group that comes no later, or for one that the plan does not have.
    """

    groups: Tuple[Group, ...]
    limit_bytes: int
    order: str
    order_reason: str
    peak_bytes: int
    prefetches: Tuple[Prefetch, ...] = ()
    evictions: Tuple[Eviction, ...] = ()
    recomputes: Tuple[Recompute, ...] = ()
    memory_policy: str = ""

    FORMER_NAMES = {"choice": "memory_policy"}  # of fields, in files of before: see graph_tools.serial

    def __post_init__(self) -> None:
        copies: Tuple[Union[Prefetch, Eviction], ...] = self.prefetches + self.evictions
        for copy in copies:
            if not 0 <= copy.during < copy.needed_by < len(self.groups):
                raise PlanError(
                    "the copy of {} during group {} for group {} does not fit a plan of {} groups; plan again".format(
                        copy.tensor, copy.during, copy.needed_by, len(self.groups)
                    )
                )

    @property
    def op_order(self) -> Tuple[str, ...]:
        """Names of all operations in execution order."""
        return op_order(self.groups)

    @property
    def oversized(self) -> Tuple[Group, ...]:
        """Groups of a single operation that exceeds the limit."""
        return tuple(group for group in self.groups if group.oversized)


@dataclass(frozen=True)
class PrecisionPlan:
    """Which operations compute in half precision.

    Attributes:
        dtype: ``float16`` or ``bfloat16``.
        half: names of these operations, in order.
        lowered: float32 tensors that they read, each cast once.
        raised: of the half operations, those whose output float32 operations read, or that are fetched.
    """

    dtype: str
    half: Tuple[str, ...]
    lowered: Tuple[TensorRef, ...]
    raised: Tuple[str, ...]


def op_order(groups: Sequence[Group]) -> Tuple[str, ...]:
    """Names of all operations in execution order."""
    return tuple(name for group in groups for name in group.ops)


def group_of(groups: Sequence[Group]) -> Dict[str, int]:
    """Number of the group of each operation, by name."""
    return {name: number for number, group in enumerate(groups) for name in group.ops}
