"""What each engine would need on a machine, and how long it would take for a slide.

Times are of computing and paging one slide, its gradients included where it trains. Reading and augmenting slides run
beside that and are not in them; nor is the optimiser's step, which a batch shares.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

from graph_tools.errors import GraphToolsError
from graph_tools.graph.lifetimes import lifetimes, live_bytes
from graph_tools.graph.opgraph import OpGraph, stable_order
from graph_tools.graph_edit import with_recomputes
from graph_tools.passes.planner import make_plan, unplanned
from graph_tools.plan import Plan
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import Simulation, simulate
from whole_slide_cnn.engines.base import unrolls_patches
from whole_slide_cnn.engines.memory import GB, HOST_PARTS, engine_memory
from whole_slide_cnn.engines.streaming.blank import BlankCanvas
from whole_slide_cnn.engines.streaming.engine import choose_cover, largest_windows, pixel_sizes, window_side
from whole_slide_cnn.engines.unified import UnifiedOptions, choice_of, order_of, step_plan
from whole_slide_cnn.errors import ConfigError, TensorTooLargeError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.trace import Step, check_tensor_sizes, trace_canvas, trace_window
from whole_slide_cnn.planning.graphs import direct_graph, in_memory_seconds, unified_graph
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import BLANK_BLOCK

HALF = "float16"
ENGINES = ("direct", "streaming", "unified")
_KEPT_PER_WEIGHT = 2  # Adam's moments; the summed gradient is in the step's graph
_PIXEL_BYTES = 2 * 3  # of this slide and of the next
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Schedule:
    """How ``unified`` runs on a GPU.

    Attributes:
        name: what is turned on, in words.
        grouped: whether operations run in groups; else in the graph's order, and pages come when they are touched.
        depth: groups ahead that a tensor is fetched.
        choice: what is moved or recomputed, as :func:`graph_tools.passes.planner.make_plan` has it.
        limit_bytes: of a group; None takes half of the device, so that what the next group needs has room, and with
            moves an eighth, so that they start at the right time.
        recommended: whether it is worth running; else it is there to compare with.
    """

    name: str
    grouped: bool = True
    depth: int = 1
    choice: str = "keep"
    limit_bytes: Optional[int] = None
    recommended: bool = True

    def limit(self, device_bytes: int) -> int:
        """Bytes of a group."""
        return self.limit_bytes or device_bytes // (2 if self.choice == "keep" else 8)


# What is added, step by step, to plain unified memory.
SCHEDULES = (
    Schedule("plain", grouped=False, depth=0, recommended=False),
    Schedule("groups", depth=0, recommended=False),
    Schedule("groups, prefetch"),
    Schedule("groups, move, recompute", choice="remat"),
)


def configured(options: UnifiedOptions) -> Schedule:
    """The schedule that the engine follows with its options."""
    choice = "keep" if options.device_gb is None else choice_of(options.memory_policy)
    return Schedule("as configured", True, options.prefetch_depth, choice, int(options.group_mb * 1e6))


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
        window_scale: the same on a canvas of the size of a window, whose maps caches hold better.
    """

    name: str
    machine: Machine
    gpu: bool
    time_scale: float = 1.0
    window_scale: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """What one engine needs.

    Attributes:
        engine: name of the engine.
        compute: type that it computes in.
        device_bytes: peak on the device; 0 without a GPU.
        host_bytes: peak on the host.
        seconds: per slide; None where it is not known.
        reason: why it cannot run; empty where it can.
        simulation: of the paging, where there is some.
        schedule: how ``unified`` runs on a GPU.
        group_bytes: what a group has of the device there.
        budget_bytes: what a step may hold on the device there.
    """

    engine: str
    compute: str
    device_bytes: int
    host_bytes: int
    seconds: Optional[float]
    reason: str = ""
    simulation: Optional[Simulation] = None
    schedule: Optional[Schedule] = None
    group_bytes: int = 0
    budget_bytes: int = 0

    @property
    def variant(self) -> str:
        """What of its schedule is turned on; empty without one."""
        return "" if self.schedule is None else self.schedule.name

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.reason


def estimate(
    work: Work, target: Target, schedules: Sequence[Schedule] = SCHEDULES, engines: Sequence[str] = ENGINES
) -> Iterator[Estimate]:
    """Some engines, and of ``unified`` on a GPU some schedules, one after the other as they are worked out.

    What cannot be planned at all is an estimate that does not fit, with the reason.
    """
    for engine in engines:
        if engine != "unified":
            yield {"direct": _direct, "streaming": _streaming}[engine](work, target)
        elif not target.gpu:
            yield _unified_on_host(work, target)
        else:
            yield from _unified(work, target, schedules)


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
    sizes = Counter(pixel_sizes(trunk, canvas, cover.windows))
    return dict(sizes), blank.size, bool(len(cover.blank.kinds))


def commonest_of(sizes: Dict[Size, int], blank: Size) -> Size:
    """The size that most windows have; the blank canvas's where there is no window."""
    return max(sizes, key=lambda size: (sizes[size], size)) if sizes else blank


def _unrolls(work: Work, target: Target) -> bool:
    return not target.gpu and unrolls_patches(work.compute)


def _weights(work: Work) -> int:
    """Bytes of the weights."""
    size = 8 if work.compute == "float64" else 4
    return size * sum(int(np.prod(spec.shape)) for spec in work.network.variables)


def _beside_weights(work: Work) -> int:
    """Bytes that training keeps beside the weights."""
    return _weights(work) * _KEPT_PER_WEIGHT if work.training else 0


def _host_parts(work: Work) -> int:
    """Bytes on the host of a run whose maps are on a GPU: slides that are read, this slide's pixels and the next's."""
    return HOST_PARTS + _PIXEL_BYTES * work.canvas.height * work.canvas.width


def _peak(ops: OpGraph) -> int:
    return int(live_bytes(ops, lifetimes(ops, stable_order(ops))).max(initial=0))


def _over_budget(needed: int, budget: int, what: str, remedy: str) -> str:
    """Why something does not fit, or nothing where it does."""
    if needed <= budget:
        return ""
    digits = 1 if needed - budget > 0.05 * GB and budget > 0.5 * GB else 3
    return "needs {:.{}f} GB of {} and {:.{}f} GB are free for it; {}".format(
        needed / GB, digits, what, budget / GB, digits, remedy
    )


def _too_large(steps: Sequence[Sequence[Step]]) -> str:
    """Why no operation may run on some tensors, or nothing where all may."""
    try:
        for trace in steps:
            check_tensor_sizes(trace)
    except TensorTooLargeError as error:
        return str(error)
    return ""


def _direct(work: Work, target: Target) -> Estimate:
    ops = direct_graph(work.network, work.canvas, work.compute, work.training, _unrolls(work, target))
    seconds = in_memory_seconds(ops, target.machine) * target.time_scale
    reason = _too_large([trace_canvas(work.network.trunk, work.canvas)])
    return _in_memory("direct", work, target, _peak(ops) + _beside_weights(work), seconds, reason)


def _streaming(work: Work, target: Target) -> Estimate:
    """The time of the commonest window, and of all others by their area; a window that holds no maximum is not computed
    backward. The blank canvas is computed once for a batch; where nothing is trained, once for all slides."""
    trunk = work.network.trunk
    sizes, blank, with_blank = streaming_windows(work)
    commonest = commonest_of(sizes, blank)
    area = commonest.height * commonest.width
    steps = {
        training: direct_graph(work.network, commonest, work.compute, training, _unrolls(work, target))
        for training in {False, work.training}
    }
    rate = {training: in_memory_seconds(ops, target.machine) / area for training, ops in steps.items()}
    pixels = sum(size.height * size.width * count for size, count in sizes.items())
    seconds = rate[False] * pixels
    if work.training:
        seconds += rate[True] * pixels * _share_with_maxima(work, sum(sizes.values()))
        seconds += blank.height * blank.width * with_blank * (rate[False] + rate[True]) / work.batch
    largest = largest_windows(trunk, work.canvas, work.window)
    most = max(window.pixels.height * window.pixels.width for window in largest)
    peak = int(_peak(steps[work.training]) * max(1.0, most / area)) + _beside_weights(work)
    reason = _too_large([trace_window(trunk, window) for window in largest])
    reason = reason.replace("use engine: streaming, or a smaller canvas", "use a smaller streaming.window")
    return _in_memory("streaming", work, target, peak, seconds * target.window_scale, reason)


def _share_with_maxima(work: Work, windows: int) -> float:
    """Expected share of windows that are computed backward: with maximum pooling those that hold the maximum of a
    channel, if each is equally likely in all of them."""
    if work.network.pooling == "gap" or windows == 0:
        return 1.0
    return 1 - (1 - 1 / windows) ** work.network.channels


def _in_memory(engine: str, work: Work, target: Target, device: int, seconds: float, reason: str) -> Estimate:
    """The estimate of an engine whose maps are all in one memory."""
    remedy = "use a smaller streaming.window" if engine == "streaming" else "use streaming"
    budget = target.machine.device_bytes
    if target.gpu:
        host = HOST_PARTS if engine == "streaming" else _host_parts(work)
        reason = reason or _weights_alone(work, budget) or _over_budget(device, budget, "device memory", remedy)
        reason = reason or _over_budget(host, target.machine.host_bytes, "host memory", "give it more")
        return Estimate(engine, work.compute, device, host, seconds, reason)
    host = engine_memory(engine, work.network, work.canvas, work.compute, work.training, window=work.window).total
    reason = reason or _over_budget(host, budget, "host memory", remedy)
    return Estimate(engine, work.compute, 0, host, seconds, reason)


def _weights_alone(work: Work, budget: int) -> str:
    """Why not even the weights fit, or nothing where they do."""
    needed = _weights(work) + _beside_weights(work)
    return _over_budget(
        needed, budget - 1, "device memory for the weights alone", "use a smaller model or a larger GPU"
    )


def _unified_on_host(work: Work, target: Target) -> Estimate:
    """Without a device to page to, strips in groups: no time is lost to paging, and none won."""
    try:
        ops = unified_graph(
            work.network, work.canvas, work.compute, work.unified.strip_mb, work.training, _unrolls(work, target)
        )
        options = asdict(work.unified)
        host = engine_memory("unified", work.network, work.canvas, work.compute, work.training, **options).total
        if work.unified.device_gb is not None:
            plan = step_plan(work.network, work.canvas, work.compute, work.unified, work.training)
            ops = with_recomputes(ops, plan.recomputes)
    except (TensorTooLargeError, ConfigError) as error:
        return Estimate("unified", work.compute, 0, 0, None, str(error))
    seconds = in_memory_seconds(ops, target.machine) * target.time_scale
    reason = _over_budget(host, target.machine.device_bytes, "host memory", "use streaming, or set unified.device_gb")
    return Estimate("unified", work.compute, 0, host, seconds, reason)


def _unified(work: Work, target: Target, schedules: Sequence[Schedule]) -> Iterator[Estimate]:
    beside = _beside_weights(work)
    budget = target.machine.device_bytes
    if work.unified.device_gb is not None:
        budget = min(budget, int(work.unified.device_gb * GB) + beside)
    try:
        reason = _weights_alone(work, budget)
        ops = unified_graph(work.network, work.canvas, work.compute, work.unified.strip_mb, work.training)
    except (TensorTooLargeError, ConfigError) as error:
        reason = str(error)
    for schedule in schedules:
        if reason:
            yield Estimate("unified", work.compute, 0, 0, None, reason, schedule=schedule)
        else:
            machine = replace(target.machine, device_bytes=budget - beside)
            yield _scheduled(work, ops, machine, schedule, beside)


def _scheduled(work: Work, ops: OpGraph, machine: Machine, schedule: Schedule, beside: int) -> Estimate:
    """The simulation of one schedule. Where nothing is moved by choice, what the host would need is told even if it has
    less."""
    group = schedule.limit(machine.device_bytes)
    unlimited = replace(machine, host_bytes=_UNLIMITED if schedule.choice == "keep" else machine.host_bytes)
    try:
        simulation = simulate(ops, plan_of(ops, unlimited, schedule), unlimited)
    except GraphToolsError as error:
        return Estimate("unified", work.compute, 0, 0, None, str(error), schedule=schedule)
    device, host = simulation.peak_device_bytes + beside, simulation.peak_host_bytes + _host_parts(work)
    remedy = "use streaming, half precision, or let maps be computed again (unified.device_gb)"
    reason = _over_budget(host, machine.host_bytes, "host memory", remedy)
    return Estimate(
        "unified",
        work.compute,
        device,
        host,
        simulation.seconds,
        reason,
        simulation,
        schedule,
        group,
        machine.device_bytes,
    )


def plan_of(ops: OpGraph, machine: Machine, schedule: Schedule) -> Plan:
    """The plan of a schedule on a GPU."""
    if not schedule.grouped:
        return unplanned(ops)
    order, limit = order_of(schedule.choice, on_gpu=True), schedule.limit(machine.device_bytes)
    return make_plan(ops, limit, order, schedule.depth, schedule.choice, machine)
