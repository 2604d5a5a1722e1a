"""The engines as a configuration sees them: the values of ``engine``, and a section of options for each.

An engine states its options where it describes itself, far above this layer, so that adding one changes nothing here.
The table of engines is asked for by its name when a configuration is first made, as a program asks for its plug-ins; it
and what it imports need no TensorFlow.
"""

import importlib
from typing import Dict, NamedTuple, Type

from whole_slide_cnn.config.options import Section, options_of

_TABLE = "whole_slide_cnn.engines.table"


class EngineKeys(NamedTuple):
    """What a configuration takes from an engine's description.

    Attributes:
        summary: what the engine is, in a few words.
        section: its options.
    """

    summary: str
    section: Type[Section]


def engine_keys() -> Dict[str, EngineKeys]:
    """Every engine by name, from the simplest up."""
    table = importlib.import_module(_TABLE)
    return {name: EngineKeys(engine.summary, engine.options) for name, engine in table.ENGINES.items()}


def sections_of(engines: Dict[str, EngineKeys]) -> Dict[str, Type[Section]]:
    """The sections of engines that have something to set."""
    return {name: keys.section for name, keys in engines.items() if options_of(keys.section)}
