"""One update and one validated slide, whatever breaks: no canvas stays open, no loss that is none gets by."""

import itertools
import math

import pytest
from fakes import CountingLearner, FakeSource

from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.training.progress import Tally
from whole_slide_cnn.training.steps import Steps


@pytest.fixture
def source():
    made = FakeSource("t", 4)
    yield made
    assert [canvas.closed for canvas in made.opened] == [1] * len(made.opened)


def stream(source):
    return source.stream(enumerate(itertools.cycle(source.records)), print)


@pytest.mark.parametrize(
    "broken, position, names", [((), 2, "t0 t1"), (("t1",), 3, "t0 t2"), (("t0", "t1"), 4, "t2 t3")]
)
def test_an_update_takes_the_next_slides_that_can_be_read(source, broken, position, names):
    learner = CountingLearner(train_losses=[0.5], broken=broken)
    assert Steps(learner, str).update(source, stream(source), 2) == (position, Tally(2, (1.0, 2)))
    assert learner.steps == [names.split()]
    assert set(source.failed) == set(broken)


def test_a_validated_slide_counts_or_is_left_out(source):
    samples = stream(source)
    steps = Steps(CountingLearner(val_losses=[0.25], broken=("t1",)), str)
    assert [steps.validate(source, next(samples)) for _ in range(2)] == [Tally(1, (0.25, 1)), Tally(0, (0.0, 0))]
    assert list(source.failed) == ["t1"]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_names_the_slide_and_what_is_kept(source, loss):
    learner, samples = CountingLearner(train_losses=[loss], val_losses=[loss]), stream(source)
    steps = Steps(learner, lambda: "all is kept; ")
    with pytest.raises(TrainingError, match="the loss of slide t0 is {}; all is kept; lower".format(loss)):
        steps.update(source, samples, 2)
    with pytest.raises(TrainingError, match="the loss of slide t2 is {}; all is kept; lower".format(loss)):
        steps.validate(source, next(samples))


def test_no_slide_that_can_be_read(source):
    learner = CountingLearner(broken=("t0", "t1", "t2", "t3"))
    with pytest.raises(TrainingError, match="none of the 4 slides can be read"):
        Steps(learner, str).update(source, stream(source), 2)
