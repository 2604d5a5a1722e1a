"""The slide streamed through the network in tiles, stage by stage (ESCNN, 2022, Methods; architecture, staged).

Stage by stage, tiles of a map are computed from the map before; tissue alone is computed, and blank area is taken from
one small blank canvas at every stage. Going back, stages follow in reverse, each where there is gradient. Memory does
not grow with the canvas: what does not fit the budget is computed region by region, twice.
"""

from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.accumulators import Accumulators
from whole_slide_cnn.engines.interface import Engine, Prediction
from whole_slide_cnn.engines.staged.feeding import Buffers, WriteBehind
from whole_slide_cnn.engines.staged.network import Feed, StageGraph
from whole_slide_cnn.engines.staged.options import StagedOptions
from whole_slide_cnn.engines.staged.pages import Make, PagePool, Pages
from whole_slide_cnn.engines.staged.plan import (
    Region,
    SlidePlan,
    StagedPlan,
    covered,
    parts_beside,
    power_of_four,
    slices,
)
from whole_slide_cnn.engines.staged.stages import Stage
from whole_slide_cnn.engines.staged.tiles import Cover
from whole_slide_cnn.engines.streaming.feeding import ReadAhead
from whole_slide_cnn.engines.streaming.pooling import BLANK, Pooled, running_pooling
from whole_slide_cnn.errors import ConfigError, SlideError, WholeSlideError
from whole_slide_cnn.models import build
from whole_slide_cnn.models.layers import Relu
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import Canvas

_HEAD = ("output/kernel", "output/bias")


class _Batch(NamedTuple):
    """Tiles (in positions of a stage's target) that are computed alike, in one run; ``inner`` has what the forward pass
    kept of it."""

    tiles: List[Window]
    inner: Sequence[np.ndarray] = ()


class _Held:
    """What is kept of a region between its passes: per level its map, and per stage its tiles and batches."""

    def __init__(self, pixels: Optional[Pages]):
        self.maps: List[Optional[Pages]] = [pixels]
        self.covers: List[Cover] = []
        self.batches: List[List[_Batch]] = []


class _Forward(NamedTuple):
    """What a forward pass gives: the plan that it followed, pooled features, what the backward pass takes up where that
    is held, and the logits of all cells where they are wanted."""

    slide: SlidePlan
    pooled: Pooled
    held: List[_Held]
    logits: Optional[np.ndarray]


class _Part(NamedTuple):
    """What a process tells the others of its part of a slide: its cells, what it leaves to the blank canvas, what it
    has pooled, and the logits of its cells where they are wanted."""

    cells: Window
    blank: int
    pooled: Any
    logits: Optional[np.ndarray]


class StagedEngine(Engine):
    """Tiles, exact to the bit of arithmetic order.

    Args:
        options: fields of :class:`StagedOptions`.

    Attributes:
        plan: of canvases of this size.

    Raises:
        ConfigError: it would train on a GPU with blank area skipped.
        TensorTooLargeError: a tile has a tensor of 2^31 elements or more.
    """

    def __init__(
        self,
        network: Network,
        canvas_size: Size,
        compute: str = "float32",
        optimiser=None,
        training: Optional[bool] = None,
        **options: Any,
    ):
        assert isinstance(network.trunk[-1], Relu)  # so a maximum of zero passes no gradient
        trains = optimiser is not None if training is None else training
        if trains and runtime.has_gpu() and StagedOptions(**options).skip_blank:
            raise ConfigError(
                "engine staged is not shown to train exactly on a GPU where blank area is skipped (docs/gpu.md); set "
                "staged.skip_blank: false, or use engine: streaming"
            )
        unrolls = runtime.unrolls_patches(compute)
        given, size = StagedOptions(**options), Size(*canvas_size)
        beside = sum(parts_beside(network, size, given, compute, trains, unrolls).values())
        self.plan = StagedPlan(network.trunk, size, given, compute, trains, unrolls, beside)
        self.plan.check_sizes()
        self._reader, self._writer = ReadAhead(), WriteBehind()
        self._pool = PagePool()
        super().__init__(network, canvas_size, compute, optimiser, training)

    def close(self):
        self._reader.close()
        self._writer.close()
        super().close()

    def _build_graph(self):
        dtype = build.variable_type(self.compute)
        self._value_type = build.COMPUTE_TYPES[self.compute].as_numpy_dtype
        self._gradient_type = dtype.as_numpy_dtype
        self._stages = [StageGraph(self.network, stage, self._variables, self.compute) for stage in self.plan.stages]
        embedding = self._stages[-1].result
        self._class_scores = self._logits_of_cells(tf.cast(embedding, dtype))
        if self.network.pooling == "gmp":
            self._summary = build.pool_maxima(embedding, dtype)
        else:
            self._summary = (tf.reduce_sum(tf.cast(embedding, dtype), axis=[1, 2]),)
        self._pooled = tf.placeholder(dtype, [self.network.channels], "pooled")
        self._label = tf.placeholder(tf.int32, [], "label")
        self._loss, self._probabilities = self._head(self._pooled, self._label)

    def _build_training(self, accumulators: Accumulators):
        for stage in self._stages:
            stage.build_gradients(accumulators)
        self._share = tf.placeholder(build.variable_type(self.compute), [], "share")
        variables = [self._variables[name] for name in _HEAD]
        gradients = tf.gradients(self._share * self._loss, [self._pooled] + variables)
        self._pooled_gradient, self._add_head = gradients[0], accumulators.add(_HEAD, gradients[1:])

    # One slide.

    def slide(self, canvas: Canvas) -> SlidePlan:
        """What of a canvas is computed by this process, and what is left to the blank canvas."""
        if self.group is None:
            return self.plan.slide(canvas.blank_blocks())
        return self.plan.slide(canvas.blank_blocks(), self.group.size, self.group.rank)

    @property
    def _leads(self) -> bool:
        """Whether this process adds what is to be counted once: blank cells, and the head's gradient."""
        return self.group is None or self.group.rank == 0

    def _exchange(self, broken: Optional[Tuple[str, str]], value: Any) -> List[Any]:
        """What the processes that compute a slide have of it, by rank.

        Args:
            broken: the slide and the reason why this process could not read it; None where it could.

        Raises:
            SlideError: one of them could not; the same in all of them.
        """
        if self.group is None:
            return [value]
        found = self.group.allgather((broken, value))
        for theirs, _ in found:
            if theirs is not None:
                raise SlideError(*theirs)
        return [value for _, value in found]

    def predict(self, canvas: Canvas, label: Optional[int] = None) -> Prediction:
        return self._predict(self._forward(canvas).pooled, label)

    def _predict(self, pooled: Pooled, label: Optional[int]) -> Prediction:
        feed = {self._pooled: pooled.values, self._label: 0 if label is None else label}
        loss, probabilities = self._session.run([self._loss, self._probabilities], feed)
        return Prediction(float("nan") if label is None else float(loss), probabilities)

    def predict_with_map(self, canvas: Canvas, label: Optional[int] = None) -> Tuple[Prediction, np.ndarray]:
        found = self._forward(canvas, with_logits=True)
        assert found.logits is not None
        return self._predict(found.pooled, label), found.logits

    def class_map(self, canvas: Canvas) -> np.ndarray:
        """As :meth:`Engine.class_map`. Of each tile only the logits are kept; blank cells are copies of those of the
        blank canvas."""
        return self.predict_with_map(canvas)[1]

    def _blank_logits(self, canvas: Canvas, slide: SlidePlan) -> np.ndarray:
        """Logits of the blank cells (cells high, cells wide, classes); those of the tiles are yet to be set."""
        shape = self.plan.cells + (self.network.classes,)
        logits = np.empty(shape, self._gradient_type)
        if len(slide.blank.kinds):
            feed = {self._stages[-1].result: self._blank_maps(canvas)[-1][np.newaxis]}
            logits[...] = self.plan.blank.spread(self._session.run(self._class_scores, feed))
        return logits

    def _add_gradient(self, canvas: Canvas, label: int, share: float) -> Prediction:
        slide, pooled, held, _ = self._forward(canvas, hold=True)
        feed = {self._pooled: pooled.values, self._label: label, self._share: share}
        wanted = [self._loss, self._probabilities, self._pooled_gradient] + [self._add_head] * self._leads
        loss, probabilities, gradient = self._session.run(wanted, feed)[:3]
        if self.network.pooling == "gmp":
            cells: Any = self._winners(canvas, slide, pooled, gradient)
        else:
            each = gradient / (self.plan.cells.height * self.plan.cells.width)
            cells = _Uniform(each)
            if len(slide.blank.kinds) and self._leads:
                kinds = self._blank_gradients_of(canvas)[-1].reshape(-1, self.network.channels)
                kinds[slide.blank.kinds] += slide.blank.counts[:, np.newaxis] * each
        active = None
        if isinstance(cells, _Maxima) and slide.regions:
            found = self.plan.active(cells.rows, cells.columns)
            active = [blocks & coloured for blocks, coloured in zip(found, slide.coloured)]
        broken = None
        try:
            for region in slide.regions:
                self._backward(canvas, slide, region, cells, active, held.pop(0) if held else None)
        except SlideError as error:
            if self.group is None:
                raise
            broken = error.slide, error.reason
        self._exchange(broken, None)
        return Prediction(float(loss), probabilities)

    # Forward.

    def _forward(self, canvas: Canvas, hold: bool = False, with_logits: bool = False) -> "_Forward":
        """The forward pass, in which all processes take part that compute the slide.

        Args:
            hold: whether the backward pass follows, so that maps are held where there is room.
            with_logits: whether the logits of all cells are wanted.
        """
        pooling, logits = running_pooling(self.network.pooling, self.plan.cells), None
        try:
            slide = self.slide(canvas)
            hold = hold and slide.stores
            if with_logits:
                logits = self._blank_logits(canvas, slide)
            if not all(blocks.all() for blocks in slide.coloured):
                self._blank_maps(canvas)  # here, and not in a thread that reads
            held = [
                self._forward_region(canvas, slide, region, None, hold, pooling, logits) for region in slide.regions
            ]
        except SlideError as error:
            if self.group is None:
                raise
            self._exchange((error.slide, error.reason), None)  # which raises it in all processes
            raise
        if len(slide.blank.kinds) and self._leads:
            cells = self._blank_maps(canvas)[-1].reshape(-1, self.network.channels)
            pooling.add_blank(slide.blank, cells.astype(self._gradient_type))  # NumPy does not order bfloat16
        if self.group is not None:
            pooling = self._join(slide, pooling, logits)
        return _Forward(slide, pooling.result(), held if hold else [], logits)

    def _join(self, slide: SlidePlan, pooling, logits: Optional[np.ndarray]):
        """Pooled over the cells of all processes, the same in each of them, which also get each other's logits."""
        mine = None if logits is None else logits[slices(slide.cells)]
        found = self._exchange(None, _Part(slide.cells, slide.blank.digest, pooling.part(), mine))
        covered = sum(part.cells.height * part.cells.width for part in found)
        if len({part.blank for part in found}) > 1 or covered != self.plan.cells.height * self.plan.cells.width:
            raise WholeSlideError(
                "the processes that share a slide plan it differently; start all of them with one configuration, and "
                "on machines of one kind"
            )
        joined = running_pooling(self.network.pooling, self.plan.cells)
        for part in found:
            joined.add_part(part.pooled)
            if logits is not None:
                logits[slices(part.cells)] = part.logits
        return joined

    def _forward_region(
        self,
        canvas: Canvas,
        slide: SlidePlan,
        region: Region,
        wanted: Optional[Sequence[np.ndarray]],
        hold: bool,
        pooling=None,
        logits: Optional[np.ndarray] = None,
    ) -> _Held:
        """The maps of a region.

        Args:
            wanted: per level the blocks that are needed (bool, the level's grid); None for all of the region's.
            hold: whether maps are kept; else each is given up once the next is there.
            pooling: takes in the cells; None computes no more than the backward pass reads.
        """
        covers = region.covers
        if wanted is not None:
            covers = tuple(
                self.plan.cover(s, wanted[s.index + 1], region.blocks[s.index + 1]) for s in self.plan.stages
            )
        self._pool.keep(self.plan.store_bytes - sum(self.plan.kept_bytes(region, region.kept if hold else frozenset())))
        held = _Held(self._pages(canvas, 0, covers[0]) if hold else None)
        for stage, graph, cover in zip(self.plan.stages, self._stages, covers):
            is_last = stage is self.plan.stages[-1]
            tiles = self.plan.batches(stage, cover.tiles)
            keeps, batches = hold and stage.index in region.kept, []
            result_map = self._pages(canvas, stage.index + 1, cover) if hold or not is_last else None
            if is_last and pooling is None:
                tiles, batches, result_map = [], [_Batch(batch) for batch in tiles], None
            for batch, feed in self._feeds(canvas, stage, held, tiles):
                if is_last:
                    result, inner = self._forward_last(graph, feed, hold, keeps, batch, pooling, logits)
                else:
                    result, inner = graph.forward(self._session, feed, keeps)
                if result_map is not None:
                    self._writer.submit(_for_each, result_map.write, batch, result)
                batches.append(_Batch(batch, inner))
            self._writer.wait()
            held.maps.append(result_map)
            held.covers.append(cover)
            held.batches.append(batches)
            source = held.maps[stage.index]
            if not hold and source is not None:
                source.close()
                held.maps[stage.index] = None
        return held

    def _forward_last(self, graph: StageGraph, feed, hold: bool, keeps: bool, batch, pooling, logits):
        """The last stage, pooled."""
        wanted: List[Any] = [self._summary, self._class_scores if logits is not None else self._summary[0]]
        wanted += [[graph.result] if hold else [], graph.inner if keeps else []]
        summary, scores, result, inner = self._session.run(wanted, feed)
        if logits is not None:
            for tile, values in zip(batch, scores.reshape((len(batch),) + batch[0].size + (-1,))):
                logits[slices(tile)] = values
        for index, tile in enumerate(batch):
            pooling.add_window(0, tile, *(part[index] for part in summary))
        return (result[0] if hold else None), inner

    # Backward.

    def _winners(self, canvas: Canvas, slide: SlidePlan, pooled: Pooled, gradient: np.ndarray) -> "_Maxima":
        """The gradient of the embedding map under maximum pooling, in the cells of this process; that of blank
        cells goes to the blank canvas."""
        active = (gradient != 0) & (pooled.values > 0)
        is_blank = pooled.owner == BLANK
        rows, columns = np.divmod(pooled.position, self.plan.cells.width)
        in_tile = ~is_blank & ~slide.coloured[-1][rows, columns]  # blank, although a tile computed it
        small_rows, small_columns = self.plan.blank_axes[-1]
        kinds = small_rows[rows] * self.plan.blank.cells.width + small_columns[columns]
        channels = np.flatnonzero(active & (is_blank | in_tile))
        if len(channels) and self._leads:
            gradients = self._blank_gradients_of(canvas)[-1].reshape(-1, self.network.channels)
            gradients[kinds[channels], channels] += gradient[channels]
        channels = np.flatnonzero(active & ~is_blank & ~in_tile)
        return _Maxima(rows[channels], columns[channels], channels, gradient).within(slide.cells)

    def _backward(
        self,
        canvas: Canvas,
        slide: SlidePlan,
        region: Region,
        cells: Any,
        active: Optional[Sequence[np.ndarray]],
        held: Optional[_Held],
    ) -> None:
        """Sum the gradients of a region.

        Args:
            cells: the gradient of the embedding map.
            active: per level the blocks with gradient; None for all.
            held: what its forward pass held; None computes it again, as far as it is needed.
        """
        if active is not None:
            cells = cells.within(region.cells)
            if not len(cells.rows):
                return
        if held is None:
            wanted = active if self.plan.options.sparse_backward else None
            held = self._forward_region(canvas, slide, region, wanted, hold=True)
        gradients: Optional[Pages] = None
        for stage, graph in zip(reversed(self.plan.stages), reversed(self._stages)):
            before = Pages(stage.source, self._gradient_type, pool=self._pool) if stage.index else None
            batches = self._batches_back(stage, region, held, active)
            given = _GradientFeed(graph, cells if gradients is None else gradients, held.maps[stage.index + 1])
            for batch, feed in self._feeds(canvas, stage, held, batches, given):
                found = graph.backward(self._session, feed)
                if before is not None and found is not None:
                    windows = [stage.geometry(tile).pixels for tile in batch.tiles]
                    self._writer.submit(_for_each, before.add, windows, found)
            self._writer.wait()
            if before is not None:
                self._move_blank_gradient(canvas, stage.index, before, slide.coloured[stage.index])
            for used in (gradients, held.maps[stage.index + 1]):
                if used is not None:
                    used.close()
            gradients = before
            held.maps[stage.index + 1] = None
            held.batches[stage.index] = []

    def _batches_back(
        self, stage: Stage, region: Region, held: _Held, active: Optional[Sequence[np.ndarray]]
    ) -> List[_Batch]:
        """What is computed of a stage on the way back: batches of the forward pass, or others where those are cheaper.

        Args:
            active: per level the blocks with gradient; None for all.
        """
        if active is None:
            return held.batches[stage.index]
        blocks, kept = active[stage.index + 1], stage.index in region.kept
        inside = region.blocks[stage.index + 1]
        cover, is_forward = self.plan.cover_backward(stage, held.covers[stage.index], blocks, inside, kept)
        if not is_forward:
            return [_Batch(batch) for batch in self.plan.batches(stage, cover.tiles)]
        chosen = {stage.target.positions(tile) for tile in cover.tiles}
        found = []
        for batch in held.batches[stage.index]:
            indices = [index for index, tile in enumerate(batch.tiles) if tile in chosen]
            while indices:
                number = power_of_four(len(indices))
                part, indices = indices[:number], indices[number:]
                whole = len(part) == len(batch.tiles)
                inner = batch.inner if whole else [values[part] for values in batch.inner]
                found.append(_Batch([batch.tiles[index] for index in part], inner))
        return found

    # The blank canvas: forward once for given weights, backward once for a batch.

    def _weights_changed(self):
        self._known_blank_maps: Dict[bytes, List[np.ndarray]] = {}
        self._known_blank_gradients: Dict[bytes, List[np.ndarray]] = {}

    def _blank_maps(self, canvas: Canvas) -> List[np.ndarray]:
        """Per level the blank canvas's map (rows, columns, channels)."""
        key = canvas.blank_colour.tobytes()
        if key not in self._known_blank_maps:
            maps = [np.array(np.broadcast_to(canvas.blank_colour, self.plan.blank.size + (3,)))]
            for stage, graph in zip(self.plan.small_stages, self._stages):
                whole = stage.geometry(Window(0, 0, *stage.target.size))
                maps.append(graph.forward(self._session, graph.feed(whole, maps[-1][np.newaxis]), False)[0][0])
            self._known_blank_maps[key] = maps
        return self._known_blank_maps[key]

    def _blank_gradients_of(self, canvas: Canvas) -> List[np.ndarray]:
        """Per level the sum of the gradients of blank positions, on the blank canvas's map."""
        key = canvas.blank_colour.tobytes()
        if key not in self._known_blank_gradients:
            maps = self._blank_maps(canvas)
            self._known_blank_gradients[key] = [np.zeros(values.shape, self._gradient_type) for values in maps]
        return self._known_blank_gradients[key]

    def _move_blank_gradient(self, canvas: Canvas, level: int, gradients: Pages, coloured: np.ndarray) -> None:
        """Give the gradient of blank blocks of a map to the blank canvas."""
        for rows, columns, values in gradients.move_out(~coloured):
            small_rows, small_columns = self.plan.blank_axes[level]
            target = self._blank_gradients_of(canvas)[level]
            np.add.at(target, (small_rows[rows], small_columns[columns]), values)

    def _accumulate(self, canvases, labels):
        self._known_blank_gradients = {}  # of a batch that a broken slide cut short
        return super()._accumulate(canvases, labels)

    def _finish_batch(self):
        for key, gradients in self._known_blank_gradients.items():
            maps = self._known_blank_maps[key]
            gradient = gradients[-1][np.newaxis]
            for stage, graph in zip(reversed(self.plan.small_stages), reversed(self._stages)):
                whole = stage.geometry(Window(0, 0, *stage.target.size))
                feed = graph.feed(whole, maps[stage.index][np.newaxis])
                result = maps[stage.index + 1][np.newaxis]
                found = graph.backward(self._session, graph.feed_back(feed, gradient, result))
                if found is not None:
                    gradient = found + gradients[stage.index]
        self._known_blank_gradients = {}

    # Feeding tiles.

    def _pages(self, canvas: Canvas, level: int, cover: Cover) -> Pages:
        """An empty map of a level, in which some tiles will be written, and which is blank elsewhere."""
        rows, columns = self.plan.blank_axes[level]

        def blank(window: Window) -> np.ndarray:
            if level == 0:
                return np.broadcast_to(canvas.blank_colour, window.size + (3,))
            row, column = rows[window.top : window.bottom], columns[window.left : window.right]
            found: np.ndarray = self._blank_maps(canvas)[level][row[:, np.newaxis], column]
            return found

        written = covered(self.plan.levels[level].grid, cover.tiles)
        return Pages(self.plan.levels[level], self._value_type if level else np.uint8, blank, written, self._pool)

    def _feeds(
        self, canvas: Canvas, stage: Stage, held: _Held, batches: Iterable, gradient: Optional["_GradientFeed"] = None
    ) -> Iterator:
        """Each batch (a list of tiles, or a :class:`_Batch`) with the feed for it, which is read one batch ahead."""
        graph, source, buffers = self._stages[stage.index], held.maps[stage.index], Buffers()
        is_read = source is None or (stage.index == 0 and not held.batches)

        def load(batch):
            buffers.turn()
            tiles = batch.tiles if isinstance(batch, _Batch) else batch
            geometries = [stage.geometry(tile) for tile in tiles]
            windows, make = [one.pixels for one in geometries], buffers.maker("given")
            if source is None or is_read:
                given = make((len(windows),) + windows[0].size + (3,), np.dtype(np.uint8))
                for values, window in zip(given, windows):
                    values[...] = canvas.read(window)
                    if source is not None:
                        source.write(window, values)
            else:
                given = source.read(windows, make)
            feed = graph.feed(geometries[0], given)
            return batch, feed if gradient is None else gradient.add(feed, batch, buffers)

        yield from self._reader(batches, load)


class _GradientFeed:
    """What is fed to a stage on the way back beside what it was given.

    Args:
        graph: the stage.
        gradient: of its result: pages, or cells.
        result: its result, where it is known.
    """

    def __init__(self, graph: StageGraph, gradient: Any, result: Optional[Pages]):
        self._graph, self._gradient, self._result = graph, gradient, result

    def add(self, feed: Feed, batch: _Batch, buffers: Buffers) -> Feed:
        """A feed with it."""
        gradient = self._gradient.read(batch.tiles, buffers.maker("gradient"))
        result = None
        if self._result is not None and self._graph.takes_result(batch.inner):
            result = self._result.read(batch.tiles, buffers.maker("result"))
        return self._graph.feed_back(feed, gradient, result, batch.inner)


def _for_each(use: Callable[[Window, np.ndarray], None], windows: Sequence[Window], values: np.ndarray) -> None:
    """Use each of some windows with its values."""
    for window, part in zip(windows, values):
        use(window, part)


class _Maxima:
    """The gradient of the embedding map under maximum pooling: one cell for each channel that has some.

    Args:
        gradient: (all channels,).
    """

    def __init__(self, rows: np.ndarray, columns: np.ndarray, channels: np.ndarray, gradient: np.ndarray):
        self.rows, self.columns, self.channels, self.gradient = rows, columns, channels, gradient

    def within(self, cells: Window) -> "_Maxima":
        """The part in a rectangle of cells."""
        inside = (self.rows >= cells.top) & (self.rows < cells.bottom)
        inside &= (self.columns >= cells.left) & (self.columns < cells.right)
        return _Maxima(self.rows[inside], self.columns[inside], self.channels[inside], self.gradient)

    def read(self, tiles: Sequence[Window], make: Make) -> np.ndarray:
        """Tiles of one size of it: (n, rows, columns, all channels), in an array of ``make``."""
        values = make((len(tiles),) + tiles[0].size + self.gradient.shape, self.gradient.dtype)
        values[...] = 0
        for target, tile in zip(values, tiles):
            part = self.within(tile)
            target[part.rows - tile.top, part.columns - tile.left, part.channels] = self.gradient[part.channels]
        return values


class _Uniform:
    """The gradient of the embedding map under average pooling: ``each`` (channels,) in every cell."""

    def __init__(self, each: np.ndarray):
        self.each = each

    def read(self, tiles: Sequence[Window], make: Make) -> np.ndarray:
        """Tiles of one size of it: (n, rows, columns, all channels), in an array of ``make``."""
        values = make((len(tiles),) + tiles[0].size + self.each.shape, self.each.dtype)
        values[...] = self.each
        return values
