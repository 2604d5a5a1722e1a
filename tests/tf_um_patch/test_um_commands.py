"""``python -m tf_um_patch run`` and ``doctor``, on a machine without a GPU and over the stand-in driver."""

import ctypes
import json
import sys

import pytest

from tf_um_patch import launch, probe
from tf_um_patch.child import Finished
from tf_um_patch.driver import Driver, Missing
from tf_um_patch.errors import DriverError, OptionError
from tf_um_patch.host import GpuInfo, HostInfo
from tf_um_patch.routes import Findings, choose_route

GIB = 1 << 30
WITH_GPU = Findings(
    gpu_name="Some GPU",
    gpu=GpuInfo("Some GPU", 32 * GIB, 31 * GIB),
    gpus=1,
    capability="7.0",
    managed=True,
    concurrent=True,
    shim="libtfum.so",
    effect="managed",
    host=HostInfo(128 * GIB, 107 * GIB),
)

IN_USE = WITH_GPU.gpu._replace(free_bytes=20 * GIB)


@pytest.fixture
def command(native):
    """A function that runs ``python -m tf_um_patch``; the stand-in driver is found unless ``gpu`` is False."""

    def run(*arguments, gpu=True, **variables):
        if not gpu:
            variables["LD_LIBRARY_PATH"] = ""
        return native.run(sys.executable, "-m", "tf_um_patch", *arguments, preload=False, **variables)

    return run


def error(done):
    """The one sentence of a command that refused."""
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


# ---- doctor ----


def test_doctor_over_the_stand_in(command):
    done = command("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    machine = found["machine"]
    assert (machine["gpu"], machine["gpus"], machine["driver"]) == ("Stand-in 0", 1, "12.4")
    assert machine["managed"] and machine["concurrent"] and machine["effect"] == "managed"
    assert machine["device_total"] == machine["device_free"] == 8 * GIB
    assert 0 < machine["host_budget"] < machine["host_available"]
    assert found["shared"] is False and found["route"]["name"] == "preload"
    done = command("doctor")
    assert "Stand-in 0" in done.stdout and "an allocation became managed memory" in done.stdout


def test_doctor_without_a_gpu(command):
    if probe.probe()["devices"]:
        pytest.skip("this machine has a GPU")
    done = command("doctor", gpu=False)
    assert done.returncode == 1 and done.stderr == ""
    assert "GPU                        none: libcuda.so.1 cannot be loaded" in done.stdout
    assert "route                      none: there is no GPU that can be used here" in done.stdout


@pytest.mark.parametrize(
    "variables, sentence, route",
    [
        ({"FAKE_CUDA_DEVICES": 0}, "cuInit returned 100", "none"),
        ({"FAKE_CUDA_ATTRIBUTES": "89:0"}, "cannot page managed memory while it computes: use a GPU of", "none"),
        ({"CC": "no-such-compiler"}, "the shim cannot be built (no C compiler is found", "tensorflow"),
        ({"FAKE_CUDA_FAIL": "cuMemAllocManaged:801"}, "its allocations are not managed memory", "tensorflow"),
        ({"FAKE_CUDA_FAIL": "cuMemsetD8_v2:719"}, "cuMemsetD8_v2 returned 719", "tensorflow"),
        ({"FAKE_CUDA_FAIL": "cuDevicePrimaryCtxRetain:2"}, "which cannot be used: cuDevicePrimaryCtxRetain", "none"),
        ({"FAKE_CUDA_FREE": 3 * GIB}, "others seem to use it: do not oversubscribe it", "preload"),
        ({"FAKE_CUDA_FREE": 1 << 20}, "unproven: nothing could be allocated here", "none"),
    ],
)
def test_doctor_says_what_is_wrong_and_chooses_the_way(command, variables, sentence, route):
    done = command("doctor", **variables)
    assert done.stderr == "" and sentence in done.stdout
    assert "\nroute                      {}: ".format(route) in done.stdout
    assert done.returncode == (1 if route == "none" else 0)


def test_doctor_never_asks_for_more_than_a_little(command, native):
    # The stand-in refuses what exceeds this; so would a card that is nearly full.
    done = command("doctor", "--json", FAKE_CUDA_FREE=probe.LEAST_FREE)
    assert json.loads(done.stdout)["machine"]["effect"] == "managed"
    assert probe.PROBE_BYTES < probe.LEAST_FREE / 10


@pytest.mark.parametrize(
    "changes, name",
    [
        ({}, "preload"),
        ({"gpu": None}, "none"),
        ({"gpu_name": None, "gpu": None}, "none"),
        ({"managed": False}, "none"),
        ({"concurrent": False}, "none"),
        ({"shim": None, "shim_error": "no C compiler", "effect": "unproven"}, "tensorflow"),
        ({"effect": "plain"}, "tensorflow"),
        ({"effect": "broken"}, "tensorflow"),
        ({"gpu": IN_USE}, "preload"),  # its ceiling holds
        ({"gpu": IN_USE, "effect": "plain"}, "none"),
    ],
)
def test_route(changes, name):
    route = choose_route(WITH_GPU._replace(**changes))
    assert route.name == name
    assert route.memory_fraction == (4.01 if name == "tensorflow" else None)


def test_a_driver_that_lacks_a_function_gives_a_stand_in(tmp_path, native):
    native.compile("libold.so", ["-fPIC", "-shared", "-DLANDMARK"], "stubs.c")
    driver = Driver(native.path("libold.so"))
    assert isinstance(driver.cuInit, Missing) and driver.cuInit.available is False
    with pytest.raises(DriverError, match="has no cuPointerGetAttribute, which came with CUDA 4.0: install a newer"):
        driver.cuPointerGetAttribute(None, 8, 0)


@pytest.mark.parametrize("written", [1, 4])
def test_whether_memory_is_managed_is_read_whatever_its_width(written):
    driver = Driver("libm.so.6")  # which lacks all functions

    def answer(out, attribute, address):
        assert ctypes.sizeof(out._obj) >= 4  # a driver may write that many bytes
        ctypes.memmove(out, bytes([address, 0, 0, 0]), written)

    driver.cuPointerGetAttribute = answer
    assert driver.is_managed(1) and not driver.is_managed(0)


@pytest.mark.parametrize(
    "finished, words",
    [
        (Finished(None, "", ""), "the driver did not answer within 120 s: look at the card with nvidia-smi"),
        (Finished(-11, "", ""), "the driver ended the process that asked it (-11): reinstall the NVIDIA driver"),
        (Finished(0, "no JSON", ""), "the driver ended the process that asked it (0): reinstall the NVIDIA driver"),
    ],
)
def test_a_driver_that_hangs_or_crashes_is_no_missing_gpu(monkeypatch, finished, words):
    monkeypatch.setattr(probe, "run_for", lambda *arguments: finished)
    facts = probe.run_probe()
    assert facts["error"] == words and facts["devices"] == 0 and facts["absent"] is False


RELEASE = """
import ctypes, json
from tf_um_patch import driver as cuda
driver = cuda.Driver()
own = ctypes.CDLL(cuda.LIBRARY)
driver.cuInit(0)
contexts = []
with driver.primary_context(0):
    outer = driver.value("cuCtxGetCurrent", kind=ctypes.c_void_p)
    driver.cuDevicePrimaryCtxRelease_v2 = cuda.Missing(cuda.FUNCTIONS[0])  # as in a driver from before CUDA 11
    with driver.primary_context(0):
        pass
    contexts = [outer == driver.value("cuCtxGetCurrent", kind=ctypes.c_void_p), outer is not None]
contexts.append(driver.value("cuCtxGetCurrent", kind=ctypes.c_void_p))
print(json.dumps([contexts, own.fake_calls(b"cuDevicePrimaryCtxRelease"), own.fake_calls(b"cuDevicePrimaryCtxRetain")]))
"""


def test_a_context_is_given_back_and_the_one_before_is_current_again(native):
    assert native.python(RELEASE, preload=False) == [[True, True, None], 2, 2]


# ---- run ----


def test_run_puts_the_shim_under_a_command(command, native, read_report):
    done = command(
        "run",
        "--show",
        "--report",
        "-",
        "--ceiling",
        "32MiB",
        "--",
        native.path("stress"),
        "symbol",
        TFUM_CEILING=32 << 20,
    )
    assert done.returncode == 0, done.stderr
    assert "(stress): managed memory from 2097152 bytes on, never more than 33554432 bytes" in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("tfum:")]
    assert read_report("\n".join(lines))["cuMemAlloc_v2.symbol"] > 100


SHOW = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k[:4] in ('TFUM', 'LD_P', 'TF_U')}))"


def test_run_sets_the_options(command, shim, tmp_path):
    options = ["--host-memory", "2GB", "--threshold", "1MiB", "--ceiling", "3GB", "--trace", str(tmp_path / "t")]
    done = command("run", *options, "--", sys.executable, "-c", SHOW)
    found = json.loads(done.stdout)
    assert found.pop("LD_PRELOAD") == shim
    found.pop("TF_UM_PATCH_CACHE")
    assert found == {
        "TFUM_HOST_BUDGET": "2000000000",
        "TFUM_THRESHOLD": "1048576",
        "TFUM_CEILING": "3000000000",
        "TFUM_TRACE": str(tmp_path / "t"),
    }


def test_run_takes_the_host_memory_that_is_there(command):
    def budget(*options, **variables):
        done = command("run", *options, "--", sys.executable, "-c", SHOW, **variables)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["TFUM_HOST_BUDGET"]), done.stderr

    whole, said = budget()
    assert whole > 0 and said == ""
    quarter, _ = budget("--processes", "4")
    assert quarter == pytest.approx(whole / 4, rel=0.2)
    assert budget(TFUM_HOST_BUDGET=77) == (77, "")
    shared, said = budget(FAKE_CUDA_FREE=GIB)
    assert shared == 0 and "others seem to use Stand-in 0" in said and "give --host-memory if" in said


def test_run_keeps_other_preloads(command, shim, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libm.so.6")
    done = command("run", "--host-memory", "0", "--", sys.executable, "-c", SHOW)
    assert json.loads(done.stdout)["LD_PRELOAD"] == shim + " libm.so.6"


def test_run_without_a_compiler_takes_tensorflows_way(command):
    done = command("run", "--", sys.executable, "-c", SHOW, CC="no-such-compiler")
    found = json.loads(done.stdout)
    assert "LD_PRELOAD" not in found and float(found["TF_UM_PATCH_MEMORY_FRACTION"]) > 1
    assert done.stderr.startswith("warning: no C compiler is found, so the shim cannot be built: install one with: ")
    assert "per_process_gpu_memory_fraction=" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "folder, sentence",
    [
        ("/proc/nowhere", "the cache /proc/nowhere cannot be written"),
        (
            "/proc/with space",
            "the dynamic linker takes no path with a space or a colon, as that of the cache /proc/with ",
        ),
    ],
)
def test_a_cache_that_cannot_be_used_is_as_no_compiler(command, folder, sentence):
    done = command("run", "--", "true", TF_UM_PATCH_CACHE=folder)
    assert done.returncode == 0 and done.stderr.startswith("warning: " + sentence)
    assert "set TF_UM_PATCH_CACHE to " in done.stderr


def test_run_without_a_gpu_says_so_and_runs(command):
    done = command("run", "--", "echo", "ran", FAKE_CUDA_DEVICES=0)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr == "warning: no GPU can be used here, so the shim has nothing to do\n"


def test_run_ends_as_the_command_does(command):
    assert command("run", "--host-memory", "0", "--", "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize(
    "arguments, variables, sentence",
    [
        ([], {}, "no command is given: name it after --"),
        (["--", "no-such-command"], {}, "the command no-such-command is not found: check its name"),
        (["--ceiling=-1", "--", "true"], {}, "--ceiling: '-1' is no size: give 0 or more bytes"),
        (["--host-memory", "lots", "--", "true"], {}, "--host-memory: 'lots' is no size"),
        (["--processes", "0", "--", "true"], {}, "--processes 0 cannot be used: give a whole number, 1 or more"),
        (["--", "true"], {"OMPI_COMM_WORLD_LOCAL_SIZE": 4}, "this is one of several processes, which cannot tell"),
        (["--", "true"], {"TFUM_CEILLING": 1}, "TFUM_CEILLING is no variable of the shim"),
        (["--", "true"], {"TFUM_THRESHOLD": -5}, "TFUM_THRESHOLD=-5 cannot be used"),
    ],
)
def test_run_refuses_in_one_sentence(command, arguments, variables, sentence):
    assert sentence in error(command("run", *arguments, **variables))


def test_memory_fraction(monkeypatch):
    monkeypatch.delenv(launch.FRACTION_VARIABLE, raising=False)
    assert launch.memory_fraction() is None
    monkeypatch.setenv(launch.FRACTION_VARIABLE, "4.5")
    assert launch.memory_fraction() == 4.5
    monkeypatch.setenv(launch.FRACTION_VARIABLE, "much")
    with pytest.raises(OptionError, match="=much is no number: unset it"):
        launch.memory_fraction()


@pytest.mark.parametrize("arguments", [[], ["walk"], ["--help"]])
def test_usage(command, arguments):
    done = command(*arguments)
    helped = arguments == ["--help"]
    assert done.returncode == (0 if helped else 2)
    assert "usage: python -m tf_um_patch run" in (done.stdout if helped else done.stderr)


IMPORT_ALL = """
import importlib, json, pkgutil, sys, threading
import tf_um_patch
from tf_um_patch.shim import statistics
for module in pkgutil.walk_packages(tf_um_patch.__path__, "tf_um_patch."):
    if module.name != "tf_um_patch.__main__":
        importlib.import_module(module.name)
with open("/proc/self/maps") as stream:
    driver = "libcuda" in stream.read()
heavy = [name for name in ("tensorflow", "matplotlib") if name in sys.modules]
print(json.dumps([driver, heavy, threading.active_count(), statistics()]))
"""


def test_importing_starts_nothing(native):
    assert native.python(IMPORT_ALL, LD_PRELOAD="") == [False, [], 1, None]


def test_help_of_the_commands_imports_no_tensorflow(command):
    for name in ("run", "doctor", "gpu-check"):
        done = command(name, "--help")
        assert done.returncode == 0 and "usage: python -m tf_um_patch {} ".format(name) in done.stdout
