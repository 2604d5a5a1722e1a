"""What follows from a network's definition: published figures, variables and first values."""

import numpy as np
import pytest
from small_networks import slim_backbones

from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import BACKBONES, Network
from whole_slide_cnn.sizes import Size

# Blocks of the published ResNets by stage (He et al. 2016, table 1).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def network(backbone, classes=3, **options):
    return Network(backbone, "gmp", "softmax", classes, **options)


@pytest.mark.parametrize(
    "backbone, size, channels",
    [
        ("fixup_resnet50", 483, 2048),
        ("frozenbn_resnet50", 483, 2048),
        ("resnet50", 427, 2048),
        ("fixup_resnet34", 899, 512),
        ("resnet18", 435, 512),
        ("tiny", 195, 128),
    ],
)
def test_receptive_field_and_channels(backbone, size, channels):
    for field in network(backbone).receptive_field(Size(1024, 1024)):
        assert (field.size, field.stride) == (size, 32)
    assert network(backbone).channels == channels


def test_receptive_field_offsets():
    # torchvision pads alike on both sides at every size: cell 0 is centred on pixel 0
    for side in (1024, 1025, 1057):
        assert network("resnet50").receptive_field(Size(side, 1024))[0].offset == 427 // 2
        assert network("resnet18").receptive_field(Size(side, 1024))[0].offset == 435 // 2
    # The reference pads its max-pool by TensorFlow's rule, one pixel of its map (2 px) less where that is even. What
    # a cell of the map after it has before it is 3 px by conv1, then 1 px of each stage's scale by every 3 x 3.
    later = 4 * 3 + 8 * 4 + 16 * 6 + 32 * 3
    for side, pool in ((1024, 0), (1023, 0), (1025, 2), (1026, 2)):
        rows, columns = network("fixup_resnet50").receptive_field(Size(side, 1025))
        assert rows.offset == 3 + pool + later
        assert columns.offset == 3 + 2 + later


def _bottleneck_macs(side, strided_3x3, classes):
    """Multiplications of a ResNet-50 at a side divisible by 32, from the published table."""
    side //= 2
    total = side**2 * 7 * 7 * 3 * 64
    side, channels = side // 2, 64
    for stage, blocks in enumerate(BLOCKS[50]):
        filters = 64 * 2**stage
        for block in range(blocks):
            before = side
            side = side // 2 if stage and not block else side
            total += (before if strided_3x3 else side) ** 2 * channels * filters
            total += side**2 * (9 * filters * filters + filters * 4 * filters)
            if not block:
                total += side**2 * channels * 4 * filters
            channels = 4 * filters
    return total + channels * classes


@pytest.mark.parametrize(
    "backbone, strided_3x3, published", [("fixup_resnet50", False, 7.7e9), ("resnet50", True, 8.2e9)]
)
def test_flops_at_224_pixels(backbone, strided_3x3, published):
    flops = network(backbone, 1000).flops(Size(224, 224))
    assert flops == 2 * _bottleneck_macs(224, strided_3x3, 1000)
    assert flops == pytest.approx(published, rel=0.01)


def test_flops_of_the_trunk_grow_with_the_canvas_area():
    head = 2 * 512 * 3
    small, large = (network("resnet18").flops(size) - head for size in (Size(64, 96), Size(192, 320)))
    assert large == 10 * small


@pytest.mark.parametrize("backbone, parameters", [("resnet18", 11689512), ("resnet50", 25557032)])
def test_trained_parameters_are_those_torchvision_publishes(backbone, parameters):
    variables = network(backbone, 1000).variables
    assert sum(int(np.prod(spec.shape)) for spec in variables if spec.trainable) == parameters
    fixed = {spec.name.split("/")[1] for spec in variables if not spec.trainable}
    assert fixed == {"moving_mean", "moving_variance"}


def test_batch_norm_of_the_2021_backbone_is_wholly_fixed():
    variables = network("frozenbn_resnet50").variables
    assert {spec.name.split("/")[1] for spec in variables if spec.trainable} == {"kernel", "bias"}
    assert {spec.name.split("/")[1] for spec in variables if not spec.trainable} == {
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_names_are_distinct_and_the_head_comes_last(backbone):
    specs = network(backbone, 4).variables
    assert len({spec.name for spec in specs}) == len(specs)
    assert [spec.name for spec in specs[-2:]] == ["output/kernel", "output/bias"]
    assert [spec.shape for spec in specs[-2:]] == [(network(backbone).channels, 4), (4,)]


# First values.


def test_first_values_follow_from_the_seed_and_the_name_alone():
    first, again, other = (network("tiny").initial_weights(seed) for seed in (7, 7, 8))
    wider = network("tiny", 5).initial_weights(7)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        if not name.startswith("output/"):
            np.testing.assert_array_equal(value, wider[name])
    assert not np.array_equal(first["conv1_conv/kernel"], other["conv1_conv/kernel"])


def test_first_values_are_the_same_on_every_machine():
    first = network("tiny").initial_weights(0)["conv1_conv/kernel"].ravel()[:3]
    np.testing.assert_allclose(first, [0.0905879690, -0.0786773560, -0.1463834088], atol=1e-9)


def test_kernels_are_a_truncated_normal_of_he_s_deviation():
    with slim_backbones():
        values = network("fixup_resnet34").initial_weights(0)
    for name, scale in (("conv1_conv", 1.0), ("conv2_block3_1_conv", 34**-0.5)):
        kernel = values[name + "/kernel"]
        deviation = scale * np.sqrt(2.0 / np.prod(kernel.shape[:-1]))
        assert kernel.std() == pytest.approx(deviation, rel=0.02)
        assert abs(kernel.mean()) < 0.05 * deviation
        # cut at two deviations of the normal distribution that is cut, which are 2.27 of what is left
        assert np.abs(kernel).max() == pytest.approx(2 * deviation / 0.8796, rel=0.01)


def test_blocks_start_as_the_identity():
    with slim_backbones():
        last = {
            "fixup_resnet34": "conv2_block1_2_conv/kernel",
            "fixup_resnet50": "conv2_block1_3_conv/kernel",
            "frozenbn_resnet50": "conv2_block1_3_conv/kernel",
            "resnet18": "conv2_block1_2_bn/gamma",
            "resnet50": "conv2_block1_3_bn/gamma",
        }
        for backbone, name in last.items():
            values = network(backbone).initial_weights(0)
            assert not values[name].any(), backbone
            other = name.replace("_3_", "_1_").replace("_2_", "_1_")
            assert values[other].all(), backbone


def test_the_dense_layer_favours_class_0():
    values = network("tiny", 4).initial_weights(0)
    assert values["output/bias"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert network("tiny", class0_bias=2.5).initial_weights(0)["output/bias"].tolist() == [2.5, 0.0, 0.0]
    limit = np.sqrt(6.0 / (128 + 4))
    assert 0.95 * limit < np.abs(values["output/kernel"]).max() <= limit


# What cannot be built.


@pytest.mark.parametrize(
    "options, message",
    [
        (("resnet19", "gmp", "softmax", 3), r"^unknown backbone 'resnet19' \(known: tiny, resnet18, "),
        (("tiny", "max", "softmax", 3), r"^unknown pooling 'max' \(known: gmp, gap\)$"),
        (("tiny", "gmp", "relu", 3), r"^unknown activation 'relu' \(known: softmax, sigmoid\)$"),
        (("tiny", "gmp", "softmax", 1), "^a network needs at least 2 classes, not 1$"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Network(*options)
