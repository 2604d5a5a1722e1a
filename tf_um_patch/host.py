"""What this machine lets this process have: host memory, GPUs, and the processes it was launched with.

Standard library only; importing it starts nothing and asks nothing. Every function looks anew when it is called.
Arguments named ``root`` and ``environment`` are those of the process, and others in tests.
"""

import glob
import os
import re
import shutil
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple
from xml.etree import ElementTree

from tf_um_patch.child import run_for
from tf_um_patch.probe import run_probe

# What stays for everything else: the page cache that feeds training, and the processes' own memory.
HOST_SHARE = 0.9

NVIDIA_SMI_SECONDS = 20
_MIB = 2**20

# ---- host memory ----


class HostInfo(NamedTuple):
    """Memory of the host, as this process may have it.

    Attributes:
        total_bytes: all of it, or the tightest limit of a control group around the process.
        available_bytes: what can be allocated now: what the kernel calls available, or less where a group limits it.
        group: folder of the control group that leaves the least, or None where no group leaves less than the machine.
    """

    total_bytes: int
    available_bytes: int
    group: Optional[str] = None


class _Controller(NamedTuple):
    """Files of one version of control groups. All sizes in bytes."""

    limits: Tuple[str, ...]
    usage: str
    # Of memory.stat: page cache, which is given back before a limit ends a process, of a group with those below it.
    reclaimable: Tuple[str, ...]


# memory.high ends no process, but stops it for longer and longer, which is no way for a run to fit.
_VERSION_2 = _Controller(("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file"))
_VERSION_1 = _Controller(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)
# Of version 1's memory.stat: the tightest limit of all groups above, of which a container may not see the folders.
_HIERARCHY = "hierarchical_memory_limit"
# Where they are mounted, if /proc does not say.
_USUAL_PLACES = ((_VERSION_1, "/sys/fs/cgroup/memory", "/"), (_VERSION_2, "/sys/fs/cgroup", "/"))


def host_memory(root: str = "/") -> Optional[HostInfo]:
    """Memory of the host, control groups of both versions included; None where the system does not tell.

    A group's limit holds for all groups below it together, so the tightest of all around this process counts: in a
    Slurm job under ``--mem`` that is the job's, some folders above the process's own.
    """
    whole = _machine_memory(root)
    if whole is None:
        return None
    total, available, group = whole[0], whole[1], None
    for folder, limit, used in _limits(root):
        total = min(total, limit)
        if limit - used < available:
            available, group = max(0, limit - used), folder
    return HostInfo(total, available, group)


def available_host_memory(root: str = "/") -> Optional[int]:
    """Bytes that can be allocated on the host now (see :class:`HostInfo`); None where the system does not tell."""
    memory = host_memory(root)
    return None if memory is None else memory.available_bytes


def host_budget(available: int, processes: int = 1) -> int:
    """The share of the available bytes that each of ``processes`` may use as if it were device memory."""
    return int(available * HOST_SHARE) // processes


def _machine_memory(root: str) -> Optional[Tuple[int, int]]:
    """(total, available) bytes, of all control groups together."""
    fields = dict(line.split(":", 1) for line in (_read(root, "/proc/meminfo") or "").splitlines() if ":" in line)
    try:
        return int(fields["MemTotal"].split()[0]) * 1024, int(fields["MemAvailable"].split()[0]) * 1024
    except (KeyError, IndexError, ValueError):
        pass
    try:  # another system than Linux
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    except (OSError, ValueError):
        return None


def _limits(root: str) -> Iterator[Tuple[str, int, int]]:
    """(folder, limit, bytes used without what can be given back) of the groups around this process."""
    groups = _own_groups(root)
    for controller, mount, mounted in _mounts(root):
        if controller not in groups:
            continue
        for folder in _folders_above(mount, _below(groups[controller], mounted)):
            usage = _number(_read(root, folder + "/" + controller.usage))
            stat = _statistics(_read(root, folder + "/memory.stat"))
            limits = [_number(_read(root, folder + "/" + name)) for name in controller.limits] + [stat.get(_HIERARCHY)]
            found = [limit for limit in limits if limit is not None]
            if found and usage is not None:
                cache = sum(stat.get(name, 0) for name in controller.reclaimable)
                yield folder, min(found), max(0, usage - cache)


def _own_groups(root: str) -> Dict[_Controller, str]:
    """The group that this process is in, by version, as ``/proc/self/cgroup`` has it."""
    groups = {}
    for line in (_read(root, "/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[1] == "":
            groups[_VERSION_2] = parts[2]
        elif len(parts) == 3 and "memory" in parts[1].split(","):
            groups[_VERSION_1] = parts[2]
    return groups


def _mounts(root: str) -> Sequence[Tuple[_Controller, str, str]]:
    """(version, where it is mounted, which group is mounted there), from ``/proc/self/mountinfo``; see proc(5)."""
    found = []
    for line in (_read(root, "/proc/self/mountinfo") or "").splitlines():
        fields, _, kind = line.partition(" - ")
        before, after = fields.split(), kind.split()
        if len(before) < 5 or not after:
            continue
        if after[0] == "cgroup2":
            found.append((_VERSION_2, before[4], before[3]))
        elif after[0] == "cgroup" and "memory" in after[-1].split(","):
            found.append((_VERSION_1, before[4], before[3]))
    return found or _USUAL_PLACES


def _below(group: str, mounted: str) -> str:
    """A group's path below the one that is mounted.

    In a container the mount may begin at the container's group, while the process still knows its path from the top.
    """
    if mounted != "/" and (group + "/").startswith(mounted + "/"):
        return group[len(mounted) :]
    return group


def _folders_above(mount: str, group: str) -> Iterator[str]:
    """Folders of a group and of all that it is in, from the inside; those that are not mounted here do not exist."""
    parts = [part for part in group.split("/") if part]
    for depth in range(len(parts), -1, -1):
        yield "/".join([mount.rstrip("/")] + parts[:depth])


def _statistics(text: Optional[str]) -> Dict[str, int]:
    pairs = [line.split() for line in (text or "").splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and text.strip().isdecimal() else None  # "max" is no limit


def _read(root: str, path: str) -> Optional[str]:
    try:
        with open(os.path.join(root, path.lstrip("/")), encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return None


# ---- GPUs ----

VISIBLE = "CUDA_VISIBLE_DEVICES"
# A GPU on which more than this is taken, beyond what the driver keeps, is in use by others.
_CONTEXT_BYTES = 1 << 30
# The first line of the driver's own file: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue ...".
_MODULE = r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)"


class GpuInfo(NamedTuple):
    """A GPU, or the slice of one (MIG) that a process is given instead.

    Attributes:
        name: as the driver has it; of a slice with its profile, as in ``NVIDIA A100-SXM4-80GB MIG 1g.10gb``.
        total_bytes: its memory; of a slice that of the slice.
        free_bytes: what nobody uses of it.
        uuid: as CUDA_VISIBLE_DEVICES takes it; None where it is not known.
    """

    name: str
    total_bytes: int
    free_bytes: int
    uuid: Optional[str] = None

    @property
    def in_use(self) -> bool:
        """Whether other processes seem to use it; oversubscribing it could hang it for them too."""
        return self.total_bytes - self.free_bytes > _CONTEXT_BYTES + self.total_bytes // 20


class _Device(NamedTuple):
    """A line of ``nvidia-smi -L``: a card, or a slice of one.

    Attributes:
        card: the card's number, in the order of the PCI bus.
        name, uuid: of the card or the slice.
        slice: the slice's number on its card, or None for the card itself.
    """

    card: int
    name: str
    uuid: str
    slice: Optional[int] = None


def visible_gpus(environment: Optional[Mapping[str, str]] = None) -> Optional[List[str]]:
    """What CUDA_VISIBLE_DEVICES leaves to this process: numbers and UUIDs; None where it is not set, so all.

    As for CUDA, the first entry that is neither ends the list: ``-1`` and an empty text leave nothing.
    """
    environment = os.environ if environment is None else environment
    if VISIBLE not in environment:
        return None
    found = []
    for entry in environment[VISIBLE].split(","):
        if not re.match(r"^(\d+|(GPU|MIG)-\S+)$", entry.strip()):
            break
        found.append(entry.strip())
    return found


def may_have_gpu(environment: Optional[Mapping[str, str]] = None, root: str = "/") -> bool:
    """Whether there is an NVIDIA driver with a GPU that this process may use; told without asking the driver."""
    return visible_gpus(environment) != [] and _driver_is_there(root)


def gpu_identifiers(environment: Optional[Mapping[str, str]] = None, root: str = "/") -> List[str]:
    """What to write to CUDA_VISIBLE_DEVICES for each GPU that this process may use; slices by their UUIDs."""
    visible = visible_gpus(environment)
    if visible is not None:
        return visible
    if not _driver_is_there(root):
        return []
    devices = _listed(environment)
    if not devices:
        return [str(number) for number in range(_device_files(root))]
    return [device.uuid if device.slice is not None else str(device.card) for device in _usable(devices)]


def gpus(environment: Optional[Mapping[str, str]] = None) -> List[GpuInfo]:
    """The GPUs that this process may use, as ``nvidia-smi`` has them; none where it is missing or does not answer."""
    return [info for info in map(_info_by(environment), _chosen(_listed(environment), environment)) if info is not None]


def first_gpu(environment: Optional[Mapping[str, str]] = None, root: str = "/") -> Optional[GpuInfo]:
    """The GPU that CUDA calls 0 in this process; None where there is none, or the driver does not answer.

    By ``nvidia-smi``; where that is missing or cannot tell, by the driver in a process of its own, which takes seconds.
    """
    if visible_gpus(environment) == []:
        return None
    devices = _listed(environment)
    chosen = _chosen(devices, environment)
    if chosen and _numbers_are_clear(devices, environment):
        info = _info_by(environment)(chosen[0])
        if info is not None:
            return info
    if devices and not chosen:
        return None
    return _by_driver() if _driver_is_there(root) else None


def driver_version(root: str = "/") -> Optional[str]:
    """Version of the NVIDIA kernel driver, such as ``535.54.03``; None where there is none. No process is started."""
    for place, pattern in (("sys/module/nvidia/version", r"^(\S+)"), ("proc/driver/nvidia/version", _MODULE)):
        found = re.search(pattern, _read(root, place) or "")
        if found:
            return found.group(1)
    return None


def _driver_is_there(root: str) -> bool:
    """By the driver's folder, the devices' files (containers may have only these), or Windows' own for its Linux."""
    places = ("proc/driver/nvidia", "dev/dxg")
    return any(os.path.exists(os.path.join(root, place)) for place in places) or _device_files(root) > 0


def _device_files(root: str) -> int:
    found = glob.glob(os.path.join(glob.escape(root), "dev", "nvidia[0-9]*"))
    try:
        return max(len(found), len(os.listdir(os.path.join(root, "proc", "driver", "nvidia", "gpus"))))
    except OSError:
        return len(found)


def _chosen(devices: Sequence[_Device], environment: Optional[Mapping[str, str]]) -> List[_Device]:
    """Of listed devices those that this process may use, in its order; a card in slices is its slices."""
    visible = visible_gpus(environment)
    if visible is None:
        return _usable(devices)
    found = []
    for entry in visible:
        if entry.isdecimal():
            matches = [device for device in _usable(devices) if device.card == int(entry)]
        else:  # CUDA takes the beginning of a UUID as well
            matches = [device for device in devices if device.uuid.startswith(entry)]
            if matches and matches[0].slice is None:
                matches = [device for device in _usable(devices) if device.card == matches[0].card]
        if not matches:
            break
        found.append(matches[0])  # a process computes on one slice of a card at most
    return found


def _usable(devices: Sequence[_Device]) -> List[_Device]:
    sliced = {device.card for device in devices if device.slice is not None}
    return [device for device in devices if device.slice is not None or device.card not in sliced]


def _numbers_are_clear(devices: Sequence[_Device], environment: Optional[Mapping[str, str]]) -> bool:
    """Whether CUDA's numbers mean the same GPUs as ``nvidia-smi``'s: CUDA's own order begins with the fastest."""
    environment = os.environ if environment is None else environment
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return True
    by_uuid = not (visible_gpus(environment) or ["0"])[0].isdecimal()
    return by_uuid or len({device.name for device in devices if device.slice is None}) < 2


def _listed(environment: Optional[Mapping[str, str]]) -> List[_Device]:
    found: List[_Device] = []
    for line in (_nvidia_smi(["-L"], environment) or "").splitlines():
        card = re.match(r"^GPU (\d+): (.*) \(UUID: (\S+)\)", line)
        part = re.match(r"^\s+(MIG .*?)\s+Device\s+(\d+): \(UUID: (\S+)\)", line)
        if card:
            found.append(_Device(int(card.group(1)), card.group(2).strip(), card.group(3)))
        elif part and found:
            whole = next(device for device in reversed(found) if device.slice is None)
            name = "{} {}".format(whole.name, part.group(1))
            found.append(_Device(whole.card, name, part.group(3), int(part.group(2))))
    return found


def _info_by(environment: Optional[Mapping[str, str]]) -> Callable[[_Device], Optional[GpuInfo]]:
    """A function that asks ``nvidia-smi`` for a device's memory; None where it does not tell."""

    def info(device: _Device) -> Optional[GpuInfo]:
        sizes = (_card_memory if device.slice is None else _slice_memory)(device, environment)
        return None if sizes is None else GpuInfo(device.name, sizes[0], sizes[1], device.uuid)

    return info


def _card_memory(device: _Device, environment: Optional[Mapping[str, str]]) -> Optional[Tuple[int, int]]:
    query = ["--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits", "--id={}".format(device.card)]
    try:
        total, free = (_nvidia_smi(query, environment) or "").split(",")
        return int(total) * _MIB, int(free) * _MIB
    except ValueError:  # "[N/A]"
        return None


def _slice_memory(device: _Device, environment: Optional[Mapping[str, str]]) -> Optional[Tuple[int, int]]:
    """Only the whole report has the memory of slices, and their numbers, but not their UUIDs."""
    text = _nvidia_smi(["-q", "-x", "--id={}".format(device.card)], environment)
    try:
        for part in ElementTree.fromstring(text or "").iter("mig_device"):
            if part.findtext("index") == str(device.slice):
                sizes = [part.findtext("fb_memory_usage/" + name) or "" for name in ("total", "free")]
                total, free = (int(size.split()[0]) * _MIB for size in sizes)
                return total, free
    except (ElementTree.ParseError, IndexError, ValueError):
        pass
    return None


def _nvidia_smi(arguments: List[str], environment: Optional[Mapping[str, str]]) -> Optional[str]:
    given = dict(os.environ if environment is None else environment)
    command = shutil.which("nvidia-smi", path=given.get("PATH", os.defpath))
    if command is None:
        return None
    done = run_for([command] + arguments, given, NVIDIA_SMI_SECONDS)
    return done.output if done.code == 0 else None


def _by_driver() -> Optional[GpuInfo]:
    facts = run_probe()
    if facts.get("total") is None:
        return None
    return GpuInfo(facts["name"], facts["total"], facts["free"])


# ---- processes ----


class Launch(NamedTuple):
    """What a launcher says to one of the processes that it started.

    Attributes:
        launcher: ``horovodrun``, ``Open MPI``, ``MVAPICH``, ``PMI`` (MPICH, Intel MPI, ``srun --mpi=pmi2``), ``Slurm``,
            or None for a process that was started by itself.
        rank, size: this process's number, and how many there are.
        local_rank, local_size: the same among those on its machine. All are None where the launcher does not tell,
            except ``size``.
    """

    launcher: Optional[str] = None
    rank: Optional[int] = None
    size: int = 1
    local_rank: Optional[int] = None
    local_size: Optional[int] = None


class _Variables(NamedTuple):
    launcher: str
    rank: str
    size: str
    local_rank: str
    local_size: str


# In the order in which they are believed: the launcher nearest to the process comes first. horovodrun uses MPI, and
# MPI's launchers start their own processes by Slurm's, one a machine.
_LAUNCHERS = (
    _Variables("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    _Variables(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Variables(
        "MVAPICH",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Variables("PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # Not SLURM_NTASKS: it is set in a batch script as well, of which there is one process however many tasks it asked
    # for.
    _Variables("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def launched(environment: Optional[Mapping[str, str]] = None) -> Launch:
    """How this process was launched, told from the variables that launchers set; asks no MPI."""
    environment = os.environ if environment is None else environment
    for names in _LAUNCHERS:
        size = _count(environment, names.size)
        local_size = _count(environment, names.local_size)
        if names.launcher == "Slurm":  # a batch script's own process has lists of tasks, but is no step of several
            local_size = None if size is None else _tasks_here(environment)
        if size is not None or local_size is not None:
            return Launch(
                names.launcher,
                _count(environment, names.rank),
                max(1, size or 0, local_size or 0),
                _count(environment, names.local_rank),
                local_size,
            )
    return Launch()


def _count(environment: Mapping[str, str], name: str) -> Optional[int]:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None


def _tasks_here(environment: Mapping[str, str]) -> Optional[int]:
    """Tasks on this node of a step, of which Slurm gives the list for all nodes, such as ``4(x2),3``."""
    counts: List[int] = []
    for entry in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.match(r"^(\d+)(?:\(x(\d+)\))?$", entry)
        if match is None:
            return None
        counts += [int(match.group(1))] * int(match.group(2) or 1)
    node = _count(environment, "SLURM_NODEID") if len(set(counts)) > 1 else 0
    return counts[node] if node is not None and node < len(counts) else None
