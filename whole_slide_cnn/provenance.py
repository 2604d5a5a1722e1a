"""Where a result comes from: versions, GPU, commit, seed, configuration and data lists, stored beside it."""

import csv
import datetime
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
from typing import Any, Dict, List, Mapping, Optional

import tf_um_patch.host as host
from whole_slide_cnn.config import TrainConfig, config_to_dict
from whole_slide_cnn.errors import ManifestError
from whole_slide_cnn.files import write_text

PACKAGE = "whole_slide_cnn"
# Distributions that can change a result; TensorFlow has several names for one package.
DISTRIBUTIONS = (
    "tensorflow",
    "tensorflow-gpu",
    "tensorflow-cpu",
    "numpy",
    "scipy",
    "scikit-learn",
    "openslide-python",
    "openslide-bin",
    "Pillow",
    "tifffile",
    "imagecodecs",
    "h5py",
    "safetensors",
    "PyYAML",
    "matplotlib",
    "opencv-python-headless",
    "mpi4py",
    "horovod",
    # CuPy has a name for each version of CUDA that it was built for.
    "cupy",
    "cupy-cuda11x",
    "cupy-cuda12x",
    "cupy-cuda13x",
)
_GIT_SECONDS = 10
_HEADER_NAMES = {"case_id", "slide_id"}


def provenance(
    config: TrainConfig,
    manifests: Optional[Mapping[str, str]] = None,
    checkpoint: Optional[str] = None,
    processes: int = 1,
) -> Dict[str, Any]:
    """Describe the origin of a result in JSON types. TensorFlow is not imported, and the host is not named.

    Args:
        config: the resolved :class:`~whole_slide_cnn.config.TrainConfig`.
        manifests: names and files of the data lists used; by default those of ``config.data``.
        checkpoint: file of the weights used, or None.
        processes: how many computed it together.

    Raises:
        ManifestError: a data list cannot be read.
    """
    if manifests is None:
        lists = {"train": config.data.train, "val": config.data.val, "test": config.data.test}
        manifests = {name: path for name, path in lists.items() if path is not None}
    return {
        "time_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "seed": config.seed,
        "processes": processes,
        "commit": git_commit(),
        "versions": versions(),
        "gpus": gpus(),
        "data_lists": {name: describe_list(path) for name, path in manifests.items()},
        "checkpoint": None if checkpoint is None else describe_file(checkpoint),
        "config": config_to_dict(config),
    }


def write_provenance(
    folder: str,
    config: TrainConfig,
    manifests: Optional[Mapping[str, str]] = None,
    name: str = "provenance.json",
    checkpoint: Optional[str] = None,
    processes: int = 1,
) -> str:
    """Write :func:`provenance` to ``folder``, atomically, and return the file's path.

    Raises:
        ManifestError: a data list cannot be read.
        WholeSlideError: the file cannot be written.
    """
    path = os.path.join(folder, name)
    write_text(
        path, json.dumps(provenance(config, manifests, checkpoint, processes), indent=2, ensure_ascii=False) + "\n"
    )
    return path


def write_resumption(
    folder: str, config: TrainConfig, updates: int, name: str = "provenance.json", processes: int = 1
) -> str:
    """Add to the provenance of a run that it goes on, with what and after how many updates; returns the file's path.

    Where the file is lost, it is written anew.
    """
    path = os.path.join(folder, name)
    now = provenance(config, processes=processes)
    try:
        with open(path, encoding="utf-8") as stream:
            begun = dict(json.load(stream))
    except (OSError, ValueError, TypeError):
        begun = dict(now)
    entry = dict({key: now[key] for key in ("time_utc", "command", "commit", "versions", "gpus")}, updates=updates)
    begun["resumed"] = list(begun.get("resumed", [])) + [entry]
    write_text(path, json.dumps(begun, indent=2, ensure_ascii=False) + "\n")
    return path


def versions() -> Dict[str, str]:
    """Versions of this package, Python, the installed libraries that can change a result, and the NVIDIA driver."""
    found = {"python": platform.python_version()}
    for name in (PACKAGE,) + DISTRIBUTIONS:
        version = _installed_version(name)
        if version is not None:
            found[name] = version
    library = getattr(sys.modules.get("openslide"), "__library_version__", None)
    if library is not None:  # the C library of a system package has a version of its own
        found["libopenslide"] = library
    driver = host.driver_version()
    if driver is not None:
        found["nvidia-driver"] = driver
    return found


def gpus() -> List[Dict[str, Any]]:
    """Name and bytes of the GPUs that this process may use, in JSON types; of a slice (MIG) its own."""
    if not host.may_have_gpu():
        return []
    found = host.gpus() or [gpu for gpu in (host.first_gpu(),) if gpu is not None]
    return [{"name": gpu.name, "bytes": gpu.total_bytes} for gpu in found]


def git_commit() -> Optional[str]:
    """The commit of the checkout this package runs from, with ``+changes`` where files differ from it.

    None where the package is not tracked in a checkout, such as an installed copy, or git is absent.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    # An installed copy may lie inside the checkout of another project, whose commit would be misleading.
    if _git(folder, "ls-files", "--error-unmatch", os.path.basename(__file__)) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit + "+changes" if commit and changes else commit


def describe_list(path: str) -> Dict[str, Any]:
    """The path, SHA-256 and number of slides of a data list, with or without a header.

    Raises:
        ManifestError: the file cannot be read as text.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read()
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if any(row)]
    except OSError as error:
        raise ManifestError("{}: cannot read the data list: {}".format(path, error.strerror)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError("{}: the data list is not CSV text: {}".format(path, error)) from error
    has_header = bool(rows) and bool(_HEADER_NAMES & {cell.strip() for cell in rows[0]})
    return {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "rows": len(rows) - has_header}


def describe_file(path: str) -> Dict[str, str]:
    """The absolute path and SHA-256 of a file, read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for part in iter(lambda: stream.read(2**20), b""):
            digest.update(part)
    return {"path": os.path.abspath(path), "sha256": digest.hexdigest()}


def _git(folder: str, *arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(
            ("git", "-C", folder) + arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()


def _installed_version(name: str) -> Optional[str]:
    try:
        from importlib import metadata  # Python 3.8 and later
    except ImportError:
        import pkg_resources

        try:
            return pkg_resources.get_distribution(name).version
        except pkg_resources.DistributionNotFound:
            return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
