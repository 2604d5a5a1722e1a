"""How ``streaming`` is set."""

import dataclasses

from whole_slide_cnn.config.options import Section, option


@dataclasses.dataclass(frozen=True)
class StreamingOptions(Section):
    """The streaming engine."""

    window: int = option(
        "Side in canvas pixels of a window's core, the part it contributes; a halo is added around it, so larger "
        "windows need more memory and less computation.",
        1024,
        at_least=32,
    )
