"""tools/check_python.py names the first thing a machine lacks, and the Debian package that has it."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest

PATH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools", "check_python.py")


@pytest.fixture
def check(monkeypatch, tmp_path):
    """The module, on a machine that lacks nothing."""
    spec = importlib.util.spec_from_file_location("check_python", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(module, "importable", lambda name: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    return module


@pytest.mark.parametrize("version", [(3, 7), (3, 10), (3, 11), (3, 12), (3, 13)])
def test_a_complete_machine_lacks_nothing(check, version):
    assert check.missing(version) is None


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 8), (3, 9), (3, 14)])
def test_other_versions_are_refused(check, version):
    assert check.missing(version).startswith("Python {}.{} is not supported".format(*version))


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
@pytest.mark.parametrize("version", [(3, 7), (3, 11)])
def test_venv_is_asked_for(check, monkeypatch, module, version):
    monkeypatch.setattr(check, "importable", lambda name: name != module)
    assert "apt-get install python3-venv" in check.missing(version)


def test_openslide_is_asked_for(check, monkeypatch):
    def load(name):
        raise OSError(name + ": cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert "apt-get install libopenslide0" in check.missing((3, 7))
    assert check.missing((3, 11)) is None


def test_compiler_is_asked_for(check, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "apt-get install gcc" in check.missing((3, 7))
    assert check.missing((3, 11)) is None


def test_headers_are_asked_for(check, tmp_path):
    (tmp_path / "Python.h").unlink()
    assert "apt-get install python3.7-dev" in check.missing((3, 7))
    assert check.missing((3, 11)) is None


def test_this_machine_runs_it():
    subprocess.run([sys.executable, PATH], check=True)
