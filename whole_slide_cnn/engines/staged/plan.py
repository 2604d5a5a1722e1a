"""What ``staged`` computes of a canvas, before anything is computed: regions, tiles, blank cells, bytes and FLOPs.

The engine follows this plan, and what is said of its memory and time is read from it, so that a better plan needs no
second change. It is arithmetic on shapes: TensorFlow is not imported.
"""

from typing import Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from whole_slide_cnn.engines import runtime
from whole_slide_cnn.engines.memory import RUNTIME_BYTES, reading_bytes, weight_bytes
from whole_slide_cnn.engines.replay import HEAD_BYTES, VALUE_BYTES, peak_elements
from whole_slide_cnn.engines.staged.dealing import CostAlong, between, deal
from whole_slide_cnn.engines.staged.options import MEMORY_GB, StagedOptions
from whole_slide_cnn.engines.staged.pages import PAGE_BLOCKS, page_count, page_side
from whole_slide_cnn.engines.staged.stages import Stage, stages_of
from whole_slide_cnn.engines.staged.tiles import Cover, cheapest_cover, counted, sides
from whole_slide_cnn.engines.streaming.blank import BlankCanvas, BlankKinds
from whole_slide_cnn.models import geometry, shapes
from whole_slide_cnn.models.layers import Trunk
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import BLANK_BLOCK

REMEDY = "use a smaller staged.tile or staged.memory_gb"

# What a tile, and a run of a session, cost beside their arithmetic, in FLOPs: about 0.03 and 1 ms; and what a run costs
# for every weight, which it folds (and adds a gradient to, going back).
_TILE_FLOPS, _RUN_FLOPS = 5e6, 1.5e8
_WEIGHT_FLOPS, _WEIGHT_FLOPS_BACK = 64, 400
# Tensors of one run: a share of the budget, within bounds. Larger runs save nothing more.
_TILE_SHARE, _LEAST_TILE_BYTES, _MOST_TILE_BYTES = 0.15, 4.8e7, 2.56e8
# Tiles that are computed alike in one run, at most.
_MOST_IN_BATCH = 64
# The least that is left for maps between stages, whatever the budget.
_LEAST_STORE_BYTES = 1e8
_PLANS_KEPT = 64
# oneDNN keeps what it compiles for a shape, about 45 MB for the tiles of a stage, and at most a thousand kernels
# (docs/performance.md).
_KERNEL_BYTES, _MOST_KERNEL_BYTES = 4.5e7, 9e8
_DISC = 48  # blocks along a side of what sizes of tiles are chosen for: a piece of tissue of 1,536 px


class Region(NamedTuple):
    """A rectangle of cells that is computed on its own.

    Attributes:
        cells: the rectangle.
        blocks: per level the rectangle of blocks that its cells need.
        covers: per stage the tiles (in blocks of its target) that give them.
        stored: per level the bytes of its map.
        kept: stages whose inner activations are kept as well, so that nothing of them is computed again.
    """

    cells: Window
    blocks: Tuple[Window, ...]
    covers: Tuple[Cover, ...]
    stored: Tuple[int, ...]
    kept: FrozenSet[int]


class SlidePlan(NamedTuple):
    """What a canvas needs computed, by one of the processes that share it.

    Attributes:
        coloured: per level the blocks that may differ from a blank canvas's (bool, the level's grid).
        cells: the rectangle that falls to this process; the whole embedding map where there is but one.
        regions: they hold every cell in it that is not blank.
        blank: the cells that are in no tile of any process.
        stores: whether maps are kept from the forward pass to the backward pass.
    """

    coloured: Tuple[np.ndarray, ...]
    cells: Window
    regions: Tuple[Region, ...]
    blank: BlankKinds
    stores: bool

    @property
    def tiles(self) -> int:
        """Runs of a forward pass."""
        return sum(len(cover.tiles) for region in self.regions for cover in region.covers)


class Flops(NamedTuple):
    """Multiplications and additions of convolutions: forward, forward again on the way back, and of gradients."""

    forward: int
    again: int
    backward: int


class StagedPlan:
    """How canvases of one size are streamed.

    Args:
        training: whether gradients follow.
        compute: type of the maps.
        unrolls: see :func:`whole_slide_cnn.engines.replay.peak_elements`.
        beside: bytes of ``staged.memory_gb`` that are taken by other things than maps: weights, runtime.

    Attributes:
        stages: of the trunk.
        levels: the maps before, between and after them.
        cells: size of the canvas's embedding map.
        blank: the small canvas that stands for blank cells.
        small_stages: the stages on that canvas.
        blank_axes: per level, for each row and each column of its map that of the small canvas's map.
        tile_bytes: the most that the tensors of one tile may take.
        store_bytes: the most that maps between stages may take.
    """

    def __init__(
        self,
        trunk: Trunk,
        canvas: Size,
        options: StagedOptions,
        compute: str = "float32",
        training: bool = True,
        unrolls: bool = False,
        beside: int = 0,
    ):
        self.trunk, self.canvas, self.options = trunk, Size(*canvas), options
        self.compute, self.training, self.unrolls = compute, training, unrolls
        self.cells = geometry.cells_of(trunk, self.canvas)
        self.stages = stages_of(trunk, self.canvas, options.checkpoints)
        self.levels = (self.stages[0].source,) + tuple(stage.target for stage in self.stages)
        self.blank = BlankCanvas(trunk, self.canvas)
        self.small_stages = stages_of(trunk, self.blank.size, options.checkpoints)
        self.blank_axes = [self.blank.axes(level.prefix) for level in self.levels]
        assert self.levels[-1].side == 1, "a block is a cell"
        maps = max(0.0, (options.memory_gb or MEMORY_GB) * 1e9 - beside)
        self.tile_bytes = int(min(max(_TILE_SHARE * maps, _LEAST_TILE_BYTES), _MOST_TILE_BYTES))
        self.store_bytes = int(max(maps - self.tile_bytes, _LEAST_STORE_BYTES))
        self._work: Dict[Tuple, Flops] = {}
        self._covers: Dict[Tuple, Cover] = {}
        self._batches: Dict[Tuple[int, Size], int] = {}
        self._inner: Dict[Tuple[int, Size], int] = {}
        self._least_costs: Optional[List[float]] = None
        self._sizes = [self._tile_sizes(stage) for stage in self.stages]

    # A slide.

    def slide(self, blank_blocks: np.ndarray, parts: int = 1, part: int = 0) -> SlidePlan:
        """What a canvas needs.

        Args:
            blank_blocks: bool, one per 32 x 32 px of the canvas: whether it holds nothing but the blank colour.
            parts: processes that share the canvas, each of which makes a plan.
            part: the number of the one that this plan is for.
        """
        coloured = self._coloured(blank_blocks)
        dealt = self._deal(coloured, parts)
        regions: List[Region] = []
        left = np.ones(self.cells, bool)
        for number, share in enumerate(dealt):
            for cells in self._divide(coloured, share):
                if number == part:
                    regions.append(self._region(coloured, cells))
                    last = regions[-1].covers[-1]
                else:  # of the others' only what all must agree on: which cells are left to the blank canvas
                    last = self.cover(self.stages[-1], coloured[-1], cells)
                for tile in last.tiles:
                    left[slices(tile)] = False
        return SlidePlan(coloured, dealt[part], tuple(regions), self.blank.kinds_of(left), len(regions) <= 1)

    def _coloured(self, blank_blocks: np.ndarray) -> Tuple[np.ndarray, ...]:
        if not self.options.skip_blank:
            blank_blocks = np.zeros_like(blank_blocks)
        return tuple(level.coloured(blank_blocks) for level in self.levels)

    def _deal(self, coloured: Sequence[np.ndarray], parts: int) -> List[Window]:
        """The rectangle of cells that each of some processes computes."""
        return deal(Window(0, 0, *self.cells), parts, self._costs_along(coloured))

    def slide_of_share(self, tissue: float) -> SlidePlan:
        """The plan of a canvas of whose area a share is not blank, taken for a square in its middle."""
        blocks = np.ones([-(-side // BLANK_BLOCK) for side in self.canvas], bool)
        height, width = (max(1, int(round(side * tissue**0.5 / BLANK_BLOCK))) for side in self.canvas)
        top, left = (blocks.shape[0] - height) // 2, (blocks.shape[1] - width) // 2
        blocks[max(top, 0) : top + height, max(left, 0) : left + width] = False
        return self.slide(blocks)

    def cover(self, stage: Stage, wanted: np.ndarray, inside: Window) -> Cover:
        """Tiles of a stage's target that hold some blocks of it.

        Args:
            wanted: bool, the target's grid.
            inside: the rectangle of blocks within which they count, and which no tile leaves.
        """
        wanted = wanted[slices(inside)]
        key = (stage.index, wanted.shape, np.packbits(wanted).tobytes())
        if key not in self._covers:
            if len(self._covers) >= _PLANS_KEPT * len(self.stages):
                self._covers.clear()
            sizes = self._sizes[stage.index]
            self._covers[key] = cheapest_cover(
                wanted, sizes, lambda counts: self._cost(stage, counts), self.options.tile is None
            )
        found = self._covers[key]
        if (inside.top, inside.left) == (0, 0):
            return found
        tiles = (tile._replace(top=tile.top + inside.top, left=tile.left + inside.left) for tile in found.tiles)
        return Cover(tuple(tiles), found.cost)

    def cover_backward(
        self, stage: Stage, forward: Cover, active: np.ndarray, inside: Window, kept: bool
    ) -> Tuple[Cover, bool]:
        """Tiles for the gradients of some blocks of a stage's target: those of the forward pass that hold one, or
        others where that is cheaper; and whether it is those of the forward pass.

        Args:
            forward: tiles of the forward pass.
            active: bool, the target's grid: blocks with gradient.
            inside: the rectangle of blocks within which they count.
            kept: whether the forward pass kept the inner activations.
        """
        dense = [tile for tile in forward.tiles if active[slices(tile)].any()]
        cost = self._cost_backward(stage, counted(dense), kept)
        if self.options.sparse_backward:
            tiles = self.cover(stage, active, inside).tiles
            other = self._cost_backward(stage, counted(tiles))
            if other < cost:
                return Cover(tiles, other), False
        return Cover(tuple(dense), cost), True

    def batches(self, stage: Stage, tiles: Sequence[Window]) -> List[List[Window]]:
        """Tiles (of blocks) by the runs that compute them, as windows of positions: those of a run are computed
        alike."""
        alike: Dict[Tuple, List[Window]] = {}
        for tile in tiles:
            window = stage.target.positions(tile)
            alike.setdefault((tile.size, stage.kind(window)), []).append(window)
        found = []
        for (size, _), windows in alike.items():
            number = self.batch(stage, size)
            while windows:
                number = min(number, power_of_four(len(windows)))
                found.append(windows[:number])
                windows = windows[number:]
        return found

    def batch(self, stage: Stage, size: Size) -> int:
        """Tiles of a size that are computed in one run: a power of four, so that there are few shapes."""
        if (stage.index, size) not in self._batches:
            fit = max(1, self.tile_bytes // max(1, self._tile_bytes(stage, stage.amid(size))))
            most = 1 if self.options.tile is not None else min(fit, _MOST_IN_BATCH)
            self._batches[stage.index, size] = power_of_four(most)
        return self._batches[stage.index, size]

    def active(self, rows: np.ndarray, columns: np.ndarray) -> List[np.ndarray]:
        """Per level the blocks whose gradient may differ from zero.

        Args:
            rows, columns: of the cells with gradient.
        """
        found = []
        layers: Trunk = ()
        for index in range(len(self.levels) - 1, -1, -1):
            level = self.levels[index]
            bounds = []
            for axis, cells in enumerate((rows, columns)):
                field = geometry.field_of(layers, level.size[axis])
                start = np.clip(cells * field.stride - field.offset, 0, level.size[axis])
                stop = np.clip(cells * field.stride - field.offset + field.size, 0, level.size[axis])
                bounds.append((start // level.side, -(-stop // level.side)))
            found.append(_union(level.grid, *bounds))
            if index:
                layers = self.stages[index - 1].layers + layers
        return found[::-1]

    def _needed(self, cells: Window) -> Tuple[Window, ...]:
        """Per level the rectangle of blocks that some cells need."""
        found = []
        for index in range(len(self.stages), -1, -1):
            found.append(_blocks_of(cells, self.levels[index].side))
            if index:
                rows, columns = (
                    self.stages[index - 1].axis(axis, start, stop).source
                    for axis, start, stop in ((0, cells.top, cells.bottom), (1, cells.left, cells.right))
                )
                cells = Window.from_bounds(rows.start, columns.start, rows.stop, columns.stop)
        return tuple(found[::-1])

    def _costs_along(self, coloured: Sequence[np.ndarray]) -> CostAlong:
        """What cells cost: of every stage the coloured blocks that they need, each at what a block costs at least.
        (What tiles hold besides is known only once they are chosen.)"""

        def along(cells: Window, axis: int) -> Callable[[int, int], float]:
            needed = self._needed(cells)
            counts = [np.count_nonzero(mask[slices(inside)], axis=1 - axis) for mask, inside in zip(coloured, needed)]
            totals = [np.concatenate([[0], np.cumsum(count)]) for count in counts]

            def cost(start: int, stop: int) -> float:
                found = []
                for total, inside, blocks in zip(totals, needed, self._needed(between(cells, axis, start, stop))):
                    first = blocks[axis] - inside[axis]
                    found.append(int(total[first + blocks.size[axis]] - total[first]))
                if not found[-1]:
                    return 0.0
                return float(sum(number * each for number, each in zip(found[1:], self._block_costs)))

            return cost

        return along

    @property
    def _block_costs(self) -> List[float]:
        """Per stage what a block costs, in tiles of the size for which that is least."""
        if self._least_costs is None:
            self._least_costs = []
            for stage in self.stages:
                batches = [(size, self.batch(stage, size)) for size in self._sizes[stage.index]]
                self._least_costs.append(
                    min(self._cost(stage, {size: n}) / (n * size.height * size.width) for size, n in batches)
                )
        return self._least_costs

    def _divide(self, coloured: Sequence[np.ndarray], cells: Window) -> List[Window]:
        """Rectangles of cells whose maps fit the budget one by one; none where all is blank."""
        inside = coloured[-1][slices(cells)]
        if not inside.any():
            return []
        if self.peak_stored(self._stored(coloured, self._needed(cells))) <= self.store_bytes or inside.size == 1:
            return [cells]
        # the longer side is cut where least is cut through, in its middle half
        axis = 0 if cells.height >= cells.width else 1
        counts = inside.sum(axis=1 - axis)
        length = len(counts)
        middle = np.arange(max(1, length // 4), max(2, length - length // 4))
        through = counts[middle] + counts[middle - 1] + 1e-3 * np.abs(middle - length / 2)
        cut = int(middle[np.argmin(through)])
        if axis == 0:
            parts = (cells._replace(height=cut), cells._replace(top=cells.top + cut, height=cells.height - cut))
        else:
            parts = (cells._replace(width=cut), cells._replace(left=cells.left + cut, width=cells.width - cut))
        return [found for part in parts for found in self._divide(coloured, part)]

    def _region(self, coloured: Sequence[np.ndarray], cells: Window) -> Region:
        blocks = self._needed(cells)
        covers = tuple(self.cover(stage, coloured[stage.index + 1], blocks[stage.index + 1]) for stage in self.stages)
        written = [covers[0]] + list(covers)  # a block of the pixels is one of the map after them
        masks = [covered(level.grid, cover.tiles) for level, cover in zip(self.levels, written)]
        return self._keep(Region(cells, blocks, covers, self._stored(masks, blocks), frozenset()))

    def _keep(self, region: Region) -> Region:
        """Keep what is inside stages too, where the budget has room for it: of the last stages first, whose activations
        take the fewest bytes for the work they save."""
        kept: FrozenSet[int] = frozenset()
        if self.training and self.options.keep_activations:
            for stage in reversed(self.stages):
                more = kept | {stage.index}
                if self.peak_stored(region.stored, self.kept_bytes(region, more)) > self.store_bytes:
                    break
                kept = more
        return region._replace(kept=kept)

    # What it takes.

    def tile_work(self, stage: Stage, size: Size) -> Flops:
        """FLOPs of a tile of some blocks amid the canvas."""
        key = (stage.index, size)
        if key not in self._work:
            self._work[key] = self._work_of(stage, stage.amid(size))
        return self._work[key]

    def work(self, slide: SlidePlan) -> Flops:
        """FLOPs of a slide, with gradient in all of its cells."""
        total = Flops(0, 0, 0)
        for region in slide.regions:
            for stage, cover in zip(self.stages, region.covers):
                for tile in cover.tiles:
                    flops = self.tile_work(stage, tile.size)
                    again = 0 if stage.index in region.kept else flops.again
                    if not slide.stores:
                        again += flops.forward
                    total = Flops(total.forward + flops.forward, total.again + again, total.backward + flops.backward)
        return total

    def costs(self, blank_blocks: np.ndarray, parts: int = 1) -> List[float]:
        """What each of some processes computes of a canvas that they share, with gradient in all of its cells, in
        FLOPs; but for the blank canvas (:meth:`blank_cost`).

        Args:
            blank_blocks, parts: as of :meth:`slide`.
        """
        coloured = self._coloured(blank_blocks)
        dealt = self._deal(coloured, parts)
        regions = [[self._region(coloured, cells) for cells in self._divide(coloured, share)] for share in dealt]
        return [self._cost_of_regions(part) for part in regions]

    def _cost_of_regions(self, regions: Sequence[Region]) -> float:
        total, again = 0.0, self.training and len(regions) > 1
        for region in regions:
            for stage, cover in zip(self.stages, region.covers):
                counts = counted(cover.tiles)
                total += self._cost_forward(stage, counts) * (2 if again else 1)
                if self.training:
                    total += self._cost_backward(stage, counts, stage.index in region.kept)
        return total

    def blank_cost(self) -> float:
        """What the blank canvas takes in every process, in FLOPs."""
        total = 0.0
        for stage in self.small_stages:
            flops = self._work_of(stage, Window(0, 0, *stage.target.size))
            total += flops.forward + (flops.again + flops.backward if self.training else 0)
        return total

    def peak_stored(self, stored: Sequence[int], kept: Sequence[int] = ()) -> int:
        """The most bytes of maps between stages that are held at once.

        Args:
            stored: per level, of its map.
            kept: per stage, of its inner activations; nothing where none is kept.
        """
        if not self.training:
            return max(sum(pair) for pair in zip(stored, stored[1:]))
        gradients = [HEAD_BYTES[self.compute] / VALUE_BYTES[self.compute] * size for size in stored]
        gradients[0] = gradients[-1] = 0  # the pixels have none; the last map's are made tile by tile
        kept = kept or [0] * len(self.stages)
        return int(
            max(
                sum(stored[: index + 2]) + sum(kept[: index + 1]) + gradients[index] + gradients[index + 1]
                for index in range(len(self.stages))
            )
        )

    def kept_bytes(self, region: Region, kept: FrozenSet[int]) -> List[int]:
        """Per stage the bytes of the inner activations of its tiles."""
        return [
            sum(self._inner_bytes(stage, tile.size) for tile in cover.tiles) if stage.index in kept else 0
            for stage, cover in zip(self.stages, region.covers)
        ]

    def largest(self, stage: Stage) -> Window:
        """The largest tile of a stage, in positions of its target."""
        return stage.amid(max(self._sizes[stage.index], key=lambda size: size.height * size.width))

    def peak_bytes(self) -> int:
        """The most bytes that the tensors of a run take: of tiles that are computed together, or of a stage of the
        blank canvas."""
        tiles = [
            self.batch(stage, size) * self._tile_bytes(stage, stage.amid(size))
            for stage in self.stages
            for size in self._sizes[stage.index]
        ]
        blank = [self._tile_bytes(stage, Window(0, 0, *stage.target.size)) for stage in self.small_stages]
        return max(tiles + blank)

    def check_sizes(self) -> None:
        """Refuse tiles with tensors that no operation may touch.

        Raises:
            TensorTooLargeError: names the tensor, its shape and the remedy.
        """
        for stage in self.stages:
            shapes.check_tensor_sizes(stage.shapes(self.largest(stage)), REMEDY)

    def _cost(self, stage: Stage, counts: Mapping[Size, int]) -> float:
        """Of tiles of some sizes, forward and back, in FLOPs."""
        return self._cost_forward(stage, counts) + (self._cost_backward(stage, counts) if self.training else 0)

    def _cost_forward(self, stage: Stage, counts: Mapping[Size, int]) -> float:
        cost = self._runs(stage, counts) * (_RUN_FLOPS + _WEIGHT_FLOPS * stage.weights)
        cost += sum(number * (self.tile_work(stage, size).forward + _TILE_FLOPS) for size, number in counts.items())
        return cost

    def _cost_backward(self, stage: Stage, counts: Mapping[Size, int], kept: bool = False) -> float:
        cost = self._runs(stage, counts) * (_RUN_FLOPS + _WEIGHT_FLOPS_BACK * stage.weights)
        for size, number in counts.items():
            flops = self.tile_work(stage, size)
            cost += number * (flops.backward + (0 if kept else flops.again) + 2 * _TILE_FLOPS)
        return cost

    def _runs(self, stage: Stage, counts: Mapping[Size, int]) -> int:
        """Runs of a session for tiles of some sizes, taken for amid the canvas."""
        runs = 0
        for size, number in counts.items():
            full, left = divmod(number, self.batch(stage, size))
            runs += full
            while left:
                left -= power_of_four(left)
                runs += 1
        return runs

    def _work_of(self, stage: Stage, window: Window) -> Flops:
        steps = stage.shapes(window)
        forward, backward = shapes.forward_flops(steps), shapes.backward_flops(steps, stage.index == 0)
        return Flops(forward, forward - _last_flops(steps), backward)

    def _tile_sizes(self, stage: Stage) -> List[Size]:
        """Sizes of tiles to choose from, in blocks."""
        grid = stage.target.grid
        if self.options.tile is not None:
            side = max(1, self.options.tile // BLANK_BLOCK)
            return [Size(min(side, grid.height), min(side, grid.width))]
        found: List[Size] = []
        for height in sides(grid.height):
            for width in (height, 2 * height):
                size = Size(height, min(width, grid.width))
                if size not in found and (not found or self._tile_bytes(stage, stage.amid(size)) <= self.tile_bytes):
                    found.append(size)
        # the same few for all slides, so that there are few shapes: the best for a disc, and half of that for what is
        # finer, such as the blocks with gradient
        disc = _disc(Size(min(grid.height, _DISC), min(grid.width, _DISC)))
        best = cheapest_cover(disc, found, lambda counts: self._cost(stage, counts)).size
        half = Size(max(1, best.height // 2), max(1, best.width // 2))
        return [best] if half == best else [best, half]

    def _tile_bytes(self, stage: Stage, window: Window) -> int:
        """Bytes that a tile takes while it is computed, with what is fed and fetched: twice, since the next is read and
        the last is written beside it."""
        value, head = VALUE_BYTES[self.compute], HEAD_BYTES[self.compute]
        steps, seen = stage.shapes(window), stage.geometry(window).pixels
        given = seen.height * seen.width * stage.source.channels
        total = value * peak_elements(steps, self.training, self.unrolls)
        if stage.index == 0:
            total += given * (3 + head + (value if value != head else 0))
        else:
            total += 2 * given * (value + (head if self.training else 0))
        return int(total + 2 * steps[-1].elements * (value + (head if self.training else 0)))

    def _inner_bytes(self, stage: Stage, size: Size) -> int:
        if (stage.index, size) not in self._inner:
            steps = stage.shapes(stage.amid(size))
            elements = sum(step.elements for step in steps[:-1] if step.kind == "relu")
            self._inner[stage.index, size] = VALUE_BYTES[self.compute] * elements
        return self._inner[stage.index, size]

    def _stored(self, coloured: Sequence[np.ndarray], blocks: Sequence[Window]) -> Tuple[int, ...]:
        """Per level the bytes of the map of the coloured blocks in a rectangle."""
        return tuple(
            page_count(mask[slices(inside)], inside) * self._page_bytes(index)
            for index, (mask, inside) in enumerate(zip(coloured, blocks))
        )

    def _page_bytes(self, index: int) -> int:
        level = self.levels[index]
        return page_side(level) ** 2 * level.channels * (VALUE_BYTES[self.compute] if index else 1)

    def stored(self, slide: SlidePlan) -> int:
        """The most bytes of maps, and of what is kept inside stages, that a canvas takes."""
        peaks = (
            self.peak_stored(region.stored, self.kept_bytes(region, region.kept) if region.kept else ())
            for region in slide.regions
        )
        return max(peaks, default=0)

    def most_stored(self) -> int:
        """The most bytes of maps, and of what is kept inside stages, that a canvas full of tissue takes."""
        pages = [-(-side // BLANK_BLOCK // PAGE_BLOCKS) for side in self.canvas]
        stored = [pages[0] * pages[1] * self._page_bytes(index) for index in range(len(self.levels))]
        kept = [
            self._inner_bytes(stage, Size(1, 1)) * stage.target.grid.height * stage.target.grid.width
            for stage in self.stages
        ]
        return min(self.store_bytes, self.peak_stored(stored, kept if self.options.keep_activations else ()))


def parts_beside(
    network: Network, canvas: Size, options: StagedOptions, compute: str, training: bool, unrolls: bool
) -> Dict[str, int]:
    """Bytes of an engine's memory that are not of maps, by what they are for.

    Args:
        unrolls: see :func:`whole_slide_cnn.engines.replay.peak_elements`; where it is false on a CPU, oneDNN computes.
    """
    blank = BlankCanvas(network.trunk, canvas)
    stages = stages_of(network.trunk, blank.size, options.checkpoints)
    elements = sum(stage.target.size.height * stage.target.size.width * stage.target.channels for stage in stages)
    kernels = 0
    if not unrolls and not runtime.has_gpu():
        kernels = int(min(_MOST_KERNEL_BYTES, _KERNEL_BYTES * len(stages)) * (1 if training else 0.3))
    return {
        "blank canvas": elements * (VALUE_BYTES[compute] + (HEAD_BYTES[compute] if training else 0)),
        "compiled kernels": kernels,
        "weights": weight_bytes(network, compute, training, unrolls),
        "slide reading": reading_bytes(canvas),
        "runtime": RUNTIME_BYTES,
    }


def covered(grid: Size, tiles: Sequence[Window]) -> np.ndarray:
    """Blocks that lie in some tiles: bool, ``grid``."""
    found = np.zeros(grid, bool)
    for tile in tiles:
        found[slices(tile)] = True
    return found


def power_of_four(most: int) -> int:
    """The largest that is not more than that."""
    found: int = 4 ** ((most.bit_length() - 1) // 2)
    return found


def slices(window: Window) -> Tuple[slice, slice]:
    """The part of a map that a window is."""
    return slice(window.top, window.bottom), slice(window.left, window.right)


def _disc(size: Size) -> np.ndarray:
    """An ellipse as large as it can be: bool, ``size``."""
    rows, columns = ((np.arange(side) + 0.5) / side - 0.5 for side in size)
    found: np.ndarray = rows[:, np.newaxis] ** 2 + columns**2 <= 0.25
    return found


def _blocks_of(positions: Window, side: int) -> Window:
    """The blocks that a window of positions touches."""
    return Window.from_bounds(
        positions.top // side, positions.left // side, -(-positions.bottom // side), -(-positions.right // side)
    )


def _last_flops(steps: Sequence[shapes.Step]) -> int:
    """FLOPs that lead to the last step alone: of the convolutions that no gradient reads, since the last map is fed."""
    read: Set[int] = set()
    for position, step in enumerate(steps[:-1]):
        if step.kind in ("conv", "pool"):  # not "multiply": the factors of what convolutions give are in their kernels
            read.update(step.inputs)
        if step.kind in ("relu", "pool"):
            read.add(position)
    needed: Set[int] = set()
    for position in range(len(steps) - 2, -1, -1):
        if position in read or position in needed:
            needed.add(position)
            needed.update(steps[position].inputs)
    return shapes.forward_flops([step for position, step in enumerate(steps) if position not in needed])


def _union(grid: Size, rows: Tuple[np.ndarray, np.ndarray], columns: Tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Blocks that lie in one of some rectangles, given by their first and their one after the last row and column."""
    edges = np.zeros((grid.height + 1, grid.width + 1), np.int64)
    for row, way in ((rows[0], 1), (rows[1], -1)):
        for column, sign in ((columns[0], way), (columns[1], -way)):
            np.add.at(edges, (row, column), sign)
    found: np.ndarray = np.cumsum(np.cumsum(edges, axis=0), axis=1)[:-1, :-1] > 0
    return found
