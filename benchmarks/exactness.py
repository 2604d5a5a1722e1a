"""How exactly every engine computes what ``direct`` computes: ``make exactness``.

Each case runs a network with random weights on a canvas, with every engine, and compares loss, every gradient and,
for the tiny backbone, the weights after three steps with ``direct``. In float64 each tensor must agree to a relative L2
error of 1e-9 (tensors that are zero absolutely). In float32, where rounding flips choices, the error of all gradients
together against float64 may be at most twice that of ``direct`` (median over five seeds).
"""

import argparse
import functools
import json
import os
import sys
import time
from typing import Dict, NamedTuple, Tuple

import numpy as np

FLOAT64_BOUND = 1e-9
FLOAT32_RATIO = 2.0
FLOAT32_SEEDS = 5
RECOMPUTING = "unified-recomputing"  # the engine with room for a share of what it would hold otherwise: the first that
RECOMPUTING_SHARES = (0.85, 0.95, 0.98)  # can be met
STEPS = 3
SMALL_AREA = 10**4  # px: below it maps of any network are cut into strips as small as those of the tiny one


class Case(NamedTuple):
    """A network on a canvas.

    Attributes:
        tissue: where it lies: corner (touches two borders), inside (touches none), everywhere, band (from the right
            border inwards), patch (small, in the middle), none (all white), or pair (corner and inside, as a batch of
            two slides).
        window: side of a streaming window's core in pixels.
        slow: takes more than seconds.
    """

    backbone: str
    pooling: str
    activation: str
    height: int
    width: int
    tissue: str
    window: int
    slow: bool = False

    def __str__(self) -> str:
        return "{}-{}-{}-{}x{}-{}-w{}".format(*self[:7])


def _cases():
    for pooling in ("gmp", "gap"):
        # canvas sides that are and are not multiples of 32, odd and even: SAME padding depends on it
        for height, width in ((320, 320), (333, 450), (450, 289)):
            for tissue in ("corner", "inside", "everywhere", "none", "pair"):
                yield Case("tiny", pooling, "softmax", height, width, tissue, 96)
        yield Case("tiny", pooling, "sigmoid", 333, 450, "inside", 64)
        yield Case("tiny", pooling, "softmax", 700, 611, "inside", 32)  # windows and blank cells far from any border
        yield Case("tiny", pooling, "softmax", 97, 1000, "band", 128)
        for backbone in REAL_BACKBONES:
            slow = pooling == "gap" or backbone not in ("resnet18", "fixup_resnet50")
            yield Case(backbone, pooling, "softmax", 149, 170, "corner", 64, slow)
            yield Case(backbone, pooling, "softmax", 160, 96, "none", 64, slow=True)
        # the paper's own network, small enough for every run of the tests all the same
        yield Case("fixup_resnet50", pooling, "softmax", 65, 97, "corner", 64, slow=True)
    for backbone, field in REAL_BACKBONES.items():
        # room for a window and for a blank cell that touch no border; wide fields need wide windows to be affordable
        window = 128 if field < 600 else 256
        room = 2 * window - 33
        yield Case(backbone, "gmp", "softmax", field + room, 2 * field + room, "patch", window, slow=True)


REAL_BACKBONES = {
    "resnet18": 435,
    "resnet50": 427,
    "fixup_resnet34": 899,
    "fixup_resnet50": 483,
    "frozenbn_resnet50": 483,
}
CASES = tuple(_cases())
FLOAT32_CASES = tuple(case for case in CASES if case.backbone == "tiny" and case.tissue in ("inside", "corner"))[:6]


def random_weights(network, seed: int) -> Dict[str, np.ndarray]:
    """Random weights without the zeros of an initialisation, so that every layer has a gradient."""
    values = {}
    for index, spec in enumerate(network.variables):
        value = np.random.RandomState([seed, index]).standard_normal(spec.shape)
        if spec.name.endswith("kernel"):
            value = value * 0.6 * np.sqrt(2.0 / np.prod(spec.shape[:-1]))
            if network.backbone == "frozenbn_resnet50" and spec.name == "conv1_conv/kernel":
                value = value * 0.01  # its input is not scaled to unit range
        else:
            value = 0.02 * value
        if spec.name.endswith(("gamma", "weight", "variance")):
            value = 1.0 + value
        values[spec.name] = value
    return values


def images(case: Case, seed: int):
    """The slides of a case: noise on white, uint8."""
    kinds = ("corner", "inside") if case.tissue == "pair" else (case.tissue,)
    return [_image(case, kind, seed + index) for index, kind in enumerate(kinds)]


def _image(case: Case, tissue: str, seed: int) -> np.ndarray:
    image = np.full((case.height, case.width, 3), 255, np.uint8)
    height, width = case.height, case.width
    parts = {
        "corner": (slice(0, height // 2), slice(0, width // 3)),
        "inside": (slice(height // 3, height // 2), slice(width // 3, width // 2)),
        "everywhere": (slice(None), slice(None)),
        "band": (slice(None), slice(width - width // 2 + 40, width)),
        "patch": (slice(height // 2 - 20, height // 2 + 20), slice(width // 2 + 20, width // 2 + 60)),
    }
    if tissue in parts:
        image[parts[tissue]] = np.random.RandomState(seed).randint(0, 256, image[parts[tissue]].shape)
    return image


@functools.lru_cache(maxsize=4)
def make_engine(name: str, case: Case, compute: str):
    """An engine for a case, with Adam for the tiny network. Building graphs takes longer than running them, so that
    cases which differ in tissue only share one."""
    from whole_slide_cnn.engines.table import ENGINES
    from whole_slide_cnn.errors import ConfigError
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.running.optimisers import Adam
    from whole_slide_cnn.sizes import Size

    network, size = Network(case.backbone, case.pooling, case.activation, 3), Size(case.height, case.width)
    engine = ENGINES[name.split("-")[0]].engine_class()
    options = {"streaming": {"window": case.window}, "staged": {"tile": case.window}}.get(name, {})
    if name in ("unified", RECOMPUTING):  # several strips of every large map, and dozens of groups
        small = case.height * case.width < SMALL_AREA
        options = {"strip_mb": 0.3 if small or case.backbone == "tiny" else 2}
        options["group_mb"] = 1.5 if case.backbone == "tiny" else 30
    # Steps are compared on the tiny network only: an optimiser makes graphs of a large one twice as slow to build. A
    # large epsilon, since Adam's first steps are signs of gradients, which no bound on gradients can hold to.
    optimiser = Adam(1e-3, epsilon=0.1) if case.backbone == "tiny" else None
    make = functools.partial(engine, network, size, compute, **options)
    if name != RECOMPUTING:
        return make(optimiser=optimiser, training=True)
    with make(training=True) as plain:
        held = max(group.bytes + group.carried_bytes for group in plain.plan.groups)
    for share in RECOMPUTING_SHARES:
        try:
            engine = make(optimiser=optimiser, training=True, device_gb=share * held / 1e9)
        except ConfigError:  # on a small canvas most of what is held are weights, which cannot be dropped
            continue
        if engine.plan.recomputes:
            return engine
    raise AssertionError("nothing is computed again in {}".format(case))


class Result(NamedTuple):
    """What an engine computed: loss per slide, gradients, and weights after three steps."""

    losses: np.ndarray
    gradients: Dict[str, np.ndarray]
    weights: Dict[str, np.ndarray]


def compute(name: str, case: Case, dtype: str = "float64", seed: int = 0) -> Result:
    """Loss, gradients and weights after some steps of one engine on a case."""
    from whole_slide_cnn.slides.canvas import ArrayCanvas

    canvases = [ArrayCanvas(image) for image in images(case, seed)]
    labels = [1 + index for index in range(len(canvases))]
    engine = make_engine(name, case._replace(tissue="", slow=False), dtype)
    engine.initialise()
    engine.load_state(random_weights(engine.network, seed))
    predictions, gradients = engine.gradients(canvases, labels)
    for _ in range(STEPS if case.backbone == "tiny" and dtype == "float64" else 0):
        engine.train_batch(canvases, labels)
    return Result(np.array([prediction.loss for prediction in predictions]), gradients, engine.weights())


def largest_error(result: Result, reference: Result) -> Tuple[float, str]:
    """The largest error of loss, any gradient or any weight, and where it is."""
    errors = {"loss": relative_error(result.losses, reference.losses)}
    errors.update(("gradient " + n, relative_error(result.gradients[n], v)) for n, v in reference.gradients.items())
    errors.update(("weight " + n, relative_error(result.weights[n], v)) for n, v in reference.weights.items())
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def relative_error(value, reference) -> float:
    """Relative L2 error, absolute where the reference is zero; infinite where something is not a number."""
    size = np.linalg.norm(reference)
    error = np.linalg.norm(np.asarray(value, np.float64) - reference) / (size if size else 1.0)
    return float(error) if np.isfinite(error) else float("inf")


def float32_ratio(name: str, case: Case) -> float:
    """Error of an engine's float32 gradients against float64, over that of ``direct``; median over seeds."""
    ratios = []
    for seed in range(FLOAT32_SEEDS):
        exact, direct = _direct_in_float32(case, seed)
        error = relative_error(_concatenated(compute(name, case, "float32", seed)), exact)
        ratios.append(error / direct if direct else float(error > 0))
    return float(np.median(ratios))


@functools.lru_cache(maxsize=FLOAT32_SEEDS)  # for the engines of a case, which follow each other
def _direct_in_float32(case: Case, seed: int) -> Tuple[np.ndarray, float]:
    """Gradients of ``direct`` in float64, and the error of its float32 gradients against them."""
    exact = _concatenated(compute("direct", case, "float64", seed))
    return exact, relative_error(_concatenated(compute("direct", case, "float32", seed)), exact)


def approximation(name: str, dtype: str, case: Case, seeds: int = FLOAT32_SEEDS) -> float:
    """Error of all gradients of an engine, computed in a type, against float64; median over seeds."""
    errors = []
    for seed in range(seeds):
        exact = _concatenated(compute("direct", case, "float64", seed))
        errors.append(relative_error(_concatenated(compute(name, case, dtype, seed)), exact))
    return float(np.median(errors))


def print_approximations():
    """What computing in fewer bits costs: a table of :func:`approximation`."""
    from whole_slide_cnn.engines.table import ENGINES

    print("{:<10} {:<10} {:<44} {:>8}".format("engine", "type", "case", "error"))
    for case in FLOAT32_CASES[:1] + FLOAT32_CASES[3:4]:
        for dtype in ("float32", "bfloat16", "float16"):
            for name in ENGINES:
                error = approximation(name, dtype, case)
                print("{:<10} {:<10} {:<44} {:>8.1e}".format(name, dtype, str(case), error), flush=True)


def _concatenated(result: Result) -> np.ndarray:
    return np.concatenate([np.ravel(result.gradients[name]).astype(np.float64) for name in sorted(result.gradients)])


def compared_engines():
    """Every engine but the oracle, and variants of one, which are named engine-variant."""
    from whole_slide_cnn.engines.table import ENGINES

    return [name for name in ENGINES if name != "direct"] + [RECOMPUTING]


def engines_of(case: Case):
    """Those that are compared on a case. Of a real network on a small canvas weights are most of what is held, and
    there is nothing to compute again."""
    small = case.height * case.width < SMALL_AREA and case.backbone != "tiny"
    return [name for name in compared_engines() if not (small and name == RECOMPUTING)]


def run(cases, float32_cases):
    """Rows of the table, one per engine and case."""
    for case in cases:
        reference = compute("direct", case)
        for name in engines_of(case):
            started = time.time()
            error, where = largest_error(compute(name, case), reference)
            yield _row(name, case, "float64", error, FLOAT64_BOUND, where, started)
    for case in float32_cases:
        for name in compared_engines():
            started = time.time()
            yield _row(name, case, "float32", float32_ratio(name, case), FLOAT32_RATIO, "ratio to direct", started)


def _row(name, case, dtype, error, bound, where, started):
    row = {"engine": name, "type": dtype, "error": error, "bound": bound, "where": where, "passed": error <= bound}
    row.update(case._asdict(), seconds=round(time.time() - started, 1))
    print(
        "{:<20} {:<8} {:<52} {:>10.2e} {} {}".format(
            name, dtype, str(case), error, "ok    " if row["passed"] else "FAILED", where
        ),
        flush=True,
    )
    return row


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="leave out the cases that take more than seconds")
    parser.add_argument("--types", action="store_true", help="instead: the error of float32, bfloat16 and float16")
    options = parser.parse_args(arguments)
    if options.types:
        print_approximations()
        return 0
    rows = list(run([case for case in CASES if not (options.quick and case.slow)], FLOAT32_CASES))
    failed = [row for row in rows if not row["passed"]]
    for dtype in ("float64", "float32"):
        chosen = [row["error"] for row in rows if row["type"] == dtype]
        print("{}: {} cases, largest {:.2e}".format(dtype, len(chosen), max(chosen)))
    if options.json:
        from whole_slide_cnn.files import write_text

        write_text(options.json, json.dumps({"rows": rows, "passed": not failed}, indent=2) + "\n")
        print("table: {}".format(os.path.abspath(options.json)))
    print("exactness: {}".format("all within bounds" if not failed else "{} FAILED".format(len(failed))))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
