"""graph_tools and tf_um_patch each installed by itself: a wheel of it, and what works without the rest."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STANDALONE = os.path.join(ROOT, "standalone")
NAMES = ("graph_tools", "tf_um_patch")

# Libraries that its description asks for are there; TensorFlow and the toolkit are not, wherever they are installed.
ALONE = """
import importlib, os, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2:]:
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Refuse())
package = importlib.import_module(sys.argv[1])
assert os.path.dirname(os.path.dirname(package.__file__)) == os.getcwd(), package.__file__
skipped = []
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            skipped.append(module.name)
print(" ".join(skipped))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that installs a package from its wheel into a folder with nothing else; it gives the folder."""
    folders = {}

    def install(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            # A copy, since pip builds where the files are.
            source = shutil.copytree(os.path.join(STANDALONE, name), str(folder / "source"), ignore=_made)
            wheels, bare = str(folder / "wheels"), str(folder / "bare")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
            tools = all(importlib.util.find_spec(tool) for tool in ("setuptools", "wheel"))
            here = ["--no-build-isolation"] if tools else []  # else pip fetches them
            run(pip + ["wheel", "--no-deps", "-w", wheels, source] + here)
            (wheel,) = os.listdir(wheels)
            run(pip + ["install", "--no-deps", "--no-index", "--target", bare, os.path.join(wheels, wheel)])
            folders[name] = bare, os.path.join(wheels, wheel)
        return folders[name]

    return install


def _made(folder, names):
    return [name for name in names if name in ("build", "__pycache__") or name.endswith(".egg-info")]


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alone(folder, *arguments):
    """What Python says in the folder of a bare installation."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return run([sys.executable] + list(arguments), cwd=folder, env=dict(environment, PYTHONPATH=folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_wheel_has_all_files_and_nothing_else(installed, name):
    _, wheel = installed(name)
    found = {path for path in zipfile.ZipFile(wheel).namelist() if not path.split("/")[0].endswith(".dist-info")}
    expected = set()
    for folder, _, names in os.walk(os.path.join(ROOT, name)):
        if "__pycache__" not in folder:
            expected |= {os.path.relpath(os.path.join(folder, entry), ROOT) for entry in names}
    assert found == expected


def test_graph_tools_alone(installed):
    """Without TensorFlow graphs are planned; they are read from TensorFlow, and edited, by three modules."""
    folder, _ = installed("graph_tools")
    others = ["tensorflow", "google", "whole_slide_cnn", "tf_um_patch"]
    lacking = set(alone(folder, "-c", ALONE, "graph_tools", *others).split())
    assert lacking <= {"graph_tools.tensorflow." + name for name in ("apply", "extract", "verify")}
    assert "usage: " in alone(folder, "-m", "graph_tools", "--help")


def test_tf_um_patch_alone(installed):
    """``-S``: not even the installed libraries are there."""
    folder, _ = installed("tf_um_patch")
    assert alone(folder, "-S", "-c", ALONE, "tf_um_patch").split() == []
    assert "usage: python -m tf_um_patch run" in alone(folder, "-S", "-m", "tf_um_patch", "--help")
    source = "from tf_um_patch import build, host; build.find_compiler('c'); print(host.host_memory().total_bytes)"
    assert int(alone(folder, "-S", "-c", source)) > 0


def test_the_descriptions_agree(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    given = {}
    for name in ("",) + NAMES:
        monkeypatch.setattr(setuptools, "setup", lambda **values: given.update({values["name"]: values}))
        monkeypatch.chdir(os.path.join(STANDALONE, name) if name else ROOT)
        runpy.run_path("setup.py")
    whole = given["whole_slide_cnn"]
    for name in NAMES:
        part = given[name]
        assert [part[key] for key in ("version", "license")] == [whole[key] for key in ("version", "license")]
        assert part["packages"] == [package for package in whole["packages"] if package.split(".")[0] == name]
        assert part["package_data"] == {name: whole["package_data"][name]}
        assert name + ".tensorflow" in part["packages"] or name != "graph_tools"
