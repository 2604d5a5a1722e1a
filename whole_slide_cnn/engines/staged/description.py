"""``staged`` as the rest of the program knows it. Its memory and time are read from its plan."""

import dataclasses
from typing import Dict, Iterator, Optional

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
from whole_slide_cnn.engines.memory import HOST_PARTS, MemoryPlan
from whole_slide_cnn.engines.staged.options import MEMORY_GB, StagedOptions
from whole_slide_cnn.engines.staged.plan import REMEDY, StagedPlan, parts_beside
from whole_slide_cnn.models import shapes
from whole_slide_cnn.sizes import Size

_RATED = 512  # canvas pixels: side of the window whose modelled time gives the time of a FLOP


class Staged(EngineDescription):
    """Tiles of the canvas, stage by stage."""

    name = "staged"
    summary = "tiles stage by stage, within a budget of memory"
    options = StagedOptions
    remedy = REMEDY
    settled = ("memory_gb",)
    shares_windows = True

    def engine_class(self):
        from whole_slide_cnn.engines.staged.engine import StagedEngine

        return StagedEngine

    def plan(self, work: Work) -> StagedPlan:
        """How the engine computes canvases of this size with its options."""
        beside = sum(self._beside(work).values())
        options, unrolls = self.options_in(work.options), runtime.unrolls_patches(work.compute)
        return StagedPlan(work.network.trunk, work.canvas, options, work.compute, work.training, unrolls, beside)

    def _beside(self, work: Work) -> Dict[str, int]:
        unrolls = runtime.unrolls_patches(work.compute)
        return parts_beside(
            work.network, work.canvas, self.options_in(work.options), work.compute, work.training, unrolls
        )

    def memory(self, work: Work) -> MemoryPlan:
        plan = self.plan(work)
        stored = plan.most_stored() if work.tissue == 1 else plan.stored(plan.slide_of_share(work.tissue))
        parts = (("tiles", plan.peak_bytes()), ("maps between stages", stored))
        return MemoryPlan(self.name, parts + tuple(self._beside(work).items()), self.remedy)

    def settle(self, options: StagedOptions, target: Optional[Target]) -> StagedOptions:
        """``memory_gb`` as large as what the run has of the host, to the megabyte."""
        if options.memory_gb is not None:
            return options
        if target is None:
            return dataclasses.replace(options, memory_gb=MEMORY_GB)
        budget = target.machine.host_bytes if target.gpu else target.machine.device_bytes
        return dataclasses.replace(options, memory_gb=max(budget // 10**6, 1) / 1e3)

    def can_be_chosen(self, target: Target) -> bool:
        """On a GPU by name alone: there its maps pass through host memory, and it was not shown to be exact with all
        that is on by default."""
        return not target.gpu

    def estimates(self, work: Work, target: Target, configured: bool = False) -> Iterator[Estimate]:
        """The time of its FLOPs at the modelled rate of a window."""
        options = self.settle(self.options_in(work.options), target)
        work = dataclasses.replace(work, options=dict(work.options, **{self.name: options}))
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
        yield Estimate(
            self.name, work.compute, device, host, seconds, reason, offered=not target.gpu, settings=settings
        )
