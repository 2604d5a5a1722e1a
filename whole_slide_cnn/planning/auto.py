"""The planner's part in a run: which engine ``auto`` means, and what is said of memory and time before it."""

from dataclasses import replace
from typing import Optional, Tuple

from tf_um_patch.host import available_host_memory, first_gpu
from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines.costs import Estimate, Target
from whole_slide_cnn.engines.memory import GB
from whole_slide_cnn.engines.runtime import has_gpu
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.planning.devices import target_of_card
from whole_slide_cnn.planning.estimate import estimate
from whole_slide_cnn.planning.rates import host_machine
from whole_slide_cnn.planning.recommend import recommend
from whole_slide_cnn.planning.targets import limited, work_of

_SHARE_OF_FREE_MEMORY = 0.5  # auto leaves the rest to what else comes to this machine while a run lasts
_UNKNOWN = "streaming"  # whatever memory there is, its own can be chosen, and does not grow with the canvas


def run_target(config: TrainConfig, processes: int = 1, others: int = 0) -> Optional[Target]:
    """The machine that a run has: this machine's GPU, or its share of the host; None where its memory is not known.

    Args:
        processes: how many on this machine share the host's memory; each has a GPU of its own.
        others: bytes of host memory that are taken beside an engine.
    """
    free, limit = available_host_memory(), config.memory_gb
    if has_gpu():
        card = first_gpu()
        if card is None or free is None:
            return None
        share = free if limit is not None else free // processes
        target = limited(target_of_card(card, share, config.model.compute), limit)
        left = max(target.machine.host_bytes - others, 0)
        return replace(target, machine=replace(target.machine, host_bytes=left))
    if limit is not None:
        budget = limit * GB
    elif free is not None:
        budget = _SHARE_OF_FREE_MEMORY * free / processes
    else:
        return None
    return Target("this machine", host_machine(int(budget) - others, config.model.compute), False)


def choose_engine(config: TrainConfig, training: bool, processes: int = 1, others: int = 0) -> Tuple[str, str]:
    """The engine that ``auto`` means, and why, in words.

    Args:
        others: bytes of host memory that the run takes beside its engine.

    It is the fastest that fits, as planned for all tissue, of those that can be chosen in this process; ``streaming``
    where the machine's memory or its rates are not known.
    """
    target = run_target(config, processes, others)
    if target is None:
        return _UNKNOWN, "how much memory there is cannot be told"
    if not target.rates_known:
        return _UNKNOWN, "how fast {} computes is not known".format(target.name)
    engines = [name for name, engine in ENGINES.items() if engine.can_be_chosen(target)]
    work = work_of(config, training)
    best = recommend(work, tuple(estimate(work, target, engines, configured=True)))
    return _UNKNOWN if best.estimate is None else best.estimate.engine, best.reason


def estimate_run(config: TrainConfig, training: bool, target: Target) -> Estimate:
    """What a run will take of a machine, with the engine that is set."""
    (found,) = estimate(work_of(config, training), target, (config.engine,), configured=True)
    if not target.rates_known:
        found = replace(found, seconds=None)
    return replace(found, reason=ENGINES[config.engine].obstacle(found)) if found.fits else found
