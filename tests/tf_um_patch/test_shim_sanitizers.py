"""The stress program under the sanitizers: make sanitize.

The shim is linked in, since a preloaded one would be called before the sanitizer is ready. For the same reason its
dlsym has another name here, by which the stress program calls it.
"""

import os

import pytest

from tf_um_patch.build import SOURCES

FLAGS = ["-std=c11", "-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-rdynamic"]
LIBRARIES = ["-L.", "-l:libcuda.so.1", "-l:libcudart.so.12", "-ldl", "-lpthread"]


@pytest.fixture(scope="session", params=["address,undefined", "thread"])
def sanitized(request, native, shim_sources):
    """The stress program with a sanitizer in it and in the shim."""
    flags = FLAGS + ["-fsanitize=" + request.param, "-Ddlsym=tfum_dlsym"]
    return native.compile("stress-" + request.param, flags, "stress.c", *LIBRARIES, sources=shim_sources)


@pytest.mark.parametrize("route", ["symbol", "dlsym", "proc_address", "old_proc_address", "runtime"])
def test_contract(native, sanitized, route, tmp_path):
    variables = {"TFUM_CEILING": 32 << 20, "TFUM_TRACE": tmp_path / "trace", "TFUM_REPORT": tmp_path / "report"}
    # A child of fork holds the parent's threads that had ended but were not joined yet, which it calls leaks.
    done = native.run(sanitized, route, preload=False, TSAN_OPTIONS="report_thread_leaks=0", **variables)
    assert done.returncode == 0, done.stderr
    assert "Sanitizer" not in done.stderr


@pytest.mark.parametrize(
    "sanitizer, faults", [("address,undefined", ""), ("address,undefined", "wide"), ("thread", "")]
)
def test_moves(native, sanitizer, faults):
    flags = FLAGS + ["-fsanitize=" + sanitizer, "-I", SOURCES]
    sources = [os.path.join(SOURCES, "operations", "migrate.c")]
    program = native.compile("moves-" + sanitizer, flags, "moves.c", *LIBRARIES, sources=sources)
    done = native.run(program, preload=False, FAKE_CUDA_FAULTS=faults)
    assert done.returncode == 0, done.stderr
    assert "Sanitizer" not in done.stderr
