"""``streaming`` as the rest of the program knows it. Its memory and time are read from its plan."""

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
from whole_slide_cnn.engines.memory import HOST_PARTS, MemoryPlan
from whole_slide_cnn.engines.streaming.options import StreamingOptions
from whole_slide_cnn.engines.streaming.plan import REMEDY, StreamingPlan, commonest, pixels_of
from whole_slide_cnn.models.shapes import window_shapes
from whole_slide_cnn.sizes import Size


class Streaming(EngineDescription):
    """Windows of the canvas, one after the other."""

    name = "streaming"
    summary = "windows, flat in memory"
    options = StreamingOptions
    remedy = REMEDY

    def engine_class(self):
        from whole_slide_cnn.engines.streaming.engine import StreamingEngine

        return StreamingEngine

    def plan(self, work: Work) -> StreamingPlan:
        """How the engine computes canvases of this size with its options."""
        return StreamingPlan(work.network.trunk, work.canvas, self.options_in(work.options).window)

    def commonest_window(self, work: Work) -> Size:
        """The size in pixels that most windows have."""
        plan = self.plan(work)
        return commonest(plan.kinds(plan.cover_of_share(work.tissue).windows), plan.blank.size)

    def memory(self, work: Work) -> MemoryPlan:
        unrolls = runtime.unrolls_patches(work.compute)
        passes = self.plan(work).peak_bytes(work.compute, work.training, unrolls)
        return in_memory(self.name, work, passes, unrolls, self.remedy)

    def estimates(self, work: Work, target: Target, configured: bool = False) -> Iterator[Estimate]:
        """The time of the commonest window, and of all others by their area; a window that holds no maximum is not
        computed backward. The blank canvas is computed once for a batch; where nothing is trained, once for all
        slides."""
        plan = self.plan(work)
        cover = plan.cover_of_share(work.tissue)
        kinds, blank = plan.kinds(cover.windows), plan.blank.size
        window = commonest(kinds, blank)
        area = window.height * window.width
        unrolls = not target.gpu and runtime.unrolls_patches(work.compute)
        steps = {
            training: whole_canvas_graph(work.network, window, work.compute, training, unrolls)
            for training in {False, work.training}
        }
        rate = {training: in_memory_seconds(ops, target.machine) / area for training, ops in steps.items()}
        pixels = pixels_of(kinds)
        seconds = rate[False] * pixels
        if work.training:
            seconds += rate[True] * pixels * _share_with_maxima(work, len(cover.windows))
            with_blank = bool(len(cover.blank.kinds))
            seconds += blank.height * blank.width * with_blank * (rate[False] + rate[True]) / work.batch
        largest = plan.largest()
        most = max(window.pixels.height * window.pixels.width for window in largest)
        peak = int(held_at_once(steps[work.training]) * max(1.0, most / area)) + work.beside_weights
        device, host = (peak, HOST_PARTS) if target.gpu else (0, self.memory(work).total)
        reason = too_large([window_shapes(plan.trunk, window) for window in largest], self.remedy)
        reason = reason or refusal(work, target, device, host, self.remedy)
        settings = (("window", self.options_in(work.options).window),)
        seconds *= target.window_scale
        yield Estimate(self.name, work.compute, device, host, seconds, reason, settings=settings)


def _share_with_maxima(work: Work, windows: int) -> float:
    """Expected share of windows that are computed backward: with maximum pooling those that hold the maximum of a
    channel, if each is equally likely in all of them."""
    if work.network.pooling == "gap" or windows == 0:
        return 1.0
    return 1 - (1 - 1 / windows) ** work.network.channels
