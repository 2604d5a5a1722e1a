"""The planner's part in a run: which engine ``auto`` means, and what is said of memory and time before it."""

from dataclasses import replace
from typing import Optional, Tuple

from tf_um_patch.host import available_host_memory, first_gpu
from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines.base import has_gpu
from whole_slide_cnn.engines.memory import GB
from whole_slide_cnn.engines.unified import can_exceed_device
from whole_slide_cnn.planning.devices import match_gpu
from whole_slide_cnn.planning.estimate import Estimate, Target, configured, estimate
from whole_slide_cnn.planning.rates import host_machine
from whole_slide_cnn.planning.recommend import recommend
from whole_slide_cnn.planning.targets import Overrides, target_of, work_of

_SHARE_OF_FREE_MEMORY = 0.5  # auto leaves the rest to what else comes to this machine while a run lasts


_NEEDS_UNIFIED_MEMORY = (
    "the step exceeds the GPU's memory, and this process has no unified memory; start the command with: python -m "
    "tf_um_patch run --"
)


def run_target(config: TrainConfig, processes: int = 1, others: int = 0) -> Optional[Target]:
    """The machine that a run has: this machine's GPU, or its share of the host; None where its memory is not known.

    Args:
        processes: how many on this machine share the host's memory; each has a GPU of its own.
        others: bytes of host memory that are taken beside an engine.
    """
    free = available_host_memory()
    if has_gpu():
        card = first_gpu()
        if card is None or free is None or match_gpu(card) is None:
            return None
        host = Overrides(host_memory=str(free // processes)) if config.memory_gb is None else Overrides()
        target = target_of(None, config.model.compute, host, config.memory_gb)
        left = max(target.machine.host_bytes - others, 0)
        return replace(target, machine=replace(target.machine, host_bytes=left))
    if config.memory_gb is not None:
        budget = config.memory_gb * GB
    elif free is not None:
        budget = _SHARE_OF_FREE_MEMORY * free / processes
    else:
        return None
    return Target("this machine", host_machine(int(budget) - others, config.model.compute), False)


def choose_engine(config: TrainConfig, training: bool, processes: int = 1, others: int = 0) -> Tuple[str, str]:
    """The engine that ``auto`` means, and why, in words.

    Args:
        others: bytes of host memory that the run takes beside its engine.

    It is the fastest that fits, as planned for all tissue; ``streaming`` where the machine's memory is not known.
    ``unified`` is among them only on a GPU and in a process whose memory may exceed it.
    """
    target = run_target(config, processes, others)
    if target is None:
        return "streaming", "how much memory there is cannot be told"
    engines = ("direct", "streaming") + (("unified",) if target.gpu and can_exceed_device() else ())
    work = work_of(config, training)
    best = recommend(work, tuple(estimate(work, target, (configured(work.unified),), engines)))
    return "streaming" if best.estimate is None else best.estimate.engine, best.reason


def foresee(config: TrainConfig, training: bool, target: Target) -> Estimate:
    """What a run will take of a machine, with the engine that is set."""
    work = work_of(config, training)
    (found,) = estimate(work, target, (configured(work.unified),), (config.engine,))
    if found.fits and found.simulation is not None and found.simulation.bytes_out and not can_exceed_device():
        return replace(found, reason=_NEEDS_UNIFIED_MEMORY)
    return found
