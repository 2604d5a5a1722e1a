"""``unified`` as the rest of the program knows it."""

import functools
import math
from dataclasses import replace
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from graph_tools.errors import GraphToolsError
from graph_tools.graph.opgraph import OpGraph
from graph_tools.graph_edit import with_recomputes
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import simulate
from tf_um_patch.launch import exceeds_device
from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.costs import (
    Estimate,
    Target,
    Work,
    in_memory_seconds,
    over_budget,
    step_graph,
    weights_alone,
)
from whole_slide_cnn.engines.description import EngineDescription
from whole_slide_cnn.engines.memory import (
    GB,
    OTHER_ENGINE,
    RUNTIME_BYTES,
    MemoryPlan,
    reading_bytes,
    variable_bytes,
    weight_bytes,
)
from whole_slide_cnn.engines.unified.options import UnifiedOptions
from whole_slide_cnn.engines.unified.variants import VARIANTS, UnifiedVariant, configured_variant
from whole_slide_cnn.errors import ConfigError, TensorTooLargeError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size

_OPERATION_BYTES = 16 * 10**3  # of TensorFlow's graph, in Python and below it, for each planned operation...
_OPERATIONS = 700  # ...beyond these, which are as many as the graphs of the other engines have and the runtime includes
# Holes between live tensors, which are not given back: with oneDNN TensorFlow has a pool, in which replays of a step's
# allocations left 0 to 15 %; without it the C library's heap, where tensors are small, is no better.
_HOLES = 0.1
_UNLIMITED = 2**60


class Unified(EngineDescription):
    """Strips of the whole canvas, their operations in a planned order."""

    name = "unified"
    summary = "strips of the whole canvas in a planned order, for unified memory"
    options = UnifiedOptions
    remedy = "give unified.device_gb a budget, or " + OTHER_ENGINE
    planned_in_half = True

    def engine_class(self) -> Any:
        from whole_slide_cnn.engines.unified.engine import UnifiedEngine

        return UnifiedEngine

    def memory(self, work: Work) -> MemoryPlan:
        from whole_slide_cnn.engines.unified.steps import held_bytes, step_plan

        network, canvas, compute, training = work.network, work.canvas, work.compute, work.training
        options = self.options_in(work.options)
        plan = step_plan(network, canvas, compute, options, training)
        gpu = runtime.has_gpu()
        maps = held_bytes(plan) if options.eviction_dir is not None and not gpu else plan.peak_bytes
        holes = 0 if gpu else int(_HOLES * maps)
        weights = weight_bytes(network, compute, training, runtime.unrolls_patches(compute))
        in_plan = variable_bytes(network, compute) * (1 + training)  # weights, and sums of gradients
        parts = (
            ("feature maps", maps + holes),
            ("pixels", 3 * 3 * canvas.height * canvas.width),  # read, as TensorFlow copies them, and the next slide's
            ("weights", weights - in_plan),
            ("slide reading", reading_bytes(canvas)),
            ("runtime", RUNTIME_BYTES + _OPERATION_BYTES * max(0, len(plan.op_order) - _OPERATIONS)),
        )
        return MemoryPlan(self.name, parts, self.remedy)

    def estimates(self, work: Work, target: Target, configured: bool = False) -> Iterator[Estimate]:
        if not target.gpu:
            yield self._on_host(work, target)
            return
        chosen = (configured_variant(self.options_in(work.options)),) if configured else VARIANTS
        yield from self.variants(work, target, chosen)

    def can_be_chosen(self, target: Target) -> bool:
        """On a GPU, and in a process whose memory may exceed it."""
        return target.gpu and exceeds_device()

    def obstacle(self, estimate: Estimate) -> str:
        if estimate.simulation is None or not estimate.simulation.bytes_out or exceeds_device():
            return ""
        return (
            "the step exceeds the GPU's memory, and this process has no unified memory; start the command with: python "
            "-m tf_um_patch run --"
        )

    def how_to_run(self, work: Work, target: Target) -> str:
        if not target.gpu:
            return ""
        return (
            "run it as: python -m tf_um_patch run -- python -m whole_slide_cnn.{} ...; its time is simulated and has "
            "not been compared with a GPU yet".format("train" if work.training else "test")
        )

    def variants(self, work: Work, target: Target, variants: Sequence[UnifiedVariant]) -> Iterator[Estimate]:
        """Some ways to run it on a GPU, each simulated."""
        options, beside = self.options_in(work.options), work.beside_weights
        budget = target.machine.device_bytes
        if options.device_gb is not None:
            budget = min(budget, int(options.device_gb * GB) + beside)
        try:
            reason = weights_alone(work, budget)
            ops = strips_graph(work.network, work.canvas, work.compute, options.strip_mb, work.training)
        except (TensorTooLargeError, ConfigError) as error:
            reason = str(error)
        for variant in variants:
            if reason:
                yield self._refused(work, reason, variant)
            else:
                machine = replace(target.machine, device_bytes=budget - beside)
                yield self._simulated(work, ops, machine, variant)

    def _refused(self, work: Work, reason: str, variant: Optional[UnifiedVariant] = None) -> Estimate:
        if variant is None:
            return Estimate(self.name, work.compute, 0, 0, None, reason)
        return Estimate(self.name, work.compute, 0, 0, None, reason, variant.name, variant.recommended)

    def _simulated(self, work: Work, ops: OpGraph, machine: Machine, variant: UnifiedVariant) -> Estimate:
        """The simulation of one variant. Where nothing is evicted by plan, what the host would need is told even if it
        has less."""
        unlimited = replace(machine, host_bytes=_UNLIMITED if variant.memory_policy == "keep" else machine.host_bytes)
        try:
            simulation = simulate(ops, variant.plan(ops, unlimited), unlimited)
        except GraphToolsError as error:
            return self._refused(work, str(error), variant)
        host = simulation.peak_host_bytes + work.host_parts
        remedy = "use streaming, half precision, or let maps be computed again (unified.device_gb)"
        group = variant.limit(machine.device_bytes)
        return Estimate(
            self.name,
            work.compute,
            simulation.peak_device_bytes + work.beside_weights,
            host,
            simulation.seconds,
            over_budget(host, machine.host_bytes, "host memory", remedy),
            variant.name,
            variant.recommended,
            _settings(self.options_in(work.options), variant, group, machine.device_bytes, host),
            simulation,
            group,
        )

    def _on_host(self, work: Work, target: Target) -> Estimate:
        """Without a device to page to, strips in groups: no time is lost to paging, and none won."""
        from whole_slide_cnn.engines.unified.steps import step_plan

        options, unrolls = self.options_in(work.options), runtime.unrolls_patches(work.compute)
        try:
            ops = strips_graph(work.network, work.canvas, work.compute, options.strip_mb, work.training, unrolls)
            host = self.memory(work).total
            if options.device_gb is not None:
                plan = step_plan(work.network, work.canvas, work.compute, options, work.training)
                ops = with_recomputes(ops, plan.recomputes)
        except (TensorTooLargeError, ConfigError) as error:
            return self._refused(work, str(error))
        seconds = in_memory_seconds(ops, target.machine) * target.time_scale
        remedy = "use streaming, or set unified.device_gb"
        reason = over_budget(host, target.machine.device_bytes, "host memory", remedy)
        return Estimate(self.name, work.compute, 0, host, seconds, reason)


@functools.lru_cache(maxsize=2)
def strips_graph(
    network: Network, canvas: Size, compute: str, strip_mb: float, training: bool, unrolls: bool = False
) -> OpGraph:
    """A step of ``unified``.

    Raises:
        TensorTooLargeError: one row of a feature map does not fit a strip.
    """
    from whole_slide_cnn.engines.unified.steps import planning_graph

    options = UnifiedOptions(strip_mb=strip_mb)
    return step_graph(planning_graph(network, Size(*canvas), compute, options, training), unrolls)


def _settings(
    options: UnifiedOptions, variant: UnifiedVariant, group: int, budget: int, host: int
) -> Tuple[Tuple[str, Any], ...]:
    """The keys that run a variant.

    Args:
        group: bytes of a group.
        budget: bytes that a step may hold on the device.
        host: bytes that it takes on the host.
    """
    keys: List[Tuple[str, Any]] = [
        ("strip_mb", options.strip_mb),
        ("group_mb", group // 10**6),
        ("prefetch_depth", variant.depth),
    ]
    if variant.memory_policy != "keep":
        keys.append(("device_gb", math.floor(budget / GB * 1000) / 1000))
        keys.append(("host_gb", math.ceil(host / GB)))
        keys.append(("memory_policy", variant.memory_policy))
    return tuple(keys)
