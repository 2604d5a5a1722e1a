"""DeLong's method against published numbers, an independent O(mn) computation, and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from whole_slide_cnn.evaluation.delong import auc_covariance, auc_interval, delong_test

# Ratings 1 to 5 of 58 normal and 51 abnormal CT images: Hanley and McNeil (1982), Radiology 143, 29-36.
CT_NORMAL = (33, 6, 6, 11, 2)
CT_ABNORMAL = (3, 2, 2, 11, 33)

# Albumin and total protein (in 0.1 g/dl), Krebs-Goplerud score and outcome of the 43 complete cases of DeLong et al.
# (1988), as listed in the SAS/STAT user's guide, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves".
OVARIAN = """
30 58 10 0  32 63 5 1  39 68 3 1  28 48 6 0  32 58 3 1  09 40 5 0  25 57 8 0  16 56 5 1  38 57 5 1  37 67 6 1  32 54 4 1
38 66 6 1  41 66 5 1  36 57 5 1  43 70 4 1  36 67 4 0  23 44 6 1  42 76 4 0  40 66 6 0  35 58 6 1  38 68 7 1  30 47 8 0
45 74 5 1  37 74 5 1  31 66 6 1  41 82 6 1  43 70 5 1  43 65 4 1  32 51 5 1  26 47 6 1  33 68 6 0  17 40 7 0  37 61 5 1
33 63 7 1  42 77 6 1  35 62 5 1  29 57 9 0  21 48 7 1  28 62 8 0  40 70 7 1  33 57 6 1  37 69 5 1  36 66 5 1
"""


def brute_force(labels, scores):
    """AUCs and covariance from the definition: every positive compared with every negative."""
    labels, scores = np.asarray(labels, bool), np.atleast_2d(scores)
    positive, negative = scores[:, labels][:, :, None], scores[:, ~labels][:, None, :]
    wins = (positive > negative) + 0.5 * (positive == negative)
    of_positives, of_negatives = wins.mean(axis=2), wins.mean(axis=1)
    covariance = np.atleast_2d(np.cov(of_positives)) / of_positives.shape[1]
    return wins.mean(axis=(1, 2)), covariance + np.atleast_2d(np.cov(of_negatives)) / of_negatives.shape[1]


def ct_ratings():
    labels = np.repeat([0, 1], [sum(CT_NORMAL), sum(CT_ABNORMAL)])
    return labels, np.concatenate([np.repeat(np.arange(5), CT_NORMAL), np.repeat(np.arange(5), CT_ABNORMAL)])


def ovarian():
    table = np.array(OVARIAN.split(), int).reshape(-1, 4)
    return table[:, 3], {"albumin": table[:, 0], "protein": table[:, 1], "score": -table[:, 2]}


def test_published_interval_with_ties():
    """Stata's manual, [R] roctab, for these data: area 0.8932, standard error 0.0307, interval 0.83295 to 0.95339."""
    auc = auc_interval(*ct_ratings())
    assert round(auc.value, 4) == 0.8932
    assert round(auc.standard_error, 4) == 0.0307
    assert (round(auc.low, 5), round(auc.high, 5)) == (0.83295, 0.95339)
    assert (auc.positives, auc.negatives, auc.confidence, auc.note) == (51, 58, 0.95, "")


@pytest.mark.parametrize(
    "name, value, error, low, high",
    [
        ("albumin", 0.7366, 0.0927, 0.5549, 0.9182),
        ("score", 0.7258, 0.1028, 0.5243, 0.9273),
        ("protein", 0.6478, 0.1000, 0.4518, 0.8439),
    ],
)
def test_published_intervals_of_the_original_paper_s_data(name, value, error, low, high):
    """The table "ROC Association Statistics" of the SAS/STAT user's guide."""
    labels, scores = ovarian()
    auc = auc_interval(labels, scores[name])
    published = (value, error, low, high)
    assert (auc.positives, auc.negatives) == (31, 12)
    assert tuple(round(x, 4) for x in (auc.value, auc.standard_error, auc.low, auc.high)) == published


@pytest.mark.parametrize(
    "name, difference, error, chi_square, p_value",
    [("albumin", 0.0108, 0.0953, 0.0127, 0.9102), ("protein", -0.0780, 0.1046, 0.5554, 0.4561)],
)
def test_published_tests_of_correlated_curves(name, difference, error, chi_square, p_value):
    """The table "ROC Contrast Estimation and Testing Results by Row" of the SAS/STAT user's guide."""
    labels, scores = ovarian()
    test = delong_test(labels, scores[name], scores["score"])
    published = (difference, error, chi_square, p_value)
    assert tuple(round(x, 4) for x in (test.difference, test.standard_error, test.z**2, test.p_value)) == published


# Few distinct values, so that ties within and between the classes are common.
cases = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=30)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_equals_the_definition(rows):
    labels, first, second = (np.array(column) for column in zip(*rows))
    assume(2 <= labels.sum() <= len(labels) - 2)
    aucs, covariance = auc_covariance(labels, [first, second])
    expected_aucs, expected_covariance = brute_force(labels, np.stack([first, second]))
    np.testing.assert_allclose(aucs, expected_aucs, rtol=0, atol=1e-14)
    np.testing.assert_allclose(covariance, expected_covariance, rtol=0, atol=1e-14)
    assert aucs[0] == pytest.approx(roc_auc_score(labels, first), abs=1e-12)

    test = delong_test(labels, first, second)
    variance = expected_covariance[0, 0] + expected_covariance[1, 1] - 2 * expected_covariance[0, 1]
    assert test.difference == pytest.approx(aucs[0] - aucs[1], abs=1e-14)
    assert test.standard_error**2 == pytest.approx(variance, abs=1e-14)
    reverse = delong_test(labels, second, first)
    np.testing.assert_array_equal((reverse.z, reverse.p_value), (-test.z, test.p_value))


@settings(max_examples=50, deadline=None)
@given(cases)
def test_only_the_order_of_scores_counts(rows):
    labels, scores, _ = (np.array(column) for column in zip(*rows))
    assume(2 <= labels.sum() <= len(labels) - 2)
    auc = auc_interval(labels, scores)
    assert auc_interval(labels, np.exp(scores)) == auc
    mirrored = auc_interval(~labels, scores)
    assert mirrored.value == pytest.approx(1 - auc.value, abs=1e-14)
    assert mirrored.standard_error == pytest.approx(auc.standard_error, abs=1e-14)


def test_many_cases_agree_with_scikit_learn():
    rng = np.random.RandomState(0)
    labels = rng.rand(200000) < 0.3
    scores = rng.standard_normal(len(labels)) + labels
    assert auc_interval(labels, scores).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_normal_interval_is_clipped_and_logit_interval_stays_inside():
    labels, scores = [0] * 8 + [1] * 4, [0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    normal = auc_interval(labels, scores)
    logit = auc_interval(labels, scores, interval="logit")
    assert normal.value == logit.value == 31 / 32
    assert normal.high == 1.0 and normal.value + 1.96 * normal.standard_error > 1
    assert 0 < logit.low < logit.value < logit.high < 1
    centre, half_width = math.log(31), 1.959963984540054 * logit.standard_error / (31 / 32 / 32)
    assert logit.low == pytest.approx(1 / (1 + math.exp(half_width - centre)), abs=1e-12)


def test_confidence_widens_the_interval():
    narrow, wide = (auc_interval(*ct_ratings(), confidence=level) for level in (0.9, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.high - narrow.value == pytest.approx(1.6448536269514722 * narrow.standard_error, abs=1e-12)


@pytest.mark.parametrize("interval", ["normal", "logit"])
@pytest.mark.parametrize("scores, value", [([0.1, 0.2, 0.8, 0.9], 1.0), ([0.9, 0.8, 0.2, 0.1], 0.0)])
def test_complete_separation_gives_the_point_and_a_warning(scores, value, interval):
    auc = auc_interval([0, 0, 1, 1], scores, interval=interval)
    assert (auc.value, auc.standard_error, auc.low, auc.high) == (value, 0.0, value, value)
    assert "separate the classes completely" in auc.note


def test_constant_scores_are_worthless_and_say_so():
    auc = auc_interval([0, 0, 0, 1, 1, 1], [0.3] * 6)
    assert (auc.value, auc.standard_error, auc.low, auc.high) == (0.5, 0.0, 0.5, 0.5)
    assert "do not vary" in auc.note


@pytest.mark.parametrize(
    "labels, value, note",
    [
        ([1, 1, 1], math.nan, "no negative case"),
        ([0, 0, 0], math.nan, "no positive case"),
        ([], math.nan, "no positive case"),
        ([0, 1, 1], 0.75, "a single negative case"),
        ([0, 0, 1], 0.5, "a single positive case"),
    ],
)
def test_what_the_cases_do_not_define_is_nan_with_a_reason(labels, value, note):
    scores = [0.5, 0.5, 0.6][: len(labels)] if sum(labels) == 2 else [0.4, 0.6, 0.5][: len(labels)]
    auc = auc_interval(labels, scores)
    np.testing.assert_equal((auc.value, auc.standard_error, auc.low, auc.high), (value, math.nan, math.nan, math.nan))
    assert note in auc.note
    test = delong_test(labels, scores, scores)
    assert math.isnan(test.z) and math.isnan(test.p_value) and note in test.note


def test_equal_scores_do_not_differ():
    labels, scores = ovarian()
    test = delong_test(labels, scores["albumin"], 2 * scores["albumin"])
    assert (test.difference, test.standard_error, test.z, test.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_difference_without_variance_is_undefined():
    test = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (test.difference, test.standard_error) == (1.0, 0.0)
    assert math.isnan(test.z) and math.isnan(test.p_value) and "variance is 0" in test.note


@pytest.mark.parametrize(
    "labels, scores",
    [([0, 1], [0.1]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, math.nan]), ([[0, 1]], [0.1, 0.2])],
)
def test_misuse_is_refused(labels, scores):
    with pytest.raises(ValueError):
        auc_interval(labels, scores)


def test_one_score_at_a_time_and_known_options():
    with pytest.raises(ValueError):
        auc_interval([0, 1], [[0.1, 0.2], [0.3, 0.4]])
    with pytest.raises(ValueError):
        auc_interval([0, 1], [0.1, 0.2], interval="exact")
    with pytest.raises(ValueError):
        auc_interval([0, 1], [0.1, 0.2], confidence=95)
