"""What the training loop relies on, of every learner: those of all engines, and the fakes of other tests."""

import fakes
import numpy as np
import pytest
from fakes import FakeCanvas

from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import SlideError, WeightsError
from whole_slide_cnn.models.network import make_network
from whole_slide_cnn.running import assembly
from whole_slide_cnn.running.communicator import SingleCommunicator
from whole_slide_cnn.running.slides import SlideSample
from whole_slide_cnn.slides.canvas import ArrayCanvas
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.training.engine_learner import EngineLearner
from whole_slide_cnn.training.learner import Learner

BROKEN = "t9"


class BreakingCanvas(ArrayCanvas):
    """A slide whose blank area is known, and none of whose pixels can be read."""

    def _read(self, window):
        raise SlideError(self.name, "level 0 cannot be read")


class Case:
    """A learner in the state it begins with, and slides for it.

    Args:
        canvas: a function (name, position) that makes the canvas of a slide; the one named ``BROKEN`` breaks.
    """

    def __init__(self, learner, canvas):
        self.learner, self._canvas = learner, canvas
        self._start = learner.state()

    def reset(self):
        self.learner.load_state(self._start)
        self.learner.reduce_over(SingleCommunicator())
        self.learner.learning_rate = 0.125

    def samples(self, *positions, broken=False):
        """A slide for every position, and one more that breaks where that is asked for."""
        names = ["t{}".format(position) for position in positions] + [BROKEN] * broken
        records = [Record(name, name, int(name[1:]) % 2) for name in names]
        numbered = enumerate(records, start=positions[0])
        return [SlideSample(position, record, self._canvas(record.slide_id, position)) for position, record in numbered]


def engine_case(engine, slide_set):
    config = slide_set.config("unused", "engine={}".format(engine), "model.compute=float64")
    optimiser, random = assembly.make_optimiser(config), np.random.RandomState(0)
    network = make_network(config)
    initial = network.initial_weights(0)
    weights = {name: value + 0.02 * random.standard_normal(value.shape) for name, value in sorted(initial.items())}
    built = assembly.make_engine(config, network, optimiser, report=lambda text: None)
    built.load_state(weights)

    def canvas(name, position):
        pixels = np.full(config.data.canvas + (3,), 255, np.uint8)
        pixels[32:160, 40:168] = np.random.RandomState(int(name[1:])).randint(0, 256, (128, 128, 3))
        made = (BreakingCanvas if name == BROKEN else ArrayCanvas)(pixels, name)
        made.set_blank_blocks(ArrayCanvas(pixels).blank_blocks())
        return made

    return Case(EngineLearner(built, optimiser), canvas)


@pytest.fixture(scope="module", params=sorted(ENGINES) + [learner.__name__ for learner in fakes.LEARNERS])
def made(request, slide_set):
    if request.param in ENGINES:
        case = engine_case(request.param, slide_set)
    else:
        case = Case(getattr(fakes, request.param)(broken=[BROKEN]), FakeCanvas)
    with case.learner:
        yield case


@pytest.fixture
def case(made):
    made.reset()
    return made


def as_bytes(state):
    return {
        name: (np.asarray(value).dtype.str, np.shape(value), np.asarray(value).tobytes())
        for name, value in state.items()
    }


def test_every_fake_is_tested():
    found = [kind for kind in vars(fakes).values() if isinstance(kind, type) and issubclass(kind, Learner)]
    assert set(found) == {Learner, fakes.FakeLearner} | set(fakes.LEARNERS)


def test_updates_are_the_same_from_the_same_state(case):
    learner, ends = case.learner, []
    for _ in range(2):
        case.reset()
        before = as_bytes(learner.state())
        measures = [learner.update(case.samples(0, 1)), learner.update(case.samples(2, 3))]
        ends.append((as_bytes(learner.state()), measures))
        assert ends[-1][0] != before
    assert ends[0] == ends[1]


def test_what_is_measured_is_what_is_summed_and_reported(case):
    learner = case.learner
    assert learner.metrics[0] == "loss"
    assert np.isnan(learner.means(learner.nothing)).all() and len(learner.means(learner.nothing)) == len(
        learner.metrics
    )
    measures = list(learner.update(case.samples(0, 1))) + [learner.predict(case.samples(2)[0])]
    assert len(measures) == 3
    total = learner.nothing
    for each in measures:
        assert [type(value) for value in each] == [type(value) for value in learner.nothing.sums]
        total = total.add(each)
    assert total.slides == 3 and len(learner.means(total)) == len(learner.metrics)
    assert learner.means(total)[0] == pytest.approx(sum(each[0] for each in measures) / 3)


def test_a_prediction_changes_nothing(case):
    learner = case.learner
    learner.update(case.samples(0, 1))
    before = as_bytes(learner.state())
    expected = learner.predict(case.samples(2)[0])
    assert learner.predict(case.samples(2)[0]) == expected
    assert as_bytes(learner.state()) == before
    with pytest.raises(SlideError):
        learner.predict(case.samples(2, broken=True)[1])
    learner.update(case.samples(2, 3))
    after = as_bytes(learner.state())
    case.reset()
    learner.update(case.samples(0, 1))
    learner.update(case.samples(2, 3))
    assert as_bytes(learner.state()) == after


def test_a_state_comes_back_bit_for_bit(case):
    """It is a copy, and an update after it is the update that was made before."""
    learner = case.learner
    learner.update(case.samples(0, 1))
    state = learner.state()
    kept = as_bytes(state)
    learner.update(case.samples(2, 3))
    after = as_bytes(learner.state())
    assert as_bytes(state) == kept != after
    learner.load_state(state)
    assert as_bytes(learner.state()) == kept
    learner.update(case.samples(2, 3))
    assert as_bytes(learner.state()) == after
    assert as_bytes(state) == kept


def test_a_part_of_a_state_leaves_the_rest(case):
    learner = case.learner
    before = learner.state()
    learner.load_state({"output/bias": before["output/bias"] + 1})
    np.testing.assert_array_equal(learner.state().pop("output/bias"), before.pop("output/bias") + 1)
    assert all(as_bytes(learner.state())[name] == value for name, value in as_bytes(before).items())


def test_unknown_names_are_refused_before_anything_changes(case):
    learner = case.learner
    before = learner.state()
    with pytest.raises(WeightsError, match="optimiser/of_another_kind"):
        learner.load_state({"output/bias": before["output/bias"] + 1, "optimiser/of_another_kind": np.zeros(2)})
    assert as_bytes(learner.state()) == as_bytes(before)


def test_a_slide_that_breaks_amid_an_update_leaves_the_state_as_it_was(case):
    learner = case.learner
    learner.update(case.samples(0, 1))
    before = as_bytes(learner.state())
    with pytest.raises(SlideError) as caught:
        learner.update(case.samples(2, broken=True))
    assert caught.value.slide == BROKEN
    assert as_bytes(learner.state()) == before
    learner.update(case.samples(2, 3))
    after = as_bytes(learner.state())
    case.reset()
    learner.update(case.samples(0, 1))
    learner.update(case.samples(2, 3))
    assert as_bytes(learner.state()) == after


class Recorder(SingleCommunicator):
    """One of two processes, whose arrays are kept for the other one."""

    size = 2

    def __init__(self):
        self.arrays = []

    def allreduce_mean(self, arrays):
        self.arrays.append([np.array(array) for array in arrays])
        return super().allreduce_mean(arrays)


class Partner(SingleCommunicator):
    """The other one: its means are over its arrays and those that were kept."""

    rank, size = 1, 2

    def __init__(self, recorder):
        self._arrays = iter(recorder.arrays)

    def allreduce_mean(self, arrays):
        return [(mine + its) / 2 for mine, its in zip(arrays, next(self._arrays))]


def test_two_processes_step_by_the_mean_of_their_updates(case):
    """As one process does that takes the slides of both."""
    learner, first = case.learner, Recorder()
    learner.reduce_over(first)
    learner.update(case.samples(0))
    alone = learner.state()
    case.reset()
    learner.reduce_over(Partner(first))
    learner.update(case.samples(1))
    together = learner.state()
    case.reset()
    learner.update(case.samples(0, 1))
    for name, value in learner.state().items():
        np.testing.assert_allclose(together[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
    if first.arrays:  # else its step does not depend on the slides
        assert as_bytes(together) != as_bytes(alone)
