"""What this machine can do about memory beyond the device, and which way TensorFlow should take."""

from typing import Any, Dict, NamedTuple, Optional

from tf_um_patch.build import build_shim, find_compiler
from tf_um_patch.errors import BuildError
from tf_um_patch.host import GpuInfo, HostInfo, host_budget, host_memory
from tf_um_patch.probe import run_probe


class Findings(NamedTuple):
    """What :func:`examine` found.

    Attributes:
        gpu_name: name of the first GPU, or None without one.
        gpu: the first GPU; None where it cannot be used.
        gpus: how many there are.
        driver: CUDA version of the driver, or None.
        driver_error: why the driver could not be used, or None.
        capability: compute capability of the first GPU, or None.
        managed, concurrent: whether it has managed memory, and can page it while it computes; None without a GPU.
        c_compiler, cxx_compiler: what they say about themselves, or None.
        shim: path of the compiled shim, or None.
        shim_error: why there is none, or None.
        effect: ``managed`` where an allocation under the shim was managed memory and held what was written, ``plain``
            where it was not managed, ``broken`` where its contents were lost, ``none`` where the shim was not loaded,
            ``unproven`` where nothing could be tried.
        host: the host's memory.
    """

    gpu_name: Optional[str] = None
    gpu: Optional[GpuInfo] = None
    gpus: int = 0
    driver: Optional[str] = None
    driver_error: Optional[str] = None
    capability: Optional[str] = None
    managed: Optional[bool] = None
    concurrent: Optional[bool] = None
    c_compiler: Optional[str] = None
    cxx_compiler: Optional[str] = None
    shim: Optional[str] = None
    shim_error: Optional[str] = None
    effect: str = "unproven"
    host: HostInfo = HostInfo(0, 0)

    @property
    def shared(self) -> bool:
        """Whether other processes seem to use the first GPU; oversubscribing it could hang it for them too."""
        return self.gpu is not None and self.gpu.in_use

    @property
    def host_budget(self) -> int:
        """Bytes of host memory that one process may use as if they were device memory."""
        return host_budget(self.host.available_bytes)

    def to_json(self) -> Dict[str, Any]:
        """Plain values, all of them in one dictionary."""
        values: Dict[str, Any] = self._asdict()
        gpu, host = values.pop("gpu"), values.pop("host")
        values["gpu"] = values.pop("gpu_name")
        values["device_total"], values["device_free"] = (gpu.total_bytes, gpu.free_bytes) if gpu else (None, None)
        values.update(host_available=host.available_bytes, host_budget=self.host_budget)
        return values


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


def examine() -> Findings:
    """Look at this machine. Starts a process for the driver, and another one under the shim; takes seconds."""
    compilers = [find_compiler(language) for language in ("c", "c++")]
    memory = host_memory()
    shim, shim_error = None, None
    try:
        shim = build_shim()
    except BuildError as error:
        shim_error = str(error)
    facts = run_probe()
    effect = "unproven"
    if shim and facts.get("allocation"):
        effect = effect_of_shim(run_probe(shim))
    usable = facts.get("total") is not None
    return Findings(
        gpu_name=facts.get("name"),
        gpu=GpuInfo(facts["name"], facts["total"], facts["free"]) if usable else None,
        gpus=facts["devices"],
        driver=facts.get("version"),
        driver_error=facts["error"],
        capability=facts.get("capability"),
        managed=facts.get("managed"),
        concurrent=facts.get("concurrent"),
        c_compiler=compilers[0].version if compilers[0] else None,
        cxx_compiler=compilers[1].version if compilers[1] else None,
        shim=shim,
        shim_error=shim_error,
        effect=effect,
        host=memory or HostInfo(0, 0),
    )


def choose_route(found: Findings) -> Route:
    """The way to take on a machine: the shim, else TensorFlow's own managed memory, else none."""
    if not found.gpu_name:
        return Route("none", "there is no GPU that can be used here, so there is no device memory to exceed")
    if found.gpu is None:
        return Route("none", "{} cannot be used: {}".format(found.gpu_name, found.driver_error))
    if not (found.managed and found.concurrent):
        return Route(
            "none",
            "{} cannot page managed memory while it computes: use a GPU of compute capability 6.0 or later under "
            "Linux".format(found.gpu_name),
        )
    if found.effect == "managed":
        return Route("preload", "the shim takes effect: run commands by python -m tf_um_patch run")
    if found.shared:
        return Route(
            "none",
            "the shim {}, and TensorFlow's own managed memory has no ceiling, so it could hang {} for the others that "
            "seem to use it".format(_why_not(found), found.gpu_name),
        )
    fraction = round((found.gpu.total_bytes + found.host_budget) / found.gpu.total_bytes, 2)
    return Route(
        "tensorflow",
        "the shim {}: use TensorFlow's own managed memory, per_process_gpu_memory_fraction={}, which has no ceiling, "
        "statistics or trace".format(_why_not(found), fraction),
        fraction,
    )


def effect_of_shim(facts: Dict[str, Any]) -> str:
    """What :func:`~tf_um_patch.probe.run_probe` under the shim showed, as in ``Findings.effect``."""
    if not facts["shim"]:
        return "none"
    if not facts["allocation"]:
        return "unproven"
    if not facts["allocation"]["touched"]:
        return "broken"
    return "managed" if facts["allocation"]["managed"] else "plain"


def _why_not(found: Findings) -> str:
    if found.shim is None:
        return "cannot be built ({})".format(found.shim_error)
    return {
        "plain": "is loaded, but its allocations are not managed memory",
        "broken": "is loaded, but its memory loses what is written to it",
        "none": "was built, but the dynamic linker did not load it",
        "unproven": "could not be tried",
    }[found.effect]
