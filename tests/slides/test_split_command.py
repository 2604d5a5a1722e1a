"""``split``: stratified, by case, reproducible."""

import collections
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn import split
from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.slides.manifest import Record, check_disjoint, load_manifest

CLASSES = ("normal", "tumour")


def make_records(cases_per_class, slides_per_case=1):
    return [
        Record("c{}-{}".format(label, case), "s{}-{}-{}".format(label, case, slide), label)
        for label, cases in enumerate(cases_per_class)
        for case in range(cases)
        for slide in range(slides_per_case)
    ]


@settings(deadline=None, max_examples=25)
@given(
    cases=st.lists(st.integers(10, 40), min_size=2, max_size=3),
    slides=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    random=st.randoms(use_true_random=False),
)
def test_every_case_has_one_home_and_every_class_its_share(cases, slides, seed, random):
    records = make_records(cases, slides)
    classes = tuple("abc"[: len(cases)])
    fractions = (0.5, 0.25, 0.25)
    splits = split.split_records(records, classes, fractions, seed)
    check_disjoint(splits)
    assert collections.Counter(r for part in splits.values() for r in part) == collections.Counter(records)
    for name, fraction in zip(split.SPLITS, fractions):
        for label, count in enumerate(cases):
            members = {record.case_id for record in splits[name] if record.label == label}
            assert abs(len(members) - count * fraction) <= 2
    shuffled = list(records)
    random.shuffle(shuffled)
    again = split.split_records(shuffled, classes, fractions, seed)
    assert {name: set(part) for name, part in again.items()} == {name: set(part) for name, part in splits.items()}


def test_another_seed_gives_another_split():
    records = make_records((20, 20))
    splits = [split.split_records(records, CLASSES, (0.6, 0.2, 0.2), seed) for seed in (0, 1)]
    assert splits[0] != splits[1]


def test_a_case_of_two_classes_counts_as_the_higher_one():
    records = make_records((10, 10))
    records += [Record("c1-{}".format(case), "normal-{}".format(case), 0) for case in range(10)]
    splits = split.split_records(records, CLASSES, (0.6, 0.2, 0.2), 0)
    check_disjoint(splits)
    assert len({record.case_id for record in splits["test"] if record.label == 1}) == 2


@pytest.mark.parametrize(
    "cases, fractions, seed, message",
    [
        ((10, 2), (0.6, 0.2, 0.2), 0, "class tumour has 2 case"),
        ((10, 0), (0.6, 0.2, 0.2), 0, "class tumour has 0 case"),
        ((10, 10), (0.9, 0.05, 0.05), 0, "test would get 1 of 20 cases"),
        ((60, 3), (0.8, 0.1, 0.1), 0, "class tumour has 3 cases, too few"),
        ((10, 10), (0.6, 0.2, 0.3), 0, "sum to 1"),
        ((10, 10), (0.8, 0.2, 0.0), 0, "above 0"),
        ((10, 10), (float("nan"), 0.5, 0.5), 0, "above 0"),
        ((10, 10), (0.6, 0.2, 0.2), -1, "seed"),
    ],
)
def test_impossible_splits_are_refused(cases, fractions, seed, message):
    with pytest.raises(WholeSlideError, match=message):
        split.split_records(make_records(cases), CLASSES, fractions, seed)


def test_command(tmp_path, capsys):
    rows = ["case_id,slide_id,label,mpp"]
    rows += ["{0},{0}.svs,{1},{2}".format(i, CLASSES[i % 2], "0.25" if i == 7 else "") for i in range(20)]
    (tmp_path / "all.csv").write_text("\n".join(rows))
    output = str(tmp_path / "new" / "splits")
    split.main(["--manifest", str(tmp_path / "all.csv"), "--output", output, "--seed", "3"])
    printed = capsys.readouterr().out
    assert "normal" in printed and "cases" in printed
    splits = {name: load_manifest(os.path.join(output, name + ".csv"), CLASSES) for name in split.SPLITS}
    assert [len(splits[name]) for name in split.SPLITS] == [12, 4, 4]
    assert [line.split()[1:4] for line in printed.splitlines()[1:4]] == [
        ["6", "6", "12"],
        ["2", "2", "4"],
        ["2", "2", "4"],
    ]
    everything = [record for records in splits.values() for record in records]
    assert set(everything) == set(load_manifest(str(tmp_path / "all.csv"), CLASSES))


def test_command_keeps_the_order_of_the_classes(tmp_path):
    (tmp_path / "all.csv").write_text("".join("s{},{}\n".format(i, i % 2) for i in range(20)))
    split.main(["--manifest", str(tmp_path / "all.csv"), "--output", str(tmp_path), "--classes", "tumour", "normal"])
    text = (tmp_path / "test.csv").read_text()
    assert text.startswith("case_id,slide_id,label\n")
    for line in text.splitlines()[1:]:
        case, slide, label = line.split(",")
        assert case == slide and label == ("tumour", "normal")[int(slide[1:]) % 2]
