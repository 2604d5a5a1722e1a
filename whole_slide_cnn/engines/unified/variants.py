"""The ways to run ``unified`` on a GPU."""

from dataclasses import dataclass
from typing import Optional

from graph_tools.graph.opgraph import OpGraph
from graph_tools.passes.planner import make_plan, unplanned
from graph_tools.plan import Plan
from graph_tools.simulation.machine import Machine
from whole_slide_cnn.engines.unified.options import UnifiedOptions

# As high as strips can be: cut only so that no tensor has 2^31 elements. The paper has no strips.
WHOLE_MB = 1e12


@dataclass(frozen=True)
class UnifiedVariant:
    """How ``unified`` runs on a GPU.

    Attributes:
        name: what is turned on, in words.
        grouped: whether operations run in groups; else in the graph's order, and pages come when they are touched.
        depth: groups ahead that a tensor is fetched.
        memory_policy: what is evicted or recomputed, as :func:`graph_tools.passes.planner.make_plan` has it.
        limit_bytes: of a group; None takes half of the device, so that what the next group needs has room, and with
            evictions an eighth, so that they start at the right time.
        recommended: whether it is worth running; else it is there to compare with.
    """

    name: str
    grouped: bool = True
    depth: int = 1
    memory_policy: str = "keep"
    limit_bytes: Optional[int] = None
    recommended: bool = True

    def limit(self, device_bytes: int) -> int:
        """Bytes of a group."""
        return self.limit_bytes or device_bytes // (2 if self.memory_policy == "keep" else 8)

    def plan(self, ops: OpGraph, machine: Machine) -> Plan:
        """The plan of a step on a GPU."""
        if not self.grouped:
            return unplanned(ops)
        limit = self.limit(machine.device_bytes)
        return make_plan(ops, limit, order_of(self.memory_policy, on_gpu=True), self.depth, self.memory_policy, machine)


# What is added, step by step, to plain unified memory.
VARIANTS = (
    UnifiedVariant("plain", grouped=False, depth=0, recommended=False),
    UnifiedVariant("groups", depth=0, recommended=False),
    UnifiedVariant("groups, prefetch"),
    UnifiedVariant("groups, move, recompute", memory_policy="recompute"),
)


def configured_variant(options: UnifiedOptions) -> UnifiedVariant:
    """The variant that the engine follows with its options."""
    policy = "keep" if options.device_gb is None else options.memory_policy
    return UnifiedVariant("as configured", True, options.prefetch_depth, policy, int(options.group_mb * 1e6))


def order_of(memory_policy: str, on_gpu: bool) -> str:
    """The order to plan: the graph's own, as in the paper, where everything is kept on a GPU; what the policy takes or
    what holds least elsewhere. An order that holds less may page far more."""
    return "topological" if memory_policy == "keep" and on_gpu else "auto"
