"""The shim keeps the contract of CUDA's allocation functions, on every route by which programs reach them."""

import json
import os
import re
import subprocess
import sys

import pytest

from tf_um_patch.build import SOURCES

ROUTES = ("symbol", "dlsym", "proc_address", "old_proc_address", "runtime")
CEILING = 32 << 20
LARGE = 4 << 20

# A Python program over the stand-in driver. Its calls go through dlsym, as ctypes does.
PRELUDE = """
import ctypes, json, os
cuda = ctypes.CDLL("libcuda.so.1")
from tf_um_patch.shim import statistics
def take(bytes):
    address = ctypes.c_uint64()
    return cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(bytes)), address
def memory():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    return cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), free.value, total.value
def start():
    context = ctypes.c_void_p()
    assert not cuda.cuInit(0) and not cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    assert not cuda.cuCtxSetCurrent(context)
"""


@pytest.fixture(scope="session")
def linked(native, shim_sources):
    """The stress program with the shim linked in instead of preloaded."""
    options = ["-std=c11", "-O2", "-g", "-rdynamic"]
    libraries = ["-L.", "-l:libcuda.so.1", "-l:libcudart.so.12", "-ldl", "-lpthread"]
    return native.compile("stress-linked", options, "stress.c", *libraries, sources=shim_sources)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("how", ["preloaded", "linked"])
def test_contract_by_every_route(native, linked, read_report, tmp_path, how, route):
    report = str(tmp_path / "report")
    program = "stress" if how == "preloaded" else linked
    done = native.run(program, route, preload=how == "preloaded", TFUM_CEILING=CEILING, TFUM_REPORT=report)
    assert done.returncode == 0, done.stderr
    found = read_report(report)
    counted = {name for name, calls in found.items() if name.split(".")[0] in ("cuMemAlloc_v2", "cudaMalloc") and calls}
    expected = {"runtime": "cudaMalloc.symbol", "old_proc_address": "cuMemAlloc_v2.proc_address"}
    assert counted == {expected.get(route, "cuMemAlloc_v2." + route)}
    assert found["used_bytes"] == found["live_allocations"] == 0
    assert 0 < found["peak_bytes"] <= CEILING


def test_the_stress_program_notices_that_there_is_no_shim(native):
    done = native.run("stress", "symbol", preload=False, TFUM_CEILING=CEILING)
    assert done.returncode == 1 and "statistic" in done.stderr


@pytest.mark.parametrize("runtime", ["libcudart.so.12", "libunusual.so"])
def test_under_a_library_of_stubs_as_tensorflow_is_one(native, read_report, runtime):
    flags = ["-std=c11", "-fPIC", "-shared"]
    native.compile("libstubs.so", flags + ['-DRUNTIME="{}"'.format(runtime)], "stubs.c", "-ldl")
    native.compile("libunusual.so", flags + ["-fvisibility=hidden"], "fake_cudart.c", "-ldl")
    native.compile("libafter.so", ["-std=c11", "-fPIC", "-shared", "-DLANDMARK"], "stubs.c")
    native.compile("client", ["-std=c11"], "client.c", "-L.", "-Wl,--no-as-needed", "-lstubs", "-lafter", "-ldl")
    done = native.run("client")
    assert done.returncode == 0, done.stderr
    found = read_report(done.stdout)
    # RTLD_NEXT means "after the library that calls", not "after the shim".
    assert found.pop("landmark") == 2
    assert {name: calls for name, calls in found.items() if "." in name} == {
        "cudaMalloc.symbol": 2,
        "cudaFree.symbol": 2,
        "cuMemAlloc_v2.symbol": 1,
        "cuMemAlloc_v2.dlsym": 1,
        "cuMemFree_v2.symbol": 1,
    }
    assert found["managed_allocations"] == 4 and found["managed_bytes"] == LARGE


def test_programs_without_cuda_do_not_find_the_shim_instead(native, tmp_path):
    source = (
        "import ctypes, json; own = ctypes.CDLL(None);"
        "print(json.dumps([hasattr(own, name) for name in ('tfum_statistic', 'cuMemAlloc_v2', 'cudaMalloc')]))"
    )
    report = tmp_path / "report"
    assert native.python(source, LD_LIBRARY_PATH="", TFUM_REPORT=report) == [True, False, False]
    assert not report.exists()


CREATE = (
    PRELUDE
    + """
start()
handle, found = ctypes.c_uint64(), ctypes.c_void_p()
cuda.cuGetProcAddress_v2(b"cuMemCreate", ctypes.byref(found), 12000, ctypes.c_uint64(0), None)
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64)
create = kind(found.value)
results = [create(ctypes.byref(handle), 1 << 40, None, flags) for flags in (0, 7)]
results.append(cuda.cuMemCreate(ctypes.byref(handle), ctypes.c_size_t(5), None, ctypes.c_uint64(0)))
calls = {name: count for name, count in statistics().items() if name.startswith("cuMemCreate") and count}
print(json.dumps([results, handle.value, calls, statistics()["used_bytes"]]))
"""
)


def test_virtual_memory_management_is_left_alone_and_said_once(native):
    done = native.run(sys.executable, "-c", CREATE, TFUM_CEILING=CEILING)
    assert done.stdout and json.loads(done.stdout) == [
        [0, 1, 0],  # the driver's own answers, beyond any ceiling
        5,
        {"cuMemCreate.dlsym": 1, "cuMemCreate.proc_address": 2},
        0,
    ]
    assert done.stderr.count("\n") == 1 and "takes memory by cuMemCreate, which the shim leaves alone" in done.stderr


def test_what_the_driver_lacks_stays_lacking(native):
    source = PRELUDE + "print(json.dumps(hasattr(cuda, 'cuNoSuchFunction')))"
    assert native.python(source) is False


BY_VERSION = (
    PRELUDE
    + """
import sys
kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 5)
out = ctypes.byref(ctypes.c_uint64())

def find(name):
    found = ctypes.c_void_p()
    cuda.cuGetProcAddress_v2(name, ctypes.byref(found), int(sys.argv[1]), ctypes.c_uint64(0), None)
    return found.value and kind(found.value)

start()
for name, arguments in ((b"cuGetProcAddress", (b"x", out, 12000, 0, 0)), (b"cuMemAlloc", (out, 5, 0, 0, 0))):
    function = find(name)
    function and function(*arguments)
assert find(b"cuNoSuchFunction") is None
print(json.dumps([name for name, calls in statistics().items() if calls and name.endswith(".proc_address")]))
"""
)


@pytest.mark.parametrize(
    "version, expected",
    [
        (12040, {"cuGetProcAddress_v2", "cuMemAlloc_v2"}),
        (11040, {"cuGetProcAddress", "cuMemAlloc_v2"}),
        (3010, {"cuMemAlloc"}),
    ],
)
def test_cu_get_proc_address_knows_versions(native, version, expected):
    assert {name.split(".")[0] for name in native.python(BY_VERSION, str(version))} == expected


@pytest.mark.parametrize("host, expected_free", [(0, 100), (50, 150)])
def test_without_a_ceiling_never_more_than_free_device_memory_and_the_host_budget(native, host, expected_free):
    source = PRELUDE + "start(); print(json.dumps([memory(), [take(30 << 20)[0] for _ in range(7)], memory()[1]]))"
    mib = 1 << 20
    told, results, left = native.python(
        source, FAKE_CUDA_FREE=100 * mib, FAKE_CUDA_TOTAL=200 * mib, TFUM_HOST_BUDGET=host * mib
    )
    assert told == [0, expected_free * mib, (200 + host) * mib]
    fit = expected_free // 30
    assert results == [0] * fit + [2] * (7 - fit)
    assert left == (expected_free - 30 * fit) * mib


def test_what_others_take_is_seen_while_nothing_is_allocated(native):
    source = PRELUDE + (
        "start(); told = [memory()[1] >> 20]\n"
        "address = take(30 << 20)[1]\n"
        "os.environ['FAKE_CUDA_FREE'] = str(50 << 20); told.append(memory()[1] >> 20)\n"
        "cuda.cuMemFree_v2(address); results = [take(60 << 20)[0], take(40 << 20)[0]]\n"
        "told.append(memory()[1] >> 20); print(json.dumps([told, results]))"
    )
    assert native.python(source, FAKE_CUDA_FREE=100 << 20) == [[100, 70, 10], [2, 0]]


@pytest.mark.parametrize("threshold, place", [(LARGE, "managed"), (LARGE + 1, "device"), (0, "managed")])
def test_threshold(native, threshold, place):
    found = native.python(
        PRELUDE + "start(); assert take(4 << 20)[0] == 0; print(json.dumps(statistics()))", TFUM_THRESHOLD=threshold
    )
    other = {"managed": "device", "device": "managed"}[place]
    assert found[place + "_bytes"] == LARGE and found[other + "_bytes"] == 0


@pytest.mark.parametrize("attributes", ["83:0", "89:0"])
def test_a_device_that_cannot_page_gets_device_memory_and_one_sentence(native, attributes):
    source = PRELUDE + "start(); take(4 << 20); take(4 << 20); print(json.dumps(statistics()))"
    done = native.run(sys.executable, "-c", source, FAKE_CUDA_ATTRIBUTES=attributes)
    assert done.stderr.count("cannot oversubscribe managed memory") == 1 and "use a GPU of" in done.stderr
    assert '"device_allocations": 2' in done.stdout and '"managed_allocations": 0' in done.stdout


@pytest.mark.parametrize("function", ["cuDeviceGetAttribute", "cuCtxGetDevice"])
def test_a_device_that_does_not_answer_gets_device_memory(native, function):
    source = PRELUDE + "start(); print(json.dumps([take(4 << 20)[0], statistics()]))"
    result, found = native.python(source, FAKE_CUDA_FAIL=function + ":719")
    assert result == 0 and found["device_allocations"] == 1 and found["managed_allocations"] == 0


def test_where_free_memory_is_unknown_nothing_is_allocated(native):
    source = PRELUDE + (
        "results = [take(4 << 20)[0]]; cuda.cuInit(0); results.append(take(4 << 20)[0]); start()\n"
        "cuda.fake_fail(b'cuMemGetInfo_v2', 719); results.append(take(4 << 20)[0])\n"
        "cuda.fake_fail(b'cuMemGetInfo_v2', 0); results.append(take(4 << 20)[0])\n"
        "print(json.dumps([results, statistics()['used_bytes'], statistics()['failed_calls']]))"
    )
    assert native.python(source) == [[3, 201, 719, 0], LARGE, 3]


def test_memory_that_its_context_took_along_is_forgotten(native):
    # The stand-in frees behind the shim's back; it gives the same address out again, since it is the only one.
    source = PRELUDE + (
        "start(); result, address = take(4 << 20)\n"
        "own_free = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(('fake_free', cuda))\n"
        "own_free(address.value); again = take(4 << 20)[1]\n"
        "found = statistics()\n"
        "print(json.dumps([address.value == again.value, found['used_bytes'], found['live_allocations']]))"
    )
    assert native.python(source) == [True, LARGE, 1]


# ---- options, report and trace ----


@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"TFUM_CEILING": "-1"}, "TFUM_CEILING=-1 cannot be used: set it to a whole number of bytes, 0 or more"),
        ({"TFUM_THRESHOLD": "2MiB"}, "TFUM_THRESHOLD=2MiB cannot be used: set it to a whole number of bytes"),
        ({"TFUM_HOST_BUDGET": "99999999999999999999"}, "cannot be used: set it to a whole number of bytes"),
        ({"TFUM_CEILING": str(2**63)}, "cannot be used: set it to a whole number of bytes"),
        ({"TFUM_SHOW": "2"}, "TFUM_SHOW=2 cannot be used: set it to 0 or 1"),
        ({"TFUM_CEILING": " 5"}, "TFUM_CEILING= 5 cannot be used"),
        ({"TFUM_CEILING": "+5"}, "TFUM_CEILING=+5 cannot be used"),
        ({"TFUM_CEILING": ""}, "TFUM_CEILING= cannot be used"),
        ({"TFUM_SHOW": "yes"}, "TFUM_SHOW=yes cannot be used: set it to 0 or 1"),
        ({"TFUM_CEILLING": "5"}, "TFUM_CEILLING is no variable of the shim: unset it, or use one of TFUM_CEILING,"),
    ],
)
def test_a_wrong_variable_stops_the_program(native, variables, sentence):
    done = native.run("/bin/echo", "went on", **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tfum: error: ") and sentence in done.stderr and done.stderr.count("\n") == 1


def test_one_variable_shows_that_the_shim_is_active(native):
    assert native.run("/bin/true").stderr == ""
    shown = native.run("/bin/true", TFUM_SHOW=1, TFUM_CEILING=77).stderr
    assert re.match(
        r"tfum: active in process \d+ \(true\): managed memory from 2097152 bytes on, .* 77 bytes\n$", shown
    )


FORK = (
    PRELUDE
    + """
take(4 << 20)  # refused, since the driver was not started, but a line of the trace
child = os.fork()
if child == 0:
    start(); take(4 << 20); raise SystemExit
os.waitpid(child, 0)
reported = sorted(name for name in os.listdir(os.environ["FOLDER"]) if name.startswith("report"))
start(); take(4 << 20)
print(json.dumps([os.getpid(), child, reported]))
"""
)


def trace_results(path):
    """The results in a trace."""
    header, *lines = path.read_text().splitlines()
    assert header.startswith("# tfum trace 1")
    assert all(re.match(r"\d+ alloc 0x[0-9a-f]+ 4194304 (managed|device) \d+$", line) for line in lines)
    return [int(line.split()[-1]) for line in lines]


def test_files_of_a_child_are_its_own(native, tmp_path):
    pattern = str(tmp_path / "{}-%p.txt")
    variables = {"FOLDER": tmp_path, "TFUM_REPORT": pattern.format("report"), "TFUM_TRACE": pattern.format("trace")}
    parent, child, reported = native.python(FORK, **variables)
    assert reported == ["report-{}.txt".format(child)]
    expected = {"{}-{}.txt".format(name, pid) for name in ("report", "trace") for pid in (parent, child)}
    assert set(os.listdir(str(tmp_path))) == expected
    assert trace_results(tmp_path / "trace-{}.txt".format(parent)) == [3, 0]
    assert trace_results(tmp_path / "trace-{}.txt".format(child)) == [0]


def test_files_that_do_not_name_the_process_are_the_parents(native, tmp_path):
    variables = {"FOLDER": tmp_path, "TFUM_REPORT": tmp_path / "report", "TFUM_TRACE": tmp_path / "trace"}
    for _ in range(2):  # a second run replaces them
        _, _, reported = native.python(FORK, **variables)
        assert reported == []
        assert trace_results(tmp_path / "trace") == [3, 0]
        (tmp_path / "report").unlink()


def test_a_free_that_fails_is_undone_in_the_trace(native, tmp_path):
    source = PRELUDE + (
        "start(); address = take(4 << 20)[1]\n"
        "cuda.fake_fail(b'cuMemFree_v2', 719); refused = cuda.cuMemFree_v2(address)\n"
        "cuda.fake_fail(b'cuMemFree_v2', 0); print(json.dumps([refused, cuda.cuMemFree_v2(address)]))"
    )
    assert native.python(source, TFUM_TRACE=tmp_path / "trace") == [719, 0]
    lines = (tmp_path / "trace").read_text().splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["alloc", "free", "kept", "free"]
    done = native.run("stress", "replay", str(tmp_path / "trace"))
    assert done.returncode == 0, done.stderr


def test_files_that_cannot_be_written_are_named(native, tmp_path):
    source = PRELUDE + "start(); take(4 << 20); print(json.dumps(statistics()['unwritten_trace_lines']))"
    nowhere = str(tmp_path / "missing" / "file")
    done = native.run(sys.executable, "-c", source, TFUM_REPORT=nowhere, TFUM_TRACE=nowhere)
    assert done.returncode == 0 and done.stdout == "1\n"
    assert "there is no trace: give TFUM_TRACE another path" in done.stderr
    assert "there is no report: give TFUM_REPORT another path" in done.stderr


# ---- the sources ----


def test_sources_compile_without_warnings_and_without_cuda(shim_sources, compilers, tmp_path):
    operations = os.path.join(SOURCES, "operations", "migrate.c")
    for source in shim_sources + [operations]:
        command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wstrict-prototypes"]
        command += ["-nostdinc++", "-c", source, "-o", str(tmp_path / "object.o")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout.decode()


def test_exports_are_the_replaced_functions(shim):
    listed = subprocess.run(["nm", "-D", "--defined-only", shim], stdout=subprocess.PIPE, check=True).stdout.decode()
    with open(os.path.join(SOURCES, "shim", "interpose.h"), encoding="utf-8") as stream:
        table = re.findall(r"^ +ROW\((cu\w+), \w+, (?:NULL|\")", stream.read(), re.MULTILINE)
    assert len(table) == 13
    exported = set(re.findall(r" T (\w+)", listed))
    assert exported == set(table) | {"dlsym", "tfum_statistic", "tfum_statistic_name"}


def test_policy_knows_no_cuda():
    for name in ("policy", "options", "ledger"):
        for extension in ("c", "h"):
            with open(os.path.join(SOURCES, "shim", name + "." + extension), encoding="utf-8") as stream:
                assert not re.search(r'#include "(\.\./cuda_min|interpose)', stream.read())
