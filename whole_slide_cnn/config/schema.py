"""All keys of a configuration: the sections, and what belongs to none."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type

from whole_slide_cnn.config.options import Section, option
from whole_slide_cnn.config.sections.augment import Augmentation
from whole_slide_cnn.config.sections.data import Data
from whole_slide_cnn.config.sections.engines import EngineKeys, engine_keys, sections_of
from whole_slide_cnn.config.sections.model import Model
from whole_slide_cnn.config.sections.outputs import Outputs
from whole_slide_cnn.config.sections.train import Training


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Everything that train and test need to know.

    Its instances are of :func:`config_class`, which adds a section for each engine that has options.
    """

    result_dir: str = option("Folder for checkpoints, logs, scores and figures.", path=True, may_change=True)
    data: Data = option("Slides, their labels, and the canvas they are placed on.")
    seed: int = option("Seed of initial weights and of the order of slides.", 0, at_least=0, at_most=2**32 - 1)
    engine: str = option("How a slide is computed.", "streaming")
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

    def __reduce__(self) -> Tuple[Any, ...]:
        """Between processes it travels as its values: no module holds the class."""
        return _restored, ({field.name: getattr(self, field.name) for field in dataclasses.fields(self)},)


def config_class() -> Type[TrainConfig]:
    """The class of configurations: :class:`TrainConfig` with the engines there are and their sections."""
    return _class_for(tuple(engine_keys().items()))


@functools.lru_cache(maxsize=None)
def _class_for(engines: Tuple[Tuple[str, EngineKeys], ...]) -> Type[TrainConfig]:
    fields: List[Any] = [("engine", str, _engine_option(dict(engines)))]
    for name, section in sections_of(dict(engines)).items():
        fields.append((name, section, option((section.__doc__ or name).splitlines()[0], section())))
    about = {"__doc__": TrainConfig.__doc__, "__module__": __name__}
    return dataclasses.make_dataclass("TrainConfig", fields, bases=(TrainConfig,), frozen=True, namespace=about)


def _engine_option(engines: Dict[str, EngineKeys]) -> Any:
    (base,) = [field for field in dataclasses.fields(TrainConfig) if field.name == "engine"]
    listed = ", ".join("{} ({})".format(name, keys.summary) for name, keys in engines.items())
    sentence = "{}: {}, or auto: the fastest that fits, as the planner has it.".format(
        base.metadata["help"].rstrip("."), listed
    )
    return option(sentence, base.default, choices=("auto",) + tuple(engines))


def _restored(values: Dict[str, Any]) -> TrainConfig:
    return config_class()(**values)
