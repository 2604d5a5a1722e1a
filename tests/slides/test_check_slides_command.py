"""``check_slides``: every broken slide by name, and an exit code that a script can use."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from whole_slide_cnn import check_slides
from whole_slide_cnn.errors import ConfigError, ManifestError
from whole_slide_cnn.sizes import Size, Window


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photograph, write_tiff):
    """Slides of every condition."""
    folder = tmp_path_factory.mktemp("slides")
    levels = [photograph(1100, 1300, 1), photograph(550, 650, 2)]
    write_tiff(folder / "good.tif", levels, mpp=0.5)
    write_tiff(folder / "silent.tif", levels)  # no resolution
    with open(str(folder / "good.tif"), "rb") as stream:
        data = stream.read()
    (folder / "truncated.tif").write_bytes(data[: int(len(data) * 0.8)])
    (folder / "text.tif").write_text("no slide at all")
    Image.fromarray(photograph(40, 30)).save(str(folder / "image.png"))
    return folder


def run(folder, names, *arguments):
    manifest = folder / "list.csv"
    manifest.write_text("".join("{},0\n".format(name) for name in names))
    return check_slides.main(["--manifest", str(manifest), "--samples", "2", "--workers", "2"] + list(arguments))


def test_good_slides(folder, capsys):
    assert run(folder, ["good.tif", "silent.tif", "image.png"]) == 0
    assert capsys.readouterr().out == "all 3 slides are fine\n"


def test_broken_slides_are_listed_in_order(folder, capsys):
    report = str(folder / "report.csv")
    names = ["text", "good", "truncated", "absent"]
    assert run(folder, names, "--extension", ".tif", "--slides", str(folder), "--report", report) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].strip() for line in lines[:-1]] == ["text", "truncated", "absent"]
    assert "there is no file" in lines[2]
    assert lines[-1] == "3 of 4 slides are broken"
    with open(report, encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert [row[:2] for row in rows[1:]] == [[name, "fine" if name == "good" else "broken"] for name in names]
    assert bool(rows[2][2]) is False and all(row[2] for row in rows[1:] if row[0] != "good")


def test_missing_resolution_is_a_fault_only_where_it_is_needed(folder, capsys):
    assert run(folder, ["silent.tif"], "--mpp", "1.0") == 1
    assert "µm/px" in capsys.readouterr().out
    assert run(folder, ["silent.tif"], "--mpp", "1.0", "--slide-mpp", "0.5") == 0
    assert run(folder, ["silent.tif"], "--ratio", "0.5") == 0
    assert run(folder, ["good.tif"], "--mpp", "1.0") == 0


@pytest.fixture
def check_config(slide_set, make_slide, make_list, tmp_path, capsys):
    """A function (*arguments) -> exit code and output of a check of a configuration's own slides: three lists of one
    slide each, of which the test list's states no um/px."""
    for name, mpp in (("a", 1.0), ("b", 1.0), ("c", None)):
        make_slide(tmp_path / (name + ".tif"), label=0, seed=1, mpp=mpp)
    for split, row in (("train", ("a", "normal")), ("val", ("b", "tumor", 2.0)), ("test", ("c", "normal"))):
        make_list(str(tmp_path / (split + ".csv")), [row])
    with open(slide_set.path("config.yaml"), encoding="utf-8") as stream:
        (tmp_path / "config.yaml").write_text(stream.read().replace("slides: slides", "slides: ."), encoding="utf-8")

    def check(*arguments):
        code = check_slides.main(["--config", str(tmp_path / "config.yaml"), "--workers", "1"] + list(arguments))
        return code, capsys.readouterr().out

    return check


def test_a_configuration_is_checked_as_training_reads_it(check_config):
    """All its lists, by its folder, extension and um/px; a list's own um/px goes before the file's."""
    with pytest.warns(UserWarning, match="slide b: 300 x 340 px at the working resolution, cropped to the canvas"):
        code, output = check_config()
    assert code == 1
    assert output.splitlines()[0].startswith("broken: c: the file does not state its µm/px")
    assert output.splitlines()[1] == "1 of 3 slides are broken"


def test_keys_and_options_go_before_the_configuration(check_config, tmp_path):
    settings = "--set", "data.canvas=400", "--set", "data.slide_mpp=1.0"
    assert check_config(*settings) == (0, "all 3 slides are fine\n")
    assert check_config("--set", "data.canvas=400", "--slide-mpp", "1") == (0, "all 3 slides are fine\n")
    assert check_config("--ratio", "1") == (0, "all 3 slides are fine\n")
    train = str(tmp_path / "train.csv")
    assert check_config("--manifest", train) == (0, "all 1 slides are fine\n")
    assert check_config("--manifest", train, "--slides", str(tmp_path / "elsewhere"))[0] == 1


def test_labels_and_lists_of_a_configuration_are_checked(check_config, make_list, tmp_path):
    with pytest.raises(ManifestError, match="unknown label 'tumor'"):
        check_config("--set", "data.classes=[normal, other]")
    make_list(str(tmp_path / "val.csv"), [("a", "tumor")])
    with pytest.raises(ManifestError, match="case a is in both train and val"):
        check_config()
    with pytest.raises(ConfigError, match="names no data list; give one by --manifest"):
        check_config(*(word for split in ("train", "val", "test") for word in ("--set", "data.{}=null".format(split))))


@pytest.mark.parametrize(
    "arguments, sentence", [([], "give --config, --manifest or both"), (["--set", "seed=1"], "--set needs")]
)
def test_something_to_check_is_required(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as exit_info:
        check_slides.main(arguments)
    assert exit_info.value.code == 2 and sentence in capsys.readouterr().err


def test_an_odd_file_does_not_end_the_check(folder, monkeypatch, capsys):
    def fail(path, name, reader):
        raise MemoryError("too much")

    monkeypatch.setattr(check_slides, "open_slide", fail)
    assert run(folder, ["good.tif"]) == 1
    assert "good.tif: MemoryError: too much" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--mpp", "0"], ["--ratio", "nan"], ["--mpp", "1", "--ratio", "1"], ["--mpp", "4x"]]
)
def test_unusable_options_exit_with_2(folder, arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(folder, ["good.tif"], *arguments)
    assert exit_info.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_samples_cover_the_corners_and_repeat():
    size = Size(1000, 700)
    windows = list(check_slides.sample_windows(size, 5, np.random.RandomState(3)))
    assert windows == list(check_slides.sample_windows(size, 5, np.random.RandomState(3)))
    assert len(windows) == 9
    assert {Window(0, 0, 256, 256), Window(744, 444, 256, 256)} <= set(windows)
    assert all(window.intersect(Window(0, 0, *size)) == window for window in windows)
    assert list(check_slides.sample_windows(Size(3, 4), 0, np.random.RandomState(0))) == [Window(0, 0, 3, 4)]


def test_as_a_command(folder):
    (folder / "one.csv").write_text("text.tif,0\n")
    root = os.path.join(os.path.dirname(__file__), "..", "..")
    command = [sys.executable, "-m", "whole_slide_cnn.check_slides", "--manifest"]
    environment = dict(os.environ, PYTHONIOENCODING="utf-8")
    for manifest, code in ((str(folder / "one.csv"), 1), (str(folder / "absent.csv"), 2)):
        done = subprocess.run(
            command + [manifest], cwd=root, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
        assert code == 2 or b"1/1" in done.stderr  # the progress bar comes to its end
