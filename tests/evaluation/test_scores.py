import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.scores import (
    SlideScore,
    evaluate,
    evaluate_scores,
    format_auc,
    mean_loss,
    merge_scores,
    positives_of,
    read_scores,
    write_scores,
    write_scores_json,
)

CLASSES = ("normal", "adeno", "squamous")
LABELS = [0, 0, 1, 1, 2, 2]
PROBABILITIES = [
    [0.7, 0.2, 0.1],
    [0.4, 0.5, 0.1],
    [0.1, 0.8, 0.1],
    [0.2, 0.6, 0.2],
    [0.3, 0.3, 0.4],
    [0.5, 0.3, 0.2],
]


def slide_scores():
    return [SlideScore("c%d" % i, "s%d" % i, y, tuple(p)) for i, (y, p) in enumerate(zip(LABELS, PROBABILITIES))]


def test_report():
    report = evaluate(LABELS, PROBABILITIES, CLASSES, loss=0.75)
    assert (report.slides, report.accuracy, report.loss) == (6, 4 / 6, 0.75)
    counts = [(entry.name, entry.slides, entry.predicted, entry.correct) for entry in report.classes]
    assert counts == [("normal", 2, 2, 1), ("adeno", 2, 3, 2), ("squamous", 2, 1, 1)]
    # By hand: of 8 pairs, normal wins 7 (0.4 loses to 0.5), adeno all 8, squamous 7 and a tie (0.2 against 0.2).
    assert [entry.auc.value for entry in report.classes] == [7 / 8, 1.0, 7.5 / 8]
    assert evaluate_scores(slide_scores(), CLASSES, loss=0.75) == report


def test_equal_probabilities_go_to_the_first_class():
    assert SlideScore("c", "s", 1, (0.5, 0.5)).prediction == 0
    assert evaluate([0], [[0.5, 0.5]], ("a", "b")).accuracy == 1.0


def test_report_as_json_and_text():
    report = evaluate([0, 0, 0], [[0.9, 0.1], [0.8, 0.2], [0.2, 0.8]], ("normal", "tumor"))
    document = json.loads(report.to_json(), parse_constant=pytest.fail)  # NaN is no JSON
    assert document["loss"] is None and document["accuracy"] == 2 / 3
    assert document["classes"][1]["auc"]["value"] is None
    assert document["classes"][1]["auc"]["note"] == "no positive case, so the AUC is undefined"
    lines = report.to_text().splitlines()
    assert lines[0] == "3 slides, accuracy 0.667"
    assert lines[3].split() == ["tumor", "0", "1", "0", "undefined"]
    assert "tumor: no positive case, so the AUC is undefined" in lines
    full = evaluate(LABELS, PROBABILITIES, CLASSES, loss=0.75).to_text()
    assert "loss 0.7500" in full and "1.000 (1.000 to 1.000)" in full and "95 % interval" in full


def test_an_auc_without_interval_is_still_shown():
    (first, _) = evaluate([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], ("a", "b")).classes
    assert format_auc(first.auc) == "1.000 (no interval)"


def test_unusable_scores():
    with pytest.raises(WholeSlideError, match="no slide was scored"):
        evaluate([], np.zeros((0, 2)), ("a", "b"))
    with pytest.raises(WholeSlideError, match="no slide was scored"):
        evaluate_scores([], ("a", "b"))
    with pytest.raises(WholeSlideError, match="slide number 2 is not a finite number"):
        evaluate([0, 1], [[0.5, 0.5], [math.nan, 0.5]], ("a", "b"))
    with pytest.raises(WholeSlideError, match="slide s7: its score is not a finite number"):
        evaluate_scores([SlideScore("c", "s7", 0, (math.inf, 0.0))], ("a", "b"))
    with pytest.raises(ValueError):
        evaluate([0, 2], [[0.5, 0.5], [0.5, 0.5]], ("a", "b"))
    with pytest.raises(ValueError):
        evaluate([0, 1], [[0.5, 0.5]], ("a", "b"))


# Python's csv module does not quote carriage returns where lines end with a line feed.
names = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"), max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(names, names, st.integers(0, 1), st.floats(0, 1), st.floats(0, 1)), max_size=5),
    classes=st.lists(names.filter(bool), min_size=2, max_size=2, unique=True),
)
def test_scores_survive_the_file(tmp_path_factory, rows, classes):
    path = str(tmp_path_factory.mktemp("scores") / "scores.csv")
    scores = [SlideScore(case, slide, label, (p, q)) for case, slide, label, p, q in rows]
    write_scores(path, scores, tuple(classes))
    assert read_scores(path) == (scores, tuple(classes))


def test_form_of_the_file(tmp_path):
    path = str(tmp_path / "new folder" / "scores.csv")
    write_scores(path, slide_scores()[:2], CLASSES)
    with open(path, "rb") as stream:
        assert stream.read() == (
            b"case_id,slide_id,label,p_normal,p_adeno,p_squamous,prediction\n"
            b"c0,s0,normal,0.7,0.2,0.1,normal\n"
            b"c1,s1,normal,0.4,0.5,0.1,adeno\n"
        )
    assert os.listdir(os.path.dirname(path)) == ["scores.csv"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "scores.csv")
    write_scores(path, slide_scores(), CLASSES)
    with pytest.raises(IndexError):
        write_scores(path, [SlideScore("c", "s", 9, (0.1, 0.2, 0.7))], CLASSES)
    assert read_scores(path) == (slide_scores(), CLASSES)
    assert os.listdir(str(tmp_path)) == ["scores.csv"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected the header case_id,slide_id,label,p_<class>...,prediction"),
        ("case_id,slide_id,label,prediction\n", "expected the header"),
        ("case_id,slide_id,label,a,p_b,prediction\n", "expected the header"),
        ("case_id,slide_id,label,p_a,p_b,prediction\nc,s,a,0.1\n", "line 2 has 4 columns instead of 6"),
        ("case_id,slide_id,label,p_a,p_b,prediction\nc,s,z,0.1,0.9,b\n", "line 2 has the label z"),
        ("case_id,slide_id,label,p_a,p_b,prediction\nc,s,a,x,0.9,b\n", "line 2 has a score that is not a number"),
        (b"\xff\xfe", "not a file of scores"),
    ],
)
def test_broken_files_get_one_sentence(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    with pytest.raises(WholeSlideError) as caught:
        read_scores(str(path))
    assert str(caught.value).startswith(str(path) + ": ") and message in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(WholeSlideError, match="cannot read scores: No such file"):
        read_scores(str(tmp_path / "absent.csv"))


def test_json_list(tmp_path):
    path = str(tmp_path / "scores.json")
    write_scores_json(path, slide_scores()[:1], ["/slides/s0.svs"])
    with open(path, encoding="utf-8") as stream:
        assert json.load(stream) == [{"slide_path": "/slides/s0.svs", "y_true": 0, "y_pred": [0.7, 0.2, 0.1]}]
    with pytest.raises(ValueError):
        write_scores_json(path, slide_scores(), ["/slides/s0.svs"])


def test_scores_of_several_processes_are_joined_in_the_order_of_the_list():
    scores = slide_scores()
    names = [score.slide_id for score in scores]
    parts = [scores[0::3], scores[1::3], scores[2::3]]
    assert merge_scores(parts, names) == scores
    assert merge_scores(parts) == parts[0] + parts[1] + parts[2]
    assert merge_scores([parts[2], [], parts[0]], names) == [s for i, s in enumerate(scores) if i % 3 != 1]
    assert merge_scores([], names) == []
    assert parts == [scores[0::3], scores[1::3], scores[2::3]]  # untouched


def test_a_slide_scored_twice_counts_once():
    scores = slide_scores()
    rounded = [SlideScore("c0", "s0", 0, (0.7 + 1e-6, 0.2, 0.1 - 1e-6))]
    assert merge_scores([scores, rounded]) == scores


@pytest.mark.parametrize(
    "other",
    [
        SlideScore("c0", "s0", 0, (0.69, 0.21, 0.1)),
        SlideScore("c0", "s0", 1, (0.7, 0.2, 0.1)),
        SlideScore("c1", "s0", 0, (0.7, 0.2, 0.1)),
    ],
)
def test_processes_that_disagree_are_refused(other):
    with pytest.raises(WholeSlideError, match="slide s0: two processes scored it differently"):
        merge_scores([slide_scores(), [other]])


def test_scores_of_slides_that_are_not_in_the_list():
    with pytest.raises(ValueError, match="slide s5 is not in the data list"):
        merge_scores([slide_scores()], ["s%d" % i for i in range(5)])


def test_mean_loss():
    scores = [SlideScore("c", "s", 0, (0.5, 0.5), loss) for loss in (0.25, 0.75)]
    assert mean_loss(scores) == 0.5
    assert mean_loss(scores + slide_scores()) is None and mean_loss([]) is None
    assert scores[0] == SlideScore("c", "s", 0, (0.5, 0.5))  # which file it is from makes no difference


def test_a_slide_may_belong_to_several_classes():
    several = positives_of(LABELS, 3)
    assert evaluate(several, PROBABILITIES, CLASSES) == evaluate(LABELS, PROBABILITIES, CLASSES)
    several[1, 1] = True  # it was predicted as adeno
    report = evaluate(several, PROBABILITIES, CLASSES)
    assert report.accuracy == 5 / 6
    assert [(entry.slides, entry.correct) for entry in report.classes] == [(2, 1), (3, 3), (2, 1)]


def test_cases_in_the_same_json():
    report = evaluate(LABELS, PROBABILITIES, CLASSES)
    document = json.loads(report.to_json(evaluate(LABELS, PROBABILITIES, CLASSES, unit="cases")))
    assert document["slides"] == document["cases"]["cases"] == 6
    assert document["classes"][1]["slides"] == document["cases"]["classes"][1]["cases"] == 2
    assert "unit" not in document and "slides" not in document["cases"]
    assert json.loads(report.to_json()) == {key: value for key, value in document.items() if key != "cases"}
