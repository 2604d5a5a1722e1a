"""The shapes of a trunk name exactly the tensors that the TensorFlow graph of the trunk makes."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from small_networks import SMALL_TRUNKS, random_weights, variables_of

from whole_slide_cnn.errors import ConfigError, TensorTooLargeError
from whole_slide_cnn.models import build, geometry
from whole_slide_cnn.models.network import BACKBONES, Network
from whole_slide_cnn.models.shapes import Step, canvas_shapes, check_tensor_sizes, window_shapes
from whole_slide_cnn.sizes import Size, Window

STEM = ("conv1_conv", "conv")
KINDS = {
    "Pad": "pad",
    "PadV2": "pad",
    "Slice": "crop",
    "Conv2D": "conv",
    "BiasAdd": "bias",
    "Relu": "relu",
    "MaxPool": "pool",
    "Mul": "multiply",
    "Add": "add",
    "AddV2": "add",
}


def trunk_graph(trunk, size, window=None):
    """The operations of a trunk's graph on a float32 image, without variables; returns the image and their feeds."""
    image = tf.placeholder(tf.float32, (1,) + tuple(size) + (3,))
    variables = {spec.name: tf.placeholder(tf.float32, spec.shape) for spec in variables_of(trunk)}
    build.TrunkBuilder(trunk, variables, "float32")(image, window)
    return image, variables


def operations_on(image):
    """Operations that a change of the image reaches, in the order of their making."""
    reached, found = {image.name}, []
    for operation in image.graph.get_operations():
        if any(tensor.name in reached for tensor in operation.inputs):
            reached.update(tensor.name for tensor in operation.outputs)
            found.append(operation)
    return found


def steps_of(image, operations, shape_of):
    """Operations on the image in the terms of shapes: (kind, inputs, shape) of each."""
    positions, steps = {image.name: -1}, []
    for operation in operations:
        inputs = tuple(positions[tensor.name] for tensor in operation.inputs if tensor.name in positions)
        shape = shape_of(operation.outputs[0])
        kind = "sum" if len(inputs) > 1 else KINDS[operation.type]
        if kind == "crop" and shape == shape_of(operation.inputs[0]):
            positions[operation.outputs[0].name] = inputs[0]  # TensorFlow hands the whole tensor on
            continue
        positions[operation.outputs[0].name] = len(steps)
        steps.append((kind, inputs, shape))
    return steps


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shapes_of_a_canvas_are_those_of_the_graph(backbone):
    trunk, canvas = Network(backbone, "gmp", "softmax", 2).trunk, Size(97, 160)
    with tf.Graph().as_default():
        image, _ = trunk_graph(trunk, canvas)
        operations = operations_on(image)
        expected = steps_of(image, operations, lambda tensor: tuple(tensor.shape.as_list()[1:]))
        convolutions = [op for op in operations if op.type == "Conv2D"]
        kernels = [tuple(op.inputs[1].shape.as_list()[:3]) for op in convolutions]
    steps = canvas_shapes(trunk, canvas)
    assert [(step.kind, step.inputs, step.shape) for step in steps] == expected
    found = [step for step in steps if step.kind == "conv"]
    assert [(step.kernel, step.kernel, step.channels_in) for step in found] == kernels
    assert [step.name for step in found] == [op.name.split("/")[-1] for op in convolutions]
    assert steps[-1].shape[:2] == geometry.cells_of(trunk, canvas)


def _windows(cells, random):
    """All cells, each corner, and two random rectangles."""
    yield Window(0, 0, *cells)
    for top in (0, cells.height - 1):
        for left in (0, cells.width - 1):
            yield Window(top, left, 1, 1)
    for _ in range(2):
        top, left = random.randint(cells.height), random.randint(cells.width)
        yield Window(top, left, 1 + random.randint(cells.height - top), 1 + random.randint(cells.width - left))


@pytest.mark.parametrize("family", sorted(SMALL_TRUNKS))
def test_the_shapes_of_a_window_are_what_the_graph_computes(family):
    trunk, canvas = SMALL_TRUNKS[family](), Size(89, 110)
    random = np.random.RandomState(3)
    with tf.Graph().as_default(), tf.Session() as session:
        fed = build.GeometryTensors.placeholders(trunk)
        image, variables = trunk_graph(trunk, (None, None), fed)
        operations = operations_on(image)
        outputs = [operation.outputs[0] for operation in operations]
        shapes = [tf.shape(tensor) for tensor in outputs]
        values = random_weights(variables_of(trunk))
        feed = {variables[name]: value for name, value in values.items()}
        for cells in _windows(geometry.cells_of(trunk, canvas), random):
            window = geometry.window_geometry(trunk, canvas, cells)
            feed.update({fed.padding: window.padding, fed.crops: window.crops})
            feed[image] = np.zeros((1,) + window.pixels.size + (3,))
            shape_of = {tensor.name: tuple(s[1:]) for tensor, s in zip(outputs, session.run(shapes, feed))}
            shape_of[image.name] = window.pixels.size + (3,)
            expected = steps_of(image, operations, lambda tensor, shape_of=shape_of: shape_of[tensor.name])
            steps = window_shapes(trunk, window)
            assert [(step.kind, step.inputs, step.shape) for step in steps] == expected
            assert steps[-1].shape[:2] == cells.size


def test_a_canvas_without_a_cell_is_refused():
    with pytest.raises(ConfigError, match="too small"):
        canvas_shapes(SMALL_TRUNKS["fixup_basic"](), Size(0, 32))


# Tensors too large for 32-bit indices.


def test_the_first_convolution_of_resnet50_is_too_large_from_11585_pixels():
    for backbone in ("resnet50", "fixup_resnet50", "frozenbn_resnet50"):
        trunk = Network(backbone, "gmp", "softmax", 2).trunk
        for side, most in ((11584, 5792), (11585, 5793), (11586, 5793)):
            (convolution,) = [s for s in canvas_shapes(trunk, Size(side, side)) if (s.name, s.kind) == STEM]
            assert convolution.shape == (most, most, 64)
            assert (convolution.elements >= 2**31) == (side >= 11585)


@pytest.mark.parametrize("backbone", ["resnet50", "fixup_resnet50", "frozenbn_resnet50"])
def test_resnet50_is_refused_from_the_first_tensor_too_large(backbone):
    # the padded input of the first max-pool is one or two pixels wider than the convolution's output
    trunk = Network(backbone, "gmp", "softmax", 2).trunk
    check_tensor_sizes(canvas_shapes(trunk, Size(11580, 11580)))
    with pytest.raises(TensorTooLargeError, match=r"tensor pool1_pool/pad of shape \(1, 5793, 5793, 64\) has 2.15e"):
        check_tensor_sizes(canvas_shapes(trunk, Size(11581, 11581)))
    with pytest.raises(TensorTooLargeError, match=r"conv1_conv/conv of shape \(1, 5793, 5793, 64\).*engine: streaming"):
        check_tensor_sizes(canvas_shapes(trunk, Size(11586, 11586)))


def test_the_limit_is_exact():
    fits, too_large = (Step("layer", "relu", (-1,), (height, 1, 2**15)) for height in (2**16 - 1, 2**16))
    check_tensor_sizes([fits])
    with pytest.raises(TensorTooLargeError, match=r"^tensor layer/relu of shape \(1, 65536, 1, 32768\)"):
        check_tensor_sizes([fits, too_large])
    check_tensor_sizes([Step("layer", "relu", (-1,), (2**31 - 1, 1, 1))])


def test_a_small_window_of_a_large_canvas_fits():
    trunk = Network("resnet50", "gmp", "softmax", 2).trunk
    canvas = Size(75000, 75000)
    window = geometry.window_geometry(trunk, canvas, Window(1000, 1000, 8, 8))
    check_tensor_sizes(window_shapes(trunk, window))
    with pytest.raises(TensorTooLargeError):
        check_tensor_sizes(canvas_shapes(trunk, canvas))
