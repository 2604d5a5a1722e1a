"""What each engine would need on a machine, and how long it would take for a slide.

Times are of computing and paging one slide, its gradients included where it trains. Reading and augmenting slides run
beside that and are not in them; nor is the optimiser's step, which a batch shares.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Tuple

import numpy as np

from graph_tools.errors import BudgetError, GraphToolsError
from graph_tools.lifetimes import lifetimes, live_bytes
from graph_tools.machine import Machine
from graph_tools.opgraph import OpGraph, stable_order
from graph_tools.planner import make_plan, unplanned
from graph_tools.simulate import Simulation, simulate
from whole_slide_cnn.engines.base import unrolls_patches
from whole_slide_cnn.engines.blank import BlankCanvas
from whole_slide_cnn.engines.memory import HOST_PARTS, engine_memory
from whole_slide_cnn.engines.streaming import choose_cover, largest_windows, window_side
from whole_slide_cnn.engines.unified import UnifiedOptions
from whole_slide_cnn.errors import ConfigError, TensorTooLargeError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.build import COMPUTE_TYPES
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.trace import check_tensor_sizes, trace_canvas
from whole_slide_cnn.planning.graphs import direct_graph, in_memory_seconds, unified_graph
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import BLANK_BLOCK

# Both have the same bytes and rate.
HALF = "float16" if "float16" in COMPUTE_TYPES else "bfloat16"
# Beside each trained weight: its summed gradient and Adam's two moments.
_KEPT_PER_WEIGHT = 3
_PIXEL_BYTES = 2 * 3  # of this slide and of the next

# What is added, step by step, to plain unified memory: name, fields of a plan.
VARIANTS = (
    ("plain", None),
    ("groups", {"depth": 0}),
    ("groups, prefetch", {"depth": 1}),
    ("groups, prefetch, move, recompute", {"depth": 1, "choice": "best"}),
)


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    Attributes:
        network: the network.
        canvas: size in pixels.
        compute: type that the trunk computes in.
        training: whether gradients are computed.
        tissue: share of the canvas's area that is not blank; assumed to be a square in its middle.
        window: side of a window's core in pixels (streaming).
        unified: how ``unified`` is set.
        batch: slides of an update.
    """

    network: Network
    canvas: Size
    compute: str = "float32"
    training: bool = True
    tissue: float = 1.0
    window: int = 1024
    unified: UnifiedOptions = UnifiedOptions()
    batch: int = 1

    def __post_init__(self):
        if not 0 < self.tissue <= 1:
            raise ConfigError("a tissue share of {} is none; give more than 0 and at most 1".format(self.tissue))


@dataclass(frozen=True)
class Target:
    """The machine to plan for.

    Attributes:
        name: of its GPU, or of the machine.
        machine: budgets and rates; without a GPU its device is the host itself and the host's share 0.
        gpu: whether there is one.
        time_scale: measured time of a step over the modelled one, where it was measured (:mod:`.rates`).
    """

    name: str
    machine: Machine
    gpu: bool
    time_scale: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """What one engine needs.

    Attributes:
        engine: name of the engine.
        variant: what of the schedule is turned on (unified only).
        compute: type that it computes in.
        device_bytes: peak on the device; 0 without a GPU.
        host_bytes: peak on the host.
        seconds: per slide; None where it is not known.
        reason: why it cannot run; empty where it can.
        simulation: of the paging, where there is some.
    """

    engine: str
    variant: str
    compute: str
    device_bytes: int
    host_bytes: int
    seconds: Optional[float]
    reason: str = ""
    simulation: Optional[Simulation] = None

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.reason


def estimate(
    work: Work, target: Target, halves: bool = True, variants=VARIANTS, engines=("direct", "streaming", "unified")
) -> Tuple[Estimate, ...]:
    """Some engines and, on a GPU, variants of ``unified``, each in the type asked for.

    Args:
        halves: on a GPU, whether ``unified`` is planned in half precision as well where float32 is asked for.
        variants: of ``unified`` on a GPU, as in ``VARIANTS``.
    """
    found: List[Estimate] = []
    for engine in engines:
        if engine != "unified":
            found.append({"direct": _direct, "streaming": _streaming}[engine](work, target))
        elif not target.gpu:
            found.append(_unified_on_host(work, target))
        else:
            found += _unified(work, target, variants)
            if halves and work.compute == "float32":
                found += _unified(replace(work, compute=HALF), target, variants)
    return tuple(found)


def streaming_windows(work: Work) -> Tuple[Dict[Size, int], Size, bool]:
    """Windows that ``streaming`` computes: how many of each size in pixels, halo included; size of the blank canvas,
    and whether it is needed."""
    trunk, canvas = work.network.trunk, work.canvas
    blank = BlankCanvas(trunk, canvas)
    blocks = np.ones([-(-side // BLANK_BLOCK) for side in canvas], bool)
    height, width = (max(1, int(round(side * work.tissue**0.5 / BLANK_BLOCK))) for side in canvas)
    top, left = (blocks.shape[0] - height) // 2, (blocks.shape[1] - width) // 2
    blocks[max(top, 0) : top + height, max(left, 0) : left + width] = False
    cover = choose_cover(trunk, canvas, window_side(trunk, canvas.height, work.window), blocks, blank)
    sizes = Counter(geometry.window_geometry(trunk, canvas, window).pixels.size for window in cover.windows)
    return dict(sizes), blank.size, bool(len(cover.blank.kinds))


def _unrolls(work: Work, target: Target) -> bool:
    return not target.gpu and unrolls_patches(work.compute)


def _weights(work: Work) -> int:
    """Bytes that training keeps beside the weights."""
    size = 8 if work.compute == "float64" else 4
    values = sum(int(np.prod(spec.shape)) for spec in work.network.variables if spec.trainable)
    return values * size * _KEPT_PER_WEIGHT if work.training else 0


def _host_parts(work: Work) -> int:
    """Bytes on the host of a run whose maps are on a GPU: slides that are read, this slide's pixels and the next's."""
    return HOST_PARTS + _PIXEL_BYTES * work.canvas.height * work.canvas.width


def _peak(ops: OpGraph) -> int:
    return int(live_bytes(ops, lifetimes(ops, stable_order(ops))).max(initial=0))


def _over_budget(needed: int, budget: int, what: str, remedy: str) -> str:
    if needed <= budget:
        return ""
    return "needs {:.1f} GB of {} and there are {:.1f}; {}".format(needed / 1e9, what, budget / 1e9, remedy)


def _direct(work: Work, target: Target) -> Estimate:
    ops = direct_graph(work.network, work.canvas, work.compute, work.training, _unrolls(work, target))
    seconds = in_memory_seconds(ops, target.machine) * target.time_scale
    try:
        check_tensor_sizes(trace_canvas(work.network.trunk, work.canvas))
        too_large = ""
    except TensorTooLargeError as error:
        too_large = str(error)
    return _in_memory("direct", work, target, _peak(ops) + _weights(work), seconds, too_large)


def _streaming(work: Work, target: Target) -> Estimate:
    """The time of the commonest window, and of all others by their area; a window that holds no maximum is not computed
    backward."""
    sizes, blank, with_blank = streaming_windows(work)
    commonest = max(sizes, key=lambda size: (sizes[size], size)) if sizes else blank
    area = commonest.height * commonest.width
    steps = {
        training: direct_graph(work.network, commonest, work.compute, training, _unrolls(work, target))
        for training in {False, work.training}
    }
    rate = {training: in_memory_seconds(ops, target.machine) / area for training, ops in steps.items()}
    pixels = sum(size.height * size.width * count for size, count in sizes.items())
    seconds = rate[False] * pixels
    blank_pixels = blank.height * blank.width if with_blank else 0
    if work.training:
        seconds += rate[True] * pixels * _share_with_maxima(work, sum(sizes.values()))
        seconds += blank_pixels * (rate[False] + rate[True]) / work.batch
    else:
        seconds += 0  # the blank canvas is computed once for all slides
    largest = max(
        (window.pixels.size for window in largest_windows(work.network.trunk, work.canvas, work.window)),
        key=lambda size: size.height * size.width,
    )
    peak = _peak(steps[work.training]) * max(1.0, largest.height * largest.width / area)
    return _in_memory("streaming", work, target, int(peak) + _weights(work), seconds * target.time_scale, "")


def _share_with_maxima(work: Work, windows: int) -> float:
    """Expected share of windows that are computed backward: with maximum pooling those that hold the maximum of a
    channel, if each is equally likely in all of them."""
    if work.network.pooling == "gap" or windows == 0:
        return 1.0
    return 1 - (1 - 1 / windows) ** work.network.channels


def _in_memory(engine: str, work: Work, target: Target, device: int, seconds: float, reason: str) -> Estimate:
    """The estimate of an engine whose maps are all in one memory."""
    remedy = "use a smaller streaming.window" if engine == "streaming" else "use streaming"
    if target.gpu:
        host = HOST_PARTS if engine == "streaming" else _host_parts(work)
        reason = reason or _over_budget(device, target.machine.device_bytes, "device memory", remedy)
        return Estimate(engine, "", work.compute, device, host, seconds, reason)
    host = engine_memory(engine, work.network, work.canvas, work.compute, work.training, window=work.window).total
    reason = reason or _over_budget(host, target.machine.device_bytes, "host memory", remedy)
    return Estimate(engine, "", work.compute, 0, host, seconds, reason)


def _unified_on_host(work: Work, target: Target) -> Estimate:
    """Without a device to page to, strips in groups: no time is lost to paging, and none won."""
    try:
        ops = unified_graph(
            work.network, work.canvas, work.compute, work.unified.strip_mb, work.training, _unrolls(work, target)
        )
        options = {name: value for name, value in vars(work.unified).items()}
        host = engine_memory("unified", work.network, work.canvas, work.compute, work.training, **options).total
    except (TensorTooLargeError, ConfigError) as error:
        return Estimate("unified", "groups", work.compute, 0, 0, None, str(error))
    seconds = in_memory_seconds(ops, target.machine) * target.time_scale
    reason = _over_budget(host, target.machine.device_bytes, "host memory", "use streaming")
    return Estimate("unified", "groups", work.compute, 0, host, seconds, reason)


def _unified(work: Work, target: Target, variants) -> List[Estimate]:
    try:
        ops = unified_graph(work.network, work.canvas, work.compute, work.unified.strip_mb, work.training)
    except (TensorTooLargeError, ConfigError) as error:
        return [Estimate("unified", name, work.compute, 0, 0, None, str(error)) for name, _ in variants]
    machine = target.machine
    others = _weights(work)
    if others >= machine.device_bytes:
        reason = _over_budget(others, machine.device_bytes, "device memory for weights alone", "use a smaller model")
        return [Estimate("unified", name, work.compute, others, 0, None, reason) for name, _ in variants]
    machine = replace(machine, device_bytes=machine.device_bytes - others)
    found = []
    for name, options in variants:
        try:
            simulation = simulate(ops, schedule(ops, machine, options), machine)
        except BudgetError as error:
            found.append(Estimate("unified", name, work.compute, 0, 0, None, str(error)))
            continue
        except GraphToolsError as error:
            raise ConfigError("engine unified: {}".format(error)) from error
        device, host = simulation.peak_device_bytes + others, simulation.peak_host_bytes + _host_parts(work)
        reason = _over_budget(host, machine.host_bytes, "host memory", "use streaming, or half precision")
        seconds = simulation.seconds * target.time_scale
        found.append(Estimate("unified", name, work.compute, device, host, seconds, reason, simulation))
    return found


def schedule(ops: OpGraph, machine: Machine, options: Optional[dict]):
    """The plan of a variant. A group takes at most half of the device, so that what the next one needs has room."""
    if options is None:
        return unplanned(ops)
    return make_plan(ops, machine.device_bytes // 2, order="topological", machine=machine, **options)
