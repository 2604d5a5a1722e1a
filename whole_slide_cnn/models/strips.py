"""A trunk on a whole canvas whose feature maps are kept as strips along the height.

A strip is a run of rows of a map, at full width. What reads beyond it takes rows from the strips beside it, so that the
numbers are those of the whole map, while no tensor grows with the canvas's area. All shapes are static: they follow
from the canvas alone.
"""

from typing import Callable, Dict, NamedTuple, Sequence, Tuple

import tensorflow.compat.v1 as tf

from whole_slide_cnn.errors import TensorTooLargeError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.build import TrunkBuilder
from whole_slide_cnn.models.geometry import Range
from whole_slide_cnn.models.layers import Conv, MaxPool, Residual, Trunk
from whole_slide_cnn.models.shapes import canvas_shapes
from whole_slide_cnn.sizes import Size

# From the height of a map to the rows at which its strips begin, and where the last one ends.
Partition = Callable[[int], Tuple[int, ...]]


class Strips(NamedTuple):
    """A map as tensors (1, rows, width, channels) from top to bottom; ``bounds`` has the row at which each begins, and
    the height of the map."""

    bounds: Tuple[int, ...]
    tensors: Tuple[tf.Tensor, ...]

    @property
    def height(self) -> int:
        return self.bounds[-1]

    @property
    def width(self) -> int:
        return int(self.tensors[0].shape[2])

    def ranges(self) -> Tuple[Range, ...]:
        """The rows of each strip."""
        return tuple(Range(*pair) for pair in zip(self.bounds[:-1], self.bounds[1:]))

    def rows(self, wanted: Range, spare: int = 0) -> tf.Tensor:
        """Some rows of the map, from as many strips as they lie in.

        Args:
            spare: how many rows more there may be at the end: with them a strip is often taken whole, where without
                them it would be copied, and the copy kept for the gradient.
        """
        parts = []
        for own, tensor in zip(self.ranges(), self.tensors):
            start, stop = max(own.start, wanted.start), min(own.stop, wanted.stop)
            if own.stop - spare <= wanted.stop < own.stop:
                stop = own.stop
            if start < stop:
                whole = (start, stop) == own
                parts.append(tensor if whole else tensor[:, start - own.start : stop - own.start])
        return parts[0] if len(parts) == 1 else tf.concat(parts, 1)


def aligned_partition(trunk: Trunk, canvas: Size, elements: int) -> Partition:
    """Strips with no more than some elements in any map, as high as they can be with aligned borders.

    Borders of a map lie where those of the next coarser one do: a strip of that one is then computed from whole strips
    (and their neighbours' rows where its filter sees further), instead of from copies that gradients would keep.

    Raises:
        TensorTooLargeError: a single row has more.
    """
    widest: Dict[int, int] = {canvas.height: 3 * canvas.width}
    for step in canvas_shapes(trunk, canvas):
        if step.kind == "pad":
            continue  # it is as wide as what is padded, or little wider, and read by what follows only
        height, width, channels = step.shape
        widest[height] = max(widest.get(height, 0), width * channels)
    if max(widest.values()) > elements:
        raise TensorTooLargeError(
            "one row of a feature map has {} elements, and a strip may have {}; use a larger unified.strip_mb, or a "
            "smaller canvas".format(max(widest.values()), elements)
        )
    bounds: Dict[int, Tuple[int, ...]] = {}
    coarser: Tuple[int, ...] = (0, 1)
    below = 1
    for height in sorted(widest):
        scale = -(-height // below)
        borders = [min(row * scale, height) for row in coarser[:-1]] + [height]
        bounds[height] = _refined(borders, elements // widest[height])
        coarser, below = bounds[height], height
    return bounds.__getitem__


def _refined(borders: Sequence[int], highest: int) -> Tuple[int, ...]:
    """Borders with as few more, evenly spread in between, as leave nothing higher than some rows."""
    found = [0]
    for start, stop in zip(borders[:-1], borders[1:]):
        count = -(-(stop - start) // highest)
        found += [start + (stop - start) * index // count for index in range(1, count + 1)]
    return tuple(found)


class StripBuilder(TrunkBuilder):
    """Builds the trunk on strips of a whole canvas.

    Args:
        partition: where the strips of a map of some height begin.
    """

    def __init__(self, trunk: Trunk, variables: Dict[str, tf.Variable], compute: str, partition: Partition):
        super().__init__(trunk, variables, compute)
        self._partition = partition
        self._copies: Dict[Tuple, tf.Tensor] = {}  # both branches of a block read the same rows: one copy serves both

    def on(self, strips: Strips) -> Strips:
        """The embedding map of a canvas in the compute type."""
        return self._follow(self._trunk, strips)

    def _follow(self, layers: Trunk, x: Strips) -> Strips:
        for layer in layers:
            if isinstance(layer, (Conv, MaxPool)):
                x = self._filter(layer, x)
            elif isinstance(layer, Residual):
                body, shortcut = self._follow(layer.body, x), self._follow(layer.shortcut, x)
                x = Strips(body.bounds, tuple(a + b for a, b in zip(body.tensors, shortcut.tensors)))
            else:
                x = Strips(x.bounds, tuple(self._apply((layer,), tensor, None) for tensor in x.tensors))
        return x

    def _filter(self, layer, x: Strips) -> Strips:
        compute = self._convolution(layer) if isinstance(layer, Conv) else self._maximum(layer)
        columns = geometry.padding_of(layer, x.width)
        bounds = self._partition(geometry.extent_after(layer, x.height))
        outputs = []
        for start, stop in zip(bounds[:-1], bounds[1:]):
            seen, above, below = _seen(layer, x.height, Range(start, stop))
            # a filter that moves by several rows leaves out what is less than its next step
            rows = self._rows(x, seen, 0 if below else layer.stride - 1)
            outputs.append(compute(rows, [[0, 0], [above, below], list(columns), [0, 0]]))
        return Strips(bounds, tuple(outputs))

    def _rows(self, x: Strips, wanted: Range, spare: int) -> tf.Tensor:
        key = (x.tensors[0].name, wanted, spare)
        if key not in self._copies:
            self._copies[key] = x.rows(wanted, spare)
        return self._copies[key]

    def _convolution(self, layer: Conv):
        kernel, bias = self._folded(layer)
        kernel = tf.cast(kernel, self._dtype)
        bias = None if bias is None else tf.cast(bias, self._dtype)

        def convolve(rows: tf.Tensor, padding) -> tf.Tensor:
            y = tf.nn.conv2d(_padded(rows, padding, 0.0), kernel, layer.stride, "VALID", name=layer.name)
            return y if bias is None else tf.nn.bias_add(y, bias)

        return convolve

    def _maximum(self, layer: MaxPool):
        lowest = self._dtype.min

        def pool(rows: tf.Tensor, padding) -> tf.Tensor:
            return tf.nn.max_pool2d(
                _padded(rows, padding, lowest), layer.kernel, layer.stride, "VALID", name=layer.name
            )

        return pool


def _seen(layer, height: int, wanted: Range) -> Tuple[Range, int, int]:
    """Input rows that some output rows of a layer see, and the padding above and below them."""
    start = wanted.start * layer.stride - geometry.padding_of(layer, height)[0]
    stop = (wanted.stop - 1) * layer.stride - geometry.padding_of(layer, height)[0] + layer.kernel
    seen = Range(max(start, 0), min(stop, height))
    return seen, seen.start - start, stop - seen.stop


def _padded(x: tf.Tensor, padding, value: float) -> tf.Tensor:
    return tf.pad(x, padding, constant_values=value) if any(map(any, padding)) else x
