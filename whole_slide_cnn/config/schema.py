"""All keys of a configuration: the sections, and what belongs to none."""

import dataclasses
from typing import TYPE_CHECKING, Any, Optional, Type

from whole_slide_cnn.config.options import Section, option
from whole_slide_cnn.config.sections.augment import Augmentation
from whole_slide_cnn.config.sections.data import Data
from whole_slide_cnn.config.sections.engines import ENGINE_SECTIONS
from whole_slide_cnn.config.sections.model import Model
from whole_slide_cnn.config.sections.outputs import Outputs
from whole_slide_cnn.config.sections.train import Training

ENGINES = ("auto",) + tuple(ENGINE_SECTIONS)


def _with_engine_sections(config: Type[Section]) -> Type[Section]:
    """Give the class a field for every engine that has options, before it becomes a dataclass."""
    for name, section in ENGINE_SECTIONS.items():
        if section is not None:
            config.__annotations__[name] = section
            setattr(config, name, option((section.__doc__ or name).splitlines()[0], section()))
    return config


@dataclasses.dataclass(frozen=True)
@_with_engine_sections
class TrainConfig(Section):
    """Everything that train and test need to know; besides these, a section for each engine that has options."""

    result_dir: str = option("Folder for checkpoints, logs, scores and figures.", path=True, may_change=True)
    data: Data = option("Slides, their labels, and the canvas they are placed on.")
    seed: int = option("Seed of initial weights and of the order of slides.", 0, at_least=0, at_most=2**32 - 1)
    engine: str = option(
        "How a slide is computed: direct (whole canvas at once), streaming (windows, flat in memory), unified "
        "(strips of the whole canvas in a planned order, for unified memory), or auto: the fastest that fits, as the "
        "planner has it.",
        "streaming",
        choices=ENGINES,
    )
    memory_gb: Optional[float] = option(
        "Memory in GB (10^9 bytes) that a run may use, and each process of it where several train together; one that "
        "needs more is refused. null means all the machine has.",
        None,
        above=0,
        may_change=True,
    )
    model: Model = option("The network.", Model())
    train: Training = option("The training loop.", Training())
    augment: Augmentation = option("Random changes of the slides that are trained on.", Augmentation())
    outputs: Outputs = option("Files that train and test write beside those in the result folder.", Outputs())

    if TYPE_CHECKING:  # the sections of engines, which only their table knows

        def __getattr__(self, name: str) -> Any: ...
