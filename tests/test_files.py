"""What a killed process leaves behind of an atomic write."""

import os

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
