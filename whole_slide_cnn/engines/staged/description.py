"""``staged`` as the rest of the program knows it. Its memory and time are read from its plan."""

from typing import Iterator

from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.costs import (
    Estimate,
    Target,
    Work,
    in_memory_seconds,
    refusal,
    too_large,
    whole_canvas_graph,
)
from whole_slide_cnn.engines.description import EngineDescription
from whole_slide_cnn.engines.memory import HOST_PARTS, RUNTIME_BYTES, MemoryPlan, reading_bytes, weight_bytes
from whole_slide_cnn.engines.staged.options import StagedOptions
from whole_slide_cnn.engines.staged.plan import REMEDY, StagedPlan, beside_maps
from whole_slide_cnn.models import shapes
from whole_slide_cnn.sizes import Size

_RATED = 512  # canvas pixels: side of the window whose modelled time gives the time of a FLOP


class Staged(EngineDescription):
    """Tiles of the canvas, stage by stage."""

    name = "staged"
    summary = "tiles stage by stage, within a budget of memory"
    options = StagedOptions
    remedy = REMEDY

    def engine_class(self):
        from whole_slide_cnn.engines.staged.engine import StagedEngine

        return StagedEngine

    def plan(self, work: Work) -> StagedPlan:
        """How the engine computes canvases of this size with its options."""
        unrolls = runtime.unrolls_patches(work.compute)
        beside = beside_maps(work.network, work.canvas, work.compute, work.training, unrolls)
        options = self.options_in(work.options)
        return StagedPlan(work.network.trunk, work.canvas, options, work.compute, work.training, unrolls, beside)

    def memory(self, work: Work) -> MemoryPlan:
        plan = self.plan(work)
        weights = weight_bytes(work.network, work.compute, work.training, plan.unrolls)
        parts = (
            ("tiles", plan.peak_bytes()),
            ("maps between stages", plan.most_stored()),
            ("weights", weights),
            ("slide reading", reading_bytes(work.canvas)),
            ("runtime", RUNTIME_BYTES),
        )
        return MemoryPlan(self.name, parts, self.remedy)

    def can_be_chosen(self, target: Target) -> bool:
        """By name alone: its memory and its time have not been compared with measured ones on enough machines."""
        return False

    def estimates(self, work: Work, target: Target, configured: bool = False) -> Iterator[Estimate]:
        """The time of its FLOPs at the modelled rate of a window; to compare with, not to be recommended."""
        plan = self.plan(work)
        side = Size(min(_RATED, work.canvas.height), min(_RATED, work.canvas.width))
        unrolls = not target.gpu and plan.unrolls
        ops = whole_canvas_graph(work.network, side, work.compute, work.training, unrolls)
        steps = shapes.canvas_shapes(plan.trunk, side)
        rated = shapes.forward_flops(steps) + (shapes.backward_flops(steps) if work.training else 0)
        flops = plan.work(plan.slide_of_share(work.tissue))
        seconds = (sum(flops) if work.training else flops.forward) * in_memory_seconds(ops, target.machine) / rated
        device = plan.peak_bytes() + work.weight_bytes + work.beside_weights if target.gpu else 0
        host = HOST_PARTS + plan.most_stored() if target.gpu else self.memory(work).total
        reason = too_large([stage.shapes(plan.largest(stage)) for stage in plan.stages], self.remedy)
        reason = reason or refusal(work, target, device, host, self.remedy)
        settings = (("memory_gb", plan.options.memory_gb),)
        seconds *= target.window_scale
        yield Estimate(self.name, work.compute, device, host, seconds, reason, offered=False, settings=settings)
