"""One slide computed by several processes: they deal it out whole, and have the numbers of one process."""

import functools

import exactness
import numpy as np
import pytest
from fakes import Threads

from whole_slide_cnn.engines.direct.engine import DirectEngine
from whole_slide_cnn.engines.staged.dealing import NOTHING, deal
from whole_slide_cnn.engines.staged.engine import StagedEngine
from whole_slide_cnn.engines.staged.options import StagedOptions
from whole_slide_cnn.engines.staged.plan import StagedPlan, slices
from whole_slide_cnn.engines.streaming.pooling import running_pooling
from whole_slide_cnn.errors import SlideError, WholeSlideError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.resnet import TRUNKS
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import ArrayCanvas

SIZE = Size(448, 384)


def noise(seed, *places):
    """A white canvas with noise in some places."""
    image = np.full(SIZE + (3,), 255, np.uint8)
    for place in places:
        image[place] = np.random.RandomState(seed).randint(0, 256, image[place].shape)
    return image


def repeated():
    """Squares of 64 px that are all the same, black and white: every value of the network with whole weights is one,
    so that maxima are equal, in whichever order they were summed."""
    square = np.random.RandomState(5).choice([0, 255], (64, 64, 3)).astype(np.uint8)
    return np.tile(square, (SIZE.height // 64, SIZE.width // 64, 1))


SLIDES = {
    "two pieces": lambda: noise(1, np.s_[30:120, 30:130], np.s_[300:440, 250:380]),
    "everywhere": lambda: noise(2, np.s_[:, :]),
    "ties": repeated,
    "one cell": lambda: noise(3, np.s_[220:230, 200:210]),
    "blank": lambda: noise(4),
}


def whole_weights(network):
    """Few weights that differ from zero, whole numbers but for the head's: sums are equal in whatever order."""
    values = exactness.random_weights(network, 0)
    for index, (name, value) in enumerate(values.items()):
        random = np.random.RandomState([7, index])
        if name.startswith("output"):
            continue
        if name.endswith("kernel"):
            inputs = np.prod(value.shape[:-1])
            value = random.choice([-1.0, 0.0, 1.0], value.shape, p=[1.5 / inputs, 1 - 4 / inputs, 2.5 / inputs])
        values[name] = np.ones_like(value) if name.endswith("weight") else np.round(value)
    return values


def weights_of(kind, network):
    return whole_weights(network) if kind == "ties" else exactness.random_weights(network, 0)


@functools.lru_cache(maxsize=None)
def engine_of(pooling, rank, **options):
    """The engine of a process; those of all tests are the same."""
    return StagedEngine(Network("tiny", pooling, "softmax", 3), SIZE, "float64", training=True, **options)


@functools.lru_cache(maxsize=None)
def expected(pooling, kind):
    """Prediction, gradients and class map by ``direct``, and by ``staged`` in one process with the pooled features."""
    found = []
    network, canvas = Network("tiny", pooling, "softmax", 3), ArrayCanvas(SLIDES[kind]())
    with DirectEngine(network, SIZE, "float64", training=True) as direct:
        for engine in (direct, engine_of(pooling, 0)):
            engine.load_state(weights_of(kind, network))
            found.append(engine.gradients([canvas], [2]) + (engine.class_map(canvas),))
    return found, engine_of(pooling, 0)._forward(canvas).pooled


def together(processes, use, engines):
    """What the processes return."""

    def process(group):
        engine = engines[group.rank]
        engine.group = group if processes > 1 else None
        try:
            return use(engine, group.rank)
        finally:
            engine.group = None

    found = Threads(processes).run(process)
    for error in found:
        if isinstance(error, BaseException):
            raise error
    return found


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", list(SLIDES))
@pytest.mark.parametrize("pooling", ["gmp", "gap"])
def test_they_have_the_numbers_of_one_process(pooling, kind, processes):
    ((prediction,), gradients, logits), (_, alone, _) = expected(pooling, kind)[0]
    pooled = expected(pooling, kind)[1]
    weights, image = weights_of(kind, Network("tiny", pooling, "softmax", 3)), SLIDES[kind]()

    def use(engine, rank):
        engine.load_state(weights)
        canvas = ArrayCanvas(image)
        found = engine.gradients([canvas, canvas], [2, 2])
        return found + engine.predict_with_map(canvas, 2) + (engine.predict(canvas), engine._forward(canvas).pooled)

    found = together(processes, use, [engine_of(pooling, rank) for rank in range(processes)])
    for predictions, _, drawn, class_map, predicted, features in found:
        for one in predictions + [drawn]:
            assert one.loss == pytest.approx(prediction.loss, rel=1e-12)
            assert one.probabilities.tobytes() == found[0][0][0].probabilities.tobytes()
        assert predicted.probabilities.tobytes() == drawn.probabilities.tobytes()
        np.testing.assert_allclose(class_map, logits, rtol=1e-9, atol=1e-12)
        assert class_map.tobytes() == found[0][3].tobytes()
        np.testing.assert_allclose(features.values, pooled.values, rtol=1e-12)
        np.testing.assert_array_equal(features.position, pooled.position)
    for name, value in gradients.items():
        total = sum(each[1][name] for each in found)
        assert exactness.relative_error(total, value) < 1e-11, name
        assert exactness.relative_error(total, alone[name]) < 1e-12, name
    if kind in ("everywhere", "two pieces"):  # every one has done something
        assert all(np.abs(each[1]["conv1_conv/kernel"]).max() > 0 for each in found)
    if kind == "ties":
        assert has_ties(logits)


def has_ties(logits):
    """Whether cells a square of 64 px further are equal, away from the borders."""
    inner = logits[4:-4, 4:-4]
    return min(inner.shape[:2]) > 3 and (inner[2:] == inner[:-2]).all() and (inner[:, 2:] == inner[:, :-2]).all()


@pytest.fixture(scope="module")
def small_budget():
    """Two engines with a budget of almost nothing: each computes its part in several regions, twice."""
    patch = pytest.MonkeyPatch()
    patch.setattr("whole_slide_cnn.engines.staged.plan._LEAST_STORE_BYTES", 2e6)
    network = Network("tiny", "gmp", "softmax", 3)
    engines = [StagedEngine(network, SIZE, "float64", training=True, memory_gb=0.001) for _ in range(2)]
    yield engines
    for engine in engines:
        engine.close()
    patch.undo()


def test_regions_of_each_process_are_computed_twice(small_budget):
    ((_, gradients, _), _), _ = expected("gmp", "everywhere")

    def use(engine, rank):
        engine.load_state(exactness.random_weights(engine.network, 0))
        canvas = ArrayCanvas(SLIDES["everywhere"]())
        assert len(engine.slide(canvas).regions) > 1
        return engine.gradients([canvas], [2])[1]

    found = together(2, use, small_budget)
    for name, value in gradients.items():
        assert exactness.relative_error(found[0][name] + found[1][name], value) < 1e-11, name


@pytest.mark.parametrize("rank, moment", [pytest.param(0, "first", marks=pytest.mark.slow), (1, "last")])
def test_a_slide_that_one_process_cannot_read_breaks_in_all(small_budget, rank, moment):
    """In the forward pass, or when it is read for the second time; nothing is left behind."""
    gradients, image = expected("gmp", "everywhere")[0][0][1], SLIDES["everywhere"]()

    def use(engine, me):
        engine.load_state(exactness.random_weights(engine.network, 0))
        canvas, counted = ArrayCanvas(image, name="slide-7"), Breaking(image, 10**9)
        engine.gradients([counted], [2])
        last = 10**9 if me != rank else 0 if moment == "first" else counted.reads - 1
        with pytest.raises(SlideError) as caught:
            engine.gradients([canvas, Breaking(image, last)], [2, 2])
        return (caught.value.slide, caught.value.reason), engine.gradients([canvas], [2])[1]

    found = together(2, use, small_budget)
    assert [each[0] for each in found] == [("slide-7", "cannot be read")] * 2
    for name, value in gradients.items():
        assert exactness.relative_error(found[0][1][name] + found[1][1][name], value) < 1e-11, name


class Breaking(ArrayCanvas):
    """A canvas that cannot be read after some reads."""

    def __init__(self, image, last):
        super().__init__(image, name="slide-7")
        self.reads, self._last = 0, 10**9
        self.blank_blocks()
        self.reads, self._last = 0, last

    def _read(self, window):
        self.reads += 1
        if self.reads > self._last:
            raise SlideError(self.name, "cannot be read")
        return super()._read(window)


def test_a_slide_that_breaks_in_a_prediction_breaks_in_all():
    image = SLIDES["everywhere"]()

    def use(engine, rank):
        with pytest.raises(SlideError) as caught:
            engine.predict_with_map(Breaking(image, 0 if rank else 10**9))
        return str(caught.value)

    found = together(2, use, [engine_of("gmp", rank) for rank in range(2)])
    assert found == ["slide slide-7: cannot be read"] * 2


def test_they_notice_that_they_plan_differently():
    image = SLIDES["two pieces"]()
    engines = [engine_of("gmp", 0), engine_of("gmp", 1, skip_blank=False)]

    def use(engine, rank):
        with pytest.raises(WholeSlideError, match="the processes that share a slide plan it differently"):
            engine.predict(ArrayCanvas(image))

    assert together(2, use, engines) == [None, None]


@pytest.mark.parametrize("pooling", ["gmp", "gap"])
def test_pooling_in_parts(pooling):
    """Ties go to the first cell wherever it was pooled; a value that is no number is not lost."""
    cells, random = Size(6, 8), np.random.RandomState(0)
    values = random.randint(0, 3, cells + (20,)).astype(np.float64)
    windows = [Window(row, column, 2, 4) for row in (0, 2, 4) for column in (0, 4)]

    def pool(windows, values):
        pooling_ = running_pooling(pooling, cells)
        for window in windows:
            part = values[slices(window)].reshape(-1, values.shape[-1])
            pooling_.add_window(0, window, *((part.max(0), part.argmax(0)) if pooling == "gmp" else (part.sum(0),)))
        return pooling_

    def join(values):
        joined = running_pooling(pooling, cells)
        for rank in range(3):
            joined.add_part(pool(windows[::-1][rank:6:3] if rank < 2 else windows[::-1][2::3], values).part())
        joined.add_part(pool([], values).part())
        return joined.result()

    whole, joined = pool(windows, values).result(), join(values)
    np.testing.assert_array_equal(joined.values, whole.values)
    np.testing.assert_array_equal(joined.position, whole.position)
    for row in range(cells.height):
        broken = values.copy()
        broken[row, 3] = np.nan
        assert np.isnan(join(broken).values).all()


# How a slide is dealt.


def test_dealing_a_line():
    costs = np.array([1, 1, 1, 9, 0, 0, 0, 6, 6])

    def along(cells, axis):
        line = costs[cells.left : cells.right] if axis == 1 else np.array([costs[cells.left : cells.right].sum()])
        first = cells.left if axis == 1 else cells.top
        return lambda start, stop: float(line[start - first : stop - first].sum())

    line = Window(0, 0, 1, 9)
    assert deal(line, 1, along) == [line]
    assert [part.width for part in deal(line, 2, along)] in ([4, 5], [5, 4], [6, 3], [7, 2])
    assert [int(costs[part.left : part.right].sum()) for part in deal(line, 4, along)] == [3, 9, 6, 6]
    many = deal(line, 20, along)
    assert len(many) == 20 and sum(part.width for part in many) == 9 and NOTHING in many
    assert deal(Window(0, 4, 1, 3), 3, along) == [Window(0, 4, 1, 3), NOTHING, NOTHING]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64, 1000])
def test_parts_hold_every_coloured_cell_once_and_agree_on_blank_ones(parts):
    plan = StagedPlan(TRUNKS["tiny"](), Size(1100, 700), StagedOptions())
    blank = np.ones((35, 22), bool)
    blank[3:12, 2:9] = blank[20:30, 10:20] = False
    slides = [plan.slide(blank, parts, part) for part in range(parts if parts <= 64 else 3)]
    times, in_tiles = np.zeros(plan.cells, int), np.zeros(plan.cells, int)
    for slide in slides:
        times[slices(slide.cells)] += 1
        for region in slide.regions:
            for tile in region.covers[-1].tiles:
                in_tiles[slices(tile)] += 1
                assert region.cells.intersect(tile) == tile and slide.cells.intersect(tile) == tile
        assert slide.blank.digest == slides[0].blank.digest
    if parts == len(slides):
        assert (times == 1).all() and in_tiles.max() == 1 and (in_tiles[slides[0].coloured[-1]] == 1).all()
        assert slides[0].blank.counts.sum() == (in_tiles == 0).sum()
    assert times.max() == 1


def test_parts_cost_about_the_same():
    """Halo included, which the parts of a small canvas are mostly made of."""
    plan = StagedPlan(TRUNKS["resnet18"](), Size(12288, 10240), StagedOptions())
    rows, columns = np.indices((384, 320))
    blank = ((rows - 150) / 120) ** 2 + ((columns - 130) / 90) ** 2 > 1
    blank &= ((rows - 330) / 40) ** 2 + ((columns - 250) / 60) ** 2 > 1
    (whole,) = plan.costs(blank)
    for parts, least in ((2, 0.9), (3, 0.85), (8, 0.7)):
        costs = plan.costs(blank, parts)
        assert whole / (parts * max(costs)) > least, (parts, costs)
