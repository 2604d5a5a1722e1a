"""The order in which Keras lists the layers of a model.

``load_weights`` without names, as the reference implementation calls it, pairs layers by this order: by distance from
the output, longest first, and by creation where distances agree.
"""

from typing import List, Tuple

from whole_slide_cnn.models.layers import Conv, Residual, Scalar, Trunk, layer_variables
from whole_slide_cnn.models.network import Network


def keras_layers(network: Network) -> List[Tuple[str, Tuple[str, ...]]]:
    """Layers that own variables, each with the names of its variables, in Keras's order."""
    entries: List[Tuple[int, Tuple[str, Tuple[str, ...]]]] = []
    _collect(network.trunk, 0, entries)
    # entries come in creation order, and sorting is stable
    ordered = [layer for _, layer in sorted(entries, key=lambda entry: -entry[0])]
    return ordered + [("output", ("output/kernel", "output/bias"))]


def _collect(layers: Trunk, after: int, entries: list):
    """Append (distance from the output, layer) of all layers in creation order; ``after`` layers follow."""
    distances, distance = [], after
    for layer in reversed(layers):
        distances.append(distance)
        distance += _length(layer)
    for layer, distance in zip(layers, reversed(distances)):
        if isinstance(layer, Residual):
            _collect_block(layer, distance + 1, entries)  # 1: the addition
        else:
            _collect_single(layer, distance, entries)


def _collect_block(layer: Residual, after: int, entries: list):
    """The reference creates a block's shortcut first, but a leading scalar before it."""
    body = layer.body
    if body and isinstance(body[0], Scalar):
        rest = sum(_length(part) for part in body[1:])
        _collect_single(body[0], after + rest, entries)
        body = body[1:]
    _collect(layer.shortcut, after, entries)
    _collect(body, after, entries)


def _collect_single(layer, distance: int, entries: list):
    specs = layer_variables(layer)
    if isinstance(layer, Conv) and layer.norm is not None:
        norm = tuple(spec.name for spec in specs if spec.name.startswith(layer.norm.name + "/"))
        conv = tuple(spec.name for spec in specs if spec.name not in norm)
        entries.append((distance + 1, (layer.name, conv)))
        entries.append((distance, (layer.norm.name, norm)))
    elif specs:
        entries.append((distance, (layer.name, tuple(spec.name for spec in specs))))


def _length(layer) -> int:
    """Keras layers on the longest way through a layer of ours."""
    if isinstance(layer, Residual):
        return 1 + max(sum(_length(part) for part in branch) for branch in (layer.body, layer.shortcut))
    if isinstance(layer, Conv) and layer.norm is not None:
        return 2
    return 1
