"""Weight files of every form: names, layouts, what is reported and what is refused."""

import os
import re

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_networks import SLIM_FILTERS, random_weights, slim_backbones

from whole_slide_cnn.errors import WeightsError
from whole_slide_cnn.models.keras_order import keras_layers
from whole_slide_cnn.models.network import BACKBONES, Network
from whole_slide_cnn.models.weights import load_weights, read_arrays, save_weights

TORCHVISION_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


@pytest.fixture(autouse=True)
def slim():
    """All networks of this file have few channels."""
    with slim_backbones():
        yield


def network(backbone, classes=3):
    return Network(backbone, "gmp", "softmax", classes)


def float32_weights(model, seed=0):
    return {name: np.float32(value) for name, value in random_weights(model.variables, seed).items()}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float64 and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def assert_complete(report, model):
    assert report.loaded == tuple(spec.name for spec in model.variables)
    assert report.missing == report.unexpected == report.mismatched == ()
    assert str(report) == "{} variables loaded".format(len(model.variables))


@pytest.mark.parametrize(
    "backbone, extension",
    [(backbone, ".h5") for backbone in BACKBONES]
    + [(backbone, extension) for backbone in TORCHVISION_BLOCKS for extension in (".npz", ".safetensors")]
    + [("tiny", ".HDF5")],
)
def test_what_is_written_is_read(tmp_path, backbone, extension):
    model = network(backbone)
    weights = float32_weights(model)
    path = str(tmp_path / ("weights" + extension))
    save_weights(path, model, weights)
    values, report = load_weights(path, model)
    assert_complete(report, model)
    assert_equal(values, weights)
    assert os.listdir(str(tmp_path)) == ["weights" + extension]


# torchvision.


def torchvision_names(backbone):
    """Names of torchvision's state dict, by its modules, without the counters of batch norm."""

    def norm(name):
        return ["{}.{}".format(name, part) for part in ("weight", "bias", "running_mean", "running_var")]

    names = ["conv1.weight"] + norm("bn1")
    bottleneck = backbone == "resnet50"
    for layer, blocks in enumerate(TORCHVISION_BLOCKS[backbone], 1):
        for block in range(blocks):
            prefix = "layer{}.{}.".format(layer, block)
            for number in range(1, 4 if bottleneck else 3):
                names += [prefix + "conv{}.weight".format(number)] + norm(prefix + "bn{}".format(number))
            if block == 0 and (bottleneck or layer > 1):
                names += [prefix + "downsample.0.weight"] + norm(prefix + "downsample.1")
    return names + ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("backbone, count", [("resnet18", 102), ("resnet50", 267)])
def test_exported_names_are_torchvision_s(tmp_path, backbone, count):
    model = network(backbone)
    save_weights(str(tmp_path / "a.npz"), model, float32_weights(model))
    save_weights(str(tmp_path / "a.safetensors"), model, float32_weights(model))
    with np.load(str(tmp_path / "a.npz")) as arrays:
        expected = torchvision_names(backbone)
        assert len(expected) == count  # of the 122 and 320 entries of a state dict 20 and 53 are counters
        assert set(arrays.files) == set(expected)
        same = load_file(str(tmp_path / "a.safetensors"))
        assert set(same) == set(expected)
        for name in expected:
            assert arrays[name].dtype == np.float32
            np.testing.assert_array_equal(arrays[name], same[name])


# Ours and torchvision's name of one variable of each sort.
CORRESPONDING = {
    "resnet18": [
        ("conv1_conv/kernel", "conv1.weight"),
        ("conv1_bn/gamma", "bn1.weight"),
        ("conv1_bn/moving_variance", "bn1.running_var"),
        ("conv2_block2_1_conv/kernel", "layer1.1.conv1.weight"),
        ("conv5_block1_2_conv/kernel", "layer4.0.conv2.weight"),
        ("conv3_block1_0_conv/kernel", "layer2.0.downsample.0.weight"),
        ("conv3_block1_0_bn/beta", "layer2.0.downsample.1.bias"),
        ("output/kernel", "fc.weight"),
        ("output/bias", "fc.bias"),
    ],
    "resnet50": [
        ("conv2_block1_0_conv/kernel", "layer1.0.downsample.0.weight"),
        ("conv2_block1_0_bn/moving_mean", "layer1.0.downsample.1.running_mean"),
        ("conv4_block6_3_conv/kernel", "layer3.5.conv3.weight"),
        ("conv4_block6_3_bn/gamma", "layer3.5.bn3.weight"),
        ("conv4_block6_2_bn/beta", "layer3.5.bn2.bias"),
        ("conv1_bn/moving_mean", "bn1.running_mean"),
    ],
}


@pytest.mark.parametrize("backbone", sorted(CORRESPONDING))
def test_torchvision_kernels_are_outputs_by_inputs_by_rows_by_columns(tmp_path, backbone):
    model = network(backbone)
    weights = float32_weights(model)
    path = str(tmp_path / "a.npz")
    save_weights(path, model, weights)
    arrays = read_arrays(path)
    for ours, theirs in CORRESPONDING[backbone]:
        value, exported = weights[ours], arrays[theirs]
        if value.ndim == 4:
            assert exported.shape == tuple(value.shape[axis] for axis in (3, 2, 0, 1))
            for index in np.ndindex(value.shape):
                row, column, channel_in, channel = index
                assert exported[channel, channel_in, row, column] == value[index]
        else:
            np.testing.assert_array_equal(exported, value.T)


@pytest.mark.parametrize("extension", [".npz", ".safetensors"])
def test_a_state_dict_is_read_and_its_counters_are_ignored(tmp_path, extension):
    model, random = network("resnet18"), np.random.RandomState(0)
    shapes = {name: np.shape(value) for name, value in _state_dict(model).items()}
    state = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    state.update(
        {name[:-6] + "num_batches_tracked": np.array(5) for name in state if re.search(r"bn\d\.weight$", name)}
    )
    path = str(tmp_path / ("state" + extension))
    if extension == ".npz":
        np.savez(path, **state)
    else:
        save_file(state, path)
    values, report = load_weights(path, model)
    assert_complete(report, model)
    for ours, theirs in CORRESPONDING["resnet18"]:
        value = state[theirs]
        np.testing.assert_array_equal(values[ours], value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)


def _state_dict(model):
    """A state dict with torchvision's names and shapes."""
    state, before = {}, 64
    for name in torchvision_names(model.backbone):
        match = re.match(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)", name)
        if match:
            layer, block, kind, number = match.groups()
            channels = SLIM_FILTERS[int(layer) - 1]
            first = kind == "downsample." or number == "1"
            inputs = before if first and block == "0" else channels
            side = 1 if kind == "downsample." else 3
            state[name] = np.zeros((channels,))
            if kind == "conv" or (kind, number) == ("downsample.", "0"):
                state[name] = np.zeros((channels, inputs, side, side))
            if block == "1":
                before = channels
        elif name == "conv1.weight":
            state[name] = np.zeros((64, 3, 7, 7))
        elif name == "fc.weight":
            state[name] = np.zeros((model.classes, SLIM_FILTERS[-1]))
        else:
            state[name] = np.zeros((model.classes if name == "fc.bias" else 64,))
    return state


def test_arrays_of_other_networks_in_a_state_dict_are_unexpected_not_misread(tmp_path):
    model = network("resnet18")
    path = str(tmp_path / "a.npz")
    save_weights(path, model, float32_weights(model))
    arrays = read_arrays(path)
    strangers = {
        "conv1.bias": np.zeros(64),
        "conv2.weight": np.zeros((64, 3, 7, 7)),
        "layer1.0.conv1.weight_mask": np.zeros(3),
        "layer1.0.se.fc1.weight": np.zeros((4, 4)),
        "fc2.weight": np.zeros((3, 16)),
    }
    np.savez(path, **dict(arrays, **strangers))
    values, report = load_weights(path, model)
    assert_equal(values, float32_weights(model))
    assert set(report.unexpected) == set(strangers)


# Keras.


def write_h5(path, arrays):
    with h5py.File(str(path), "w") as stream:
        for name, value in arrays.items():
            stream.create_dataset(name, data=value)
    return str(path)


def test_the_structure_keras_reads_is_written(tmp_path):
    model = network("frozenbn_resnet50")
    weights = float32_weights(model)
    path = str(tmp_path / "weights.h5")
    save_weights(path, model, weights)
    with h5py.File(path, "r") as stream:
        layers = [name.decode() for name in stream.attrs["layer_names"]]
        assert layers == [name for name, _ in keras_layers(model)]
        for layer in layers:
            names = [name.decode() for name in stream[layer].attrs["weight_names"]]
            for name in names:
                value = stream[layer][name]
                assert value.dtype == np.float32 and name.endswith(":0")
                np.testing.assert_array_equal(np.asarray(value), weights[name[:-2]])
        assert [n.decode() for n in stream["conv1_bn"].attrs["weight_names"]] == [
            "conv1_bn/gamma:0",
            "conv1_bn/beta:0",
            "conv1_bn/moving_mean:0",
            "conv1_bn/moving_variance:0",
        ]


@pytest.mark.parametrize(
    "form",
    [
        "{layer}/{layer}/{part}:0",
        "{layer}/{layer}_1/{part}:0",
        "model/{layer}/{part}:0",
        "model_1/{layer}/{layer}_3/{part}:0",
    ]
    + ["model_weights/{layer}/{layer}/{part}:0", "model_weights/model/{layer}/{part}:0", "{layer}/{part}"],
)
@pytest.mark.parametrize("backbone", ["tiny", "frozenbn_resnet50"])
def test_keras_groups_however_nested_and_numbered(tmp_path, backbone, form):
    model = network(backbone)
    weights = float32_weights(model)
    arrays = {}
    for name, value in weights.items():
        layer, part = name.split("/")
        arrays[form.format(layer=layer, part=part)] = value
    if form.startswith("model_weights"):  # a whole saved model
        arrays["optimizer_weights/training/Adam/conv1_conv/kernel/m:0"] = np.ones(3)
        arrays["optimizer_weights/training/Adam/conv1_conv/kernel:0"] = np.ones(3)
    values, report = load_weights(write_h5(tmp_path / "a.h5", arrays), model)
    assert_complete(report, model)
    assert_equal(values, weights)


@pytest.mark.parametrize("offset", [1, 7, 12, 100])
def test_scalars_of_a_second_model_in_a_process_count_on(tmp_path, offset):
    model = network("tiny")
    weights = float32_weights(model)
    arrays = {}
    for name, value in weights.items():
        layer, part = name.split("/")
        match = re.match(r"scalar_mul_add_layer(?:_(\d+))?$", layer)
        if match:
            layer = "scalar_mul_add_layer_{}".format(int(match.group(1) or 0) + offset)
        arrays["{0}/{0}/{1}:0".format(layer, part)] = value
    assert len([name for name in arrays if name.startswith("scalar")]) == 16
    values, report = load_weights(write_h5(tmp_path / "a.h5", arrays), model)
    assert_complete(report, model)
    assert_equal(values, weights)


def test_a_file_without_a_head_leaves_the_head_alone(tmp_path):
    model = network("frozenbn_resnet50")
    weights = float32_weights(model)
    trunk = {name + ":0": value for name, value in weights.items() if not name.startswith("output/")}
    values, report = load_weights(write_h5(tmp_path / "notop.h5", trunk), model)
    assert report.missing == ("output/kernel", "output/bias")
    assert "2 missing: output/kernel, output/bias" in str(report)
    assert_equal(values, {name: value for name, value in weights.items() if not name.startswith("output/")})


def test_a_head_of_other_classes_is_reported_and_left_alone(tmp_path):
    path = str(tmp_path / "weights.npz")
    save_weights(path, network("resnet18", 5), float32_weights(network("resnet18", 5)))
    values, report = load_weights(path, network("resnet18", 3))
    assert report.mismatched == ("output/kernel: (16, 3) / (16, 5)", "output/bias: (3,) / (5,)")
    assert report.missing == () and "2 mismatched: output/kernel" in str(report)
    assert not any(name.startswith("output/") for name in values)


def test_fixup_starts_from_plain_convolutions(tmp_path):
    model = network("fixup_resnet50")
    weights = float32_weights(model)
    plain = {name + ":0": value for name, value in weights.items() if "_conv/" in name}
    plain["predictions/kernel:0"] = np.zeros((64, 1000))
    values, report = load_weights(write_h5(tmp_path / "a.h5", plain), model)
    assert set(values) == {name for name in weights if "_conv/" in name}
    assert all(name.startswith(("scalar_mul_add_layer", "output/")) for name in report.missing)
    assert report.unexpected == ("predictions/kernel",)


# What is refused.


def assert_one_sentence(error, path):
    message = str(error.value)
    assert str(path) in message and "\n" not in message.strip()


@pytest.mark.parametrize("extension", [".h5", ".npz", ".safetensors"])
@pytest.mark.parametrize("wrong", ["resnet50", "fixup_resnet34", "tiny"])
def test_files_of_another_backbone_are_refused(tmp_path, wrong, extension):
    source = network("resnet18")
    path = str(tmp_path / ("weights" + extension))
    save_weights(path, source, float32_weights(source))
    with pytest.raises(
        WeightsError, match=r"is not a weight file of {}: \d+ of its \d+ convolution k".format(wrong)
    ) as e:
        load_weights(path, network(wrong))
    assert_one_sentence(e, path)


@pytest.mark.parametrize(
    "content", [b"", b"not a weight file", b"PK\x03\x04 nearly a zip", b"\x89HDF\r\n\x1a\n nearly"]
)
@pytest.mark.parametrize("extension", [".h5", ".npz", ".safetensors"])
def test_files_of_nonsense_are_refused(tmp_path, content, extension):
    path = tmp_path / ("weights" + extension)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read") as error:
        load_weights(str(path), network("resnet18"))
    assert_one_sentence(error, path)


@pytest.mark.parametrize("extension", [".h5", ".npz", ".safetensors"])
def test_truncated_files_are_refused(tmp_path, extension):
    model = network("resnet18")
    path = tmp_path / ("weights" + extension)
    save_weights(str(path), model, float32_weights(model))
    content = path.read_bytes()
    for part in (1, 50, 99):
        path.write_bytes(content[: len(content) * part // 100])
        with pytest.raises(WeightsError, match="cannot be read") as error:
            load_weights(str(path), model)
        assert_one_sentence(error, path)


@pytest.mark.parametrize("extension, step", [(".h5", 8), (".npz", 512)])
def test_files_with_broken_structure_are_refused(tmp_path, extension, step):
    # h5py raises RuntimeError for a broken tree, zipfile NotImplementedError for a broken entry
    model = network("resnet18")
    path = tmp_path / ("weights" + extension)
    save_weights(str(path), model, float32_weights(model))
    content = bytearray(path.read_bytes())
    for at in range(100, min(len(content), 20000), step):
        content[at] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError) as error:
        load_weights(str(path), model)
    assert_one_sentence(error, path)


def test_a_single_array_and_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(str(path), network("resnet18"))
    np.savez(str(path), **{"conv1.weight": np.array([{}], object)})
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(str(path), network("resnet18"))


@pytest.mark.parametrize("name", ["weights.pth", "weights", "weights.ckpt"])
def test_unknown_extensions_are_refused_before_anything_is_written(tmp_path, name):
    path = str(tmp_path / name)
    for call in (
        lambda: load_weights(path, network("tiny")),
        lambda: save_weights(path, network("tiny"), float32_weights(network("tiny"))),
    ):
        with pytest.raises(WeightsError, match=r"the extension must be \.h5, \.npz or \.safetensors"):
            call()
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("extension", [".h5", ".npz", ".safetensors"])
def test_a_missing_file_is_named(tmp_path, extension):
    path = str(tmp_path / ("none" + extension))
    with pytest.raises(WeightsError, match="weight file .*none.* does not exist"):
        load_weights(path, network("resnet18"))


@pytest.mark.parametrize("extension", [".npz", ".safetensors"])
def test_networks_torchvision_does_not_have_are_not_written_in_its_form(tmp_path, extension):
    path = str(tmp_path / ("weights" + extension))
    with pytest.raises(WeightsError, match=r"tiny has no torchvision form; write its weights as \.h5"):
        save_weights(path, network("tiny"), float32_weights(network("tiny")))
    assert os.listdir(str(tmp_path)) == []


def test_a_checkpoint_s_own_arrays_are_not_weights(tmp_path):
    model = network("tiny")
    weights = float32_weights(model)
    path = str(tmp_path / "checkpoint.npz")
    np.savez(path, **dict(weights, **{"optimiser/beta1_power": np.ones(()), "metadata": np.array("{}")}))
    values, report = load_weights(path, model)
    assert_complete(report, model)
    assert_equal(values, weights)
