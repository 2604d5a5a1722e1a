"""``direct`` as the rest of the program knows it."""

from typing import Iterator

from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.costs import (
    Estimate,
    Target,
    Work,
    held_at_once,
    in_memory,
    in_memory_seconds,
    refusal,
    too_large,
    whole_canvas_graph,
)
from whole_slide_cnn.engines.description import EngineDescription
from whole_slide_cnn.engines.memory import MemoryPlan
from whole_slide_cnn.engines.replay import pass_bytes
from whole_slide_cnn.models.shapes import canvas_shapes


class Direct(EngineDescription):
    """The whole canvas at once."""

    name = "direct"
    summary = "whole canvas at once"

    def engine_class(self):
        from whole_slide_cnn.engines.direct.engine import DirectEngine

        return DirectEngine

    def memory(self, work: Work) -> MemoryPlan:
        unrolls = runtime.unrolls_patches(work.compute)
        steps = canvas_shapes(work.network.trunk, work.canvas)
        passes = pass_bytes(steps, work.canvas, work.compute, work.training, unrolls)
        return in_memory(self.name, work, passes, unrolls, self.remedy)

    def estimates(self, work: Work, target: Target, configured: bool = False) -> Iterator[Estimate]:
        unrolls = not target.gpu and runtime.unrolls_patches(work.compute)
        ops = whole_canvas_graph(work.network, work.canvas, work.compute, work.training, unrolls)
        seconds = in_memory_seconds(ops, target.machine) * target.time_scale
        device = held_at_once(ops) + work.beside_weights if target.gpu else 0
        host = work.host_parts if target.gpu else self.memory(work).total
        reason = too_large([canvas_shapes(work.network.trunk, work.canvas)], self.remedy + ", or a smaller canvas")
        reason = reason or refusal(work, target, device, host, self.remedy)
        yield Estimate(self.name, work.compute, device, host, seconds, reason)
