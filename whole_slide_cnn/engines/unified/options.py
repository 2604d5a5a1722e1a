"""How ``unified`` is set."""

import dataclasses
from typing import Optional

from whole_slide_cnn.config.options import Section, option
from whole_slide_cnn.errors import ConfigError

MEMORY_POLICIES = ("keep", "recompute")


@dataclasses.dataclass(frozen=True)
class UnifiedOptions(Section):
    """The unified engine."""

    strip_mb: float = option(
        "Megabytes (10^6 bytes) that one strip of a feature map may have; smaller strips need less memory at a time, "
        "and read more rows of the strips beside them.",
        256.0,
        above=0,
    )
    group_mb: float = option(
        "Megabytes that the operations of a group may touch together; groups run one after the other. Choose what the "
        "device has free.",
        4000.0,
        above=0,
    )
    prefetch_depth: int = option(
        "How many groups ahead a tensor is fetched to the device; 0 fetches none. With unified.device_gb and "
        "memory_policy recompute the plan decides.",
        1,
        at_least=0,
        may_change=True,
    )
    device_gb: Optional[float] = option(
        "Gigabytes (10^9 bytes) that what a step holds at once shall fit: maps beyond it leave the device after "
        "the forward pass, or are computed again in the backward pass, which takes longer. null keeps all, as the 2021 "
        "paper does.",
        None,
        above=0,
    )
    host_gb: Optional[float] = option(
        "Gigabytes of host memory for what leaves a GPU; null sets no limit. Without a GPU, of unified.eviction_dir.",
        None,
        above=0,
    )
    memory_policy: str = option(
        "How unified.device_gb is met: recompute (whole runs of layers are computed again from shared copies, and maps "
        "leave where there is room for them), or keep (nothing leaves or is computed again; takes no "
        "unified.device_gb).",
        "recompute",
        choices=MEMORY_POLICIES,
    )
    eviction_dir: Optional[str] = option(
        "Without a GPU: folder for files without names to which maps beyond unified.device_gb leave for a while; null "
        "meets that budget by computing again alone.",
        None,
        path=True,
        may_change=True,
    )

    def check_rules(self) -> None:
        if self.memory_policy == "keep" and self.device_gb is not None:
            raise ConfigError("unified.memory_policy: keep meets no unified.device_gb; leave out one of them")
        if self.device_gb is not None and self.group_mb > 1000 * self.device_gb:
            raise ConfigError(
                "unified.group_mb: a group of {:g} MB exceeds unified.device_gb, which is {:g}; give a smaller "
                "group".format(self.group_mb, self.device_gb)
            )
