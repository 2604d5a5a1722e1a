"""A tiny data set that several folders of tests share."""

import contextlib
import csv
import importlib.util
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from whole_slide_cnn.config import load_config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLASSES = ("normal", "tumor")
SLIDES = {"train": 6, "val": 4, "test": 6}
CONFIG = """\
result_dir: results
data:
  classes: [normal, tumor]
  train: train.csv
  val: val.csv
  test: test.csv
  slides: slides
  extension: .tif
  mpp: 1.0
  canvas: [192, 208]
model:
  backbone: tiny
  class0_bias: 0.0
streaming:
  window: 96
train:
  learning_rate: 1.0e-3
  epochs: 2
  updates_per_epoch: 3
  batch_size: 2
"""


class SlideSet:
    """A folder with slides, data lists and a configuration.

    Attributes:
        folder: it holds ``config.yaml``, ``train.csv``, ``val.csv``, ``test.csv`` and ``slides/``.
    """

    def __init__(self, folder):
        self.folder = str(folder)
        os.makedirs(self.path("slides"))
        for split, count in SLIDES.items():
            names = ["{}-{}".format(split, index) for index in range(count)]
            for index, name in enumerate(names):
                write_slide(self.path("slides", name + ".tif"), label=index % 2, seed=len(split) * 100 + index)
            write_list(self.path(split + ".csv"), [(name, CLASSES[i % 2]) for i, name in enumerate(names)])
        with open(self.path("config.yaml"), "w", encoding="utf-8") as stream:
            stream.write(CONFIG)

    def path(self, *parts):
        """A path in the folder."""
        return os.path.join(self.folder, *parts)

    def config(self, result_dir, *overrides):
        """The configuration with another result folder and overrides such as ``train.epochs=1``."""
        return load_config(self.path("config.yaml"), ["result_dir={}".format(result_dir)] + list(overrides))


def write_slide(path, label, seed, size=(150, 170), mpp=1.0):
    """A tiled TIFF: tissue on white, with a checkerboard in it where ``label`` is 1.

    Args:
        mpp: µm/px to state, or None to state nothing.
    """
    random = np.random.RandomState(seed)
    pixels = np.full(size + (3,), 255, np.uint8)
    tissue = pixels[20 : size[0] - 30, 25 : size[1] - 25]
    tissue[...] = random.randint(150, 220, (1, 1, 3)) + random.randint(-25, 26, tissue.shape)
    if label:
        top, left = random.randint(0, 40, 2)
        rows, columns = np.indices((48, 48)) // 6
        tissue[top : top + 48, left : left + 48][(rows + columns) % 2 == 0] = 40
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    if mpp is not None:
        options.update(_resolution(1e4 / mpp))
    with tifffile.TiffWriter(str(path)) as tiff:
        tiff.write(pixels, **options)


def write_list(path, rows):
    """A data list from (slide_id, label) or (slide_id, label, mpp); every slide is a case of its own."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("case_id", "slide_id", "label", "mpp"))
        for row in rows:
            writer.writerow((row[0],) + tuple(row) + ("",) * (3 - len(row)))


def _resolution(pixels_per_centimetre):
    if int(tifffile.__version__.split(".")[0]) < 2022:
        return {"resolution": (pixels_per_centimetre, pixels_per_centimetre, "CENTIMETER")}
    return {"resolution": (pixels_per_centimetre, pixels_per_centimetre), "resolutionunit": "CENTIMETER"}


@pytest.fixture(scope="session", autouse=True)
def library_cache(tmp_path_factory):
    """The cache of compiled libraries of this session, which leaves the user's alone. For all tests: a process can load
    the operations of one cache only."""
    folder = str(tmp_path_factory.mktemp("cache"))
    patch = pytest.MonkeyPatch()
    patch.setenv("TF_UM_PATCH_CACHE", folder)
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def slide_set(tmp_path_factory):
    """A :class:`SlideSet` that no test changes."""
    return SlideSet(tmp_path_factory.mktemp("slide-set"))


@pytest.fixture(scope="session")
def make_slide():
    """The function :func:`write_slide`."""
    return write_slide


@pytest.fixture(scope="session")
def make_list():
    """The function :func:`write_list`."""
    return write_list


MPI_SECONDS = 240  # a hang is a failure


@pytest.fixture(scope="session")
def mpi_launcher():
    """The words that start two processes, and the environment for them."""
    if shutil.which("mpirun") is None:
        pytest.skip("there is no mpirun")
    if not any(map(importlib.util.find_spec, ("horovod", "mpi4py"))):
        pytest.skip("neither Horovod nor mpi4py is installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
    environment.update(
        PYTHONPATH=ROOT, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", CUDA_VISIBLE_DEVICES=""
    )
    return ("mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none"), environment


@pytest.fixture(scope="session")
def mpirun(mpi_launcher):
    """A function (*arguments of Python) that runs them in two processes: exit code, standard output and error."""
    words, environment = mpi_launcher

    def run(*arguments):
        with subprocess.Popen(
            words + (sys.executable,) + tuple(map(str, arguments)),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            start_new_session=True,
        ) as launcher:
            try:
                output, errors = launcher.communicate(timeout=MPI_SECONDS)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)  # nothing of it outlives the test
        return launcher.returncode, output, errors

    return run
