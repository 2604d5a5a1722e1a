import datetime
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys

import numpy
import pytest

import whole_slide_cnn.provenance as provenance_module
from tf_um_patch import host
from whole_slide_cnn.config import config_from_dict
from whole_slide_cnn.errors import ManifestError
from whole_slide_cnn.provenance import (
    describe_list,
    git_commit,
    provenance,
    versions,
    write_provenance,
    write_resumption,
)

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
LIST = b"case_id,slide_id,label\nc1,s1,a\nc2,s2,b\n\n"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.csv").write_bytes(LIST)
    data = {"classes": ["a", "b"], "canvas": 64, "mpp": 1.0, "train": "train.csv"}
    return config_from_dict({"result_dir": "out", "data": data, "seed": 7}, folder=str(tmp_path))


def test_the_record_is_complete(config, tmp_path):
    path = write_provenance(str(tmp_path / "results"), config)
    assert path == str(tmp_path / "results" / "provenance.json")
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    record = json.loads(text)
    assert record["seed"] == 7
    assert record["command"] == sys.argv
    digest = hashlib.sha256(LIST).hexdigest()
    assert record["data_lists"] == {"train": {"path": str(tmp_path / "train.csv"), "sha256": digest, "rows": 2}}
    assert config_from_dict(record["config"]) == config
    age = datetime.datetime.now(datetime.timezone.utc) - _time(record["time_utc"])
    assert abs(age.total_seconds()) < 60
    assert socket.gethostname() not in json.dumps(dict(record, config=None, command=None, data_lists=None))


def test_a_run_that_goes_on_keeps_its_origin(config, tmp_path):
    with open(write_provenance(str(tmp_path), config), encoding="utf-8") as stream:
        begun = json.load(stream)
    for updates in (30, 70):
        path = write_resumption(str(tmp_path), config, updates)
    with open(path, encoding="utf-8") as stream:
        record = json.load(stream)
    resumed = record.pop("resumed")
    assert record == begun
    assert [entry["updates"] for entry in resumed] == [30, 70]
    assert resumed[0]["versions"] == begun["versions"] and resumed[0]["command"] == sys.argv


@pytest.mark.parametrize("content", [None, "half a {", "[1]"])
def test_a_lost_origin_is_written_anew(config, tmp_path, content):
    if content is not None:
        (tmp_path / "provenance.json").write_text(content, encoding="utf-8")
    with open(write_resumption(str(tmp_path), config, 5, processes=3), encoding="utf-8") as stream:
        record = json.load(stream)
    assert (record["seed"], record["processes"]) == (7, 3) and record["resumed"][0]["updates"] == 5


def _time(text):
    assert text.endswith("+00:00")
    time = datetime.datetime.strptime(text[: -len("+00:00")], "%Y-%m-%dT%H:%M:%S")
    return time.replace(tzinfo=datetime.timezone.utc)


def test_lists_may_be_given(config, tmp_path):
    (tmp_path / "other.csv").write_bytes(b"s1,0\ns2,1\ns3,1\n")
    record = provenance(config, {"test": str(tmp_path / "other.csv")})
    assert list(record["data_lists"]) == ["test"]
    assert record["data_lists"]["test"]["rows"] == 3


def test_the_checkpoint_is_named(config, tmp_path):
    (tmp_path / "best.npz").write_bytes(b"weights")
    record = provenance(config, checkpoint=str(tmp_path / "best.npz"))
    digest = hashlib.sha256(b"weights").hexdigest()
    assert record["checkpoint"] == {"path": str(tmp_path / "best.npz"), "sha256": digest}
    assert provenance(config)["checkpoint"] is None


@pytest.mark.parametrize(
    "content, rows", [(b"", 0), (b"case_id,slide_id,label\n", 0), (b"\xef\xbb\xbfslide_id,label\nx,a\n", 1)]
)
def test_headers_are_not_slides(tmp_path, content, rows):
    (tmp_path / "list.csv").write_bytes(content)
    assert describe_list(str(tmp_path / "list.csv"))["rows"] == rows


def test_unreadable_lists(config, tmp_path):
    with pytest.raises(ManifestError, match="absent.csv: cannot read the data list: No such file"):
        provenance(config, {"train": str(tmp_path / "absent.csv")})
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="list.csv: the data list is not CSV text"):
        describe_list(str(tmp_path / "list.csv"))


def test_versions():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == numpy.__version__
    assert any(name.startswith("tensorflow") for name in found)
    assert all(isinstance(version, str) for version in found.values())


def test_the_gpu_its_driver_and_cupy_are_named(config, monkeypatch):
    """Of what a slide's value may depend on, they were missing: kernels differ from card to card."""
    cards = [host.GpuInfo("NVIDIA A100-SXM4-80GB", 85_899_345_920, 80_000_000_000, "GPU-1")]
    monkeypatch.setattr(host, "may_have_gpu", lambda: True)
    monkeypatch.setattr(host, "gpus", lambda: cards)
    monkeypatch.setattr(host, "driver_version", lambda: "535.54.03")
    known = provenance_module._installed_version
    monkeypatch.setattr(
        provenance_module, "_installed_version", lambda name: "13.6.0" if name == "cupy-cuda12x" else known(name)
    )
    record = json.loads(json.dumps(provenance(config)))
    assert record["gpus"] == [{"name": "NVIDIA A100-SXM4-80GB", "bytes": 85_899_345_920}]
    assert record["versions"]["nvidia-driver"] == "535.54.03" and record["versions"]["cupy-cuda12x"] == "13.6.0"


def test_a_gpu_that_only_the_driver_tells_of(config, monkeypatch):
    monkeypatch.setattr(host, "may_have_gpu", lambda: True)
    monkeypatch.setattr(host, "gpus", lambda: [])
    monkeypatch.setattr(host, "first_gpu", lambda: host.GpuInfo("a card", 8 * 10**9, 10**9))
    assert provenance(config)["gpus"] == [{"name": "a card", "bytes": 8 * 10**9}]
    monkeypatch.setattr(host, "first_gpu", lambda: None)
    assert provenance(config)["gpus"] == []
    monkeypatch.setattr(host, "may_have_gpu", lambda: False)
    monkeypatch.setattr(host, "gpus", lambda: pytest.fail("asked where there is no GPU"))
    assert provenance(config)["gpus"] == []


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from whole_slide_cnn.provenance import versions; found = versions();"
        "assert 'numpy' in found; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def _git(folder, *arguments):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    done = subprocess.run(("git", "-C", str(folder)) + identity + arguments, check=True, stdout=subprocess.PIPE)
    return done.stdout.decode().strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_of_a_checkout(tmp_path, monkeypatch):
    module = tmp_path / "package" / "provenance.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(provenance_module, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None  # no checkout
    _git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("")
    _git(tmp_path, "add", "other")
    _git(tmp_path, "commit", "-q", "-m", "other")
    assert git_commit() is None  # another project's checkout, in which the package is not tracked
    _git(tmp_path, "add", "package")
    _git(tmp_path, "commit", "-q", "-m", "package")
    assert git_commit() == _git(tmp_path, "rev-parse", "HEAD")
    module.write_text("changed = True\n")
    assert git_commit() == _git(tmp_path, "rev-parse", "HEAD") + "+changes"


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert git_commit() is None
