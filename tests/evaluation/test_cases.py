import os

import numpy as np
import pytest

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.cases import case_scores, evaluate_cases, positives, write_case_scores
from whole_slide_cnn.evaluation.scores import SlideScore

CLASSES = ("normal", "adeno", "squamous")


def slide(case, name, label, *probabilities):
    return SlideScore(case, name, label, probabilities)


SLIDES = [
    slide("b", "b1", 0, 0.9, 0.05, 0.05),  # nothing on the first slide of a case with a lesion on its second
    slide("a", "a1", 0, 0.7, 0.2, 0.1),
    slide("b", "b2", 1, 0.1, 0.6, 0.3),
    slide("a", "a2", 0, 0.8, 0.05, 0.15),
    slide("c", "c1", 2, 0.3, 0.3, 0.4),
    slide("d", "d1", 1, 0.4, 0.5, 0.1),
    slide("d", "d2", 2, 0.4, 0.1, 0.5),
]


def test_a_case_has_as_much_of_a_disease_as_its_worst_slide():
    b, a, c, d = case_scores(SLIDES)
    assert [case.case_id for case in (b, a, c, d)] == ["b", "a", "c", "d"]  # in the order of their first slides
    assert (b.slides, b.labels, b.probabilities, b.prediction) == (2, (1,), (0.1, 0.6, 0.3), 1)
    assert (a.slides, a.labels, a.probabilities, a.prediction) == (2, (0,), (0.7, 0.2, 0.15), 0)
    assert (c.slides, c.labels, c.probabilities) == (1, (2,), (0.3, 0.3, 0.4))
    assert (d.labels, d.probabilities) == ((1, 2), (0.4, 0.5, 0.5))


def test_a_case_of_two_classes_is_a_positive_of_both_and_correct_as_either():
    cases = case_scores(SLIDES)
    np.testing.assert_array_equal(positives(cases, 3), [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]])
    report = evaluate_cases(cases, CLASSES)
    assert (report.slides, report.unit, report.accuracy, report.loss) == (4, "cases", 1.0, None)
    assert [(entry.slides, entry.predicted, entry.correct) for entry in report.classes] == [
        (1, 1, 1),
        (2, 2, 2),
        (2, 1, 1),
    ]
    assert report.classes[2].auc.value == 1.0 and report.classes[1].auc.value == 1.0


def test_with_one_slide_each_cases_are_slides():
    single = [slide(score.slide_id, score.slide_id, score.label, *score.probabilities) for score in SLIDES]
    cases = case_scores(single)
    assert [case.probabilities for case in cases] == [score.probabilities for score in single]
    assert [case.labels for case in cases] == [(score.label,) for score in single]


def test_the_table_counts_cases():
    text = evaluate_cases(case_scores(SLIDES), CLASSES).to_text().splitlines()
    assert text[0] == "4 cases, accuracy 1.000" and text[1].split()[1] == "cases"


def test_nothing_to_evaluate():
    with pytest.raises(WholeSlideError, match="nothing to evaluate"):
        evaluate_cases(case_scores([]), CLASSES)


def test_form_of_the_file(tmp_path):
    path = tmp_path / "folder" / "cases.csv"
    write_case_scores(str(path), case_scores(SLIDES)[2:], CLASSES)
    assert path.read_text(encoding="utf-8") == (
        "case_id,slides,label,p_normal,p_adeno,p_squamous,prediction\n"
        "c,1,squamous,0.3,0.3,0.4,squamous\n"
        "d,2,adeno;squamous,0.4,0.5,0.5,adeno\n"
    )
    assert os.listdir(str(path.parent)) == ["cases.csv"]
