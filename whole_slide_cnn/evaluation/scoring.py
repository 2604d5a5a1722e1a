"""Scoring slides: each is opened, read and computed once, also where its heat map is wanted."""

import time
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.evaluation.scores import SlideScore
from whole_slide_cnn.running.bars import slide_bar
from whole_slide_cnn.running.communicator import SingleCommunicator
from whole_slide_cnn.running.sharing import Sharing
from whole_slide_cnn.running.slides import SlideSource
from whole_slide_cnn.slides.canvas import Canvas
from whole_slide_cnn.slides.manifest import Record

if TYPE_CHECKING:  # importing an engine imports TensorFlow
    from whole_slide_cnn.engines.interface import Engine

# Takes a scored slide, its open canvas, and its class map: logits (cells high, cells wide, classes).
Receive = Callable[[Record, Canvas, np.ndarray], None]


def score_slides(
    engine: "Engine",
    source: SlideSource,
    records: Sequence[Record],
    shown: bool = True,
    receive: Optional[Receive] = None,
    sharing: Optional[Sharing] = None,
) -> Tuple[List[SlideScore], Dict[str, float]]:
    """Score those slides of a source that can be read.

    Args:
        engine: with the weights that score.
        source: opens the slides, and remembers those that cannot be read.
        records: the slides, of the source.
        shown: whether to show a progress bar.
        receive: called with every slide that was scored and its class map, from the same pass over the slide; None
            computes no class maps.
        sharing: what this process shares with others, where there are some; all make this call, with or without
            ``receive``.

    Returns:
        Scores in the order of the slides, and the seconds that the engine took for each, by name.
    """
    scored: List[SlideScore] = []
    seconds: Dict[str, float] = {}
    sharing = Sharing(SingleCommunicator()) if sharing is None else sharing
    with slide_bar("testing", len(records), shown=shown) as bar:
        for record, canvas in sharing.canvases(source, records):
            started = time.monotonic()
            try:
                class_map = None
                if receive is None:
                    prediction = engine.predict(canvas, record.label)
                else:
                    prediction, class_map = engine.predict_with_map(canvas, record.label)
                seconds[record.slide_id] = time.monotonic() - started
                probabilities = tuple(map(float, prediction.probabilities))
                scored.append(
                    SlideScore(record.case_id, record.slide_id, record.label, probabilities, float(prediction.loss))
                )
                if receive is not None and class_map is not None:
                    receive(record, canvas, class_map)
            except SlideError as error:
                sharing.report(source.fail(error))
            finally:
                canvas.close()
                bar.update()
    return scored, seconds
