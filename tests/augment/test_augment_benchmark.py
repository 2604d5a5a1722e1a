"""The benchmark of augmentation runs and counts what it says."""

import json

import augment


def test_the_benchmark_writes_a_table(tmp_path):
    path = tmp_path / "table.json"
    given = ["--side", "1024", "--shares", "0.05", "--backbone", "tiny", "--window", "128", "--draws", "1"]
    assert augment.main(given + ["--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert 0.05 * row["whole_megapixels"] < row["read_megapixels"] < row["whole_megapixels"]
    assert row["bytes_reduction"] > 1 and row["ms_per_megapixel"] > 0
