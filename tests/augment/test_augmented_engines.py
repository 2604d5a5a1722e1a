"""Law 1 under augmentation: every engine gives on an augmented canvas what ``direct`` gives on it."""

import exactness
import numpy as np
import pytest

from whole_slide_cnn.augment import AugmentedCanvas, sample_parameters
from whole_slide_cnn.augment.parameters import PRESETS
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.slides.canvas import ArrayCanvas

SIZE = (333, 450)
DRAWS = (("reference_2021", 1), ("paper_2022", 2))


def slide():
    """White with a patch of noise amid it, which stays on the canvas however it is turned."""
    image = np.full(SIZE + (3,), 255, np.uint8)
    image[150:180, 200:240] = np.random.RandomState(0).randint(0, 256, (30, 40, 3))
    return image


@pytest.mark.parametrize("pooling", ["gmp", "gap"])
def test_every_engine_equals_direct_on_augmented_canvases(pooling):
    case = exactness.Case("tiny", pooling, "softmax", SIZE[0], SIZE[1], "", 64)
    results = {}
    for name in ENGINES:
        engine = exactness.make_engine(name, case, "float64")
        engine.initialise()
        engine.load_state(exactness.random_weights(engine.network, 0))
        canvases = [
            AugmentedCanvas(ArrayCanvas(slide()), sample_parameters(PRESETS[preset], 0, at)) for preset, at in DRAWS
        ]
        results[name] = engine.gradients(canvases, [1, 2])
        if name == "streaming":
            assert all(len(engine.cover(canvas).blank.kinds) for canvas in canvases)
    assert len({tuple(canvas.blank_colour) for canvas in canvases}) == 2  # two blank canvases in one batch
    expected, gradients = results.pop("direct")
    for engine, (found, others) in results.items():
        for one, other in zip(expected, found):
            assert exactness.relative_error(other.loss, one.loss) <= exactness.FLOAT64_BOUND, engine
        for name in gradients:
            assert exactness.relative_error(others[name], gradients[name]) <= exactness.FLOAT64_BOUND, (engine, name)
