"""A checkout that is driven by its commands, and where it makes what is recorded."""

import json
import os
import subprocess
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from . import recipes
from .files import INPUTS, NumbersError, write

THREADS = "2"  # of an operation, whatever the machine has: how sums are split follows from it
TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where a checkout finds this package


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
            PYTHONPATH=os.pathsep.join((self.folder, self.path("benchmarks"), TOOLS)),
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
        """Standard output of a command of :mod:`same_numbers.inside`, run by the checkout's Python."""
        return self.run(("-m", "same_numbers.inside", command) + words)

    def describe(self) -> Dict[str, str]:
        """What numbers may depend on besides the code: versions, processor, cores. Not compared, but told."""
        return json.loads(self.helper("describe").splitlines()[-1])


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
        write(self.path("config.yaml"), recipes.CONFIG)
        write(self.path("plan.yaml"), recipes.PLAN_CONFIG)
        # exit code 1: so few slides may be told apart by their colour, which does not matter here
        self.checkout.call("synthesize", "--output", "data", *recipes.SYNTHESIS.split(), codes=(0, 1))
        return self.path("data")

    def words(self, name: str, folder: str, *more: str) -> Tuple[str, ...]:
        """Arguments of ``train``, ``test`` and ``heatmap`` for one of the trainings."""
        settings = ("result_dir=" + folder, "train.tensorboard=false") + tuple(recipes.TRAININGS[name].split()) + more
        return ("--config", "config.yaml") + tuple(word for setting in settings for word in ("--set", setting))

    def trained(self, name: str) -> Tuple[str, str]:
        """Result folder of a training, relative to the folder of work, and what it said."""
        return self.once("training " + name, lambda: self._train(name))

    def _train(self, name):
        self.slides()
        folder = "results-" + name
        return folder, self.checkout.call("train", *self.words(name, folder))
