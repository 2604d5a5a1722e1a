"""What a step of an engine costs on a machine: the values that engines and planner share, and what all engines need to
make them. Importing it imports no TensorFlow.

Times are of computing and paging one slide, its gradients included where it trains. Reading and augmenting slides run
beside that and are not in them; nor is the optimiser's step, which a batch shares.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from graph_tools.errors import GraphToolsError
from graph_tools.graph.lifetimes import lifetimes, live_bytes, touched_bytes
from graph_tools.graph.opgraph import OpGraph, stable_order
from graph_tools.simulation.machine import Machine
from graph_tools.simulation.simulate import Simulation
from whole_slide_cnn.config.options import Section
from whole_slide_cnn.engines.memory import (
    GB,
    HOST_PARTS,
    RUNTIME_BYTES,
    MemoryPlan,
    reading_bytes,
    variable_bytes,
    weight_bytes,
)
from whole_slide_cnn.errors import ConfigError, TensorTooLargeError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.shapes import MOST_ELEMENTS, Step, check_tensor_sizes
from whole_slide_cnn.sizes import Size

_KEPT_PER_WEIGHT = 2  # Adam's moments; the summed gradient is in the step's graph
_PIXEL_BYTES = 2 * 3  # of this slide and of the next


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    Attributes:
        network: the network.
        canvas: size in pixels.
        compute: type that the trunk computes in.
        training: whether gradients are computed.
        tissue: share of the canvas's area that is not blank; assumed to be a square in its middle.
        batch: slides of an update.
        options: how engines are set, by their names; one that is not there has its defaults.
    """

    network: Network
    canvas: Size
    compute: str = "float32"
    training: bool = True
    tissue: float = 1.0
    batch: int = 1
    options: Mapping[str, Section] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.tissue <= 1:
            raise ConfigError("a tissue share of {} is none; give more than 0 and at most 1".format(self.tissue))

    @property
    def weight_bytes(self) -> int:
        """Of the weights."""
        return variable_bytes(self.network, self.compute)

    @property
    def beside_weights(self) -> int:
        """Bytes that training keeps beside the weights, and that are not in a step's graph."""
        return self.weight_bytes * _KEPT_PER_WEIGHT if self.training else 0

    @property
    def host_parts(self) -> int:
        """Bytes on the host of a run whose maps are on a GPU: slides that are read, this slide's pixels and the
        next's."""
        return HOST_PARTS + _PIXEL_BYTES * self.canvas.height * self.canvas.width


@dataclass(frozen=True)
class Target:
    """The machine to plan for.

    Attributes:
        name: of its GPU, or of the machine.
        machine: budgets and rates; without a GPU its device is the host itself and the host's share 0.
        gpu: whether there is one.
        time_scale: measured time of a step over the modelled one, where it was measured
            (:mod:`whole_slide_cnn.planning.rates`).
        window_scale: the same on a canvas of the size of a window, whose maps caches hold better.
        rates_known: whether the machine's rates are its own; of a GPU that is not in the table only the memory is.
    """

    name: str
    machine: Machine
    gpu: bool
    time_scale: float = 1.0
    window_scale: float = 1.0
    rates_known: bool = True


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
        variant: what of the engine is turned on, in words; empty where there is nothing to turn on.
        offered: whether the variant is worth running; else it is there to compare with.
        settings: keys of the engine's section of a configuration that run it, with their values.
        simulation: of the paging, where there is some.
        group_bytes: what a group has of the device there.
    """

    engine: str
    compute: str
    device_bytes: int
    host_bytes: int
    seconds: Optional[float]
    reason: str = ""
    variant: str = ""
    offered: bool = True
    settings: Tuple[Tuple[str, Any], ...] = ()
    simulation: Optional[Simulation] = None
    group_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.reason


def step_graph(built: Tuple[Any, List[Any]], unrolls: bool) -> OpGraph:
    """A step as operations: shapes only, so that it may be of any size.

    Args:
        built: a TensorFlow graph and its fetches.
        unrolls: whether convolutions unroll their input into patches, as TensorFlow's own CPU kernels do.

    Raises:
        ConfigError: the graph has what cannot be planned.
    """
    from graph_tools.tensorflow.extract import extract

    graph, fetches = built
    try:
        return extract(graph, fetches, workspace_limit=MOST_ELEMENTS if unrolls else 0)
    except GraphToolsError as error:
        raise ConfigError("the step cannot be planned: {}".format(error)) from error


@functools.lru_cache(maxsize=8)
def whole_canvas_graph(network: Network, canvas: Size, compute: str, training: bool, unrolls: bool = False) -> OpGraph:
    """A step on a whole canvas, or on a window as if it were one, of ``direct``: it may hold tensors that no operation
    can compute."""
    from whole_slide_cnn.engines.direct.engine import planning_graph

    return step_graph(planning_graph(network, canvas, compute, training), unrolls)


def in_memory_seconds(ops: OpGraph, machine: Machine) -> float:
    """Time of a step whose tensors are all on the device."""
    life, named = lifetimes(ops, stable_order(ops)), ops.by_name()
    return float(
        np.sum([machine.seconds(named[name], size) for name, size in zip(life.order, touched_bytes(ops, life))])
    )


def held_at_once(ops: OpGraph) -> int:
    """The most bytes of tensors that a step holds."""
    return int(live_bytes(ops, lifetimes(ops, stable_order(ops))).max(initial=0))


def over_budget(needed: int, budget: int, what: str, remedy: str) -> str:
    """Why something does not fit, or nothing where it does."""
    if needed <= budget:
        return ""
    digits = 1 if needed - budget > 0.05 * GB and budget > 0.5 * GB else 3
    return "needs {:.{}f} GB of {} and {:.{}f} GB are free for it; {}".format(
        needed / GB, digits, what, budget / GB, digits, remedy
    )


def weights_alone(work: Work, budget: int) -> str:
    """Why not even the weights fit, or nothing where they do."""
    needed = work.weight_bytes + work.beside_weights
    return over_budget(needed, budget - 1, "device memory for the weights alone", "use a smaller model or a larger GPU")


def too_large(passes: Sequence[Sequence[Step]], remedy: str) -> str:
    """Why no operation may run on some tensors of forward passes, or nothing where all may."""
    try:
        for steps in passes:
            check_tensor_sizes(steps, remedy)
    except TensorTooLargeError as error:
        return str(error)
    return ""


def refusal(work: Work, target: Target, device: int, host: int, remedy: str) -> str:
    """Why what is all in one memory does not fit a machine, or nothing where it does.

    Args:
        device: bytes on a GPU.
        host: bytes on the host.
        remedy: what to do about what an engine holds.
    """
    budget = target.machine.device_bytes
    if not target.gpu:
        return over_budget(host, budget, "host memory", remedy)
    return (
        weights_alone(work, budget)
        or over_budget(device, budget, "device memory", remedy)
        or over_budget(host, target.machine.host_bytes, "host memory", "give it more")
    )


def in_memory(engine: str, work: Work, passes: Tuple[int, int], unrolls: bool, remedy: str) -> MemoryPlan:
    """The plan of an engine that holds what one pass takes.

    Args:
        passes: bytes of feature maps and of pixels, as :func:`whole_slide_cnn.engines.replay.pass_bytes` gives them.
        unrolls: whether convolutions unroll their input into patches.
    """
    names = ("feature maps", "pixels", "weights", "slide reading", "runtime")
    weights = weight_bytes(work.network, work.compute, work.training, unrolls)
    return MemoryPlan(engine, tuple(zip(names, passes + (weights, reading_bytes(work.canvas), RUNTIME_BYTES))), remedy)
