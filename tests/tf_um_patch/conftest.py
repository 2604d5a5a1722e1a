"""The shim, the stand-ins for CUDA's libraries and the programs over them, each compiled once per session."""

import json
import os
import subprocess
import sys

import pytest

from tf_um_patch.build import SOURCES, build_shim, find_compiler

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NATIVE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "native")
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
LIBRARIES = ["-L.", "-l:libcuda.so.1", "-l:libcudart.so.12", "-ldl", "-lpthread"]


@pytest.fixture(scope="session")
def compilers():
    """Skips a test on a machine without compilers."""
    if find_compiler("c") is None or find_compiler("c++") is None:
        pytest.skip("no compiler; install it with: apt-get install gcc g++ libc6-dev")


@pytest.fixture(scope="session")
def shim(library_cache, compilers):
    """Path of the compiled shim."""
    return build_shim()


class Native:
    """A folder with stand-ins and programs; see the first comments in ``native/``."""

    def __init__(self, folder, shim):
        self.folder = str(folder)
        self.shim = shim
        shared = WARNINGS + ["-Wno-pedantic", "-O2", "-g", "-fPIC", "-shared"]
        hidden = shared + ["-fvisibility=hidden"]
        driver = hidden + ["-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic"]
        self.compile("libcuda.so.1", driver, "fake_cuda.c", sources=[os.path.join(NATIVE, "fake_device.c")])
        self.compile("libcudart.so.12", hidden + ["-Wl,-soname,libcudart.so.12"], "fake_cudart.c", "-ldl")
        self.compile("stress", WARNINGS, "stress.c", *LIBRARIES)

    def compile(self, output, flags, source, *libraries, sources=()):
        """Compile one of the files in ``native/``, and others by their paths, to a file in the folder."""
        command = ["gcc"] + flags + ["-o", output, os.path.join(NATIVE, source)] + list(sources) + list(libraries)
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout.decode()
        return self.path(output)

    def path(self, name):
        """A path in the folder."""
        return os.path.join(self.folder, name)

    def environment(self, preload=True, **variables):
        """The environment of a program that finds the stand-ins, with the shim preloaded or not."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TFUM_", "FAKE_"))}
        environment["LD_LIBRARY_PATH"] = self.folder
        environment["PYTHONPATH"] = ROOT
        if preload:
            environment["LD_PRELOAD"] = self.shim
        environment.update({name: str(value) for name, value in variables.items()})
        return environment

    def run(self, *command, preload=True, **variables):
        """A finished program of the folder, or another one by its path; ``variables`` are of its environment."""
        program = self.path(command[0]) if os.path.exists(self.path(command[0])) else command[0]
        return subprocess.run(
            (program,) + command[1:],
            env=self.environment(preload, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=120,
        )

    def python(self, source, *arguments, **variables):
        """What a Python program printed, as JSON."""
        done = self.run(sys.executable, "-c", source, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def native(tmp_path_factory, shim):
    """A :class:`Native`."""
    return Native(tmp_path_factory.mktemp("native"), shim)


@pytest.fixture(scope="session")
def shim_sources():
    """Paths of the shim's C files."""
    folder = os.path.join(SOURCES, "shim")
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".c")]


@pytest.fixture(scope="session")
def read_report():
    """A function that reads the shim's statistics from a file or a text."""

    def read(text):
        if os.path.exists(str(text)):
            with open(str(text), encoding="ascii") as stream:
                text = stream.read()
        return {name: int(value) for name, value in (line.split() for line in text.splitlines())}

    return read
