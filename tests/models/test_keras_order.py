"""The order in which Keras lists layers, by which files without names are paired."""

import glob
import json
import os

import pytest
from small_networks import SMALL_TRUNKS

from whole_slide_cnn.models import resnet
from whole_slide_cnn.models.keras_order import keras_layers
from whole_slide_cnn.models.network import BACKBONES, Network

REFERENCE = os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "data", "reference")
GOLDENS = sorted(glob.glob(os.path.join(REFERENCE, "*.json")))


def order(backbone):
    return [name for _, names in keras_layers(Network(backbone, "gmp", "softmax", 3)) for name in names]


def test_tiny():
    names = order("tiny")
    # scalar before the block; body; projection, as far from the output as the last scalar of the body
    block = ["{s0}/bias", "{b}_1_conv/kernel", "{b}_1_conv/bias", "{s1}/bias", "{b}_2_conv/kernel", "{b}_2_conv/bias"]
    block += ["{b}_0_conv/kernel", "{b}_0_conv/bias", "{s2}/weight", "{s2}/bias"]
    scalars = ["scalar_mul_add_layer"] + ["scalar_mul_add_layer_{}".format(i) for i in range(1, 12)]
    expected = ["conv1_conv/kernel", "conv1_conv/bias"]
    for stage in range(4):
        s0, s1, s2 = scalars[3 * stage : 3 * stage + 3]
        expected += [part.format(b="conv{}_block1".format(stage + 2), s0=s0, s1=s1, s2=s2) for part in block]
    assert names == expected + ["output/kernel", "output/bias"]


def test_identity_blocks_and_batch_norm(monkeypatch):
    monkeypatch.setitem(resnet.TRUNKS, "tiny", SMALL_TRUNKS["reference_norm"])
    layers = [name for name, _ in keras_layers(Network("tiny", "gmp", "softmax", 3))]
    # the projection and its norm stand beside the third convolution and its norm
    assert layers[:14] == ["conv1_conv", "conv1_bn"] + [
        "conv2_block1_{}".format(part)
        for part in ("1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv", "0_bn", "3_bn")
    ] + ["conv2_block2_{}".format(part) for part in ("1_conv", "1_bn", "2_conv", "2_bn")]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_variable_is_in_the_order_once(backbone):
    assert sorted(order(backbone)) == sorted(spec.name for spec in Network(backbone, "gmp", "softmax", 3).variables)


@pytest.mark.skipif(not GOLDENS, reason="the reference goldens of ../shared/data are not here")
@pytest.mark.parametrize("path", GOLDENS, ids=[os.path.basename(path) for path in GOLDENS])
def test_the_order_is_that_of_the_published_implementation(path):
    with open(path, encoding="utf-8") as stream:
        golden = json.load(stream)
    assert order(golden["backbone"]) == [weight["name"] for weight in golden["weights"]]
    shapes = {spec.name: spec.shape for spec in Network(golden["backbone"], "gmp", "softmax", 3).variables}
    assert shapes == {weight["name"]: tuple(weight["shape"]) for weight in golden["weights"]}
