"""What a plan is simulated on: memory, links and compute rates of one device and its host."""

from dataclasses import dataclass, fields

from graph_tools.errors import GraphToolsError
from graph_tools.graph.opgraph import Op

_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Machine:
    """One device and its host. The defaults are the paper's: V100 with 32 GB, 768 GB of host memory, PCIe.

    Attributes:
        device_bytes: memory of the device.
        host_bytes: host memory that pages of the device's tensors may take.
        on_demand_rate: bytes per second of a page fault's migration (the paper measured 3.6 GB/s); compute waits.
        copy_rate: bytes per second of an explicit copy in one direction (10.3 GB/s); it runs beside compute, and both
            directions beside each other.
        memory_rate: bytes per second between the device's memory and its cores.
        float32_flops: multiplications and additions per second in float32, as sustained by convolutions.
        half_flops: the same in float16 and bfloat16.
        launch_seconds: fixed time of an operation.
        page_bytes: size of a page of unified memory.
    """

    device_bytes: int = 32 * 10**9
    host_bytes: int = 768 * 10**9
    on_demand_rate: float = 3.6e9
    copy_rate: float = 10.3e9
    memory_rate: float = 900e9
    float32_flops: float = 15.7e12
    half_flops: float = 125e12
    launch_seconds: float = 5e-6
    page_bytes: int = 2 * 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 or (value == 0 and field.name in ("host_bytes", "launch_seconds"))):
                raise GraphToolsError("a machine with {} = {} does not exist; give more".format(field.name, value))

    def seconds(self, op: Op, touched_bytes: int) -> float:
        """Time of one operation whose tensors are on the device: bound by arithmetic or by memory."""
        half = bool(op.outputs) and op.outputs[0].dtype in _HALF
        rate = self.half_flops if half else self.float32_flops
        return self.launch_seconds + max(op.flops / rate, touched_bytes / self.memory_rate)

    def pages(self, size: int) -> int:
        """Pages that a tensor of this many bytes takes."""
        return -(-size // self.page_bytes)
