"""What runs in a process of its own: one measurement, the plans of all, and the machine's rates."""

import dataclasses
import time
from typing import Any, Dict, List, NamedTuple, Optional

from memory import Peak, resident_bytes

from bench import floor
from bench.cases import Case
from bench.slides import SlideKind, open_slide, tissue_share
from bench.winners import winner_cells
from whole_slide_cnn.engines.costs import Target, Work
from whole_slide_cnn.engines.memory import check_memory
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import MemoryBudgetError, WholeSlideError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size

LABEL = 1
CLASSES = 3
_LEARNING_RATE = 1e-4


class Setting(NamedTuple):
    """What all cases of a run share, in plain values.

    Attributes:
        slide: what slides are made of.
        weights: a file of weights; random ones without.
        warmup: steps that are not counted.
        iterations: steps that are.
        memory_gb: what a run may take; None for what is free.
    """

    backbone: str
    pooling: str
    compute: str
    slide: SlideKind
    weights: Optional[str] = None
    warmup: int = 1
    iterations: int = 3
    memory_gb: Optional[float] = None

    @classmethod
    def of(cls, values: Dict[str, Any]) -> "Setting":
        """The inverse of ``_asdict``, through JSON."""
        return cls(**dict(values, slide=SlideKind(*values["slide"])))

    @property
    def network(self) -> Network:
        return Network(self.backbone, self.pooling, "softmax", CLASSES)


def random_weights(network: Network, seed: int = 0):
    """Weights with which every layer has a gradient; the first values of a network with batch norm have not."""
    from exactness import random_weights as drawn

    return drawn(network, seed)


def weights_of(setting: Setting):
    """The weights that a run starts from."""
    if setting.weights is None:
        return random_weights(setting.network)
    from whole_slide_cnn.models.weights import load_weights

    loaded, _ = load_weights(setting.weights, setting.network)
    return dict(random_weights(setting.network), **loaded)


def work_of(setting: Setting, case: Case, tissue: float) -> Work:
    """What the planner is asked about."""
    description = ENGINES[case.engine]
    given = {case.engine: description.options(**case.options)}
    share = min(1.0, max(tissue, 1e-6)) if case.blank else 1.0
    size = Size(case.side, case.side)
    return Work(setting.network, size, setting.compute, case.mode == "train", share, options=given)


def settled(case: Case, target: Target, memory_gb: Optional[float]) -> Case:
    """A case with what its engine leaves to the machine decided, as a run would have it: from ``memory_gb``, or from
    half of the memory that is free."""
    if case.runner != "engine":
        return case
    description, machine = ENGINES[case.engine], target.machine
    if memory_gb is None and not target.gpu:
        machine = dataclasses.replace(machine, device_bytes=machine.device_bytes // 2)
    options = description.settle(description.options(**case.options), dataclasses.replace(target, machine=machine))
    decided = {name: getattr(options, name) for name in description.settled}
    return case._replace(options=dict(case.options, **decided))


def plan(setting: Setting, case: Case, target: Target, tissue: float) -> Dict[str, Any]:
    """What a run would be told before it begins: bytes, seconds, and why it cannot be."""
    description = ENGINES[case.engine]
    try:
        work = work_of(setting, case, tissue)
        if not target.gpu:
            memory = description.memory(work)
            check_memory(memory, setting.memory_gb)
        (found,) = description.estimates(work, target, configured=True)
    except MemoryBudgetError as error:
        return {"refused": str(error), "predicted_bytes": memory.total}
    except WholeSlideError as error:
        return {"refused": str(error)}
    values: Dict[str, Any] = {"predicted_bytes": found.device_bytes if target.gpu else memory.total}
    values["predicted_seconds"] = found.seconds if target.rates_known else None
    reason = found.reason or description.obstacle(found)
    return dict(values, refused=reason) if reason else values


def rates(setting: Setting, measure: bool) -> Dict[str, Any]:
    """The machine's convolution rate, and the target that the planner has for it.

    Args:
        measure: time small steps of the network as ``plan --measure`` does; else the convolution rate stands for what
            the machine computes.
    """
    from whole_slide_cnn.engines.runtime import has_gpu, keep_freed_memory_small
    from whole_slide_cnn.planning.targets import HOST, measured, target_of

    keep_freed_memory_small()
    gpu = has_gpu()
    rate = floor.convolution_rate(setting.network.trunk, setting.compute, 2048 if gpu else 1024)
    target = target_of(None if gpu else HOST, setting.compute, memory_gb=setting.memory_gb)
    if not gpu and measure:
        target = measured(target, Work(setting.network, Size(4096, 4096), setting.compute))
    elif not gpu:
        target = dataclasses.replace(target, machine=dataclasses.replace(target.machine, float32_flops=rate["flops"]))
    return {"convolutions": rate, "target": dataclasses.asdict(target)}


def target_from(values: Dict[str, Any]) -> Target:
    """The inverse of ``dataclasses.asdict``."""
    from graph_tools.simulation.machine import Machine

    return Target(**dict(values, machine=Machine(**values["machine"])))


def measure_engine(setting: Setting, case: Case, seconds_left: Optional[float] = None) -> Dict[str, Any]:
    """Seconds of steps, and peak memory above the idle process, in this process.

    The process is idle when TensorFlow has run something and the slide is there: what reading a slide takes is not part
    of it. Blank area is looked for once, in the first step.

    Args:
        seconds_left: no step is begun after these, once one was counted.
    """
    import gpu_steps
    import tensorflow.compat.v1 as tf

    from whole_slide_cnn.engines.runtime import has_gpu, keep_freed_memory_small
    from whole_slide_cnn.running.optimisers import Adam

    began = time.perf_counter()
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.matmul(tf.ones([64, 64]), tf.ones([64, 64])))
    keep_freed_memory_small()
    training, description = case.mode == "train", ENGINES[case.engine]
    seconds: List[float] = []
    losses: List[float] = []
    with open_slide(setting.slide, case.side) as canvas:
        if not case.blank:
            canvas.set_blank_blocks(canvas.blank_blocks() & False)
        weights = weights_of(setting)
        idle = resident_bytes()
        with Peak() as peak, description.make(
            setting.network,
            canvas.size,
            setting.compute,
            Adam(_LEARNING_RATE) if training else None,
            training,
            description.options(**case.options),
        ) as engine:
            engine.load_state(weights)
            built = time.perf_counter() - began
            for step in range(setting.warmup + setting.iterations):
                if seconds_left is not None and step > setting.warmup and time.perf_counter() - began > seconds_left:
                    break
                start = time.perf_counter()
                found = engine.train_batch([canvas], [LABEL])[0] if training else engine.predict(canvas, LABEL)
                seconds.append(time.perf_counter() - start)
                losses.append(float(found.loss))
    return {
        "build_s": built,
        "first_s": seconds[0],
        "seconds": seconds[setting.warmup :],
        "losses": losses,
        "idle_bytes": idle,
        "peak_bytes": peak.bytes - idle,
        "device_peak_bytes": gpu_steps.allocator_peak() if has_gpu() else None,
    }


# What measures a case in a process of its own, by its runner; peers have programs of theirs (bench.peer).
RUNNERS = {"engine": measure_engine}


def share_of(setting: Setting, side: int) -> float:
    """The share of a slide's blocks of 32 px that are not blank."""
    with open_slide(setting.slide, side) as canvas:
        return tissue_share(canvas)


def floor_of(setting: Setting, side: int, winners: bool = False) -> Dict[str, Any]:
    """Multiply-accumulates of a slide without any halo.

    Args:
        winners: look for the cells that have a gradient; else all have one, as with average pooling.
    """
    network, wanted = setting.network, None
    with open_slide(setting.slide, side) as canvas:
        if winners and setting.pooling == "gmp":
            wanted = winner_cells(network, weights_of(setting), canvas, setting.compute)
        found = floor.work(network.trunk, canvas.size, canvas.blank_blocks(), wanted)
        return {
            "tissue": tissue_share(canvas),
            "forward_macs": found.forward,
            "step_macs": found.step,
            "step_kept_macs": found.step_kept,
            "blank_macs": found.blank,
            "share": None if wanted is None else found.share,
        }
