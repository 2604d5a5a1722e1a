"""Files of seconds."""

import pytest

from whole_slide_cnn.running.times import UPDATE_COLUMNS, TimeRecord


def test_rows_are_written_as_a_whole(tmp_path):
    path = tmp_path / "new" / "times.csv"
    times = TimeRecord(str(path), UPDATE_COLUMNS)
    times.add(1, 2, 0.5)
    assert not path.exists()
    times.write()
    times.add(2, 2, 1e-7)
    times.write()
    assert path.read_text(encoding="utf-8") == "update,slides,seconds\n1,2,0.500000\n2,2,0.000000\n"


def test_a_run_that_goes_on_keeps_the_rows_it_has_done(tmp_path):
    path = tmp_path / "times.csv"
    before = "update,slides,seconds\n1,1,0.100000\n2,1,0.200000\n3,1,0.300000\n"
    path.write_text(before, encoding="utf-8")
    times = TimeRecord(str(path), UPDATE_COLUMNS, done=2)
    times.add(3, 1, 0.5)
    times.write()
    assert path.read_text(encoding="utf-8") == before.replace("3,1,0.300000", "3,1,0.500000")
    TimeRecord(str(path), UPDATE_COLUMNS).write()  # a new run begins a new file
    assert path.read_text(encoding="utf-8") == "update,slides,seconds\n"


@pytest.mark.parametrize("text", [None, "", "another,header\n1,2\n"])
def test_there_may_be_nothing_to_go_on_from(tmp_path, text):
    path = tmp_path / "times.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    times = TimeRecord(str(path), UPDATE_COLUMNS, done=5)
    times.write()
    assert path.read_text(encoding="utf-8") == "update,slides,seconds\n"


def test_no_path_records_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    times = TimeRecord(None, UPDATE_COLUMNS, done=3)
    times.add(1, 1, 0.5)
    times.write()
    assert list(tmp_path.iterdir()) == []
