"""Calling commands as a user does."""

import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

from whole_slide_cnn.cli import run_command

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    def sentence(self):
        """The one sentence of a command that refused its input; fails where it did anything else."""
        assert self.code not in (0, None), self.stdout
        assert "Traceback" not in self.stdout + self.stderr, self.stderr
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        assert self.stderr.rstrip().endswith(errors[0]), self.stderr  # nothing after it, such as a second line of it
        return errors[0][len("error: ") :]


@pytest.fixture
def call(capsys):
    """A function (main, *arguments) -> Outcome that calls a command in this process, as its module does."""

    def run(main, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_command(main, [str(argument) for argument in arguments])
        return Outcome(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def launch():
    """A function (module, *arguments, cwd=None) -> Outcome that runs a command in a process of its own."""

    def run(module, *arguments, cwd=None):
        done = subprocess.run(
            (sys.executable, "-m", "whole_slide_cnn." + module) + tuple(str(argument) for argument in arguments),
            cwd=ROOT if cwd is None else str(cwd),
            env=dict(os.environ, PYTHONPATH=ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def own_slides(slide_set, tmp_path):
    """A copy of the data set that a test may spoil: its folder."""
    folder = tmp_path / "set"
    shutil.copytree(slide_set.folder, str(folder))
    return folder


@pytest.fixture(scope="session")
def trained(launch, slide_set, tmp_path_factory):
    """A result folder that ``train`` and then ``test`` have filled, with the outcome of both."""
    folder = tmp_path_factory.mktemp("trained") / "results"
    arguments = "--config", slide_set.path("config.yaml"), "--set", "result_dir={}".format(folder)
    return folder, launch("train", *arguments), launch("test", *arguments)
