"""Check this implementation against goldens of the published 2021 implementation.

    python tests/goldens.py a.json b.json weights.h5

A golden names a backbone, a pooling, a size and a label; weights and image follow a recipe (see :func:`recipe_weights`
and :func:`recipe_image`), or, where a ``.h5`` of the same name lies beside it, the weights are read from there. A
``.h5`` given alone must load into its backbone with nothing missing, left over or of another shape.
"""

import json
import os
import sys

import numpy as np

GOLDEN_WINDOW = 224  # pixels; canvases of the goldens are larger
PROBABILITY_BOUND = {"float64": 1e-7, "float32": 1e-4}
GRADIENT_BOUND = 1e-6  # relative, float64
MEDIAN_GRADIENT_BOUND = 1e-2  # relative, median over tensors, float32


def recipe_weights(names_and_shapes, backbone):
    """Weight ``k`` of the recipe, float32, by name."""
    values = {}
    for index, (name, shape) in enumerate(names_and_shapes):
        value = np.random.RandomState(index).standard_normal(int(np.prod(shape))).reshape(shape)
        value *= 0.6 * np.sqrt(2.0 / np.prod(shape[:-1])) if name.endswith("kernel") else 0.02
        if backbone.startswith("frozenbn") and name == "conv1_conv/kernel":
            value *= 0.01
        if name.endswith(("gamma", "weight")):
            value += 1.0
        elif name.endswith("variance"):
            value = 1.0 + 0.5 * value
        values[name] = value.astype(np.float32)
    return values


def recipe_image(size):
    """Noise in the upper left quarter, white elsewhere; uint8 (size, size, 3)."""
    image = np.random.RandomState(99).randint(0, 256, (size, size, 3)).astype(np.uint8)
    image[size // 2 :] = 255
    image[:, size // 2 :] = 255
    return image


def network_of(golden):
    from whole_slide_cnn.models.network import Network

    return Network(golden["backbone"], golden["pool"], "softmax", len(golden["probabilities"]))


def weights_of(golden, path, network):
    """Weights of a golden: from the ``.h5`` beside it, or from the recipe."""
    from whole_slide_cnn.models.weights import load_weights

    beside = os.path.splitext(path)[0] + ".h5"
    if os.path.exists(beside):
        return load_weights(beside, network)[0]
    return recipe_weights([(w["name"], tuple(w["shape"])) for w in golden["weights"]], golden["backbone"])


def measure(golden, path, engine_class, compute, **options):
    """Errors of one engine against one golden: probabilities (largest, absolute) and gradient norms (relative)."""
    from whole_slide_cnn.sizes import Size
    from whole_slide_cnn.slides.canvas import ArrayCanvas

    network = network_of(golden)
    ours = {spec.name: spec.shape for spec in network.variables}
    theirs = {weight["name"]: tuple(weight["shape"]) for weight in golden["weights"]}
    assert ours == theirs, "names or shapes of {} differ from the golden's".format(golden["backbone"])
    size = golden["size"]
    with engine_class(network, Size(size, size), compute, training=True, **options) as engine:
        engine.load_state(weights_of(golden, path, network))
        (prediction,), gradients = engine.gradients([ArrayCanvas(recipe_image(size))], [golden["label"]])
    norms = golden["gradient_l2"]
    assert set(norms) == set(gradients), "trained variables differ from the golden's"
    relative = [_relative(np.linalg.norm(gradients[name].astype(np.float64)), norms[name]) for name in norms]
    probabilities = np.abs(prediction.probabilities - golden["probabilities"]).max()
    return {
        "probabilities": float(probabilities),
        "loss": abs(prediction.loss - golden["loss"]),
        "gradient_max": float(np.max(relative)),
        "gradient_median": float(np.median(relative)),
    }


def _relative(value, reference):
    return abs(value - reference) / reference if reference else abs(value)


def passes(errors, compute):
    """Whether the errors of a measurement are within the bounds of its type; not a number is not."""
    if not errors["probabilities"] <= PROBABILITY_BOUND[compute]:
        return False
    if compute == "float64":
        return errors["gradient_max"] <= GRADIENT_BOUND
    return errors["gradient_median"] <= MEDIAN_GRADIENT_BOUND


def check_h5(path):
    """Backbone of a lone ``.h5``, and what does not fit."""
    from whole_slide_cnn.errors import WeightsError
    from whole_slide_cnn.models.network import BACKBONES, Network
    from whole_slide_cnn.models.weights import load_weights, read_arrays

    arrays = read_arrays(path)
    classes = [value.shape[-1] for name, value in arrays.items() if "output/kernel" in name]
    for backbone in BACKBONES:
        network = Network(backbone, "gmp", "softmax", classes[0] if classes else 3)
        try:
            report = load_weights(path, network)[1]
        except WeightsError:
            continue
        if not (report.missing or report.unexpected or report.mismatched):
            return backbone, report
    return None, None


def main(paths):
    from whole_slide_cnn.engines.table import ENGINES

    failed = 0
    print(
        "{:<34} {:<10} {:<8} {:>13} {:>13} {:>13}".format(
            "golden", "engine", "type", "probabilities", "grad max", "median"
        )
    )
    for path in paths:
        if path.endswith(".h5"):
            backbone, report = check_h5(path)
            print(
                "{:<34} {}".format(
                    os.path.basename(path), "fits {}: {}".format(backbone, report) if backbone else "fits no backbone"
                )
            )
            failed += backbone is None
            continue
        with open(path, encoding="utf-8") as stream:
            golden = json.load(stream)
        for name, engine in ENGINES.items():
            options = {"streaming": {"window": GOLDEN_WINDOW}, "staged": {"tile": GOLDEN_WINDOW}}.get(name, {})
            for compute in ("float64", "float32"):
                errors = measure(golden, path, engine.engine_class(), compute, **options)
                good = passes(errors, compute)
                failed += not good
                print(
                    "{:<34} {:<10} {:<8} {:>13.2e} {:>13.2e} {:>13.2e} {}".format(
                        os.path.basename(path),
                        name,
                        compute,
                        errors["probabilities"],
                        errors["gradient_max"],
                        errors["gradient_median"],
                        "ok" if good else "FAILED",
                    )
                )
    print("goldens: {}".format("all within bounds" if not failed else "{} failed".format(failed)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
