"""Prove that a change keeps the numbers: record what two checkouts compute, and compare.

    python tools/same_numbers.py record --checkout old --python old/.venv/3.11/bin/python --output before
    python tools/same_numbers.py record --checkout . --python .venv/3.11/bin/python --output after --before before
    python tools/same_numbers.py compare before after

A checkout is driven by its commands, so that one file serves all of them, however they are built inside. Only the
exactness of the engines is asked of the module ``benchmarks/exactness.py``, as its test does: its table has the largest
error of each case, and here every gradient counts. What must differ is left out: times, paths, versions, provenance.

With ``--before`` what an earlier checkout left is used as well: a run that it began goes on, and its weights and plans
are read. Needs NumPy and h5py: run it in either environment of a checkout.
"""

import argparse
import contextlib
import csv
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

ENVIRONMENT, SECONDS, INPUTS = "environment.json", "seconds.json", "inputs"
METADATA_KEY = "metadata"  # of a checkpoint; what it says of paths and times is not compared
DEADLINE = 600  # seconds for a run to come to its next checkpoint
THREADS = "2"  # of an operation, whatever the machine has: how sums are split follows from it

# The configuration of the demo, with as many updates as its few slides are enough for.
CONFIG = """\
result_dir: results
seed: 0
engine: streaming
data:
  classes: [normal, adenocarcinoma]
  train: data/train.csv
  val: data/val.csv
  test: data/test.csv
  slides: data/slides
  mpp: 2.0
  canvas: 256
model:
  backbone: tiny
  pooling: gmp
streaming:
  window: 256
train:
  optimizer: adam
  learning_rate: 5.0e-4
  epochs: 1
  updates_per_epoch: 20
  batch_size: 2
"""
SYNTHESIS = (
    "--classes normal adenocarcinoma --train 20 --val 4 --test 6 --size 512 --mpp 1.0 --tissue 0.4 0.7 "
    "--lesion 0.5 0.8 --seed 0"
)

_UNIFIED = "engine=unified unified.strip_mb=0.3 unified.group_mb=1.5"
_WINDOWS = "data.mpp=1.0 data.canvas=[437,450]"
_FEW = "train.updates_per_epoch=6"
_FOUR_EPOCHS = (
    "train.optimizer=adamw train.learning_rate=2.0e-3 train.min_learning_rate=1.0e-5 train.reduce_patience=1 "
    "train.on_plateau=rollback train.updates_per_epoch=5 train.epochs=4 augment.preset="
)
# What is trained, by name: the keys that differ from the configuration above.
TRAININGS = {
    "streaming": "",
    "direct": "engine=direct",
    "unified": _UNIFIED,
    "unified-recompute": _UNIFIED + " unified.device_gb=0.009",
    "unified-spill": _UNIFIED + " unified.device_gb=0.006 unified.spill_dir=spilled",
    "windows": _WINDOWS + " streaming.window=96",
    "windows-gap-sigmoid": _WINDOWS + " streaming.window=64 model.pooling=gap model.activation=sigmoid " + _FEW,
    "windows-float64": _WINDOWS + " streaming.window=128 model.compute=float64 " + _FEW,
    "windows-bfloat16": _WINDOWS + " streaming.window=128 model.compute=bfloat16 " + _FEW,
    "windows-float16": _WINDOWS + " streaming.window=128 model.compute=float16 " + _FEW,
    "unified-float16": _UNIFIED + " model.compute=float16 " + _FEW,
    "resnet18": _WINDOWS + " streaming.window=128 model.backbone=resnet18 train.updates_per_epoch=3",
    "augmented": _FOUR_EPOCHS + "paper_2021",
    "augmented-windows": _WINDOWS + " streaming.window=96 augment.preset=paper_2022 " + _FEW,
    "augmented-direct": "engine=direct augment.preset=reference_2021 " + _FEW,
}
INTERRUPTED = "augmented"  # what is interrupted, and what an earlier checkout began
DRAWN = ("windows", "windows-gap-sigmoid", "unified")  # of these heat maps, and of the first by ``test``
CONTOUR = "0.6"  # probability at which the contours of these lie

# A project as the implementation published with the paper of 2021 has it.
REFERENCE_CONFIG = """\
RESULT_DIR: "result"
MODEL_PATH: "${RESULT_DIR}/model.h5"
CONFIG_RECORD_PATH: "${RESULT_DIR}/config_record.yaml"
LOAD_MODEL_BEFORE_TRAIN: False
USE_MIXED_PRECISION: False
USE_HMS: False
USE_MIL: False
TRAIN_CSV_PATH: "train.csv"
VAL_CSV_PATH: "val.csv"
TEST_CSV_PATH: "test.csv"
SLIDE_DIR: "../data/slides/"
SLIDE_FILE_EXTENSION: ".tiff"
SLIDE_READER: "openslide"
RESIZE_RATIO: 0.5
INPUT_SIZE: [256, 300, 3]
MODEL: "tiny"
NUM_CLASSES: 2
BATCH_SIZE: 1
EPOCHS: 2
NUM_UPDATES_PER_EPOCH: 3
INIT_LEARNING_RATE: 0.001
POOL_USE: "gmp"
REDUCE_LR_FACTOR: 0.1
REDUCE_LR_PATIENCE: 24
TEST_RESULT_PATH: "${RESULT_DIR}/test_result.json"
ENABLE_VIZ: True
VIZ_SIZE: [100, 120]
VIZ_FOLDER: "${RESULT_DIR}/viz"
"""

PLAN_CONFIG = """\
result_dir: results
data:
  classes: [normal, adenocarcinoma, squamous]
  mpp: 2.0
  canvas: [1536, 1400]
model:
  backbone: fixup_resnet50
streaming:
  window: 512
train:
  batch_size: 8
"""
# All rates are given, so that nothing is measured.
_HOST = "--device host --host-memory 64GB --memory-rate 1e10 --float32-flops 1e11 --half-flops 1e11"
_CRAMPED = "--device V100-32GB --device-memory 1500MB --host-memory 20GB"
# What is planned, by name: options of ``plan``.
PLANS = {
    "gpus": "--device V100-32GB --device T4 --host-memory 768GB",
    "gpu-cramped": _CRAMPED,
    "gpu-cramped-tissue": _CRAMPED + " --tissue 0.3 --set streaming.window=256",
    "gpu-cramped-predict": _CRAMPED + " --predict",
    "gpu-configured": _CRAMPED + " --set unified.device_gb=1.2 --set unified.group_mb=200",
    "gpu-float64": "--device A100-40GB --host-memory 256GB --set model.compute=float64 --set data.canvas=1024",
    "gpu-bfloat16": "--device T4 --device H100-80GB --host-memory 256GB --set model.compute=bfloat16",
    "host": _HOST,
    "host-predict": _HOST + " --predict",
    "host-float64": _HOST + " --set model.compute=float64",
    "host-budget": _HOST + " --set unified.device_gb=3.4 --set unified.group_mb=800",
    "host-spill": _HOST + " --set unified.device_gb=2.0 --set unified.group_mb=500 --set unified.spill_dir=spilled",
    "host-tiny": _HOST + " --set model.backbone=tiny --set unified.strip_mb=4 --set unified.group_mb=40",
    "host-resnet18": _HOST + " --set model.backbone=resnet18 --set model.pooling=gap",
    "host-resnet50": _HOST + " --set model.backbone=resnet50 --tissue 0.25",
    "host-fixup_resnet34": _HOST + " --set model.backbone=fixup_resnet34 --set data.canvas=1100",
    "host-frozenbn_resnet50": _HOST + " --set model.backbone=frozenbn_resnet50",
}
# How the graph of a small step is planned, by name: options of ``graph_tools plan``.
GRAPH_PLANS = {
    "keep": "--choice keep",
    "keep-depth": "--choice keep --depth 3 --order topological",
    "keep-demand": "--choice keep --depth 0 --order demand",
    "remat": "--choice remat",
    "greedy": "--choice greedy",
    "integer": "--choice integer",
    "best": "--choice best",
}
_GRAPH_LIMITS = "--limit 4MB --smallest 64KiB --device-memory 5MB --page 64KiB"
_GRAPH_MACHINE = "--device-memory 5MB --page 64KiB"
REFUSED = "refused.json"  # what is recorded of a plan that there is none of


class NumbersError(Exception):
    """What keeps numbers from being recorded or compared, in one sentence."""


class Checkout:
    """A checkout, driven by its commands in a folder of work.

    Args:
        folder: of the checkout.
        python: the interpreter, of an environment that has what the checkout needs.
        work: folder that commands run in; paths are relative to it.
    """

    def __init__(self, folder: str, python: str, work: str):
        self.folder, self.python, self.work = os.path.abspath(folder), os.path.abspath(python), work
        if not os.path.isfile(os.path.join(self.folder, "whole_slide_cnn", "train.py")):
            raise NumbersError("{} is no checkout; name the folder that holds whole_slide_cnn".format(folder))
        if not os.access(self.python, os.X_OK):
            raise NumbersError("{} cannot be run; name the Python of an environment".format(python))

    def path(self, *parts: str) -> str:
        """A file of the checkout."""
        return os.path.join(self.folder, *parts)

    def environment(self) -> Dict[str, str]:
        """What commands run in: nothing in it depends on the machine's cores, GPU or time."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TF_"))}
        for name in ("OMP", "OPENBLAS", "MKL"):
            environment[name + "_NUM_THREADS"] = THREADS
        environment.update(
            PYTHONPATH=os.pathsep.join((self.folder, self.path("benchmarks"))),
            PYTHONHASHSEED="0",
            PYTHONDONTWRITEBYTECODE="1",
            TF_NUM_INTRAOP_THREADS=THREADS,
            TF_CPP_MIN_LOG_LEVEL="3",
            TF_UM_PATCH_CACHE=os.path.join(self.work, "cache"),
            CUDA_VISIBLE_DEVICES="",
        )
        return environment

    def start(self, words: Sequence[str], cwd: Optional[str] = None) -> subprocess.Popen:
        """Start a command: the words after ``python``."""
        return subprocess.Popen(
            [self.python] + list(words),
            cwd=cwd or self.work,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )

    def run(self, words: Sequence[str], codes: Sequence[int] = (0,), cwd: Optional[str] = None) -> str:
        """Standard output of a command.

        Raises:
            NumbersError: it ends with another exit code than those.
        """
        with self.start(words, cwd) as process:
            output, errors = process.communicate()
        if process.returncode not in codes:
            said = (errors.strip().splitlines() or output.strip().splitlines() or ["nothing said"])[-1]
            name = " ".join(os.path.basename(word) for word in words[:3])
            raise NumbersError("'{}' ended with exit code {}: {}".format(name, process.returncode, said))
        return output

    def call(self, command: str, *words: str, **how) -> str:
        """Standard output of a command of ``whole_slide_cnn``."""
        return self.run(("-m", "whole_slide_cnn." + command) + words, **how)

    def helper(self, command: str, *words: str) -> str:
        """Standard output of a command of this file, run by the checkout's Python."""
        return self.run((os.path.abspath(__file__), command) + words)

    def describe(self) -> Dict[str, str]:
        """What numbers may depend on besides the code: versions, processor, cores. Not compared, but told."""
        return json.loads(self.helper("describe").splitlines()[-1])


class Item:
    """The folder of one item of a record; an earlier one is replaced."""

    def __init__(self, folder: str):
        self.folder = folder
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.makedirs(folder)

    def text(self, name: str, text: str):
        """Write a text."""
        with open(os.path.join(self.folder, name), "w", encoding="utf-8", newline="") as stream:
            stream.write(text)

    def values(self, name: str, value):
        """Write plain values as JSON; floats keep all digits."""
        self.text(name, json.dumps(value, indent=1, sort_keys=True) + "\n")

    def arrays(self, name: str, arrays: Dict[str, np.ndarray]):
        """Write arrays, and beside them their digests."""
        np.savez(os.path.join(self.folder, name + ".npz"), **arrays)
        self.values(name + ".sha256.json", {key: digest(value) for key, value in arrays.items()})

    def table(self, name: str, path: str, without: Sequence[str] = ()):
        """Copy a CSV file, without some columns."""
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
        kept = [index for index, title in enumerate(rows[0]) if title not in without]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[row[index] for index in kept] for row in rows])
        self.text(name, text.getvalue())


class Workplace:
    """A folder where a checkout makes slides and trains on them, each once and when it is first asked for.

    Attributes:
        before: the record of an earlier checkout whose files are used, or None for this one's own.
    """

    def __init__(self, checkout: Checkout, output: str, before: Optional[str], goldens: Sequence[str]):
        self.checkout, self.goldens = checkout, [os.path.abspath(path) for path in goldens]
        self._output, self._before = os.path.abspath(output), before and os.path.abspath(before)
        self._made: Dict[str, Any] = {}

    def path(self, *parts: str) -> str:
        """A file of the folder."""
        return os.path.join(self.checkout.work, *parts)

    def inputs(self, *parts: str) -> str:
        """A file that this checkout leaves to later ones."""
        path = os.path.join(self._output, INPUTS, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def given(self, *parts: str) -> str:
        """A file that an earlier checkout left, or this one.

        Raises:
            NumbersError: there is none.
        """
        path = os.path.join(self._before or self._output, INPUTS, *parts)
        if not os.path.exists(path):
            raise NumbersError("there is no {}; record everything first, or name a record by --before".format(path))
        return path

    def once(self, name: str, make: Callable[[], Any]):
        """What ``make`` gives, or raises, the first time."""
        if name not in self._made:
            try:
                self._made[name] = make()
            except NumbersError as error:
                self._made[name] = error
        if isinstance(self._made[name], NumbersError):
            raise self._made[name]
        return self._made[name]

    def slides(self) -> str:
        """Folder of the synthetic slides, with the configuration beside it."""
        return self.once("slides", self._synthesize)

    def _synthesize(self):
        write(self.path("config.yaml"), CONFIG)
        write(self.path("plan.yaml"), PLAN_CONFIG)
        # exit code 1: so few slides may be told apart by their colour, which does not matter here
        self.checkout.call("synthesize", "--output", "data", *SYNTHESIS.split(), codes=(0, 1))
        return self.path("data")

    def words(self, name: str, folder: str, *more: str) -> Tuple[str, ...]:
        """Arguments of ``train``, ``test`` and ``heatmap`` for one of the trainings."""
        settings = ("result_dir=" + folder, "train.tensorboard=false") + tuple(TRAININGS[name].split()) + more
        return ("--config", "config.yaml") + tuple(word for setting in settings for word in ("--set", setting))

    def trained(self, name: str) -> Tuple[str, str]:
        """Result folder of a training, relative to the folder of work, and what it said."""
        return self.once("training " + name, lambda: self._train(name))

    def _train(self, name):
        self.slides()
        folder = "results-" + name
        return folder, self.checkout.call("train", *self.words(name, folder))


def write(path: str, text: str):
    """Write a text file, and the folder that it is in."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)


def digest(values: np.ndarray) -> str:
    """SHA-256 of an array: of its type, shape and every bit."""
    values = np.asarray(values)
    found = hashlib.sha256("{} {} ".format(values.dtype.str, values.shape).encode("ascii"))
    found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def file_digest(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def read_json(path: str):
    """The value of a JSON file."""
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def checkpoint_arrays(path: str) -> Dict[str, np.ndarray]:
    """Weights and optimiser state of a checkpoint."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if not name.strip("_").startswith(METADATA_KEY)}
    return {name: value for name, value in arrays.items() if value.dtype.kind != "U"}


def weight_arrays(path: str) -> Dict[str, np.ndarray]:
    """Arrays of a Keras file, by their path in it."""
    import h5py

    found: Dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as stored:
        stored.visititems(lambda name, value: found.update({name: value[()]}) if hasattr(value, "dtype") else None)
    return found


_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")


def numbers_of(text: str, containing: str = "") -> str:
    """The numbers of a text, a line for each line that has some: they stay where words change.

    Args:
        containing: only lines that contain it.
    """
    lines = (" ".join(_NUMBER.findall(line)) for line in text.splitlines() if containing in line)
    return "".join(line + "\n" for line in lines if line)


# What is recorded. Each function writes one item.


def record_slides(place: Workplace, item: Item):
    """Slides, masks and lists that ``synthesize`` makes, and what it says of them; lists that ``split`` makes."""
    folder = place.slides()
    item.values("files.json", tree_digests(folder, (".tiff", ".png", ".csv")))
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            item.values(name, without(read_json(os.path.join(folder, name)), "versions", "arguments"))
    place.checkout.call("split", "--manifest", "data/train.csv", "--output", "split", "--seed", "3")
    item.values("split.json", tree_digests(place.path("split"), (".csv",)))


def tree_digests(folder: str, endings: Tuple[str, ...]) -> Dict[str, str]:
    """Digests of the files below a folder, by their path in it."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(endings):
                path = os.path.join(parent, name)
                found[os.path.relpath(path, folder).replace(os.sep, "/")] = file_digest(path)
    return found


def without(value, *keys: str):
    """A JSON value without some keys, wherever they are."""
    if isinstance(value, dict):
        return {key: without(part, *keys) for key, part in value.items() if key not in keys}
    return [without(part, *keys) for part in value] if isinstance(value, list) else value


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
    words = place.words(INTERRUPTED, "results-interrupted", "train.checkpoint_every_updates=1") + ("--resume",)
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
    place.checkout.call("train", *place.words(INTERRUPTED, "results-half", "train.epochs=2"))
    keep_run(place.path("results-half"), item)
    for name in ("last.npz", "best.npz", "best.h5", "log.csv"):
        shutil.copy(place.path("results-half", name), place.inputs("half-run", name))


def record_carried_on(place: Workplace, item: Item):
    """A run that an earlier checkout began, gone on with; and scores of its weights, in either form."""
    place.slides()
    shutil.copytree(os.path.dirname(place.given("half-run", "last.npz")), place.path("results-carried"))
    for name in ("best.h5", "best.npz"):
        words = place.words(INTERRUPTED, "scored-" + name)
        place.checkout.call("test", "--checkpoint", place.given("half-run", name), *words)
        item.table("scores-{}.csv".format(name), place.path("scored-" + name, "test", "scores.csv"))
    place.checkout.call("train", *place.words(INTERRUPTED, "results-carried"), "--resume")
    keep_run(place.path("results-carried"), item)


def record_scores(name: str, place: Workplace, item: Item):
    """Scores, cases and the report with its intervals of the test list; of the first training also of validation."""
    folder, _ = place.trained(name)
    for split in ("test", "val") if name == next(iter(TRAININGS)) else ("test",):
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
    words = place.words(name, folder) + ("--masks", "data/masks", "--threshold", CONTOUR, "--output", output)
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
    folder, _ = place.trained(DRAWN[0])
    words = place.words(DRAWN[0], folder, "outputs.heatmaps=drawn", "outputs.heatmap_size=[200,180]")
    place.checkout.call("test", *words)
    keep_heatmaps(place.path("drawn"), item)


def record_reference_form(place: Workplace, item: Item):
    """Training, scores and heat maps of a configuration in the form of the 2021 reference implementation."""
    place.slides()
    folder = place.path("reference")
    write(os.path.join(folder, "config.yaml"), REFERENCE_CONFIG)
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
    write(place.path("plan.yaml"), PLAN_CONFIG)
    words = ("--config", "plan.yaml") + tuple(PLANS[name].split())
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
    place.checkout.run(words + tuple(_GRAPH_LIMITS.split()) + tuple(GRAPH_PLANS[name].split()), codes=(0, 2))
    path = place.path(name + ".json")
    if not os.path.exists(path):  # by the integer program, where SciPy has no solver
        item.values(REFUSED, True)
        return
    item.values("plan.json", read_json(path))
    shutil.copy(path, place.inputs("plans", name + ".json"))
    simulated(place, ("graph.json", name + ".json"), item)


def simulated(place: Workplace, files: Sequence[str], item: Item):
    """Simulate a graph, and record the result."""
    words = ("-m", "graph_tools", "simulate") + tuple(files) + tuple(_GRAPH_MACHINE.split())
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
    for name in TRAININGS:
        yield "training/" + name, of(record_training, name)
    yield "resume/interrupted", record_interrupted
    yield "resume/half-run", record_half_run
    yield "resume/carried-on", record_carried_on
    for name in TRAININGS:
        yield "scores/" + name, of(record_scores, name)
    for name in DRAWN:
        yield "heatmaps/" + name, of(record_heatmaps, name)
    yield "heatmaps/by-test", record_drawn_by_test
    yield "reference-form", record_reference_form
    yield "graph/extracted", record_graph
    yield "graph/plain", record_plain
    for name in GRAPH_PLANS:
        yield "graph/" + name, of(record_graph_plan, name)
        yield "graph/{}-given".format(name), of(record_given_plan, name)
    for name in PLANS:
        yield "plans/" + name, of(record_plan, name)
    yield "goldens", record_goldens
    yield "exactness/quick", of(record_exactness, "quick")
    yield "published-figures", record_published_figures
    yield "exactness/streaming", of(record_exactness, "streaming")
    yield "exactness/unified", of(record_exactness, "unified")


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


def matches(name: str, pattern: str) -> bool:
    """Whether the name of an item, or the folder that it is in, is meant by a pattern."""
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + "/")


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


# What the checkout's Python runs.


def describe(options) -> int:
    """Print what numbers depend on besides the code, as JSON."""
    import platform

    import scipy
    import tensorflow

    processor = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
        processor = next((line.split(":")[1].strip() for line in stream if line.startswith("model name")), "")
    found = {"python": platform.python_version(), "processor": processor, "cores": str(os.cpu_count())}
    found.update({module.__name__: module.__version__ for module in (np, scipy, tensorflow)})
    print(json.dumps(found))
    return 0


def export_graph(options) -> int:
    """Save the graph of a training step of a small network: convolutions, branches, a sum and a maximum."""
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    random = np.random.RandomState(0)
    with tf.Graph().as_default():
        image = tf.placeholder(tf.float32, (1, 192, 192, 3), "image")
        at, variables = image, []
        for layer in range(8):
            channels = 8 if layer < 5 else 16
            shape = (3, 3, at.shape.as_list()[3], channels)
            kernel = tf.get_variable(
                "kernel{}".format(layer), initializer=tf.constant(random.randn(*shape), tf.float32)
            )
            bias = tf.get_variable("bias{}".format(layer), initializer=tf.constant(random.randn(channels), tf.float32))
            variables += [kernel, bias]
            stride = 2 if layer == 5 else 1
            after = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(at, kernel, [1, stride, stride, 1], "SAME"), bias))
            at = at + after if layer in (2, 4, 7) else after
        pooled = tf.reduce_max(tf.nn.max_pool2d(at, 2, 2, "SAME"), axis=(1, 2))
        gradients = tf.gradients(tf.reduce_sum(pooled, name="loss"), variables)
        with tf.control_dependencies([tf.identity(value) for value in gradients]):
            train = tf.group(*[v.assign_sub(1e-3 * g) for v, g in zip(variables, gradients)], name="train")
        tf.add_to_collection(tf.GraphKeys.TRAIN_OP, train)
        tf.train.export_meta_graph(options.path)
    return 0


def exactness(options) -> int:
    """Write errors and results of every engine on the cases of the benchmark, as JSON."""
    import exactness as benchmark

    quick, float32 = options.which == "quick", []
    if quick:
        cases, names = [case for case in benchmark.CASES if not case.slow], benchmark.compared_engines()
        float32 = benchmark.FLOAT32_CASES
    else:
        cases, names = [case for case in benchmark.CASES if case.slow], [options.which]
    errors: Dict[str, Any] = {}
    results: Dict[str, Any] = {}
    for case in cases:
        reference = benchmark.compute("direct", case)
        results["direct {}".format(case)] = digests_of(reference)
        for name in names:
            key = "{} {}".format(name, case)
            try:
                found = benchmark.compute(name, case)
            except Exception as error:  # such as where an engine has nothing to compute again
                errors[key] = {"refused": str(error)}
                continue
            error, where = benchmark.largest_error(found, reference)
            errors[key], results[key] = {"error": error, "where": where}, digests_of(found)
    for case in float32:
        for name in names:
            errors["float32 {} {}".format(name, case)] = {"ratio": benchmark.float32_ratio(name, case)}
    write(os.path.abspath(options.path), json.dumps({"errors": errors, "results": results}))
    return 0


def digests_of(result) -> Dict[str, Any]:
    """Losses, and digests of gradients and weights, of a result of the benchmark."""
    found = {
        part: {key: digest(value) for key, value in getattr(result, part).items()} for part in ("gradients", "weights")
    }
    return dict(found, losses=[float(loss) for loss in result.losses])


# Comparing.


class Difference(NamedTuple):
    """Where two records differ.

    Attributes:
        place: file, and where in it.
        what: in words.
        relative: of two numbers or arrays, the difference over the larger; None for what is no number.
    """

    place: str
    what: str
    relative: Optional[float] = None


def compare(options) -> int:
    """Print a table of all items; exit code 1 where anything differs or is missing."""
    renamed = dict(renaming(text) for text in options.rename)
    before, after = (names_in(folder) for folder in (options.before, options.after))
    wanted = [name for name in sorted(set(before) | set(after)) if matches_any(name, options.only)]
    if not wanted:
        raise NumbersError("there is nothing to compare in {} and {}".format(options.before, options.after))
    for line in notes(options.before, options.after):
        print("note: " + line)
    different = 0
    for name in wanted:
        if name not in before or name not in after:
            said = "missing " + ("before" if name not in before else "after")
        else:
            folders = [os.path.join(folder, *name.split("/")) for folder in (options.before, options.after)]
            count, found = compare_items(folders[0], folders[1], renamed, options.added)
            said = summary(count, found)
        different += not said.startswith(SAME)
        print("{:<34} {}".format(name, said))
    print(
        "{} items: {}".format(len(wanted), "{} differ".format(different) if different else "all the same, bit for bit")
    )
    return 1 if different else 0


SAME = "same"


def matches_any(name: str, patterns: Optional[Sequence[str]]) -> bool:
    """Whether a name is meant by one of some patterns; all are where there are none."""
    return not patterns or any(matches(name, pattern) for pattern in patterns)


def renaming(text: str) -> Tuple[str, str]:
    """The two names of ``old=new``."""
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise NumbersError("'{}' renames nothing; write it as in old=new".format(text))
    return old, new


def names_in(folder: str) -> List[str]:
    """The items of a record: folders that hold files.

    Raises:
        NumbersError: it is none.
    """
    if not os.path.isfile(os.path.join(folder, ENVIRONMENT)):
        raise NumbersError("{} is no record; make one by: same_numbers.py record".format(folder))
    found = []
    for parent, folders, names in os.walk(folder):
        if parent == folder:
            folders[:] = [name for name in folders if name != INPUTS]
        elif names:
            found.append(os.path.relpath(parent, folder).replace(os.sep, "/"))
    return found


def notes(before: str, after: str) -> Iterator[str]:
    """What else differs between two records."""
    old, new = (read_json(os.path.join(folder, ENVIRONMENT)) for folder in (before, after))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            yield "{} was {} before and is {} after".format(key, old.get(key), new.get(key))


def compare_items(
    before: str, after: str, renamed: Dict[str, str], added: Sequence[str] = ()
) -> Tuple[int, List[Difference]]:
    """How many values two items have together, and where they differ. Values only the later one has are left out where
    a key that they are below is named as added."""
    old, new = flat(before, renamed), flat(after, {})
    for place in [place for place in new if place not in old]:
        if set(place.partition(": ")[2].split("/")) & set(added):
            del new[place]
    found = []
    for place in list(old) + [place for place in new if place not in old]:
        if place not in new or place not in old:
            found.append(Difference(place, "missing " + ("after" if place not in new else "before")))
        else:
            found += differences(place, old[place], new[place])
    return len(set(old) | set(new)), found


def flat(folder: str, renamed: Dict[str, str]) -> Dict[str, Any]:
    """All values of an item by their places: numbers, texts and arrays."""
    found: Dict[str, Any] = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(".npz"):
            with np.load(path) as stored:
                parts = {renamed.get(key, key): stored[key] for key in stored.files}
        elif name.endswith(".json"):
            parts = dict(leaves(read_json(path), renamed))
        else:
            with open(path, encoding="utf-8", newline="") as stream:
                rows = csv.reader(stream) if name.endswith(".csv") else (line.split() for line in stream)
                cells = [
                    ("{}/{}".format(r + 1, c + 1), cell) for r, row in enumerate(rows) for c, cell in enumerate(row)
                ]
            parts = {place: reworded(cell, renamed) for place, cell in cells}
        found.update({"{}: {}".format(name, place): value for place, value in parts.items()})
    return found


def leaves(value, renamed: Dict[str, str], place: str = "") -> Iterator[Tuple[str, Any]]:
    """Numbers and texts of a JSON value, by their places; keys, and words of texts, renamed."""
    if isinstance(value, (dict, list)) and not value:
        yield place, "empty"
    elif isinstance(value, dict):
        for key, part in value.items():
            for leaf in leaves(part, renamed, "/".join(filter(None, (place, renamed.get(key, key))))):
                yield leaf
    elif isinstance(value, list):
        for index, part in enumerate(value):
            for leaf in leaves(part, renamed, "/".join(filter(None, (place, str(index))))):
                yield leaf
    else:
        yield place, reworded(value, renamed) if isinstance(value, str) else value


def reworded(text: str, renamed: Dict[str, str]) -> str:
    """A text with some of its words replaced."""
    for old, new in renamed.items():
        text = re.sub(r"(?<!\w){}(?!\w)".format(re.escape(old)), lambda _, new=new: new, text)
    return text


def differences(place: str, old, new) -> Iterator[Difference]:
    """The difference of two values, if there is one."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        if digest(old) != digest(new):
            alike = old.dtype == new.dtype and old.shape == new.shape and old.dtype.kind in "fiub"
            what = "array" if alike else "{} {} became {} {}".format(old.dtype, old.shape, new.dtype, new.shape)
            yield Difference(place, what, array_difference(old, new) if alike else None)
        return
    numbers = [as_number(old), as_number(new)]
    if None in numbers:
        if old != new or type(old) is not type(new):
            yield Difference(place, "'{}' became '{}'".format(old, new))
    elif repr(numbers[0]) != repr(numbers[1]):
        yield Difference(place, "{} became {}".format(old, new), array_difference(*map(np.array, numbers)))


def as_number(value) -> Optional[float]:
    """A number, or the number that a text states; None for anything else. Whole numbers stay whole: they may have more
    digits than a float."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, float) or abs(value) > 2**53 else float(value)


def array_difference(old: np.ndarray, new: np.ndarray) -> float:
    """The largest difference of two arrays of one shape over the largest magnitude in either; infinite where only one
    of two values is finite."""
    old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
    if (np.isfinite(old) != np.isfinite(new)).any():
        return float("inf")
    old, new = (np.where(np.isfinite(values), values, 0.0) for values in (old, new))
    largest = max(np.abs(old).max(), np.abs(new).max())
    return float(np.abs(old - new).max() / largest) if largest else 0.0


def summary(count: int, found: List[Difference]) -> str:
    """What is said of an item in the table."""
    if not found:
        return "{}, {} values".format(SAME, count)
    numbers = [difference for difference in found if difference.relative is not None]
    others = [difference for difference in found if difference.relative is None]
    parts = []
    if numbers:
        worst = max(numbers, key=lambda difference: difference.relative)
        parts.append("largest relative difference {:.1e} ({}; {})".format(worst.relative, worst.place, worst.what))
    if others:
        parts.append("{} ({}{})".format(others[0].what, others[0].place, "; and others" if len(others) > 1 else ""))
    return "{} of {} values differ: {}".format(len(found), count, "; ".join(parts))


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="{record,compare}")
    commands.required = True
    recorder = commands.add_parser("record", help="record what a checkout computes")
    recorder.add_argument("--checkout", required=True, metavar="FOLDER", help="the checkout")
    recorder.add_argument("--python", required=True, metavar="PATH", help="the Python of an environment for it")
    recorder.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder to write; earlier items are replaced"
    )
    recorder.add_argument(
        "--only", nargs="+", metavar="NAME", help="items, such as training or 'plans/host*'; default: all"
    )
    recorder.add_argument(
        "--before", metavar="RECORD", help="record of an earlier checkout whose runs and plans to use"
    )
    recorder.add_argument(
        "--goldens", nargs="+", default=[], metavar="FILE", help="results of the published implementation"
    )
    recorder.set_defaults(run=record)
    comparer = commands.add_parser("compare", help="compare two records")
    comparer.add_argument("before", metavar="BEFORE", help="a record")
    comparer.add_argument("after", metavar="AFTER", help="a record")
    comparer.add_argument("--only", nargs="+", metavar="NAME", help="items to compare; default: all")
    comparer.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a key, or words of a text, and what they are after; may be repeated",
    )
    comparer.add_argument(
        "--added",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that is new, and not compared; may be repeated",
    )
    comparer.set_defaults(run=compare)
    helper = commands.add_parser("describe")
    helper.set_defaults(run=describe)
    helper = commands.add_parser("export-graph")
    helper.add_argument("path")
    helper.set_defaults(run=export_graph)
    helper = commands.add_parser("exactness")
    helper.add_argument("which", choices=("quick", "streaming", "unified"))
    helper.add_argument("path")
    helper.set_defaults(run=exactness)
    return parser


def main(arguments=None) -> int:
    """Run one of the commands; returns the exit code. Errors of the input are one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except NumbersError as error:
        print("error: {}".format(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
