"""Atomic writes: their files' modes, and what a killed process leaves behind."""

import os
import secrets
import stat

import pytest

from whole_slide_cnn.files import remove_leftovers, replacing, write_text


@pytest.mark.parametrize("name", ["last.npz", "a[1].csv", "plain"])
def test_leftovers_of_a_file_are_removed_and_nothing_else(tmp_path, name):
    path = str(tmp_path / name)
    write_text(path, "kept")
    with replacing(path) as temporary:
        with open(temporary, "w") as stream:
            stream.write("also kept")
        left = temporary + "~"
        os.link(temporary, left)
    os.rename(left, temporary)  # as if the process had died before it replaced the file
    others = [".hidden", ".last.npz.mine", "x" + os.path.basename(temporary)]
    for other in others:
        (tmp_path / other).write_text("mine", encoding="utf-8")
    remove_leftovers(path)
    assert sorted(os.listdir(str(tmp_path))) == sorted(others + [name])
    remove_leftovers(path)
    remove_leftovers(str(tmp_path / "no folder" / name))


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_has_the_mode_that_the_umask_gives(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(str(tmp_path / "new.csv"), "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(str(tmp_path / "new.csv")).st_mode) == mode


def test_the_umask_of_the_process_is_left_alone(tmp_path, monkeypatch):
    """Threads that create files meanwhile would create them for everybody to write."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    write_text(str(tmp_path / "new.csv"), "text")


def test_a_temporary_name_that_is_taken_is_not_used(tmp_path, monkeypatch):
    names = iter(["00000000", "00000000", "00000001"])
    monkeypatch.setattr(secrets, "token_hex", lambda count: next(names))
    with replacing(str(tmp_path / "a.csv")) as first, replacing(str(tmp_path / "a.csv")) as second:
        assert [os.path.basename(path) for path in (first, second)] == [".a.csv.00000000.csv", ".a.csv.00000001.csv"]
