"""The machine that figures were taken on, in plain values; no name of it."""

import datetime
import os
import platform
from typing import Any, Dict

from tf_um_patch.host import host_memory
from whole_slide_cnn.provenance import git_commit, gpus, versions

# Variables that change how fast things are.
SETTINGS = (
    "OMP_NUM_THREADS",
    "TF_ENABLE_ONEDNN_OPTS",
    "NVIDIA_TF32_OVERRIDE",
    "TF_CUDNN_USE_AUTOTUNE",
    "MALLOC_MMAP_THRESHOLD_",
)


def describe() -> Dict[str, Any]:
    """CPU, cores, memory, GPUs, versions, settings, commit and date."""
    memory = host_memory()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory_bytes": None if memory is None else memory.total_bytes,
        "gpus": gpus(),
        "system": platform.system() + " " + platform.release(),
        "versions": versions(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
