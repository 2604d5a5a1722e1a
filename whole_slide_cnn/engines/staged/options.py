"""How ``staged`` is set."""

import dataclasses
from typing import Optional

from whole_slide_cnn.config.options import Section, option

MEMORY_GB = 4.0  # where nobody decides


@dataclasses.dataclass(frozen=True)
class StagedOptions(Section):
    """The streaming engine."""

    memory_gb: Optional[float] = option(
        "Memory in GB that the engine may take beyond that of an idle process; more of it means less computation. By "
        "default what the run may use: memory_gb, or half of the host memory that is free when it begins.",
        None,
        above=0,
    )
    tile: Optional[int] = option(
        "Side in canvas pixels of the tiles that are computed at once; by default it follows from memory_gb.",
        None,
        at_least=32,
    )
    checkpoints: str = option(
        "Where maps are kept between the forward and the backward pass: after every residual block (block), where the "
        "resolution changes (stage), or nowhere (none), so that every tile has a halo of the whole network.",
        "block",
        choices=("block", "stage", "none"),
    )
    keep_activations: bool = option(
        "Keep activations inside stages too, where memory_gb has room, instead of computing them again.", True
    )
    sparse_backward: bool = option(
        "With maximum pooling compute gradients only where they differ from zero, where that is cheaper.", True
    )
    skip_blank: bool = option("Take blank area from a small blank canvas instead of computing it.", True)
