"""The bootstrap over groups against cases whose answer is known, and against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.bootstrap import (
    group_weights,
    linked_groups,
    percentile_interval,
    weighted_auc,
    weighted_mean,
)
from whole_slide_cnn.evaluation.delong import auc_interval


def test_cases_are_linked_directly_through_others_or_not_at_all():
    shared = [["a"], ["b", "c"], [], ["c", "d"], ["a", "a"], ["d"], []]
    assert linked_groups(shared).tolist() == [0, 1, 2, 1, 0, 1, 3]
    assert linked_groups([[], []]).tolist() == [0, 1]
    assert linked_groups([]).tolist() == []


@given(st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=12))
@settings(deadline=None, max_examples=50)
def test_groups_are_the_finest_that_share_nothing(shared):
    groups = linked_groups(shared)
    members = [set().union(*(shared[k] for k in np.flatnonzero(groups == g))) for g in range(groups.max() + 1)]
    assert sum(map(len, members)) == len(set().union(*members))
    for group in range(groups.max() + 1):
        reached = set(shared[np.argmax(groups == group)])
        for _ in shared:
            reached = reached.union(*(names for names in shared if reached & set(names)))
        assert (groups == group).sum() == 1 or reached == members[group]


def test_groups_are_drawn_as_a_whole_and_as_often_as_there_are_groups():
    groups = [5, 2, 5, 9, 2, 2]
    weights = group_weights(groups, 500, seed=3)
    assert weights.shape == (500, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(weights, group_weights(groups, 500, seed=3))
    assert (weights != group_weights(groups, 500, seed=4)).any()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.15)


def test_the_mean_of_two_groups_has_three_outcomes_of_known_probability():
    """Groups of means 0 and 1: both twice, or each once; 1/4, 1/2, 1/4."""
    samples = weighted_mean([0.0, 1.0, 1.0, math.nan], group_weights([0, 1, 1, 1], 8000))
    outcomes, counts = np.unique(samples, return_counts=True)
    np.testing.assert_allclose(outcomes, [0, 2 / 3.0, 1])
    np.testing.assert_allclose(counts / 8000.0, [0.25, 0.5, 0.25], atol=0.02)


def test_a_standard_error_of_independent_cases_is_that_of_the_mean():
    values = np.random.RandomState(0).normal(size=60)
    samples = weighted_mean(values, group_weights(np.arange(60), 4000))
    assert samples.std() == pytest.approx(values.std() / math.sqrt(60), rel=0.05)


def test_without_links_the_interval_is_about_delongs():
    stream = np.random.RandomState(1)
    labels = np.arange(300) % 2
    scores = stream.normal(labels, 1.2)
    auc = auc_interval(labels, scores)
    samples = weighted_auc(labels, scores, group_weights(np.arange(300)))
    found = percentile_interval(auc.value, samples)
    assert (found.low, found.high) == pytest.approx((auc.low, auc.high), abs=0.012)
    assert found.confidence == 0.95 and found.replicates == 2000


def test_copies_of_a_case_add_nothing():
    """Each case five times in one group: the interval stays; taken as independent, it would shrink by root five."""
    stream = np.random.RandomState(2)
    labels = np.arange(40) % 2
    scores = stream.normal(labels, 1.0)
    once = weighted_auc(labels, scores, group_weights(np.arange(40)))
    copied = [np.repeat(values, 5) for values in (labels, scores, np.arange(40))]
    np.testing.assert_allclose(weighted_auc(copied[0], copied[1], group_weights(copied[2])), once, atol=1e-12)
    blind = weighted_auc(copied[0], copied[1], group_weights(np.arange(200)))
    assert np.nanstd(blind) == pytest.approx(np.nanstd(once) / math.sqrt(5), rel=0.15)


def test_intervals_cover_where_groups_err_together():
    """20 groups of 12 cases whose scores move together by as much as cases differ within: AUC of the truth 0.5."""
    covered = {"groups": 0, "cases": 0}
    for trial in range(60):
        stream = np.random.RandomState(trial)
        groups = np.repeat(np.arange(20), 12)
        labels = np.tile([0, 1], 120)
        shift = stream.normal(size=(20, 2))[groups, labels]
        scores = shift + stream.normal(size=240)
        for name, units in (("groups", groups), ("cases", np.arange(240))):
            samples = weighted_auc(labels, scores, group_weights(units, 400, seed=trial))
            found = percentile_interval(0.5, samples)
            covered[name] += found.low <= 0.5 <= found.high
    assert covered["groups"] >= 50 and covered["cases"] <= 42


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 4)), min_size=2, max_size=25))
@settings(deadline=None, max_examples=60)
def test_weighted_auc_is_scikit_learns(rows):
    labels, scores, weights = map(np.array, zip(*rows))
    assume(0 < (weights * labels).sum() < weights.sum())
    (found,) = weighted_auc(labels, scores, weights[np.newaxis])
    assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


def test_replicates_without_a_class_or_value_do_not_count():
    weights = np.array([[2, 0], [0, 2], [1, 1]])
    samples = weighted_auc([1, 0], [0.9, 0.1], weights)
    np.testing.assert_array_equal(samples, [math.nan, math.nan, 1])
    found = percentile_interval(1.0, samples)
    assert (found.low, found.high, found.replicates) == (1, 1, 1)
    nothing = percentile_interval(math.nan, weighted_mean([math.nan, math.nan], weights))
    assert math.isnan(nothing.low) and math.isnan(nothing.high) and nothing.replicates == 0


def test_percentiles_are_those_of_the_confidence():
    found = percentile_interval(50.0, np.arange(101.0), confidence=0.8)
    assert (found.low, found.high, found.value) == pytest.approx((10, 90, 50))


def test_one_group_cannot_be_resampled():
    with pytest.raises(WholeSlideError, match="all 3 cases are linked to each other"):
        group_weights(linked_groups([["a"], ["a", "b"], ["b"]]))


@pytest.mark.parametrize(
    "labels, scores, weights",
    [([1, 0], [1.0], [[1, 1]]), ([1, 0], [1.0, 2.0], [1, 1]), ([1, 0], [1.0, math.nan], [[1, 1]])],
)
def test_shapes_and_scores_are_checked(labels, scores, weights):
    with pytest.raises(ValueError):
        weighted_auc(labels, scores, weights)
