"""Memory told before a run: the replay of buffers, and refusing what cannot fit."""

import pytest

from whole_slide_cnn.engines.memory import GB, MemoryPlan, check_memory, engine_memory
from whole_slide_cnn.engines.replay import peak_elements
from whole_slide_cnn.errors import MemoryBudgetError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.shapes import Step
from whole_slide_cnn.sizes import Size

NETWORK = Network("resnet18", "gmp", "softmax", 3)


def _conv(name, at, elements, kernel=1, channels_in=1):
    return Step(name, "conv", (at,), (elements, 1, 1), kernel, channels_in)


def test_a_chain_needs_two_neighbours_forward():
    steps = [_conv("a", -1, 100), _conv("b", 0, 50), _conv("c", 1, 10)]
    assert peak_elements(steps, training=False, unrolls=False) == 150


def test_element_wise_operations_take_over_their_input():
    steps = [_conv("a", -1, 100), Step("a", "bias", (0,), (100, 1, 1)), Step("a", "relu", (1,), (100, 1, 1))]
    assert peak_elements(steps, training=False, unrolls=False) == 100


def test_an_input_that_is_needed_again_is_not_taken_over():
    steps = [_conv("a", -1, 100), Step("r", "relu", (0,), (100, 1, 1)), Step("s", "sum", (0, 1), (100, 1, 1))]
    assert peak_elements(steps, training=False, unrolls=False) == 200


def test_training_keeps_what_gradients_read():
    # at the gradient of b: its input a, the result c, and the gradients of b and a
    steps = [_conv("a", -1, 100), _conv("b", 0, 50), _conv("c", 1, 10)]
    assert peak_elements(steps, training=True, unrolls=False) == 100 + 10 + 50 + 100
    # at the gradient of c: a, b, c, the gradients of c and b, and the 10 positions' patches of c's 3 x 3 filter
    steps[2] = _conv("c", 1, 10, kernel=3, channels_in=4)
    assert peak_elements(steps, training=True, unrolls=True) == 100 + 50 + 10 + 10 + 50 + 10 * 9 * 4


def test_streaming_does_not_grow_with_the_canvas_and_direct_does():
    def total(engine, side):
        options = {"window": 512} if engine == "streaming" else {}
        return engine_memory(engine, NETWORK, Size(side, side), "float32", True, **options).total

    assert total("streaming", 75000) == pytest.approx(total("streaming", 4096), rel=0.02)
    assert total("direct", 4096) > 3 * total("direct", 2048)
    assert total("streaming", 8192) < total("direct", 8192) / 10


def test_training_needs_more_than_predicting_and_float64_more_than_float32():
    sizes = [
        engine_memory("direct", NETWORK, Size(512, 512), compute, training).total
        for compute, training in (("float32", False), ("float32", True), ("float64", True))
    ]
    assert sizes == sorted(sizes) and sizes[1] > 1.2 * sizes[0]


def test_a_plan_that_cannot_fit_is_refused_with_a_remedy():
    plan = MemoryPlan("direct", (("feature maps", int(3 * GB)), ("weights", int(1 * GB))))
    check_memory(plan, 4.0)
    with pytest.raises(MemoryBudgetError, match="4.00 GB.*memory_gb allows 3.90 GB; use engine: streaming"):
        check_memory(plan, 3.9)
    with pytest.raises(MemoryBudgetError, match="this machine has|control group leaves"):
        check_memory(MemoryPlan("streaming", (("feature maps", int(1e15)),)))
    assert "4.00 GB" in plan.sentence() and "weights 1.00" in plan.sentence()
