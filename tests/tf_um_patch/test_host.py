"""What a machine lets a process have: on trees of files that stand for /, with a stand-in for nvidia-smi."""

import json
import os
import re
import subprocess
import sys

import pytest

from tf_um_patch import host
from tf_um_patch.host import GpuInfo, Launch

KIB, MIB = 1024, 2**20
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
VERSION_2 = ("memory.max", "memory.current")


class Tree:
    """A folder that stands for ``/``; 1000 of 2000 KiB are available there, and the process is in the group /a/b."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.write("proc/meminfo", "MemTotal: 2000 kB\nMemFree: 7 kB\nMemAvailable:    1000 kB\n")
        self.write("proc/self/cgroup", "0::/a/b\n")

    def write(self, path, text):
        path = os.path.join(self.folder, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)

    def group(self, folder, limit, usage, stat="", names=VERSION_2):
        """A control group's files."""
        for name, value in zip(names, (limit, usage)):
            self.write(folder + "/" + name, "{}\n".format(value))
        self.write(folder + "/memory.stat", stat)

    def available(self):
        return host.available_host_memory(self.folder)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


# ---- host memory ----


def test_without_control_groups_what_is_available(tree):
    assert host.host_memory(tree.folder) == (2000 * KIB, 1000 * KIB, None)


def test_no_limit_is_no_limit(tree):
    tree.group("sys/fs/cgroup/a/b", "max", 5)
    assert tree.available() == 1000 * KIB


def test_a_group_limits_and_its_page_cache_can_be_given_back(tree):
    tree.group("sys/fs/cgroup/a/b", 500000, 300000, "anon 7\ninactive_file 40000\nactive_file 2000\nfile 9\n")
    assert host.host_memory(tree.folder) == (500000, 500000 - 300000 + 42000, "/sys/fs/cgroup/a/b")


def test_the_tightest_of_the_groups_around_it_counts(tree):
    tree.group("sys/fs/cgroup/a/b", 500000, 100)
    tree.group("sys/fs/cgroup/a", 300000, 290000)
    tree.group("sys/fs/cgroup", 900000, 300000)
    assert host.host_memory(tree.folder) == (300000, 10000, "/sys/fs/cgroup/a")


def test_the_limit_that_only_slows_a_process_down_counts_too(tree):
    tree.group("sys/fs/cgroup/a/b", 500000, 100)
    tree.write("sys/fs/cgroup/a/b/memory.high", "400000\n")
    assert tree.available() == 400000 - 100


def test_in_a_container_the_group_is_mounted_as_the_root(tree):
    tree.group("sys/fs/cgroup", 4096, 96)
    assert tree.available() == 4000


def test_in_a_container_that_knows_its_path_from_the_top(tree):
    tree.write("proc/self/cgroup", "0::/docker/1f/worker\n")
    tree.write("proc/self/mountinfo", "30 20 0:26 /docker/1f /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n")
    tree.group("sys/fs/cgroup/worker", 5000, 1000)
    tree.group("sys/fs/cgroup", 6000, 5500)
    assert tree.available() == 500


def test_version_1(tree):
    tree.write("proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/job\n0::/\n")
    tree.group("sys/fs/cgroup/memory/job", 9000, 5000, "total_inactive_file 100\ninactive_file 3\n", VERSION_1)
    tree.group("sys/fs/cgroup/memory", 2**63 - 4096, 10**6, "", VERSION_1)
    assert host.host_memory(tree.folder) == (9000, 4100, "/sys/fs/cgroup/memory/job")


def test_version_1_knows_of_limits_whose_folders_are_not_mounted(tree):
    tree.write("proc/self/cgroup", "4:memory:/docker/1f\n")
    tree.group("sys/fs/cgroup/memory", 2**63 - 4096, 5000, "hierarchical_memory_limit 8000\n", VERSION_1)
    assert tree.available() == 3000


def test_both_versions_where_they_are_mounted(tree):
    tree.write("proc/self/cgroup", "11:memory:/one\n0::/two\n")
    tree.write(
        "proc/self/mountinfo",
        "35 31 0:32 / /groups/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
        "33 31 0:30 / /groups/cpu rw,relatime - cgroup cgroup rw,cpu\n"
        "41 31 0:38 / /groups/unified rw,relatime - cgroup2 cgroup2 rw\n"
        "nonsense\n",
    )
    tree.group("groups/memory/one", 7000, 1000, "", VERSION_1)
    tree.group("groups/unified/two", 6500, 1000)
    assert tree.available() == 5500


@pytest.mark.parametrize("version", [1, 2])
def test_a_slurm_job_under_mem(tree, version):
    """Its limit stands at the job and its step, folders above the task's own group."""
    if version == 1:
        tree.write("proc/self/cgroup", "9:memory:/slurm/uid_1000/job_42/step_0/task_1\n")
        top, names, cache = "sys/fs/cgroup/memory/slurm/uid_1000/job_42", VERSION_1, "total_active_file 100000\n"
        folders, unlimited = ("", "/step_0", "/step_0/task_1"), 2**63 - 4096
    else:
        tree.write("proc/self/cgroup", "0::/system.slice/slurmstepd.scope/job_42/step_0/user/task_1\n")
        top, names, cache = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_42", VERSION_2, "active_file 100000\n"
        folders, unlimited = ("", "/step_0", "/step_0/user", "/step_0/user/task_1"), "max"
    for folder in folders:
        tree.group(top + folder, unlimited, 300000, "", names)
    tree.group(top, 600000, 400000, cache, names)
    assert host.host_memory(tree.folder) == (600000, 300000, "/" + top)


def test_a_group_above_its_limit_leaves_nothing(tree):
    tree.group("sys/fs/cgroup/a/b", 10, 20)
    assert tree.available() == 0


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(host.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 100))
    assert host.host_memory(str(tmp_path)) == (409600, 409600, None)

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(host.os, "sysconf", unknown)
    assert host.host_memory(str(tmp_path)) is None and host.available_host_memory(str(tmp_path)) is None


def test_this_machine():
    with open("/proc/meminfo", encoding="ascii") as stream:
        total = int(stream.readline().split()[1]) * KIB
    memory = host.host_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes <= total


def test_budget_is_shared_among_processes():
    assert host.host_budget(1000) == 900 and host.host_budget(1000, 4) == 225


# ---- GPUs ----

CARDS = """GPU 0: Tesla V100-SXM2-32GB (UUID: GPU-aa11)
GPU 1: Tesla V100-SXM2-32GB (UUID: GPU-bb22)
"""
MIXED = """GPU 0: Tesla T4 (UUID: GPU-aa11)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bb22)
"""
SLICES = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aa11)
  MIG 1g.10gb     Device  0: (UUID: MIG-c6d4)
  MIG 3g.40gb     Device  1: (UUID: MIG-GPU-aa11/2/0)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bb22)
"""
MEMORY = {"0": "32510, 20000", "1": "32500, 30000"}
REPORT = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v11.dtd">
<nvidia_smi_log>
  <gpu id="00000000:07:00.0">
    <fb_memory_usage><total>81920 MiB</total><used>50 MiB</used><free>81870 MiB</free></fb_memory_usage>
    <mig_devices>
      <mig_device><index>0</index><gpu_instance_id>9</gpu_instance_id>
        <fb_memory_usage><total>9728 MiB</total><used>12 MiB</used><free>9716 MiB</free></fb_memory_usage></mig_device>
      <mig_device><index>1</index><gpu_instance_id>2</gpu_instance_id>
        <fb_memory_usage><total>40192 MiB</total><used>100 MiB</used><free>40092 MiB</free></fb_memory_usage>
      </mig_device>
    </mig_devices>
  </gpu>
</nvidia_smi_log>
"""
V100, FIRST_SLICE = "Tesla V100-SXM2-32GB", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"


class Gpus:
    """A machine with what a stand-in for nvidia-smi says of its cards, and the driver's folder."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.tools = str(folder / "root"), folder / "bin"
        os.makedirs(self.folder)
        self.tools.mkdir()
        self.asked_driver = []
        monkeypatch.setattr(host, "run_probe", self._probe)
        self.facts = {"name": "by the driver", "total": 300, "free": 200}

    def _probe(self):
        self.asked_driver.append(True)
        return self.facts

    def say(self, listed, memory=None, report=REPORT, code=0):
        (self.tools / "listed").write_text(listed)
        (self.tools / "report").write_text(report)
        for card, text in (MEMORY if memory is None else memory).items():
            (self.tools / card).write_text(text + "\n")
        tool = self.tools / "nvidia-smi"
        tool.write_text(
            '#!/bin/sh\nhere=$(dirname "$0")\nfor last; do :; done\n'
            'case "$1" in -L) cat "$here/listed";; -q) cat "$here/report";;\n'
            '*) cat "$here/${{last#--id=}}";; esac\nexit {}\n'.format(code)
        )
        tool.chmod(0o755)
        return self

    def driver(self, path="proc/driver/nvidia/gpus/0000:07:00.0"):
        os.makedirs(os.path.join(self.folder, path))
        return self

    def environment(self, **variables):
        return dict(variables, PATH="{}:{}".format(self.tools, os.environ["PATH"]))

    def first(self, **variables):
        return host.first_gpu(self.environment(**variables), self.folder)

    def names(self, **variables):
        return host.gpu_identifiers(self.environment(**variables), self.folder)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Gpus(tmp_path, monkeypatch)


def test_cards(machine):
    machine.say(CARDS)
    first, second = (GpuInfo(V100, 32510 * MIB, 20000 * MIB, "GPU-aa11"), (V100, 32500 * MIB, 30000 * MIB, "GPU-bb22"))
    assert machine.first() == first
    assert host.gpus(machine.environment()) == [first, second]
    assert host.gpus(machine.environment(CUDA_VISIBLE_DEVICES="1,0")) == [second, first]
    assert not machine.asked_driver


@pytest.mark.parametrize(
    "visible, uuid",
    [
        ("0", "GPU-aa11"),
        ("1,0", "GPU-bb22"),
        (" 1 , 7", "GPU-bb22"),
        ("GPU-bb22", "GPU-bb22"),
        ("GPU-bb", "GPU-bb22"),  # CUDA takes the beginning
        ("", None),
        ("-1", None),
        ("-1,0", None),
        ("NoDevFiles", None),
        ("7,0", None),  # the first that does not exist ends the list
        ("GPU-cc", None),
    ],
)
def test_cuda_visible_devices_is_respected(machine, visible, uuid):
    machine.say(CARDS).driver()
    found = machine.first(CUDA_VISIBLE_DEVICES=visible)
    assert (found.uuid if found else None) == uuid and not machine.asked_driver


@pytest.mark.parametrize(
    "visible, expected",
    [
        (None, GpuInfo(FIRST_SLICE, 9728 * MIB, 9716 * MIB, "MIG-c6d4")),
        ("0", GpuInfo(FIRST_SLICE, 9728 * MIB, 9716 * MIB, "MIG-c6d4")),
        ("GPU-aa11", GpuInfo(FIRST_SLICE, 9728 * MIB, 9716 * MIB, "MIG-c6d4")),
        (
            "MIG-GPU-aa11/2/0",
            GpuInfo("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192 * MIB, 40092 * MIB, "MIG-GPU-aa11/2/0"),
        ),
        ("1", GpuInfo("NVIDIA A100-SXM4-80GB", 32500 * MIB, 30000 * MIB, "GPU-bb22")),
    ],
)
def test_a_slice_has_its_own_memory(machine, visible, expected):
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert machine.say(SLICES).first(**variables) == expected


def test_what_each_process_may_be_given(machine):
    machine.say(SLICES)
    assert machine.names() == []  # no driver
    machine.driver()
    assert machine.names() == ["MIG-c6d4", "MIG-GPU-aa11/2/0", "1"]
    assert machine.names(CUDA_VISIBLE_DEVICES="MIG-c6d4, 1,x") == ["MIG-c6d4", "1"]
    assert machine.say(CARDS).names() == ["0", "1"]
    for number in "123":
        machine.driver("proc/driver/nvidia/gpus/" + number)
    assert machine.say("", code=9).names() == ["0", "1", "2", "3"]


def test_the_driver_is_asked_where_nvidia_smi_cannot_tell(machine):
    by_driver = GpuInfo("by the driver", 300, 200)
    assert machine.first() is None and not machine.asked_driver  # neither a tool nor a driver
    machine.driver("dev/nvidia0")  # as in a container without the driver's folder
    assert machine.first() == by_driver
    for memory in ("[N/A], [N/A]", "nonsense", ""):
        assert machine.say(CARDS, {"0": memory}).first() == by_driver
    assert machine.say(SLICES, report="<broken").first() == by_driver
    assert machine.say("No devices were found\n").first() == by_driver
    assert machine.say(CARDS, code=1).first() == by_driver
    machine.facts = {"name": "broken", "total": None}
    assert machine.first() is None


def test_numbers_of_unlike_cards_are_cudas(machine):
    machine.say(MIXED).driver()
    assert machine.first().name == "by the driver"  # CUDA puts the fastest first
    assert machine.first(CUDA_DEVICE_ORDER="PCI_BUS_ID").name == "Tesla T4"
    assert machine.first(CUDA_VISIBLE_DEVICES="GPU-aa11").name == "Tesla T4"


@pytest.mark.parametrize(
    "path, text",
    [
        ("sys/module/nvidia/version", "535.54.03\n"),
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\nGCC: 12\n",
        ),
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.54.03  Release Build  (root@host)\n",
        ),
    ],
)
def test_the_version_of_the_driver(tmp_path, path, text):
    assert host.driver_version(str(tmp_path)) is None
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert host.driver_version(str(tmp_path)) == "535.54.03"


def test_a_tool_that_hangs_is_ended(machine, monkeypatch):
    machine.say(CARDS)
    (machine.tools / "nvidia-smi").write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(host, "NVIDIA_SMI_SECONDS", 0.2)
    assert machine.first() is None and host.gpus(machine.environment()) == []


@pytest.mark.parametrize(
    "path, there",
    [
        ("proc/driver/nvidia", True),
        ("dev/nvidia0", True),
        ("dev/nvidia12", True),
        ("dev/nvidiactl", False),
        ("dev/dxg", True),
        ("dev/nvram", False),
    ],
)
def test_whether_there_may_be_a_gpu(machine, path, there):
    machine.driver(path)
    assert host.may_have_gpu({}, machine.folder) is there
    assert host.may_have_gpu({"CUDA_VISIBLE_DEVICES": "0"}, machine.folder) is there
    assert host.may_have_gpu({"CUDA_VISIBLE_DEVICES": ""}, machine.folder) is False


# ---- launchers ----


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, Launch()),
        (
            dict(
                OMPI_COMM_WORLD_RANK="3",
                OMPI_COMM_WORLD_SIZE="4",
                OMPI_COMM_WORLD_LOCAL_RANK="1",
                OMPI_COMM_WORLD_LOCAL_SIZE="2",
            ),
            Launch("Open MPI", 3, 4, 1, 2),
        ),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, Launch("Open MPI", None, 4)),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, Launch("Open MPI", None, 1)),
        (
            dict(
                MV2_COMM_WORLD_RANK="0",
                MV2_COMM_WORLD_SIZE="2",
                MV2_COMM_WORLD_LOCAL_RANK="0",
                MV2_COMM_WORLD_LOCAL_SIZE="1",
            ),
            Launch("MVAPICH", 0, 2, 0, 1),
        ),
        (
            {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"},
            Launch("PMI", 5, 8, 1, 4),
        ),
        ({"PMI_SIZE": "2"}, Launch("PMI", None, 2)),
        ({"HOROVOD_SIZE": "8", "OMPI_COMM_WORLD_SIZE": "4"}, Launch("horovodrun", None, 8)),
        (
            {
                "SLURM_PROCID": "6",
                "SLURM_STEP_NUM_TASKS": "16",
                "SLURM_LOCALID": "2",
                "SLURM_STEP_TASKS_PER_NODE": "4(x4)",
            },
            Launch("Slurm", 6, 16, 2, 4),
        ),
        # a batch script: one process, however many tasks it asked for
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "16"}, Launch()),
        # mpirun in a job of Slurm starts its own processes as a step, one a node
        ({"OMPI_COMM_WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"}, Launch("Open MPI", None, 8)),
        ({"OMPI_COMM_WORLD_SIZE": "", "PMI_SIZE": "x"}, Launch()),
    ],
)
def test_what_launchers_say(environment, expected):
    assert host.launched(environment) == expected


@pytest.mark.parametrize(
    "counts, node, here",
    [("4(x2),3", "1", 4), ("4(x2),3", "2", 3), ("4(x2),3", "9", None), ("4(x2),3", "", None), ("x", "0", None)],
)
def test_tasks_on_a_node_of_slurm(counts, node, here):
    environment = {"SLURM_STEP_NUM_TASKS": "11", "SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": node}
    assert host.launched(environment).local_size == here


# ---- the module ----


def test_a_run_in_a_small_group_is_refused(tree, monkeypatch):
    """As a job under Slurm's --mem, which would be ended."""
    from whole_slide_cnn.engines import memory
    from whole_slide_cnn.errors import MemoryBudgetError

    tree.group("sys/fs/cgroup/a", 500000, 100000)
    monkeypatch.setattr(memory, "host_memory", lambda: host.host_memory(tree.folder))
    memory.check_memory(memory.MemoryPlan("direct", (("feature maps", 400000),)))
    with pytest.raises(MemoryBudgetError, match="and the job's control group leaves 0.00 GB"):
        memory.check_memory(memory.MemoryPlan("direct", (("feature maps", 400001),)))


def test_nobody_else_reads_what_it_reads():
    sources = re.compile(r"/proc/meminfo|SC_AVPHYS|/proc/driver|which\(.nvidia-smi|COMM_WORLD_|PMI_|SLURM_STEP")
    root = os.path.dirname(os.path.dirname(os.path.abspath(host.__file__)))
    found = []
    for package in ("whole_slide_cnn", "tf_um_patch", "graph_tools"):
        for folder, _, names in os.walk(os.path.join(root, package)):
            for path in [os.path.join(folder, name) for name in names if name.endswith(".py")]:
                with open(path, encoding="utf-8") as stream:
                    found += [path] if sources.search(stream.read()) else []
    assert [os.path.relpath(path, root) for path in found] == [os.path.join("tf_um_patch", "host.py")]


ASK = """
import json, sys
from tf_um_patch import host
print(json.dumps([host.host_memory(), host.launched(), sorted(set(sys.modules) & {"numpy", "tensorflow"})]))
"""


def test_it_needs_nothing_but_the_standard_library():
    """``-S``: without the packages that are installed."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(host.__file__)))
    done = subprocess.run(
        [sys.executable, "-S", "-c", ASK], env={"PYTHONPATH": root}, stdout=subprocess.PIPE, universal_newlines=True
    )
    assert done.returncode == 0
    memory, launch, loaded = json.loads(done.stdout)
    assert memory[0] > 0 and launch[2] == 1 and loaded == []
