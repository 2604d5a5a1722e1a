"""What an engine says of itself, once. Everything else that is done with engines by name is done through this."""

import abc
import dataclasses
from typing import Any, Dict, Iterator, Optional, Tuple, Type

from whole_slide_cnn.config.options import Section
from whole_slide_cnn.engines.costs import Estimate, Target, Work
from whole_slide_cnn.engines.memory import OTHER_ENGINE, MemoryPlan
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size


@dataclasses.dataclass(frozen=True)
class NoOptions(Section):
    """An engine that has nothing to set."""


class EngineDescription(abc.ABC):
    """An engine, described without TensorFlow: what needs that imports it in its method.

    Attributes:
        name: the value of ``engine`` in a configuration, and the name of the engine's section there.
        summary: what it is, in a few words, for the help of that key.
        options: its section of a configuration: options with defaults, rules and sentences.
        remedy: what to do where it needs more memory than there is.
        planned_in_half: whether ``plan`` shows it in half precision as well, on a GPU.
        settled: options that :meth:`settle` decides where they are null. A run goes on with what it began with.
        shares_windows: whether several processes can compute one slide together by it.
    """

    name: str
    summary: str
    options: Type[Section] = NoOptions
    remedy: str = OTHER_ENGINE
    planned_in_half: bool = False
    settled: Tuple[str, ...] = ()
    shares_windows: bool = False

    @abc.abstractmethod
    def engine_class(self) -> Any:
        """The class of the engine (:class:`whole_slide_cnn.engines.interface.Engine`), whose constructor takes the
        fields of :attr:`options` by their names."""

    @abc.abstractmethod
    def memory(self, work: Work) -> MemoryPlan:
        """Predicted peak memory of a run on the host."""

    @abc.abstractmethod
    def estimates(self, work: Work, target: Target, configured: bool = False) -> Iterator[Estimate]:
        """Memory and time on a machine, of each way to run the engine there.

        What cannot be planned at all is an estimate that does not fit, with the reason.

        Args:
            configured: only the way that its options ask for.
        """

    def can_be_chosen(self, target: Target) -> bool:
        """Whether ``engine: auto`` may mean it in this process."""
        return True

    def settle(self, options: Any, target: Optional[Target]) -> Any:
        """Its options, with those that a configuration leaves to the machine decided.

        Args:
            target: the machine that the run has; None where its memory is not known.
        """
        return options

    def obstacle(self, estimate: Estimate) -> str:
        """Why this process cannot run what fits the machine; empty where it can."""
        return ""

    def how_to_run(self, work: Work, target: Target) -> str:
        """What a user must know besides keys to run it on a machine; empty where there is nothing."""
        return ""

    # What follows.

    def options_in(self, given: Any) -> Any:
        """Its options in a configuration, or by the engines' names in a mapping; its defaults where there are none."""
        found = given.get(self.name) if isinstance(given, dict) else getattr(given, self.name, None)
        return self.options() if found is None else found

    def make(
        self,
        network: Network,
        canvas: Size,
        compute: str = "float32",
        optimiser: Any = None,
        training: Optional[bool] = None,
        options: Optional[Section] = None,
    ) -> Any:
        """The engine, its weights all zero; arguments as of :class:`whole_slide_cnn.engines.interface.Engine`."""
        options = self.options() if options is None else options
        keys: Dict[str, Any] = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
        return self.engine_class()(network, canvas, compute, optimiser, training, **keys)
