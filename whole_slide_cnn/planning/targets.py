"""From a configuration and a command's options to what is planned, and for which machine."""

import platform
from dataclasses import asdict, replace
from typing import Any, Dict, NamedTuple, Optional, Sequence

from graph_tools.errors import GraphToolsError
from graph_tools.simulation.machine import Machine
from graph_tools.units import parse_bytes
from tf_um_patch.host import HOST_SHARE, available_host_memory, first_gpu
from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines.costs import Estimate, Target, Work
from whole_slide_cnn.engines.memory import GB
from whole_slide_cnn.engines.streaming.description import Streaming
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import make_network
from whole_slide_cnn.planning.devices import gpu_named, machine_of, match_gpu, target_of_card
from whole_slide_cnn.planning.rates import host_machine, measured_scale
from whole_slide_cnn.planning.recommend import Recommendation, label
from whole_slide_cnn.sizes import Size

HOST = "host"  # the name of a machine without a GPU


class Overrides(NamedTuple):
    """What differs from the table: sizes as text, rates as numbers; None where nothing does."""

    device_memory: Optional[str] = None
    host_memory: Optional[str] = None
    copy_rate: Optional[float] = None
    on_demand_rate: Optional[float] = None
    memory_rate: Optional[float] = None
    float32_flops: Optional[float] = None
    half_flops: Optional[float] = None


def work_of(config: TrainConfig, training: bool, tissue: float = 1.0) -> Work:
    """What a configuration asks to be computed for one slide."""
    return Work(
        make_network(config),
        Size(*config.data.canvas),
        config.model.compute,
        training,
        tissue,
        config.train.batch_size,
        {name: engine.options_in(config) for name, engine in ENGINES.items()},
    )


_NOTHING = Overrides()


def target_of(
    name: Optional[str], compute: str, given: Overrides = _NOTHING, memory_gb: Optional[float] = None
) -> Target:
    """A machine to plan for.

    Args:
        name: of a GPU, ``host`` for none, or None for what this machine has.
        compute: type that a network computes in.
        memory_gb: what a run is held to, in GB, where sizes are not given.

    Raises:
        ConfigError: the GPU is unknown, or a size cannot be used.
    """
    host_bytes = _size(given.host_memory, "--host-memory", least=0)
    card = first_gpu() if name is None else None
    if card is not None and match_gpu(card) is None:
        raise ConfigError(
            "this machine's GPU, {} with {:.1f} GB, is not in the table; name one like it by --device and give "
            "--device-memory, or --device host".format(card.name, card.total_bytes / GB)
        )
    if host_bytes is None:
        host_bytes = available_host_memory()
    if host_bytes is None:
        raise ConfigError("this system does not tell how much memory is free; give --host-memory")
    if card is None and name in (None, HOST):
        if given.device_memory:
            raise ConfigError("--device-memory is that of a GPU; name one with --device")
        free = memory_gb is None or given.host_memory
        budget = int(host_bytes * HOST_SHARE) if free else int((memory_gb or 0) * GB)
        machine = host_machine(budget, compute)
        return Target("this machine ({})".format(platform.machine()), _with_rates(machine, given), False)
    if card is not None:
        target = target_of_card(card, host_bytes, compute)
    else:
        target = Target(str(name), machine_of(gpu_named(str(name)), host_bytes, compute), True)
    held = limited(target, memory_gb)
    device_bytes = _size(given.device_memory, "--device-memory")
    machine = replace(
        target.machine,
        device_bytes=held.machine.device_bytes if device_bytes is None else device_bytes,
        host_bytes=target.machine.host_bytes if given.host_memory else held.machine.host_bytes,
    )
    return replace(target, machine=_with_rates(machine, given))


def limited(target: Target, memory_gb: Optional[float]) -> Target:
    """A GPU of which, and of whose host, a run may use so many GB each; None sets no limit."""
    if memory_gb is None:
        return target
    limit, machine = int(memory_gb * GB), target.machine
    sizes = {"device_bytes": min(machine.device_bytes, limit), "host_bytes": min(machine.host_bytes, limit)}
    return replace(target, machine=replace(machine, **sizes))


def measured(target: Target, work: Work) -> Target:
    """The same machine without a GPU, with what a small step of the network took on it.

    Raises:
        ConfigError: the target is a GPU.
    """
    if target.gpu:
        raise ConfigError("--measure times a step on this machine's processor; use it with --device host")
    window = Streaming().commonest_window(work)
    whole, of_window = (
        measured_scale(work.network, work.compute, work.training, target.machine, *more) for more in ((), ((window,),))
    )
    return replace(target, time_scale=whole, window_scale=of_window)


def _with_rates(machine: Machine, given: Overrides) -> Machine:
    return replace(
        machine, **{key: value for key, value in given._asdict().items() if key.endswith(("rate", "flops")) and value}
    )


def plan_json(work: Work, target: Target, estimates: Sequence[Estimate], best: Recommendation) -> Dict[str, Any]:
    """A plan as plain values: bytes, seconds, names."""
    return {
        "canvas": list(work.canvas),
        "backbone": work.network.backbone,
        "pooling": work.network.pooling,
        "compute": work.compute,
        "training": work.training,
        "tissue": work.tissue,
        "target": {"name": target.name, "gpu": target.gpu, "time_scale": target.time_scale, **asdict(target.machine)},
        "estimates": [_estimate_json(item) for item in estimates],
        "recommended": None if best.estimate is None else label(best.estimate),
        "reason": best.reason,
    }


def _estimate_json(item: Estimate) -> Dict[str, Any]:
    values = {
        "engine": item.engine,
        "variant": item.variant,
        "compute": item.compute,
        "device_bytes": item.device_bytes,
        "host_bytes": item.host_bytes,
        "seconds": item.seconds,
        "fits": item.fits,
        "reason": item.reason,
        "group_bytes": item.group_bytes,
    }
    if item.simulation is not None:
        names = ("compute_seconds", "stall_seconds", "bytes_in", "bytes_out", "on_demand_bytes")
        values["simulation"] = {name: getattr(item.simulation, name) for name in names}
    return values


def _size(text: Optional[str], option: str, least: int = 1) -> Optional[int]:
    if text is None:
        return None
    try:
        return parse_bytes(text, least)
    except GraphToolsError as error:
        raise ConfigError("{}: {}".format(option, error)) from error
