"""How fast this machine computes without a GPU."""

import statistics
import time
from typing import Any, Callable, List, Sequence

import numpy as np

from graph_tools.simulation.machine import Machine
from whole_slide_cnn.engines.costs import in_memory_seconds, whole_canvas_graph
from whole_slide_cnn.engines.direct.description import Direct
from whole_slide_cnn.engines.runtime import unrolls_patches
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

_PROBE = 768  # side of the matrices; some milliseconds
_COPIED = 2**25  # bytes; more than a core's cache
_REPEATS = 5

# Canvases of a measured step: large enough that fixed costs of an operation do not count, and that maps are
# not kept by a processor's caches. The larger one where the smaller takes little.
MEASURED_SIZES = (Size(1024, 1024), Size(2048, 2048))
_LITTLE = 0.5  # seconds
_MEASURED_STEPS, _SLIDES = 5, 4


def host_machine(host_bytes: int, compute: str = "float32") -> Machine:
    """This machine as a device of its own, with the rates of a matrix product and of a copy, measured in a moment.

    Convolutions reach another share of that in each library, type and network: :func:`measured_scale` tells it.
    """
    kind = np.float64 if compute == "float64" else np.float32
    values: np.ndarray = np.random.RandomState(0).rand(_PROBE, _PROBE).astype(kind)
    product = _fastest(lambda: values @ values)
    source = np.zeros(_COPIED, np.uint8)
    target = np.empty_like(source)
    copied = _fastest(lambda: np.copyto(target, source))
    flops = 2 * _PROBE**3 / product
    return Machine(
        device_bytes=max(host_bytes, 1),
        host_bytes=0,
        memory_rate=2 * _COPIED / copied,
        float32_flops=flops,
        half_flops=flops,
        launch_seconds=2e-5,
    )


def measured_scale(
    network: Network, compute: str, training: bool, machine: Machine, sizes: Sequence[Size] = MEASURED_SIZES
) -> float:
    """Time of a step of this network on a canvas, here, over the modelled one: the median of some.

    What is modelled with it takes the share of the machine's rates that this network's convolutions really reach.

    Args:
        sizes: of the canvas; the next one is measured where the one before takes little.
    """
    for size in sizes:
        seconds = _step_seconds(network, size, compute, training)
        if seconds > _LITTLE:
            break
    modelled = in_memory_seconds(
        whole_canvas_graph(network, size, compute, training, unrolls_patches(compute)), machine
    )
    return seconds / modelled


def _step_seconds(network: Network, size: Size, compute: str, training: bool) -> float:
    pixels = np.random.RandomState(0).randint(0, 256, size + (3,)).astype(np.uint8)
    canvas = ArrayCanvas(pixels, "measurement")
    with Direct().make(network, size, compute, training=training) as engine:
        engine.load_state(network.initial_weights(0))

        def step(slides: int) -> None:
            if training:
                engine.gradients([canvas] * slides, [0] * slides)
            else:
                for _ in range(slides):
                    engine.predict(canvas)

        step(1)  # the first one compiles
        (seconds,) = _times(lambda: step(1), 1)
        # in a batch what a call takes beside its slides hardly counts
        slides = 1 if seconds > _LITTLE else _SLIDES
        return statistics.median(_times(lambda: step(slides), _MEASURED_STEPS)) / slides


def _fastest(action: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs: what else a machine does only ever adds."""
    return min(_times(action, _REPEATS))


def _times(action: Callable[[], Any], repeats: int) -> List[float]:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return times
