"""Compiles the shim and the operations, once per compiler, source and TensorFlow, into a cache of the user's."""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from tf_um_patch.errors import BuildError

CACHE_VARIABLE = "TF_UM_PATCH_CACHE"
SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc")
INSTALL = "install one with: apt-get install gcc g++ libc6-dev"

# dlsym must leave its caller's return address alone (see csrc/shim/interpose.c), hence the sibling calls; the thread's
# variables are reached without a call that could allocate.
_SHIM_FLAGS = ["-std=c11", "-O2", "-g", "-fPIC", "-shared", "-Wl,-z,defs", "-Wl,-soname,libtfum.so"]
_SHIM_FLAGS += ["-foptimize-sibling-calls", "-ftls-model=initial-exec"]
_SHIM_LIBRARIES = ["-ldl", "-lpthread"]
_MOVES_FLAGS = ["-std=c11", "-O2", "-g", "-fPIC"]


class Compiler(NamedTuple):
    """A compiler of this machine.

    Attributes:
        command: how it is called.
        version: the first line of what it says about itself.
    """

    command: Tuple[str, ...]
    version: str


def find_compiler(language: str) -> Optional[Compiler]:
    """The compiler for ``c`` or ``c++``, or None: the one that CC or CXX names, else gcc or g++, cc or c++."""
    variable, names = {"c": ("CC", ("gcc", "cc")), "c++": ("CXX", ("g++", "c++"))}[language]
    given = shlex.split(os.environ.get(variable, ""))
    for command in [given] if given else [[name] for name in names]:
        if shutil.which(command[0]) is None:
            continue
        said = subprocess.run(command + ["--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if said.returncode == 0:
            return Compiler(tuple(command), said.stdout.decode("utf-8", "replace").split("\n")[0])
    return None


def cache_folder() -> str:
    """Where compiled libraries are kept: ``$TF_UM_PATCH_CACHE``, or ``tf_um_patch`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.abspath(os.environ.get(CACHE_VARIABLE) or os.path.join(home, "tf_um_patch"))


def build_shim() -> str:
    """Path of ``libtfum.so``, compiled if it was not yet.

    Raises:
        BuildError: there is no C compiler, it fails, or the cache cannot be written.
    """
    compiler = _compiler_or_raise("c", "the shim")
    if re.search(r"[\s:]", cache_folder()):
        raise BuildError(
            "the dynamic linker takes no path with a space or a colon, as that of the cache {}: set {} to another "
            "folder".format(cache_folder(), CACHE_VARIABLE)
        )
    sources = _files("shim", ".c")
    exports = os.path.join(SOURCES, "shim", "exports.map")
    command = list(compiler.command) + _SHIM_FLAGS + ["-Wl,--version-script=" + exports]
    return _cached("libtfum.so", compiler, [command + sources + _SHIM_LIBRARIES])


def build_moves() -> str:
    """Path of a library of the code by which the operations move memory, compiled if it was not yet; no TensorFlow.

    Raises:
        BuildError: there is no C compiler, it fails, or the cache cannot be written.
    """
    compiler = _compiler_or_raise("c", "the code that moves memory")
    command = list(compiler.command) + _MOVES_FLAGS + ["-shared"] + _files("operations", ".c") + _SHIM_LIBRARIES
    return _cached("libtfum_moves.so", compiler, [command])


def build_operations(tensorflow: Any) -> str:
    """Path of the operations' library for the imported TensorFlow, compiled if it was not yet.

    Args:
        tensorflow: the module, which says with which headers, libraries and C++ ABI it was built.

    Raises:
        BuildError: there is no C++ compiler, it fails, or the cache cannot be written.
    """
    c_compiler = _compiler_or_raise("c", "the operations")
    compiler = _compiler_or_raise("c++", "the operations")
    major = int(tensorflow.__version__.split(".")[0])
    # TensorFlow 1.15 does not name the standard that its headers need, and they are not free of warnings.
    flags = ["-std=c++11"] if major == 1 else []
    flags += tensorflow.sysconfig.get_compile_flags()
    flags += ["-DTFUM_TENSORFLOW_MAJOR={}".format(major)]
    flags += ['-DTFUM_BUILT_FOR="{}"'.format(built_for(tensorflow))]
    return _cached(
        "libtfum_operations.so",
        compiler,
        [
            list(c_compiler.command) + _MOVES_FLAGS + ["-c"] + _files("operations", ".c"),
            list(compiler.command)
            + ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-w"]
            + flags
            + _files("operations", ".cc")
            + ["migrate.o"]
            + tensorflow.sysconfig.get_link_flags()
            + _SHIM_LIBRARIES,
        ],
    )


def built_for(tensorflow: Any) -> str:
    """What a library of operations must have been compiled against, in words."""
    flags = " ".join(tensorflow.sysconfig.get_compile_flags())
    abi = re.search(r"-D_GLIBCXX_USE_CXX11_ABI=(\d)", flags)
    return "TensorFlow {}, C++11 ABI {}".format(tensorflow.__version__, abi.group(1) if abi else "1")


def _compiler_or_raise(language: str, what: str) -> Compiler:
    compiler = find_compiler(language)
    if compiler is None:
        raise BuildError("no {} compiler is found, so {} cannot be built: {}".format(language.upper(), what, INSTALL))
    return compiler


def _files(folder: str, extension: str) -> List[str]:
    folder = os.path.join(SOURCES, folder)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(extension)]


def _cached(name: str, compiler: Compiler, commands: Sequence[Sequence[str]]) -> str:
    """Path of a library in the cache; the commands run in a folder of their own, the last one makes the library.

    The folder's name follows from all that goes into the library. It is renamed into place when it is complete, so that
    processes may build at the same time and none sees half a library.
    """
    digest = hashlib.sha256(repr((compiler.version, platform.machine(), commands)).encode("utf-8"))
    for parent, folders, names in os.walk(SOURCES):
        folders.sort()
        for source in sorted(names):
            with open(os.path.join(parent, source), "rb") as stream:
                digest.update(stream.read())
    cache = cache_folder()
    final = os.path.join(cache, digest.hexdigest()[:16])
    path = os.path.join(final, name)
    if os.path.exists(path):
        return path
    try:
        os.makedirs(cache, exist_ok=True)
        scratch = tempfile.mkdtemp(dir=cache)
    except OSError as error:
        raise BuildError(
            "the cache {} cannot be written ({}): set {} to a folder that can".format(
                cache, error.strerror, CACHE_VARIABLE
            )
        ) from error
    try:
        for command in commands[:-1]:
            _run(command, scratch)
        _run(list(commands[-1]) + ["-o", name], scratch)
        try:
            os.rename(scratch, final)
        except OSError:
            if not os.path.exists(path):  # another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _run(command: Sequence[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()
        errors = [line for line in said if "error" in line] or said or ["no message"]
        raise BuildError(
            "{} fails with: {}; use another compiler by CC or CXX, or {}".format(command[0], errors[0].strip(), INSTALL)
        )
