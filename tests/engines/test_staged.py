"""The staged engine: every way to compute a slide gives ``direct``'s numbers, and its plan what the engine does."""

import functools

import exactness
import numpy as np
import pytest

from whole_slide_cnn.engines.direct.engine import DirectEngine
from whole_slide_cnn.engines.staged.engine import StagedEngine
from whole_slide_cnn.engines.staged.network import StageGraph
from whole_slide_cnn.engines.staged.options import StagedOptions
from whole_slide_cnn.engines.staged.pages import PagePool, Pages, page_count
from whole_slide_cnn.engines.staged.plan import StagedPlan, slices
from whole_slide_cnn.engines.staged.stages import CHECKPOINTS, split, stages_of
from whole_slide_cnn.engines.staged.tiles import cover, halved
from whole_slide_cnn.errors import ConfigError, SlideError, TensorTooLargeError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.resnet import TRUNKS
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import ArrayCanvas

CASES = {str(case): case for case in exactness.CASES}
# A budget of almost nothing: dozens of regions, each computed forward twice.
REGIONS = {"memory_gb": 0.001}
WAYS = {
    "default": {},
    "regions": REGIONS,
    "regions of few stages": dict(REGIONS, checkpoints="stage"),
    "regions, all gradients": dict(REGIONS, sparse_backward=False, keep_activations=False),
    "no stages": {"checkpoints": "none", "tile": 96, "keep_activations": False},
    "computed again": {"keep_activations": False, "tile": 64},
    "all gradients": {"sparse_backward": False},
    "blank computed": {"skip_blank": False},
}


@functools.lru_cache(maxsize=None)
def _direct(name):
    case = CASES[name]
    network = Network(case.backbone, case.pooling, case.activation, 3)
    canvases = [ArrayCanvas(image) for image in exactness.images(case, 0)]
    with DirectEngine(network, Size(case.height, case.width), "float64", training=True) as engine:
        engine.load_state(exactness.random_weights(network, 0))
        labels = [1 + index for index in range(len(canvases))]
        predictions, gradients = engine.gradients(canvases, labels)
        return network, canvases, labels, predictions, gradients, engine.class_map(canvases[0])


# By default every way with one of the poolings at least; regions, dozens of them, take longest.
_LONG = ("regions of few stages", "regions, all gradients")
_CASES = [
    pytest.param(name, way, marks=[pytest.mark.slow] if way in _LONG and "-gap-" in name else [])
    for name in ("tiny-gmp-softmax-333x450-pair-w96", "tiny-gap-softmax-333x450-corner-w96")
    for way in WAYS
]


@pytest.mark.parametrize("name, way", _CASES)
def test_every_way_gives_the_numbers_of_direct(name, way, monkeypatch):
    network, canvases, labels, predictions, gradients, logits = _direct(name)
    monkeypatch.setattr("whole_slide_cnn.engines.staged.plan._LEAST_STORE_BYTES", 3e5)
    with StagedEngine(network, canvases[0].size, "float64", training=True, **WAYS[way]) as engine:
        slide = engine.slide(canvases[0])
        assert (len(slide.regions) > 5) == ("regions" in way)
        engine.load_state(exactness.random_weights(network, 0))
        for _ in range(2):  # what a batch leaves behind must not reach the next
            found, other = engine.gradients(canvases, labels)
        for one, expected in zip(found, predictions):
            assert one.loss == pytest.approx(expected.loss, rel=1e-12)
        for key, value in gradients.items():
            assert exactness.relative_error(other[key], value) < 1e-11, key
        prediction, drawn = engine.predict_with_map(canvases[0], labels[0])
        assert prediction.loss == pytest.approx(predictions[0].loss, rel=1e-12)
        np.testing.assert_allclose(drawn, logits, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(engine.class_map(canvases[0]), drawn)


def test_blank_area_is_never_read_and_pixels_are_read_once():
    class Counting(ArrayCanvas):
        reads = 0

        def _read(self, window):
            self.reads += 1
            return super()._read(window)

    image = np.full((960, 960, 3), 255, np.uint8)
    image[100:140, 100:140] = np.random.RandomState(0).randint(0, 256, (40, 40, 3))
    network = Network("tiny", "gmp", "softmax", 2)
    with StagedEngine(network, Size(960, 960), "float64", training=True, tile=64) as engine:
        engine.load_state(network.initial_weights(0))
        canvas = Counting(image)
        blocks = canvas.blank_blocks()
        canvas.reads = 0
        canvas.set_blank_blocks(blocks)
        (region,) = engine.slide(canvas).regions
        engine.gradients([canvas], [1])
        assert canvas.reads == len(region.covers[0].tiles) < 9
        white = Counting(np.full((960, 960, 3), 255, np.uint8))
        white.blank_blocks()
        white.reads = 0
        engine.gradients([white], [0])
        assert white.reads == 0


def test_a_slide_that_breaks_leaves_nothing_behind():
    class Broken(ArrayCanvas):
        def _read(self, window):
            raise SlideError(self.name, "cannot be read")

    network, canvases, labels, _, gradients, _ = _direct("tiny-gmp-softmax-333x450-pair-w96")
    broken = Broken(np.zeros(canvases[0].size + (3,), np.uint8))
    broken.set_blank_blocks(np.zeros([-(-side // 32) for side in broken.size], bool))
    with StagedEngine(network, canvases[0].size, "float64", training=True) as engine:
        engine.load_state(exactness.random_weights(network, 0))
        with pytest.raises(SlideError, match="cannot be read"):
            engine.gradients([canvases[0], broken], [1, 2])
        _, found = engine.gradients(canvases, labels)
        assert max(exactness.relative_error(found[key], value) for key, value in gradients.items()) < 1e-11


def test_the_maximum_of_a_pooling_is_never_taken_from_another_run_than_its_input(monkeypatch):
    fed = []

    def run(graph, session, fetches, feed):
        if graph.result_gradient in feed:
            fed.append((graph.stage.index, graph.result in feed, all(tensor in feed for tensor in graph.inner)))
        return original(graph, session, fetches, feed)

    original = StageGraph._run
    monkeypatch.setattr(StageGraph, "_run", run)
    network, canvases, labels, _, gradients, _ = _direct("tiny-gmp-softmax-333x450-pair-w96")
    for keeps in (True, False):
        with StagedEngine(network, canvases[0].size, "float64", training=True, keep_activations=keeps) as engine:
            engine.load_state(exactness.random_weights(network, 0))
            engine.gradients(canvases, labels)
    stem = {(with_result, with_inner) for index, with_result, with_inner in fed if index == 0}
    assert stem == {(True, True), (False, False)}
    assert all(with_result for index, with_result, _ in fed if index > 0)


def test_it_does_not_train_on_a_gpu_as_it_was_never_shown_to_be_exact_there(monkeypatch):
    monkeypatch.setattr("whole_slide_cnn.engines.runtime.has_gpu", lambda: True)
    with pytest.raises(ConfigError, match="set staged.skip_blank: false, or use engine: streaming"):
        StagedEngine(Network("tiny", "gmp", "softmax", 2), Size(320, 320), training=True)


# The plan.


@pytest.mark.parametrize("backbone", list(TRUNKS))
@pytest.mark.parametrize("checkpoints", CHECKPOINTS)
def test_stages_follow_each_other_and_make_the_trunk(backbone, checkpoints):
    trunk, canvas = TRUNKS[backbone](), Size(333, 450)
    assert sum(split(trunk, checkpoints), ()) == trunk
    stages = stages_of(trunk, canvas, checkpoints)
    assert stages[0].source.size == canvas and stages[-1].target.size == geometry.cells_of(trunk, canvas)
    for one, following in zip(stages, stages[1:]):
        assert one.target is following.source
        whole = following.geometry(Window(0, 0, *following.target.size))
        for seen, there in zip(whole.pixels.size, one.target.size):  # a stride may leave out the last position
            assert there - 1 <= seen <= there
    blocks = 1 + sum(type(layer).__name__ == "Residual" for layer in trunk)
    assert len(stages) == {"block": blocks, "stage": 4, "none": 1}[checkpoints]


def test_tiles_are_disjoint_and_hold_what_is_wanted():
    random = np.random.RandomState(0)
    for _ in range(200):
        wanted = random.rand(*random.randint(1, 40, 2)) < random.choice([0.02, 0.3, 0.95])
        size = Size(*random.randint(1, 12, 2))
        whole = cover(wanted, size)
        for tiles in (whole, halved(wanted, whole, size)):
            times = np.zeros(wanted.shape, int)
            for tile in tiles:
                assert wanted[slices(tile)].any()
                times[slices(tile)] += 1
            assert times.max(initial=0) <= 1 and (times[wanted] == 1).all()
        for tile, half in zip(whole, tiles):
            assert half.height in (tile.height, size.height // 2) and half.width in (tile.width, size.width // 2)


def test_a_tile_is_halved_where_the_rest_of_it_is_not_wanted():
    wanted = np.zeros((8, 8), bool)
    wanted[1, 2] = wanted[2:4, 6] = True
    tiles = [Window(0, 0, 4, 4), Window(0, 4, 4, 4), Window(4, 0, 4, 4)]
    assert halved(wanted, tiles[:2], Size(4, 4)) == (Window(0, 2, 2, 2), Window(2, 6, 2, 2))
    assert halved(wanted, tiles[:2], Size(4, 8)) == tuple(tiles[:2])  # these were cut short


def test_pages_are_blank_until_they_are_written_and_give_back_what_is_in_some_blocks():
    level = stages_of(TRUNKS["tiny"](), Size(1100, 700), "block")[1].source
    random, whole = np.random.RandomState(0), Window(0, 0, *level.size)
    background = random.rand(*(level.size + (level.channels,)))
    pages = Pages(level, np.float64, lambda window: background[slices(window)])
    expected = background.copy()
    for _ in range(20):
        top, left = (random.randint(0, side - 40) for side in level.size)
        window = Window(top, left, *random.randint(1, 41, 2))
        values = random.rand(*(window.size + (level.channels,)))
        pages.write(window, values)
        expected[slices(window)] = values
        assert (pages.read([window])[0] == values).all()
    np.testing.assert_array_equal(pages.read([whole])[0], expected)
    sums, total = Pages(level, np.float64), np.zeros_like(expected)
    for window in (Window(3, 5, 90, 70), Window(60, 20, 100, 100)):
        values = random.rand(*(window.size + (level.channels,)))
        sums.add(window, values)
        total[slices(window)] += values
    blocks = random.rand(*level.grid) < 0.5
    moved = np.zeros_like(total)
    for rows, columns, values in sums.move_out(blocks):
        np.add.at(moved, (rows, columns), values)
    chosen = np.repeat(np.repeat(blocks, level.side, 0), level.side, 1)[: level.size.height, : level.size.width]
    np.testing.assert_array_equal(moved, total * chosen[..., np.newaxis])
    np.testing.assert_array_equal(sums.read([whole])[0], total * ~chosen[..., np.newaxis])


def test_blocks_of_a_pool_are_disjoint_and_come_again():
    pool = PagePool()
    pool.keep(2**26)
    size = 2**22
    taken = [pool.take(size) for _ in range(20)]  # of 32 MB slabs
    for number, (_, block) in enumerate(taken):
        block[...] = number
    assert all((block == number).all() for number, (_, block) in enumerate(taken))
    places = {block.ctypes.data for _, block in taken}
    while taken:
        pool.give_back(*taken.pop())
    again = [pool.take(size) for _ in range(16)]
    assert {block.ctypes.data for _, block in again} <= places
    assert pool.take(2**26)[1].nbytes == 2**26  # more than a slab


def test_pages_are_counted_as_they_lie():
    assert page_count(np.ones((2, 2), bool), Window(7, 15, 2, 2)) == 4
    assert page_count(np.ones((8, 8), bool), Window(8, 16, 8, 8)) == 1
    assert page_count(np.zeros((8, 8), bool), Window(0, 0, 8, 8)) == 0


def test_blocks_with_gradient_are_those_that_a_winner_sees():
    plan = StagedPlan(TRUNKS["tiny"](), Size(1100, 1200), StagedOptions())
    rows, columns = np.array([20, 0]), np.array([17, 37])
    for index, found in enumerate(plan.active(rows, columns)):
        expected = np.zeros_like(found)
        for row, column in zip(rows, columns):
            window = Window(row, column, 1, 1)
            for stage in reversed(plan.stages[index:]):
                window = stage.geometry(window).pixels
            side = plan.levels[index].side
            expected[window.top // side : -(-window.bottom // side), window.left // side : -(-window.right // side)] = (
                True
            )
        np.testing.assert_array_equal(found, expected)


def test_what_a_budget_buys():
    trunk, canvas = TRUNKS["resnet18"](), Size(4096, 4096)
    rich, poor, little = (StagedPlan(trunk, canvas, StagedOptions(memory_gb=gb)) for gb in (30, 0.9, 0.4))
    slides = [plan.slide_of_share(0.25) for plan in (rich, poor, little)]
    assert slides[0].stores and slides[0].regions[0].kept == frozenset(range(len(rich.stages)))
    assert rich.work(slides[0]).again == 0 < poor.work(slides[1]).again < little.work(slides[2]).again
    assert len(slides[2].regions) > 1
    for plan, slide in zip((rich, poor, little), slides):
        for region in slide.regions:
            kept = plan.kept_bytes(region, region.kept)
            assert plan.peak_stored(region.stored, kept) <= plan.store_bytes


def test_a_tile_that_no_operation_may_touch_is_refused_and_so_is_what_does_not_fit():
    with pytest.raises(TensorTooLargeError, match="use a smaller staged.tile"):
        StagedPlan(TRUNKS["resnet50"](), Size(20000, 20000), StagedOptions(tile=20000)).check_sizes()
    from whole_slide_cnn.engines.memory import engine_memory

    network = Network("resnet18", "gmp", "softmax", 2)
    totals = [
        engine_memory("staged", network, Size(side, side), "float32", True, memory_gb=2).total for side in (8192, 75000)
    ]
    assert abs(totals[0] - totals[1]) < 1e6 and abs(totals[0] - 2e9) < 0.1e9
