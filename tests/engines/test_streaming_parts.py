"""The parts of the streaming engine: cover, blank canvas, and what it leaves out."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.engines.streaming.blank import BlankCanvas
from whole_slide_cnn.engines.streaming.cover import blank_cells, grid_cover
from whole_slide_cnn.engines.streaming.engine import StreamingEngine
from whole_slide_cnn.engines.streaming.plan import StreamingPlan
from whole_slide_cnn.errors import SlideError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.geometry import Range
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.resnet import TRUNKS
from whole_slide_cnn.models.shapes import canvas_shapes
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import ArrayCanvas

TINY = TRUNKS["tiny"]()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 15),
    st.integers(0, 12),
    st.integers(0, 2**31),
    st.floats(0, 1),
)
def test_a_cover_is_disjoint_bounded_and_complete(height, width, side, margin, seed, share):
    wanted = np.random.RandomState(seed).rand(height, width) < share
    interior = tuple(Range(min(margin, n), max(min(margin, n), n - margin)) for n in wanted.shape)
    times = np.zeros(wanted.shape, int)
    for window in grid_cover(wanted, side, interior):
        assert 1 <= window.height <= side and 1 <= window.width <= side
        assert window.top >= 0 and window.left >= 0 and window.bottom <= height and window.right <= width
        assert wanted[window.top : window.bottom, window.left : window.right].any()
        times[window.top : window.bottom, window.left : window.right] += 1
    assert times.max(initial=0) <= 1
    assert times[wanted].all()


def test_wherever_the_tissue_is_windows_have_few_shapes():
    random = np.random.RandomState(3)
    canvas, side = Size(1600, 1800), 12
    cells = geometry.cells_of(TINY, canvas)
    interior = tuple(geometry.interior_cells(TINY, length) for length in canvas)
    shapes = set()
    for _ in range(200):
        wanted = np.zeros(cells, bool)
        for _ in range(2):
            height, width = random.randint(1, 25, 2)
            top, left = random.randint(0, cells.height - height), random.randint(0, cells.width - width)
            wanted[top : top + height, left : left + width] = True
        for window in grid_cover(wanted, side, interior):
            shapes.add(geometry.window_geometry(TINY, canvas, window).pixels.size)
    assert len(shapes) <= 25  # per axis: at either border, at neither, and two where a grid reaches across


def test_a_grid_away_from_the_borders_has_full_windows():
    wanted = np.zeros((40, 50), bool)
    wanted[10, 20:33] = True
    assert grid_cover(wanted, 8, (Range(3, 37), Range(3, 47))) == [Window(10, 20, 8, 8), Window(10, 28, 8, 8)]
    wanted[10, 20:33], wanted[39, 0] = False, True
    assert grid_cover(wanted, 8, (Range(3, 37), Range(3, 47))) == [Window(32, 0, 8, 8)]
    assert grid_cover(np.zeros((3, 3), bool), 2) == []


@settings(deadline=None, max_examples=30)
@given(st.integers(100, 500), st.integers(100, 500), st.integers(0, 2**31))
def test_blank_cells_see_no_colour(height, width, seed):
    random = np.random.RandomState(seed)
    image = np.full((height, width, 3), 255, np.uint8)
    for _ in range(2):
        image[random.randint(height), random.randint(width)] = 0
    found = blank_cells(TINY, Size(height, width), ArrayCanvas(image).blank_blocks())
    fields = [geometry.field_of(TINY, side) for side in (height, width)]
    for row, column in zip(*np.nonzero(found)):
        ranges = [f.of(geometry.Range(i, i + 1)) for f, i in zip(fields, (row, column))]
        rows, columns = (slice(max(0, r.start), r.stop) for r in ranges)
        assert (image[rows, columns] == 255).all()


@pytest.mark.parametrize("backbone", sorted(TRUNKS))
@pytest.mark.parametrize("sides", [(3001, 2000), (21500, 640), (75000, 1)])
def test_the_blank_canvas_has_the_clipped_distances_of_the_large_one(backbone, sides):
    trunk, canvas = TRUNKS[backbone](), Size(*sides)
    small = BlankCanvas(trunk, canvas)
    cells = geometry.cells_of(trunk, canvas)
    mask = np.zeros(cells, bool)
    columns = sorted({0, cells.width // 2, cells.width - 1})
    mask[:, columns] = True
    kinds = small.kinds_of(mask)
    assert kinds.counts.sum() == mask.sum()
    field = geometry.field_of(trunk, canvas.height)
    seen = {}
    for row in range(cells.height):
        kind_row = small._rows[row]
        sides_of = [
            (field.of(geometry.Range(i, i + 1)), side)
            for i, side in ((row, canvas.height), (int(kind_row), small.size.height))
        ]
        clipped = [(max(0, -r.start), max(0, r.stop - side)) for r, side in sides_of]
        assert clipped[0] == clipped[1]
        seen.setdefault(kind_row, row)
    flat = {int(kind): int(first) for kind, first in zip(kinds.kinds, kinds.first)}
    for kind_row, row in seen.items():
        kind = int(kind_row) * small.cells.width + int(small._columns[columns[0]])
        assert flat[kind] == row * cells.width + columns[0]


class CountingCanvas(ArrayCanvas):
    """Counts windows read, and breaks when told to."""

    reads = 0
    broken = False

    def _read(self, window):
        self.reads += 1
        if self.broken:
            raise SlideError(self.name, "cannot be read")
        return super()._read(window)


def _engine(pooling, size, window):
    engine = StreamingEngine(Network("tiny", pooling, "softmax", 2), size, "float64", training=True, window=window)
    engine.load_state(engine.network.initial_weights(0))
    return engine


def test_blank_area_is_never_read_and_windows_without_gradient_are_not_computed_again():
    image = np.full((960, 960, 3), 255, np.uint8)
    image[100:140, 100:140] = np.random.RandomState(0).randint(0, 256, (40, 40, 3))
    with _engine("gmp", Size(960, 960), 128) as engine:
        canvas = CountingCanvas(image)
        blocks = canvas.blank_blocks()
        canvas.reads = 0
        canvas.set_blank_blocks(blocks)
        windows = len(engine.cover(canvas).windows)
        assert windows < 9  # of 64
        engine.predict(canvas)
        assert canvas.reads == windows
        engine.gradients([canvas], [1])
        assert canvas.reads <= 3 * windows
        white = CountingCanvas(np.full((960, 960, 3), 255, np.uint8))
        white.blank_blocks()
        white.reads = 0
        engine.gradients([white], [0])
        assert white.reads == 0


@pytest.mark.parametrize("pooling", ["gmp", "gap"])
def test_a_slide_that_breaks_leaves_nothing_behind(pooling):
    random = np.random.RandomState(1)
    first, second = (ArrayCanvas(random.randint(0, 256, (200, 320, 3)).astype(np.uint8)) for _ in range(2))
    with _engine(pooling, Size(200, 320), 96) as engine:
        expected = engine.gradients([first], [1])[1]
        broken = CountingCanvas(second._array, "broken")
        broken.blank_blocks()
        broken.broken = True
        with pytest.raises(SlideError, match="broken"):
            engine.gradients([first, broken], [1, 0])
        again = engine.gradients([first], [1])[1]
        for name, value in expected.items():
            np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize("pooling", ["gmp", "gap"])
def test_weights_that_are_not_a_number_are_seen_in_the_loss(pooling):
    image = np.random.RandomState(2).randint(0, 256, (320, 320, 3)).astype(np.uint8)
    with _engine(pooling, Size(320, 320), 96) as engine:
        weights = engine.weights()
        weights["conv5_block1_2_conv/bias"] = weights["conv5_block1_2_conv/bias"] * np.nan
        engine.load_state(weights)
        assert np.isnan(engine.predict(ArrayCanvas(image), 1).loss)


def test_windows_of_a_kind_are_computed_alike():
    plan = StreamingPlan(TINY, Size(700, 611), 128)
    windows = grid_cover(np.ones(plan.cells, bool), plan.side)
    found = Counter()
    for window in windows:
        alike = plan.geometry(window)
        found[alike.pixels.size, alike.padding.tobytes(), alike.crops.tobytes()] += 1
    kinds = plan.kinds(windows)
    first = [plan.geometry(kind.window) for kind in kinds]
    keys = [(kind.pixels, at.padding.tobytes(), at.crops.tobytes()) for kind, at in zip(kinds, first)]
    assert len(windows) > 10 and len(found) > 3
    assert dict(zip(keys, [kind.number for kind in kinds])) == found and [at.pixels.size for at in first] == [
        kind.pixels for kind in kinds
    ]


@pytest.mark.parametrize("backbone", ["tiny", "resnet50"])
def test_work_of_one_window_is_that_of_the_network(backbone):
    """A window of all cells is the canvas; the gradient takes twice as much, but for that of the image."""
    network, size = Network(backbone, "gmp", "softmax", 2), Size(320, 416)
    plan = StreamingPlan(network.trunk, size, 1024)
    work = plan.flops([Window(0, 0, *plan.cells)])
    assert work.forward == network.flops(size) - 2 * network.channels * network.classes
    stem = next(step for step in canvas_shapes(network.trunk, size) if step.kind == "conv")
    assert work.backward == 2 * work.forward - 2 * 7 * 7 * 3 * stem.elements


def test_halos_are_work_and_blank_area_is_none():
    plan = StreamingPlan(TINY, Size(2048, 2048), 256)
    whole = plan.flops([Window(0, 0, *plan.cells)]).forward
    everywhere, quarter = (plan.flops(plan.cover_of_share(share).windows).forward for share in (1.0, 0.25))
    assert 1.5 * whole < everywhere < 3 * whole and quarter < 0.5 * everywhere


def test_the_plan_needs_no_tensorflow():
    """Nor does anything that describes an engine: importing it, or asking what a canvas takes."""
    code = (
        "import sys; from whole_slide_cnn.engines.streaming.plan import StreamingPlan; "
        "from whole_slide_cnn.engines import table; from whole_slide_cnn.models.resnet import TRUNKS; "
        "from whole_slide_cnn.planning import auto, recommend, targets; "
        "plan = StreamingPlan(TRUNKS['resnet50'](), (4096, 4096), 1024); cover = plan.cover_of_share(0.3); "
        "assert plan.flops(cover.windows).backward and sum(plan.peak_bytes('float32', True, False)); "
        "assert not {name.split('.')[0] for name in sys.modules} & {'tensorflow', 'google', 'keras'}, sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
