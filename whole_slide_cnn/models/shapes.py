"""The tensors a trunk makes, in order, without building a graph: to refuse what is too large, for memory and work."""

from dataclasses import dataclass
from typing import Iterable, List, Optional, Tuple

from whole_slide_cnn.errors import TensorTooLargeError
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.layers import Conv, MaxPool, Relu, Residual, Scalar, Trunk, is_spatial
from whole_slide_cnn.sizes import Size

MOST_ELEMENTS = 2**31 - 1  # 32-bit indices in TensorFlow's and cuDNN's kernels


@dataclass(frozen=True)
class Step:
    """One operation of the forward pass.

    Attributes:
        name: name of the layer it belongs to.
        kind: pad, crop, conv, bias, relu, pool, multiply, add (a scalar), or sum (of a residual block).
        inputs: positions of its inputs among the steps; -1 is the normalised image.
        shape: (height, width, channels) of its output.
        kernel: side of a convolution's kernel, else 0.
        channels_in: channels of a convolution's input, else 0.
    """

    name: str
    kind: str
    inputs: Tuple[int, ...]
    shape: Tuple[int, int, int]
    kernel: int = 0
    channels_in: int = 0

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


def canvas_shapes(trunk: Trunk, canvas: Size) -> List[Step]:
    """The forward pass over a whole canvas."""
    geometry.cells_of(trunk, canvas)
    return _Follower(trunk, None).run(canvas)


def window_shapes(trunk: Trunk, window: geometry.WindowGeometry, channels: int = 3) -> List[Step]:
    """The forward pass over one window.

    Args:
        channels: of what is fed: the image, or the map that a part of a trunk continues.
    """
    return _Follower(trunk, window).run(window.pixels.size, channels)


def forward_flops(steps: Iterable[Step]) -> int:
    """Multiplications and additions of the convolutions of a forward pass."""
    return sum(2 * step.kernel**2 * step.channels_in * step.elements for step in steps)


def backward_flops(steps: Iterable[Step], from_image: bool = True) -> int:
    """Those of its backward pass: each convolution once for its filter's gradient, and once for its input's, which an
    image does not need.

    Args:
        from_image: whether the first step reads the image, and not a map.
    """
    steps = list(steps)
    reads_image = [
        from_image and all(at < 0 or (steps[at].kind == "pad" and steps[at].inputs == (-1,)) for at in s.inputs)
        for s in steps
    ]
    return sum(forward_flops([step]) * (1 if image else 2) for step, image in zip(steps, reads_image))


def check_tensor_sizes(steps: Iterable[Step], remedy: str = "use engine: streaming, or a smaller canvas"):
    """Refuse tensors whose elements a 32-bit index cannot count (architecture, law 3).

    Args:
        remedy: what to do about it.

    Raises:
        TensorTooLargeError: names the tensor and its shape.
    """
    for step in steps:
        if step.elements > MOST_ELEMENTS:
            raise TensorTooLargeError(
                "tensor {}/{} of shape (1, {}, {}, {}) has {:.2e} elements, and operations on 2^31 or more give wrong "
                "numbers; {}".format(step.name, step.kind, *step.shape, float(step.elements), remedy)
            )


class _Follower:
    """Follows :class:`~whole_slide_cnn.models.build.TrunkBuilder` step by step."""

    def __init__(self, trunk: Trunk, window: Optional[geometry.WindowGeometry]):
        self._trunk = trunk
        self._window = window
        self._spatial = {name: index for index, name in enumerate(geometry.spatial_names(trunk))}
        self._residual = {name: index for index, name in enumerate(geometry.residual_names(trunk))}
        self._steps: List[Step] = []

    def run(self, pixels: Size, channels: int = 3) -> List[Step]:
        self._apply(self._trunk, -1, (pixels.height, pixels.width, channels))
        return self._steps

    def _add(self, name, kind, inputs, shape, kernel=0, channels_in=0):
        self._steps.append(Step(name, kind, inputs, shape, kernel, channels_in))
        return len(self._steps) - 1, shape

    def _apply(self, layers: Trunk, at: int, shape):
        name = "input"
        for layer in layers:
            name = getattr(layer, "name", name)
            if isinstance(layer, (Conv, MaxPool)):
                at, shape = self._filter(layer, at, shape)
            elif isinstance(layer, Relu):
                at, shape = self._add(name, "relu", (at,), shape)
            elif isinstance(layer, Scalar):
                if layer.weight:
                    at, shape = self._add(name, "multiply", (at,), shape)
                at, shape = self._add(name, "add", (at,), shape)
            else:
                at, shape = self._residual_block(layer, at, shape)
        return at, shape

    def _filter(self, layer, at, shape):
        at, shape = self._pad(layer, at, shape)
        height, width = ((side - layer.kernel) // layer.stride + 1 for side in shape[:2])
        if isinstance(layer, MaxPool):
            return self._add(layer.name, "pool", (at,), (height, width, shape[2]))
        at, shape = self._add(
            layer.name, "conv", (at,), (height, width, layer.channels), layer.kernel, layer.channels_in
        )
        if layer.bias or layer.norm is not None:
            at, shape = self._add(layer.name, "bias", (at,), shape)
        return at, shape

    def _pad(self, layer, at, shape):
        if not is_spatial(layer):
            return at, shape
        if self._window is None:
            pads = tuple(n for side in shape[:2] for n in geometry.padding_of(layer, side))
            if not any(pads):
                return at, shape
        else:
            pads = tuple(int(n) for n in self._window.padding[self._spatial[layer.name]])
        padded = (shape[0] + pads[0] + pads[1], shape[1] + pads[2] + pads[3], shape[2])
        return self._add(layer.name, "pad", (at,), padded)

    def _residual_block(self, layer: Residual, at, shape):
        starts = [self._crop(layer, branch, at, shape) for branch in range(2)]
        body, shortcut = (self._apply(part, *start) for part, start in zip((layer.body, layer.shortcut), starts))
        return self._add(layer.name, "sum", (body[0], shortcut[0]), body[1])

    def _crop(self, layer: Residual, branch: int, at, shape):
        if self._window is None:
            return at, shape
        height, width = (int(n) for n in self._window.crops[self._residual[layer.name], branch, 2:])
        if (height, width) == shape[:2]:  # TensorFlow hands the whole tensor on
            return at, shape
        return self._add(layer.name, "crop", (at,), (height, width, shape[2]))
