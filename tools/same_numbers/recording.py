"""Recording: each function writes one item, and :func:`items` names them all."""

import contextlib
import csv
import json
import os
import shutil
import signal
import tempfile
import time
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from . import recipes
from .checkout import Checkout, Workplace
from .files import (
    ENVIRONMENT,
    SECONDS,
    Item,
    NumbersError,
    checkpoint_arrays,
    matches,
    numbers_of,
    read_json,
    tree_digests,
    weight_arrays,
    without,
    write,
)

DEADLINE = 600  # seconds for a run to come to its next checkpoint
REFUSED = "refused.json"  # what is recorded of a plan that there is none of


def record_slides(place: Workplace, item: Item):
    """Slides, masks and lists that ``synthesize`` makes, and what it says of them; lists that ``split`` makes."""
    folder = place.slides()
    item.values("files.json", tree_digests(folder, (".tiff", ".png", ".csv")))
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            item.values(name, without(read_json(os.path.join(folder, name)), "versions", "arguments"))
    place.checkout.call("split", "--manifest", "data/train.csv", "--output", "split", "--seed", "3")
    item.values("split.json", tree_digests(place.path("split"), (".csv",)))


def record_training(name: str, place: Workplace, item: Item):
    """Weights and optimiser after the updates, the best epoch's, the log, and the memory that was stated before."""
    folder, said = place.trained(name)
    keep_run(place.path(folder), item)
    item.text("stated.txt", numbers_of(said, "predicted peak memory"))


def keep_run(folder: str, item: Item):
    """Record what a training left in its folder."""
    item.arrays("last", checkpoint_arrays(os.path.join(folder, "last.npz")))
    item.arrays("best", checkpoint_arrays(os.path.join(folder, "best.npz")))
    item.arrays("weights", weight_arrays(os.path.join(folder, "best.h5")))
    item.table("log.csv", os.path.join(folder, "log.csv"), ("seconds", "slides_per_minute"))


def record_interrupted(place: Workplace, item: Item):
    """The same run, killed, stopped by SIGTERM, and gone on with."""
    place.slides()
    words = place.words(recipes.INTERRUPTED, "results-interrupted", "train.checkpoint_every_updates=1") + ("--resume",)
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
        interrupt(place.checkout, ("-m", "whole_slide_cnn.train") + words, number, code)
    place.checkout.call("train", *words)
    keep_run(place.path("results-interrupted"), item)


def interrupt(checkout: Checkout, words: Sequence[str], number: int, code: int):
    """Start a training and send it a signal after its second checkpoint.

    Raises:
        NumbersError: it ends by itself, or with another exit code.
    """
    path = os.path.join(checkout.work, "results-interrupted", "last.npz")
    with checkout.start(words) as process:
        for _ in range(2):
            seen, end = modified(path), time.monotonic() + DEADLINE
            while process.poll() is None and modified(path) == seen and time.monotonic() < end:
                time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate()
    if process.returncode != code:
        said = (errors.strip().splitlines() or ["nothing said"])[-1]
        raise NumbersError("an interrupted training ended with exit code {}: {}".format(process.returncode, said))


def modified(path: str):
    """What changes when a file is replaced."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def record_half_run(place: Workplace, item: Item):
    """The first half of a run, which is left to later checkouts."""
    place.slides()
    place.checkout.call("train", *place.words(recipes.INTERRUPTED, "results-half", "train.epochs=2"))
    keep_run(place.path("results-half"), item)
    for name in ("last.npz", "best.npz", "best.h5", "log.csv"):
        shutil.copy(place.path("results-half", name), place.inputs("half-run", name))


def record_carried_on(place: Workplace, item: Item):
    """A run that an earlier checkout began, gone on with; and scores of its weights, in either form."""
    place.slides()
    shutil.copytree(os.path.dirname(place.given("half-run", "last.npz")), place.path("results-carried"))
    for name in ("best.h5", "best.npz"):
        words = place.words(recipes.INTERRUPTED, "scored-" + name)
        place.checkout.call("test", "--checkpoint", place.given("half-run", name), *words)
        item.table("scores-{}.csv".format(name), place.path("scored-" + name, "test", "scores.csv"))
    place.checkout.call("train", *place.words(recipes.INTERRUPTED, "results-carried"), "--resume")
    keep_run(place.path("results-carried"), item)


def record_scores(name: str, place: Workplace, item: Item):
    """Scores, cases and the report with its intervals of the test list; of the first training also of validation."""
    folder, _ = place.trained(name)
    for split in ("test", "val") if name == next(iter(recipes.TRAININGS)) else ("test",):
        said = place.checkout.call("test", *place.words(name, folder), "--split", split)
        keep_scores(place.path(folder, split), split, item)
    item.text("stated.txt", numbers_of(said, "predicted peak memory"))


def keep_scores(folder: str, name: str, item: Item):
    """Record what ``test`` left in a folder."""
    item.table(name + "-scores.csv", os.path.join(folder, "scores.csv"))
    item.table(name + "-cases.csv", os.path.join(folder, "cases.csv"))
    item.values(name + "-report.json", read_json(os.path.join(folder, "report.json")))
    item.values(name + "-figures.json", tree_digests(folder, (".png",)))


def record_heatmaps(name: str, place: Workplace, item: Item):
    """Maps, where their cells lie, contours, agreement with the masks; digests of the pictures."""
    folder, _ = place.trained(name)
    output = "heatmaps-" + name
    words = place.words(name, folder) + ("--masks", "data/masks", "--threshold", recipes.CONTOUR, "--output", output)
    place.checkout.call("heatmap", *words)
    keep_heatmaps(place.path(output), item)
    for table in ("localisation.csv", "thresholds.csv"):
        item.table(table, place.path(output, table))


def keep_heatmaps(folder: str, item: Item):
    """Record the heat maps of the slides in a folder."""
    slides = sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    if not slides:
        raise NumbersError("no heat map was drawn")
    item.arrays("maps", {slide: np.load(os.path.join(folder, slide, "map.npy")) for slide in slides})
    for name, ending in (("placement", "map.json"), ("contours", "contours.geojson")):
        found = {slide: read_json(os.path.join(folder, slide, ending)) for slide in slides}
        item.values(name + ".json", without(found, "origin"))
    item.values("pictures.json", tree_digests(folder, (".png", ".tiff")))


def record_drawn_by_test(place: Workplace, item: Item):
    """Heat maps that ``test`` draws of the slides that it has scored."""
    folder, _ = place.trained(recipes.DRAWN[0])
    words = place.words(recipes.DRAWN[0], folder, "outputs.heatmaps=drawn", "outputs.heatmap_size=[200,180]")
    place.checkout.call("test", *words)
    keep_heatmaps(place.path("drawn"), item)


def record_reference_form(place: Workplace, item: Item):
    """Training, scores and heat maps of a configuration in the form of the 2021 reference implementation."""
    place.slides()
    folder = place.path("reference")
    write(os.path.join(folder, "config.yaml"), recipes.REFERENCE_CONFIG)
    for split in ("train", "val", "test"):
        with open(place.path("data", split + ".csv"), encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        lines = ["{},{}\n".format(os.path.splitext(r["slide_id"])[0], int(r["label"] != "normal")) for r in rows]
        write(os.path.join(folder, split + ".csv"), "".join(lines))
    for command in ("train", "test"):
        place.checkout.call(command, "--config", "config.yaml", "--set", "engine=streaming", cwd=folder)
    result = os.path.join(folder, "result")
    item.arrays("last", checkpoint_arrays(os.path.join(result, "last.npz")))
    item.arrays("model", weight_arrays(os.path.join(result, "model.h5")))
    rows = read_json(os.path.join(result, "test_result.json"))
    item.values("test_result.json", [dict(row, slide_path=os.path.basename(row["slide_path"])) for row in rows])
    keep_heatmaps(os.path.join(result, "viz"), item)


def record_plan(name: str, place: Workplace, item: Item):
    """Memory, time and recommendation that ``plan`` writes, and the numbers that it prints."""
    write(place.path("plan.yaml"), recipes.PLAN_CONFIG)
    words = ("--config", "plan.yaml") + tuple(recipes.PLANS[name].split())
    said = place.checkout.call("plan", *words, "--json", "plan.json", codes=(0, 1))
    item.values("plan.json", read_json(place.path("plan.json")))
    item.text("printed.txt", numbers_of(said))


def record_graph(place: Workplace, item: Item):
    """Operations of a small training step, as ``graph_tools extract`` reads them."""
    item.values("graph.json", read_json(extracted(place)))
    shutil.copy(extracted(place), place.inputs("graph.json"))


def extracted(place: Workplace) -> str:
    """The graph of a small training step."""
    return place.once("graph", lambda: _extract(place))


def _extract(place):
    place.checkout.helper("export-graph", "step.meta")
    place.checkout.run(("-m", "graph_tools", "extract", "step.meta", "graph.json"))
    return place.path("graph.json")


def record_graph_plan(name: str, place: Workplace, item: Item):
    """A plan of that graph, and its simulation."""
    extracted(place)
    words = ("-m", "graph_tools", "plan", "graph.json", name + ".json")
    place.checkout.run(
        words + tuple(recipes.GRAPH_LIMITS.split()) + tuple(recipes.GRAPH_PLANS[name].split()), codes=(0, 2)
    )
    path = place.path(name + ".json")
    if not os.path.exists(path):  # by the integer program, where SciPy has no solver
        item.values(REFUSED, True)
        return
    item.values("plan.json", read_json(path))
    shutil.copy(path, place.inputs("plans", name + ".json"))
    simulated(place, ("graph.json", name + ".json"), item)


def simulated(place: Workplace, files: Sequence[str], item: Item):
    """Simulate a graph, and record the result."""
    words = ("-m", "graph_tools", "simulate") + tuple(files) + tuple(recipes.GRAPH_MACHINE.split())
    place.checkout.run(words + ("--json", "simulation.json", "--trace", "trace.json"))
    item.values("simulation.json", read_json(place.path("simulation.json")))
    item.values("trace.json", read_json(place.path("trace.json")))


def record_plain(place: Workplace, item: Item):
    """The simulation of that graph without a plan."""
    extracted(place)
    simulated(place, ("graph.json",), item)


def record_given_plan(name: str, place: Workplace, item: Item):
    """The simulation of a graph and a plan that an earlier checkout wrote."""
    if not os.path.exists(os.path.join(place.given("plans"), name + ".json")):
        item.values(REFUSED, True)
        return
    simulated(place, (place.given("graph.json"), place.given("plans", name + ".json")), item)


def record_exactness(which: str, place: Workplace, item: Item):
    """Errors of every engine, and digests of each loss, gradient and weight."""
    place.checkout.helper("exactness", which, place.path("exactness.json"))
    found = read_json(place.path("exactness.json"))
    item.values("errors.json", found["errors"])
    item.values("results.json", found["results"])


def record_goldens(place: Workplace, item: Item):
    """The table of results of the published implementation."""
    if not place.goldens:
        raise NumbersError("name the files by --goldens")
    said = place.checkout.run((place.checkout.path("tests", "goldens.py"),) + tuple(place.goldens), codes=(0, 1))
    item.text("goldens.txt", "".join(" ".join(line.split()) + "\n" for line in said.splitlines()))


def record_published_figures(place: Workplace, item: Item):
    """The planner's figures beside the papers'."""
    path = place.path("published.json")
    place.checkout.run((place.checkout.path("benchmarks", "published_figures.py"), "--json", path), codes=(0, 1))
    item.values("figures.json", {row["what"]: row for row in read_json(path)})


Make = Callable[[Workplace, Item], None]


def items() -> Iterator[Tuple[str, Make]]:
    """Everything that is recorded, by name, in the order in which it is made."""

    def of(make, name):
        return lambda place, item: make(name, place, item)

    yield "slides", record_slides
    for name in recipes.TRAININGS:
        yield "training/" + name, of(record_training, name)
    yield "resume/interrupted", record_interrupted
    yield "resume/half-run", record_half_run
    yield "resume/carried-on", record_carried_on
    for name in recipes.TRAININGS:
        yield "scores/" + name, of(record_scores, name)
    for name in recipes.DRAWN:
        yield "heatmaps/" + name, of(record_heatmaps, name)
    yield "heatmaps/by-test", record_drawn_by_test
    yield "reference-form", record_reference_form
    yield "graph/extracted", record_graph
    yield "graph/plain", record_plain
    for name in recipes.GRAPH_PLANS:
        yield "graph/" + name, of(record_graph_plan, name)
        yield "graph/{}-given".format(name), of(record_given_plan, name)
    for name in recipes.PLANS:
        yield "plans/" + name, of(record_plan, name)
    yield "goldens", record_goldens
    yield "published-figures", record_published_figures
    for name in recipes.EXACTNESS:
        yield "exactness/" + name, of(record_exactness, name)


def chosen(only: Optional[Sequence[str]]) -> List[Tuple[str, Make]]:
    """The items of some names, folders or patterns; all by default.

    Raises:
        NumbersError: a name is none.
    """
    everything = list(items())
    for pattern in only or ():
        if not any(matches(name, pattern) for name, _ in everything):
            names = ", ".join(sorted({name.split("/")[0] for name, _ in everything}))
            raise NumbersError("there is nothing to record named {}; the names are {}".format(pattern, names))
    return [(name, make) for name, make in everything if not only or any(matches(name, part) for part in only)]


def record(options) -> int:
    """Record a checkout; exit code 1 where something could not be recorded."""
    steps = chosen(options.only)
    with contextlib.ExitStack() as stack:
        work = os.path.realpath(stack.enter_context(tempfile.TemporaryDirectory()))
        checkout = Checkout(options.checkout, options.python, work)
        place = Workplace(checkout, options.output, options.before, options.goldens)
        os.makedirs(options.output, exist_ok=True)
        write(
            os.path.join(os.path.abspath(options.output), ENVIRONMENT), json.dumps(checkout.describe(), indent=1) + "\n"
        )
        failed = [name for name, make in steps if not record_item(name, make, place, options.output)]
    print("recorded {} of {} items: {}".format(len(steps) - len(failed), len(steps), options.output))
    if failed:
        print("not recorded: {}".format(", ".join(failed)))
    return 1 if failed else 0


def record_item(name: str, make: Make, place: Workplace, output: str) -> bool:
    """Record one item, and say how long it took; whether that worked."""
    started, folder = time.monotonic(), os.path.join(output, *name.split("/"))
    print("{:<34}".format(name), end=" ", flush=True)
    try:
        make(place, Item(folder))
    except (NumbersError, OSError, KeyError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        print("not recorded: {}".format(error), flush=True)
        return False
    seconds = round(time.monotonic() - started, 1)
    print("{:>8.1f} s".format(seconds), flush=True)
    path = os.path.join(output, SECONDS)
    known = read_json(path) if os.path.exists(path) else {}
    write(os.path.abspath(path), json.dumps(dict(known, **{name: seconds}), indent=1) + "\n")
    return True
