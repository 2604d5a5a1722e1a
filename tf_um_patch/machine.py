"""What this machine can do about memory beyond the device, and which way TensorFlow should take."""

from typing import Dict, NamedTuple, Optional

from tf_um_patch.build import build_shim, find_compiler
from tf_um_patch.errors import BuildError
from tf_um_patch.host import available_host_memory, host_budget
from tf_um_patch.probe import run_probe

# A card on which more than this is taken, beyond what a context needs, is in use by others.
_CONTEXT_BYTES = 1 << 30


class Machine(NamedTuple):
    """Facts, as :func:`examine` found them.

    Attributes:
        gpu: name of the first GPU, or None.
        gpus: how many there are.
        driver: CUDA version of the driver, or None.
        driver_error: why the driver could not be used, or None.
        capability: compute capability of the first GPU, or None.
        device_total, device_free: bytes of its memory, or None.
        managed, concurrent: whether it has managed memory, and can page it while it computes; None without a GPU.
        c_compiler, cxx_compiler: what they say about themselves, or None.
        shim: path of the compiled shim, or None.
        shim_error: why there is none, or None.
        effect: ``managed`` where an allocation under the shim was managed memory and held what was written, ``plain``
            where it was not managed, ``broken`` where its contents were lost, ``none`` where the shim was not loaded,
            ``unproven`` where nothing could be tried.
        host_available: bytes of host memory that can be allocated now.
        host_budget: bytes of them that one process may use as if they were device memory.
    """

    gpu: Optional[str] = None
    gpus: int = 0
    driver: Optional[str] = None
    driver_error: Optional[str] = None
    capability: Optional[str] = None
    device_total: Optional[int] = None
    device_free: Optional[int] = None
    managed: Optional[bool] = None
    concurrent: Optional[bool] = None
    c_compiler: Optional[str] = None
    cxx_compiler: Optional[str] = None
    shim: Optional[str] = None
    shim_error: Optional[str] = None
    effect: str = "unproven"
    host_available: int = 0
    host_budget: int = 0

    @property
    def shared(self) -> bool:
        """Whether other processes seem to use the first GPU; oversubscribing it could hang it for them too."""
        if self.device_total is None:
            return False
        return self.device_total - self.device_free > _CONTEXT_BYTES + self.device_total // 20


class Route(NamedTuple):
    """How a TensorFlow process gets memory beyond the device.

    Attributes:
        name: ``preload`` (the shim), ``tensorflow`` (its own managed memory) or ``none``.
        reason: one sentence.
        memory_fraction: for ``tensorflow``: the value for ``per_process_gpu_memory_fraction``; else None.
    """

    name: str
    reason: str
    memory_fraction: Optional[float] = None


def examine() -> Machine:
    """Look at this machine. Starts a process for the driver, and another one under the shim; takes seconds."""
    compilers = [find_compiler(language) for language in ("c", "c++")]
    available = available_host_memory() or 0
    shim, shim_error = None, None
    try:
        shim = build_shim()
    except BuildError as error:
        shim_error = str(error)
    facts = run_probe()
    effect = "unproven"
    if shim and facts.get("allocation"):
        effect = effect_of_shim(run_probe(shim))
    return Machine(
        gpu=facts.get("name"),
        gpus=facts["devices"],
        driver=facts.get("version"),
        driver_error=facts["error"],
        capability=facts.get("capability"),
        device_total=facts.get("total"),
        device_free=facts.get("free"),
        managed=facts.get("managed"),
        concurrent=facts.get("concurrent"),
        c_compiler=compilers[0].version if compilers[0] else None,
        cxx_compiler=compilers[1].version if compilers[1] else None,
        shim=shim,
        shim_error=shim_error,
        effect=effect,
        host_available=available,
        host_budget=host_budget(available),
    )


def choose_route(machine: Machine) -> Route:
    """The way to take on a machine: the shim, else TensorFlow's own managed memory, else none."""
    if not machine.gpu:
        return Route("none", "there is no GPU that can be used here, so there is no device memory to exceed")
    if machine.device_total is None:
        return Route("none", "{} cannot be used: {}".format(machine.gpu, machine.driver_error))
    if not (machine.managed and machine.concurrent):
        return Route(
            "none",
            "{} cannot page managed memory while it computes: use a GPU of compute capability 6.0 or later under "
            "Linux".format(machine.gpu),
        )
    if machine.effect == "managed":
        return Route("preload", "the shim takes effect: run commands by python -m tf_um_patch run")
    if machine.shared:
        return Route(
            "none",
            "the shim {}, and TensorFlow's own managed memory has no ceiling, so it could hang {} for the others that "
            "seem to use it".format(_why_not(machine), machine.gpu),
        )
    fraction = round((machine.device_total + machine.host_budget) / machine.device_total, 2)
    return Route(
        "tensorflow",
        "the shim {}: use TensorFlow's own managed memory, per_process_gpu_memory_fraction={}, which has no ceiling, "
        "statistics or trace".format(_why_not(machine), fraction),
        fraction,
    )


def effect_of_shim(facts: Dict) -> str:
    """What :func:`~tf_um_patch.probe.run_probe` under the shim showed, as in ``Machine.effect``."""
    if not facts["shim"]:
        return "none"
    if not facts["allocation"]:
        return "unproven"
    if not facts["allocation"]["touched"]:
        return "broken"
    return "managed" if facts["allocation"]["managed"] else "plain"


def _why_not(machine: Machine) -> str:
    if machine.shim is None:
        return "cannot be built ({})".format(machine.shim_error)
    return {
        "plain": "is loaded, but its allocations are not managed memory",
        "broken": "is loaded, but its memory loses what is written to it",
        "none": "was built, but the dynamic linker did not load it",
        "unproven": "could not be tried",
    }[machine.effect]
