"""Weight files: Keras ``.h5`` by name, and torchvision state dicts as ``.npz`` or ``.safetensors``."""

import os
import re
import zipfile
from dataclasses import dataclass
from typing import Dict, Tuple

import h5py
import numpy as np

from whole_slide_cnn.errors import WeightsError
from whole_slide_cnn.files import replacing
from whole_slide_cnn.models.keras_order import keras_layers
from whole_slide_cnn.models.network import Network

OPTIMISER_PREFIX = "optimiser/"
METADATA_KEY = "metadata"

Weights = Dict[str, np.ndarray]


@dataclass(frozen=True)
class WeightReport:
    """What a file gave a model.

    Attributes:
        loaded: variables that were set.
        missing: variables of the model that the file does not have.
        unexpected: arrays of the file that the model has no variable for.
        mismatched: ``name: model shape / file shape`` of variables left alone because shapes differ.
    """

    loaded: Tuple[str, ...]
    missing: Tuple[str, ...]
    unexpected: Tuple[str, ...]
    mismatched: Tuple[str, ...]

    def __str__(self) -> str:
        lines = ["{} variables loaded".format(len(self.loaded))]
        for what in ("missing", "unexpected", "mismatched"):
            names = getattr(self, what)
            if names:
                lines.append("{} {}: {}".format(len(names), what, ", ".join(names)))
        return "\n".join(lines)


def load_weights(path: str, network: Network) -> Tuple[Weights, WeightReport]:
    """Read the weights of a network from a file.

    Every convolution kernel must be there. What else is missing (a head of other classes, scalars of Fixup when
    starting from Keras-applications) is reported and keeps its first value.

    Returns:
        Arrays by variable name, float64, and the report.

    Raises:
        WeightsError: the file cannot be read, or belongs to another backbone.
    """
    found = _to_model_names(read_arrays(path), network)
    specs = {spec.name: spec for spec in network.variables}
    missing = tuple(name for name in specs if name not in found)
    unexpected = tuple(name for name in found if name not in specs)
    values, mismatched = {}, []
    for name in specs:
        if name in found and found[name].shape != specs[name].shape:
            mismatched.append("{}: {} / {}".format(name, specs[name].shape, found[name].shape))
        elif name in found:
            values[name] = found[name].astype(np.float64)
    report = WeightReport(tuple(values), missing, unexpected, tuple(mismatched))
    lost = [name for name in specs if name.endswith("_conv/kernel") and name not in values]
    if lost:
        raise WeightsError(
            "{} is not a weight file of {}: {} of its {} convolution kernels are missing or of another shape, "
            "{} among them".format(
                path, network.backbone, len(lost), sum(name.endswith("_conv/kernel") for name in specs), lost[0]
            )
        )
    return values, report


def save_weights(path: str, network: Network, values: Weights):
    """Write the weights of a network, float32, in the form its extension names.

    ``.h5`` has the names and the layer order of Keras; ``.npz`` and ``.safetensors`` have torchvision's names and
    layout and exist for the torchvision backbones only.

    Raises:
        WeightsError: the extension is unknown, or does not fit the backbone.
    """
    kind = _kind(path)
    arrays = {name: np.asarray(values[name], np.float32) for name in (spec.name for spec in network.variables)}
    with replacing(path) as temporary:
        if kind == "h5":
            _write_h5(temporary, network, arrays)
            return
        if not is_torchvision(network):
            raise WeightsError(
                "{} has no torchvision form; write its weights as .h5 instead of {}".format(network.backbone, path)
            )
        arrays = dict(_to_torch(name, value) for name, value in arrays.items())
        if kind == "npz":
            with open(temporary, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
        else:
            from safetensors.numpy import save_file

            save_file(arrays, temporary)


def read_arrays(path: str) -> Weights:
    """All arrays of a weight file under the names the file gives them.

    Raises:
        WeightsError: the file is missing, of an unknown form, or broken.
    """
    kind = _kind(path)
    if not os.path.isfile(path):
        raise WeightsError("weight file {} does not exist".format(path))
    try:
        if kind == "h5":
            return _read_h5(path)
        if kind == "npz":
            return {
                name: array
                for name, array in read_npz(path).items()
                if name != METADATA_KEY and not name.startswith(OPTIMISER_PREFIX)
            }
        from safetensors.numpy import load_file

        return dict(load_file(path))
    except Exception as error:  # a broken file makes h5py, zipfile and NumPy raise almost anything
        raise WeightsError("weight file {} cannot be read: {}".format(path, error)) from error


def read_npz(path: str) -> Weights:
    """All arrays of an ``.npz`` file; one that is broken raises almost anything.

    (``np.load`` would leave a broken file open, and old versions print a traceback about it.)
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                arrays[os.path.splitext(name)[0]] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def is_torchvision(network: Network) -> bool:
    """Whether the backbone is one that torchvision has."""
    return network.backbone in ("resnet18", "resnet50")


def _kind(path: str) -> str:
    extension = os.path.splitext(path)[1].lower()
    kinds = {".h5": "h5", ".hdf5": "h5", ".npz": "npz", ".safetensors": "safetensors"}
    if extension not in kinds:
        raise WeightsError("weight file {}: the extension must be .h5, .npz or .safetensors".format(path))
    return kinds[extension]


# Keras


def _read_h5(path: str) -> Weights:
    """Arrays by their path in the file; the path is made into a variable's name by :func:`_to_model_names`."""
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = np.asarray(item)

    with h5py.File(path, "r") as stream:
        # a whole saved model keeps its optimiser beside its weights
        stream.get("model_weights", stream).visititems(visit)
    return arrays


def _write_h5(path: str, network: Network, arrays: Weights):
    layers = keras_layers(network)
    with h5py.File(path, "w") as stream:
        # arrays of fixed length, as Keras writes them: h5py 3 would make a list into text of another kind
        stream.attrs["layer_names"] = np.array([name.encode() for name, _ in layers])
        stream.attrs["backend"] = b"tensorflow"
        stream.attrs["keras_version"] = b"2.2.4-tf"
        for layer, variables in layers:
            group = stream.create_group(layer)
            group.attrs["weight_names"] = np.array([(name + ":0").encode() for name in variables])
            for name in variables:
                group.create_dataset(name + ":0", data=arrays[name])


def _to_model_names(arrays: Weights, network: Network) -> Weights:
    """Rename a file's arrays to the model's variables where they correspond; others keep their names."""
    if is_torchvision(network) and any(name in arrays for name in ("conv1.weight", "layer1.0.conv1.weight")):
        return dict(_from_torch(name, value) for name, value in arrays.items() if "num_batches_tracked" not in name)
    known = {spec.name for spec in network.variables}
    named = {_keras_name(path, known): value for path, value in arrays.items()}
    return _renumber_scalars(named, known)


def _keras_name(path: str, known) -> str:
    """``conv1_conv/conv1_conv_1/kernel:0`` names ``conv1_conv/kernel``: groups may be nested (models in models, wrapped
    layers) and inner ones numbered by TensorFlow, so the outermost group that is a layer of the model decides."""
    parts = [part.split(":")[0] for part in path.split("/")]
    for layer in parts[:-1]:
        if layer + "/" + parts[-1] in known:
            return layer + "/" + parts[-1]
    return "/".join(parts[-2:])


def _renumber_scalars(named: Weights, known) -> Weights:
    """Keras numbers unnamed layers through a process: a second model starts where the first one ended."""
    pattern = re.compile(r"^scalar_mul_add_layer(?:_(\d+))?/")
    numbers = sorted({int(m.group(1) or 0) for m in map(pattern.match, named) if m})
    expected = sorted({int(m.group(1) or 0) for m in map(pattern.match, known) if m})
    if numbers == expected or len(numbers) != len(expected):
        return named
    target = dict(zip(numbers, expected))
    renamed = {}
    for name, value in named.items():
        match = pattern.match(name)
        if match:
            number = target[int(match.group(1) or 0)]
            name = "scalar_mul_add_layer{}/{}".format("_{}".format(number) if number else "", name.split("/")[-1])
        renamed[name] = value
    return renamed


# torchvision

_TORCH_PARTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _to_torch(name: str, value: np.ndarray) -> Tuple[str, np.ndarray]:
    layer, part = name.split("/")
    if layer == "output":
        return "fc." + _TORCH_PARTS[part], np.ascontiguousarray(value.T)
    kind = "conv" if layer.endswith("_conv") else "bn"
    match = re.match(r"^conv(\d+)_block(\d+)_(\d+)_", layer)
    if not match:
        module = kind + "1"
    else:
        stage, block, position = (int(number) for number in match.groups())
        module = "layer{}.{}.".format(stage - 1, block - 1)
        if position:
            module += "{}{}".format(kind, position)
        else:
            module += "downsample.{}".format(0 if kind == "conv" else 1)
    if part == "kernel":
        value = np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    return module + "." + _TORCH_PARTS[part], value


def _from_torch(name: str, value: np.ndarray) -> Tuple[str, np.ndarray]:
    match = re.match(r"^(?:layer(\d+)\.(\d+)\.)?(conv|bn|downsample\.|fc)(\d?)\.(\w+)$", name)
    if not match:
        return name, value
    stage, block, kind, number, part = match.groups()
    if not stage and number != {"conv": "1", "bn": "1", "fc": ""}.get(kind):  # of another network
        return name, value
    if kind == "fc":
        return "output/" + ("kernel" if part == "weight" else "bias"), value.T
    if kind == "downsample.":
        kind, number = ("conv" if number == "0" else "bn"), "0"
    prefix = "conv{}_block{}_{}".format(int(stage) + 1, int(block) + 1, number) if stage else "conv1"
    if kind == "conv":
        if part != "weight" or value.ndim != 4:
            return name, value
        return prefix + "_conv/kernel", value.transpose(2, 3, 1, 0)
    parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    return "{}_bn/{}".format(prefix, parts.get(part, part)), value
