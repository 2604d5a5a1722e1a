"""The engines. To add one, describe it in a module of its own and add it here; nothing else names engines."""

from typing import Dict

from whole_slide_cnn.engines.description import EngineDescription
from whole_slide_cnn.engines.direct.description import Direct
from whole_slide_cnn.engines.staged.description import Staged
from whole_slide_cnn.engines.streaming.description import Streaming
from whole_slide_cnn.engines.unified.description import Unified

# By name, from the simplest up: of engines that take the same time, the planner recommends the first.
ENGINES: Dict[str, EngineDescription] = {engine.name: engine for engine in (Direct(), Streaming(), Unified(), Staged())}
