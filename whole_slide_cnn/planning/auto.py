"""The planner's part in a run: which engine ``auto`` means, and what is said of memory and time before it."""

from dataclasses import replace
from typing import Optional, Tuple

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines.base import has_gpu
from whole_slide_cnn.engines.memory import GB, free_host_memory
from whole_slide_cnn.planning.devices import detect_gpu
from whole_slide_cnn.planning.estimate import Target, estimate
from whole_slide_cnn.planning.rates import host_machine
from whole_slide_cnn.planning.recommend import recommend, sentence
from whole_slide_cnn.planning.targets import Overrides, target_of, work_of

_SHARE_OF_FREE_MEMORY = 0.5  # auto leaves the rest to what else comes to this machine while a run lasts
# Of unified what the engine does by its defaults, which are the paper's.
_SCHEDULE = (("groups, prefetch", {"depth": 1}),)


def run_target(config: TrainConfig, processes: int = 1) -> Optional[Target]:
    """The machine that a run has: this machine's GPU, or its share of the host; None where its memory is not known.

    Args:
        processes: how many on this machine share the host's memory; each has a GPU of its own.
    """
    if has_gpu():
        name, free = detect_gpu(), free_host_memory()
        if name is None or free is None:
            return None
        target = target_of(name, Overrides(host_memory=str(free // processes)))
        if config.memory_gb is None:
            return target
        limit = int(config.memory_gb * GB)
        machine = replace(
            target.machine,
            device_bytes=min(target.machine.device_bytes, limit),
            host_bytes=min(target.machine.host_bytes, limit),
        )
        return replace(target, machine=machine)
    if config.memory_gb is not None:
        budget = config.memory_gb * GB
    else:
        free = free_host_memory()
        if free is None:
            return None
        budget = _SHARE_OF_FREE_MEMORY * free / processes
    return Target("this machine", host_machine(int(budget)), False)


def choose_engine(config: TrainConfig, training: bool, processes: int = 1) -> Tuple[str, str]:
    """The engine that ``auto`` means, and why, in words.

    It is the fastest that fits, as planned for all tissue; ``streaming`` where the machine's memory is not known.
    """
    target = run_target(config, processes)
    if target is None:
        return "streaming", "the memory of this machine's GPU is not known"
    engines = ("direct", "streaming") + (("unified",) if target.gpu else ())
    work = work_of(config, training)
    best = recommend(work, estimate(work, target, halves=False, variants=_SCHEDULE, engines=engines))
    if best.estimate is None:
        return "streaming", best.reason
    return best.estimate.engine, best.reason


def preview(config: TrainConfig, training: bool, processes: int = 1) -> Optional[str]:
    """What a run of the engine that is set will take, in one sentence; None where that is not known."""
    target = run_target(config, processes)
    if target is None:
        return None
    found = estimate(work_of(config, training), target, halves=False, variants=_SCHEDULE, engines=(config.engine,))
    return sentence(found[0], target) if found[0].seconds is not None else None
