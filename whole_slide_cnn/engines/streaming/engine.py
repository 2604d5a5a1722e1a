"""The slide streamed through the network in windows (ESCNN, 2022, Methods; design, section 6).

Forward, each window leaves behind only its share of the pooled features. Backward, the windows that carry gradient are
computed again. Blank cells are taken from one small blank canvas. Memory does not grow with the canvas.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines.base import Engine, Prediction
from whole_slide_cnn.engines.streaming.blank import BlankCanvas, BlankKinds
from whole_slide_cnn.engines.streaming.cover import blank_cells, grid_cover
from whole_slide_cnn.models import build, geometry
from whole_slide_cnn.models.layers import Relu
from whole_slide_cnn.models.trace import check_tensor_sizes, trace_window
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import Canvas

DEFAULT_WINDOW = 1024


class Cover(NamedTuple):
    """What a canvas needs computed: windows of cells, and the blank cells in none of them."""

    windows: Tuple[Window, ...]
    blank: BlankKinds


class Pooled(NamedTuple):
    """Pooled features and, for the maximum, where they are.

    Attributes:
        values: (channels,).
        owner: (channels,) position of the window in the cover that holds the maximum, or -1 for the blank canvas;
            None for the average.
        cell: (channels,) row * width + column of the maximum in its window's map, or in the blank canvas's.
    """

    values: np.ndarray
    owner: Optional[np.ndarray]
    cell: Optional[np.ndarray]


class StreamingEngine(Engine):
    """Windows with halos, exact to the bit of arithmetic order.

    Args:
        window: side of a window's core in canvas pixels; rounded down to whole cells. Memory grows with its square.
    """

    name = "streaming"

    def __init__(self, network, canvas_size, compute="float32", optimiser=None, window: int = DEFAULT_WINDOW):
        self._trunk = network.trunk
        assert isinstance(self._trunk[-1], Relu)  # so a maximum of zero passes no gradient
        self._cells = geometry.cells_of(self._trunk, Size(*canvas_size))
        self._side = window_side(self._trunk, canvas_size[0], window)
        self._blank = BlankCanvas(self._trunk, Size(*canvas_size))
        for largest in largest_windows(self._trunk, Size(*canvas_size), window):
            check_tensor_sizes(trace_window(self._trunk, largest))
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="window-reader")
        super().__init__(network, canvas_size, compute, optimiser)

    def close(self):
        self._reader.shutdown()
        super().close()

    def _build_graph(self):
        dtype = build.variable_type(self.compute)
        channels = self.network.channels
        self._pixels = tf.placeholder(tf.uint8, [1, None, None, 3], "pixels")
        self._window = build.GeometryTensors.placeholders(self._trunk)
        trunk_builder = build.TrunkBuilder(self._trunk, self._variables, self.compute)
        embedding = trunk_builder(build.normalise(self.network, self._pixels, self.compute), self._window)
        self._map = tf.cast(embedding, dtype)
        self._class_scores = self._logits_of_cells(self._map)
        if self.network.pooling == "gmp":
            self._summary = build.pool_maximum(embedding, dtype)
        else:
            self._summary = (tf.reduce_sum(self._map, axis=[0, 1, 2]),)

        trunk_names = [name for name in self._trainable if not name.startswith("output/")]
        self._map_gradient = tf.placeholder(dtype, [1, None, None, channels], "map_gradient")
        gradients = self._gradients(self._map, trunk_names, self._map_gradient)
        self._add_trunk = self._add_to_sums(trunk_names, gradients)

        self._pooled = tf.placeholder(dtype, [channels], "pooled")
        self._label = tf.placeholder(tf.int32, [], "label")
        self._share = tf.placeholder(dtype, [], "share")
        self._loss, self._probabilities = self._head(self._pooled, self._label)
        head_names = ["output/kernel", "output/bias"]
        gradients = tf.gradients(self._share * self._loss, [self._pooled] + [self._variables[n] for n in head_names])
        self._pooled_gradient, self._add_head = gradients[0], self._add_to_sums(head_names, gradients[1:])

    # One slide.

    def predict(self, canvas: Canvas, label: Optional[int] = None) -> Prediction:
        pooled = self._forward(canvas, self.cover(canvas))
        feed = {self._pooled: pooled.values, self._label: 0 if label is None else label}
        loss, probabilities = self._session.run([self._loss, self._probabilities], feed)
        return Prediction(float("nan") if label is None else float(loss), probabilities)

    def class_map(self, canvas: Canvas) -> np.ndarray:
        """As :meth:`Engine.class_map`. Of each window only the logits are kept; blank cells are copies of those of the
        blank canvas."""
        cover = self.cover(canvas)
        logits = np.empty(self._cells + (self.network.classes,), build.variable_type(self.compute).as_numpy_dtype)
        if len(cover.blank.kinds):
            blank = self._blank_map(canvas)
            feed = {self._map: blank.reshape((1,) + self._blank.cells + blank.shape[-1:])}
            logits[...] = self._blank.spread(self._session.run(self._class_scores, feed))
        for (window, _), feed in self._feeds_of(canvas, [(window, None) for window in cover.windows]):
            logits[_slices(window)] = self._session.run(self._class_scores, feed).reshape(window.size + (-1,))
        return logits

    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        cover = self.cover(canvas)
        pooled = self._forward(canvas, cover)
        feed = {self._pooled: pooled.values, self._label: label, self._share: share}
        loss, probabilities, gradient, _ = self._session.run(
            [self._loss, self._probabilities, self._pooled_gradient, self._add_head], feed
        )
        if self.network.pooling == "gmp":
            self._backward_maximum(canvas, cover, pooled, gradient)
        else:
            self._backward_average(canvas, cover, gradient)
        return Prediction(float(loss), probabilities)

    def cover(self, canvas: Canvas) -> Cover:
        """Windows for what is not blank, or for everything where the blank canvas would cost more than it saves."""
        return choose_cover(self._trunk, self.canvas_size, self._side, canvas.blank_blocks(), self._blank)

    def _forward(self, canvas: Canvas, cover: Cover) -> Pooled:
        summaries = [
            self._session.run(self._summary, feed)
            for _, feed in self._feeds_of(canvas, [(window, None) for window in cover.windows])
        ]
        blank = self._blank_map(canvas) if len(cover.blank.kinds) else None
        if self.network.pooling == "gap":
            return Pooled(self._average([summary[0] for summary in summaries], cover.blank, blank), None, None)
        return self._maximum(summaries, cover, blank)

    def _average(self, sums: List[np.ndarray], kinds: BlankKinds, blank: Optional[np.ndarray]) -> np.ndarray:
        total = np.sum(sums, axis=0) if sums else 0.0
        if blank is not None:
            total = total + kinds.counts.astype(blank.dtype) @ blank[kinds.kinds]
        return total / (self._cells.height * self._cells.width)

    def _maximum(self, summaries, cover: Cover, blank: Optional[np.ndarray]) -> Pooled:
        """The maximum over windows and blank cells; ties go to the first cell in raster order of the whole map."""
        candidates = []
        for index, (window, (values, cells)) in enumerate(zip(cover.windows, summaries)):
            rows, columns = cells // window.width, cells % window.width
            positions = (window.top + rows.astype(np.int64)) * self._cells.width + window.left + columns
            candidates.append((values, positions, index, cells))
        if blank is not None:
            present = blank[cover.blank.kinds]
            best = np.argmax(present, axis=0)  # kinds come in raster order, and argmax takes the first
            values = present[best, np.arange(present.shape[1])]
            candidates.append((values, cover.blank.first[best], -1, cover.blank.kinds[best]))
        values, positions, owner, cell = candidates[0]
        owner, cell = np.full(values.shape, owner), np.array(cell, np.int64)
        for other, other_positions, index, cells in candidates[1:]:
            with np.errstate(invalid="ignore"):
                better = (other > values) | ((other == values) & (other_positions < positions))
            better |= np.isnan(other)  # so that it is seen in the loss
            values = np.where(better, other, values)
            positions = np.where(better, other_positions, positions)
            owner, cell = np.where(better, index, owner), np.where(better, cells, cell)
        return Pooled(values, owner, cell)

    # Going back.

    def _backward_maximum(self, canvas: Canvas, cover: Cover, pooled: Pooled, gradient: np.ndarray):
        """Compute again only the windows that hold a maximum with gradient."""
        active = (gradient != 0) & (pooled.values > 0)

        def jobs():  # one by one: a window's gradient is as large as its embedding map
            for index, window in enumerate(cover.windows):
                channels = np.flatnonzero(active & (pooled.owner == index))
                if len(channels):
                    values = np.zeros((window.height * window.width,) + gradient.shape, gradient.dtype)
                    values[pooled.cell[channels], channels] = gradient[channels]
                    yield window, values.reshape((1,) + window.size + gradient.shape)

        self._run_backward(canvas, jobs())
        channels = np.flatnonzero(active & (pooled.owner == -1))
        if len(channels):
            self._blank_gradient(canvas)[pooled.cell[channels], channels] += gradient[channels]

    def _backward_average(self, canvas: Canvas, cover: Cover, gradient: np.ndarray):
        """Every cell of the cover has the same gradient."""
        each = gradient / (self._cells.height * self._cells.width)
        self._run_backward(canvas, ((window, each) for window in cover.windows))
        if len(cover.blank.kinds):
            self._blank_gradient(canvas)[cover.blank.kinds] += cover.blank.counts[:, np.newaxis] * each

    def _run_backward(self, canvas: Canvas, jobs: Iterable[Tuple[Window, np.ndarray]]):
        for (window, gradient), feed in self._feeds_of(canvas, jobs):
            shape = (1,) + window.size + gradient.shape[-1:]
            self._session.run(self._add_trunk, {**feed, self._map_gradient: np.broadcast_to(gradient, shape)})

    # The blank canvas: forward once for given weights, backward once for a batch.

    def _weights_changed(self):
        self._blank_maps: Dict[bytes, np.ndarray] = {}
        self._blank_gradients: Dict[bytes, np.ndarray] = {}

    def _blank_map(self, canvas: Canvas) -> np.ndarray:
        """(cells of the blank canvas, channels)."""
        key = canvas.blank_colour.tobytes()
        if key not in self._blank_maps:
            values = self._session.run(self._map, self._blank_feed(canvas.blank_colour))
            self._blank_maps[key] = values.reshape(-1, values.shape[-1])
        return self._blank_maps[key]

    def _blank_gradient(self, canvas: Canvas) -> np.ndarray:
        key = canvas.blank_colour.tobytes()
        if key not in self._blank_gradients:
            self._blank_gradients[key] = np.zeros_like(self._blank_map(canvas))
        return self._blank_gradients[key]

    def _accumulate(self, canvases, labels):
        self._blank_gradients = {}  # of a batch that a broken slide cut short
        return super()._accumulate(canvases, labels)

    def _finish_batch(self):
        for key, gradient in self._blank_gradients.items():
            feed = self._blank_feed(np.frombuffer(key, np.uint8))
            feed[self._map_gradient] = gradient.reshape((1,) + self._blank.cells + (-1,))
            self._session.run(self._add_trunk, feed)
        self._blank_gradients = {}

    def _blank_feed(self, colour: np.ndarray):
        whole = geometry.window_geometry(self._trunk, self._blank.size, Window(0, 0, *self._blank.cells))
        return self._feed(whole, np.broadcast_to(colour, whole.pixels.size + (3,)))

    # Feeding windows.

    def _geometry(self, window: Window) -> geometry.WindowGeometry:
        return geometry.window_geometry(self._trunk, self.canvas_size, window)

    def _feed(self, window: geometry.WindowGeometry, pixels: np.ndarray):
        return {
            self._pixels: pixels[np.newaxis],
            self._window.padding: window.padding,
            self._window.crops: window.crops,
        }

    def _feeds_of(self, canvas: Canvas, jobs: Iterable[Tuple[Window, np.ndarray]]) -> Iterator:
        """Each job (window of cells, anything) with the feed for its window, read one window ahead."""

        def load(job):
            window = self._geometry(job[0])
            return job, self._feed(window, canvas.read(window.pixels))

        coming = None
        try:
            for job in jobs:
                current, coming = coming, self._reader.submit(load, job)
                if current is not None:
                    yield current.result()
            if coming is not None:
                current, coming = coming, None
                yield current.result()
        finally:
            if coming is not None:  # the caller stopped early: leave no read behind in a canvas it may close
                coming.cancel()
                coming.exception() if not coming.cancelled() else None


def choose_cover(trunk, canvas: Size, side: int, blank_blocks: np.ndarray, blank: BlankCanvas) -> Cover:
    """The cheaper of windows for what is not blank together with the blank canvas, and windows for everything.

    Args:
        side: of a full window in cells.
        blank_blocks: see :func:`whole_slide_cnn.engines.streaming.cover.blank_cells`.
    """
    interior = tuple(geometry.interior_cells(trunk, extent) for extent in canvas)
    are_blank = blank_cells(trunk, canvas, blank_blocks)
    choices = []
    for wanted in (~are_blank, np.ones_like(are_blank)):
        windows = grid_cover(wanted, side, interior)
        left = np.ones_like(are_blank)
        for window in windows:
            left[_slices(window)] = False
        cost = sum(size.height * size.width for size in pixel_sizes(trunk, canvas, windows))
        if left.any():
            cost += blank.size.height * blank.size.width
        choices.append((cost, windows, left))
    _, windows, left = min(choices, key=lambda choice: choice[0])
    return Cover(tuple(windows), blank.kinds_of(left))


def pixel_sizes(trunk, canvas: Size, windows: Sequence[Window]) -> List[Size]:
    """Pixels that each window of cells reads, halo included. Its rows depend on its rows alone, and so do its columns:
    of a grid of windows, only one of each row and of each column is worked out."""
    heights: Dict[Tuple[int, int], int] = {}
    widths: Dict[Tuple[int, int], int] = {}
    for window in windows:
        rows, columns = (window.top, window.height), (window.left, window.width)
        if rows not in heights or columns not in widths:
            pixels = geometry.window_geometry(trunk, canvas, window).pixels
            heights[rows], widths[columns] = pixels.height, pixels.width
    return [Size(heights[w.top, w.height], widths[w.left, w.width]) for w in windows]


def window_side(trunk, extent: int, window: int) -> int:
    """Side of the core of a full window in cells."""
    return max(1, window // geometry.field_of(trunk, extent).stride)


def largest_windows(trunk, canvas: Size, window: int) -> List[geometry.WindowGeometry]:
    """The windows that can take most memory: a full one amid the canvas, one in its corner, and the blank canvas."""
    cells = geometry.cells_of(trunk, canvas)
    side = window_side(trunk, canvas.height, window)
    size = Size(min(side, cells.height), min(side, cells.width))
    amid = Window((cells.height - size.height) // 2, (cells.width - size.width) // 2, *size)
    blank = BlankCanvas(trunk, canvas)
    return [
        geometry.window_geometry(trunk, canvas, amid),
        geometry.window_geometry(trunk, canvas, Window(0, 0, *size)),
        geometry.window_geometry(trunk, blank.size, Window(0, 0, *blank.cells)),
    ]


def _slices(window: Window):
    return slice(window.top, window.bottom), slice(window.left, window.right)
