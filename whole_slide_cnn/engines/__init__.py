"""Engines: different ways to compute the same loss and gradients."""

from whole_slide_cnn.engines.direct import DirectEngine
from whole_slide_cnn.engines.streaming.engine import StreamingEngine
from whole_slide_cnn.engines.unified import UnifiedEngine

ENGINES = {engine.name: engine for engine in (DirectEngine, StreamingEngine, UnifiedEngine)}
