"""tools/same_numbers: what it says of two records, and what it leaves out when it makes one."""

import json
import os

import numpy as np
import pytest
from same_numbers import comparing, files, recording
from same_numbers.__main__ import main


@pytest.fixture
def make(tmp_path):
    """A function (name, **changes) -> folder of a small record, some of whose values are changed."""

    def record(name, loss=0.25, weight=1.0, text="gmp", key="moved", score="0.5", environment="2.21"):
        folder = str(tmp_path / name)
        training = files.Item(os.path.join(folder, "training", "direct"))
        training.arrays("last", {"kernel": np.array([[2.0, weight]], np.float32), "bias": np.zeros(2)})
        training.text("log.csv", "epoch,loss\n1,{!r}\n".format(loss))
        plans = files.Item(os.path.join(folder, "plans"))
        plans.values("plan.json", [{"pooling": text, key: {"bytes": 10**17 + 1}, "fits": True, "list": []}])
        files.Item(os.path.join(folder, "scores")).text("scores.txt", "slide-1 {}\n".format(score))
        files.write(os.path.join(folder, files.ENVIRONMENT), json.dumps({"tensorflow": environment}))
        files.write(os.path.join(folder, files.INPUTS, "run.txt"), name)
        return folder

    return record


@pytest.fixture
def compare(capsys):
    """A function (*arguments) -> exit code, and the lines of the table by their first word."""

    def run(*arguments):
        code = main(["compare"] + list(arguments))
        shown = capsys.readouterr()
        assert not shown.err
        return code, {line.split()[0]: line for line in shown.out.splitlines()}

    return run


def test_equal_records(make, compare):
    code, table = compare(make("before"), make("after", environment="2.22"))
    assert code == 0
    assert table["plans"].split(None, 1)[1] == "same, 4 values"
    assert table["training/direct"].split(None, 1)[1] == "same, 8 values"
    assert table["3"] == "3 items: all the same, bit for bit"
    assert table["note:"] == "note: tensorflow was 2.21 before and is 2.22 after"


def test_the_last_bit_of_a_number_counts(make, compare):
    before = make("before")
    code, table = compare(before, make("weight", weight=np.nextafter(np.float32(1), np.float32(2))))
    assert code == 1 and table["3"] == "3 items: 1 differ"
    # the array, and its digest
    assert (
        "2 of 8 values differ: largest relative difference 6.0e-08 (last.npz: kernel; array)"
        in table["training/direct"]
    )
    code, table = compare(before, make("loss", loss=0.25 + 2**-54))
    assert (
        code == 1
        and "1 of 8 values differ: largest relative difference 2.2e-16 (log.csv: 2/2" in table["training/direct"]
    )
    code, table = compare(before, make("zero", weight=-0.0), "--only", "training")
    assert code == 1
    code, table = compare(before, make("nan", loss=float("nan")))
    assert code == 1 and "largest relative difference inf" in table["training/direct"]


def test_texts_and_whole_numbers(make, compare):
    before = make("before")
    code, table = compare(before, make("text", text="gap"))
    assert code == 1 and "1 of 4 values differ: 'gmp' became 'gap' (plan.json: 0/pooling)" in table["plans"]
    code, table = compare(before, make("score", score="0.50000001"))
    assert (
        code == 1 and "largest relative difference 2.0e-08 (scores.txt: 1/2; 0.5 became 0.50000001)" in table["scores"]
    )
    assert compare(before, make("digits", score="0.50"))[0] == 0
    after = make("large")
    path = os.path.join(after, "plans", "plan.json")
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text.replace(str(10**17 + 1), str(10**17)))  # the same float
    assert compare(before, after)[0] == 1


def test_what_is_missing(make, compare):
    before, after = make("before"), make("after")
    os.remove(os.path.join(after, "scores", "scores.txt"))
    os.remove(os.path.join(after, "training", "direct", "log.csv"))
    files.Item(os.path.join(after, "added")).values("new.json", {"a": 1})
    code, table = compare(before, after)
    assert code == 1 and table["4"] == "4 items: 3 differ"
    assert table["scores"].endswith(" missing after") and table["added"].endswith(" missing before")
    assert "4 of 8 values differ: missing after (log.csv: 1/1; and others)" in table["training/direct"]
    assert compare(before, after, "--only", "plans")[0] == 0


def test_renamed_keys_and_texts(make, compare):
    before, after = make("before"), make("after", key="evicted", text="maximum")
    code, table = compare(before, after)
    assert code == 1 and "missing after (plan.json: 0/moved/bytes; and others)" in table["plans"]
    assert compare(before, after, "--rename", "moved=evicted")[0] == 1
    assert compare(before, after, "--rename", "moved=evicted", "--rename", "gmp=maximum")[0] == 0


def test_renamed_words_of_a_text():
    assert (
        comparing.reworded("gmp, not gmp2 or a.gmp", {"gmp": "the maximum"}) == "the maximum, not gmp2 or a.the maximum"
    )
    assert comparing.reworded("use streaming", {"use streaming": "use engine: streaming"}) == "use engine: streaming"


def test_added_keys(make, compare):
    before, after = make("before"), make("after")
    path = os.path.join(after, "plans", "plan.json")
    with open(path, encoding="utf-8") as stream:
        plans = json.load(stream)
    plans[0].update(version={"major": 2}, format="new")
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(plans, stream)
    assert compare(before, after, "--added", "version")[0] == 1
    code, table = compare(before, after, "--added", "version", "--added", "format")
    assert code == 0 and table["plans"].endswith("same, 4 values")
    assert compare(after, before, "--added", "version", "--added", "format")[0] == 1


def test_errors_are_one_sentence(make, tmp_path, capsys):
    before = make("before")
    for said, arguments in (
        ("nothing is no record", ("compare", before, str(tmp_path / "nothing"))),
        ("'moved' renames nothing", ("compare", before, before, "--rename", "moved")),
        ("nothing to compare", ("compare", before, before, "--only", "plan")),
        ("nothing to record named plan; the names are ", ("record", "--only", "plan")),
        ("is no checkout", ("record",)),
    ):
        if arguments[0] == "record":
            arguments += ("--checkout", str(tmp_path), "--python", "python", "--output", str(tmp_path / "new"))
        assert main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ") and said in shown.err and shown.err.count("\n") == 1


def test_words_of_a_text_may_change_and_numbers_may_not():
    text = "engine direct: 0.25 GB (maps 1.5e-3, -2)\nno numbers\nV100-32GB takes 1,024 px\n"
    assert files.numbers_of(text) == "0.25 1.5e-3 -2\n32 1,024\n"
    assert files.numbers_of(text, "engine") == "0.25 1.5e-3 -2\n"


def test_checkpoints_without_what_they_say_of_a_run(tmp_path):
    path = str(tmp_path / "last.npz")
    np.savez(path, metadata=np.array("{}"), kernel=np.ones(2), **{"adam/kernel/m": np.zeros(2)})
    assert sorted(files.checkpoint_arrays(path)) == ["adam/kernel/m", "kernel"]


def test_every_item_has_a_name_of_its_own_and_is_chosen_by_it():
    names = [name for name, _ in recording.items()]
    assert len(set(names)) == len(names)
    assert [name for name, _ in recording.chosen(["plans/host*", "slides"])][:2] == ["slides", "plans/host"]
    assert [name for name, _ in recording.chosen(["resume"])] == [name for name in names if name.startswith("resume/")]
    assert len(recording.chosen(None)) == len(names)
