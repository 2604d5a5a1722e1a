"""Area under the ROC curve (AUC) with DeLong's variance, interval and test for correlated curves.

DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44, 837-845, in O(n log n) by midranks as in Sun and Xu (2014),
IEEE Signal Processing Letters 21, 1389-1393.

Where the data do not define a number it is ``nan`` and ``note`` says why; nothing is raised for that.
"""

import dataclasses
import math
from typing import Any, Tuple

import numpy as np
from scipy.special import expit, logit, ndtri

CONFIDENCE = 0.95
INTERVALS = ("normal", "logit")


@dataclasses.dataclass(frozen=True)
class Auc:
    """An AUC with its standard error and confidence interval."""

    value: float
    standard_error: float
    low: float
    high: float
    confidence: float
    positives: int
    negatives: int
    note: str = ""  # why something is undefined or says little; empty otherwise


@dataclasses.dataclass(frozen=True)
class DelongTest:
    """Two-sided test that two correlated AUCs are equal."""

    first: float
    second: float
    difference: float  # first - second
    standard_error: float  # of the difference
    z: float
    p_value: float
    note: str = ""


def auc_interval(labels: Any, scores: Any, confidence: float = CONFIDENCE, interval: str = "normal") -> Auc:
    """The AUC of one score.

    Args:
        labels: (n,) true or 1 for positives, false or 0 for negatives.
        scores: (n,) higher for positives; ties count one half.
        confidence: coverage of the interval, in (0, 1).
        interval: ``"normal"`` is AUC -+ z SE, clipped to [0, 1], the common choice and the default. ``"logit"`` is
            symmetric on the logit scale, stays within (0, 1) by itself and covers better near 1 in small samples.
            Where DeLong's variance is 0 (an AUC of exactly 0 or 1, or a constant score) both return the point itself,
            and ``note`` warns that this says nothing about the sampling error.

    Raises:
        ValueError: shapes differ, labels are not binary, or a score is nan.
    """
    if interval not in INTERVALS:
        raise ValueError("interval must be one of {}, not {!r}".format(", ".join(INTERVALS), interval))
    if not 0 < confidence < 1:
        raise ValueError("confidence must lie between 0 and 1, not {}".format(confidence))
    labels, scores = _checked(labels, scores, rows=1)
    positives, negatives = _counts(labels)
    values, covariance = auc_covariance(labels, scores)
    value, error = float(values[0]), math.sqrt(covariance[0, 0])
    note = _undefined(positives, negatives)
    if not note and error == 0:
        cause = "the scores separate the classes completely" if value in (0.0, 1.0) else "the scores do not vary"
        note = cause + ", so the interval does not reflect the sampling error"
    low, high = _bounds(value, error, confidence, interval)
    return Auc(value, error, low, high, confidence, positives, negatives, note)


def auc_covariance(labels: Any, scores: Any) -> Tuple[np.ndarray, np.ndarray]:
    """AUCs of several scores of the same cases, and the covariance of these AUCs.

    Args:
        labels: (n,) binary.
        scores: (k, n), or (n,) for one score.

    Returns:
        ``(k,)`` AUCs and ``(k, k)`` covariance, float64. AUCs are nan where one class is absent, the covariance also
        where a class has a single case.

    Raises:
        ValueError: as :func:`auc_interval`.
    """
    labels, scores = _checked(labels, scores)
    positives, negatives = _counts(labels)
    if not positives or not negatives:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    wins_of_positives, wins_of_negatives = _wins(labels, scores)
    aucs = wins_of_positives.sum(axis=1) / (positives * negatives)
    return aucs, _variance(wins_of_positives, wins_of_negatives)


def delong_test(labels: Any, first: Any, second: Any) -> DelongTest:
    """Test whether two scores of the same cases have equal AUCs (two-sided).

    Args:
        labels: (n,) binary.
        first, second: (n,) scores.

    Raises:
        ValueError: as :func:`auc_interval`.
    """
    labels, scores = _checked(labels, np.stack([np.asarray(first, float), np.asarray(second, float)]), rows=2)
    positives, negatives = _counts(labels)
    note = _undefined(positives, negatives)
    aucs, _ = auc_covariance(labels, scores)
    if note:
        return DelongTest(float(aucs[0]), float(aucs[1]), float(aucs[0] - aucs[1]), math.nan, math.nan, math.nan, note)
    # The variance of the difference directly: differences of wins are exact, those of covariances would round.
    wins_of_positives, wins_of_negatives = (wins[:1] - wins[1:] for wins in _wins(labels, scores))
    difference = float(wins_of_positives.sum() / (positives * negatives))
    error = math.sqrt(_variance(wins_of_positives, wins_of_negatives)[0, 0])
    if error > 0:
        z = difference / error
    elif difference == 0:
        z = 0.0
    else:
        z, note = math.nan, "the AUCs differ by the same amount for every case, so the variance is 0"
    p_value = math.erfc(abs(z) / math.sqrt(2))
    return DelongTest(float(aucs[0]), float(aucs[1]), difference, error, z, p_value, note)


def _wins(labels, scores):
    """How many negatives each positive outranks, (k, positives), and how many positives outrank each negative.

    Ties count one half, so that every number is a multiple of 0.5 and exact in float64.
    """
    positive, negative = scores[:, labels], scores[:, ~labels]
    pooled = _midranks(np.concatenate([positive, negative], axis=1))
    count = positive.shape[1]
    return pooled[:, :count] - _midranks(positive), count - (pooled[:, count:] - _midranks(negative))


def _variance(wins_of_positives, wins_of_negatives):
    """DeLong's covariance of AUCs, from placement values (wins over the size of the other class)."""
    positives, negatives = wins_of_positives.shape[1], wins_of_negatives.shape[1]
    if positives < 2 or negatives < 2:
        return np.full((len(wins_of_positives), len(wins_of_positives)), np.nan)
    return np.atleast_2d(np.cov(wins_of_positives)) / (positives * negatives**2) + np.atleast_2d(
        np.cov(wins_of_negatives)
    ) / (negatives * positives**2)


def _midranks(rows):
    """1-based ranks within each row, ties sharing their mean."""
    ranks = np.empty(rows.shape)
    for row, out in zip(rows, ranks):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        out[:] = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return ranks


def _bounds(value, error, confidence, interval):
    if math.isnan(value) or math.isnan(error):
        return math.nan, math.nan
    if error == 0:
        return value, value
    z = float(ndtri(0.5 + confidence / 2))
    if interval == "logit":
        centre, half_width = logit(value), z * error / (value * (1 - value))
        return float(expit(centre - half_width)), float(expit(centre + half_width))
    return max(0.0, value - z * error), min(1.0, value + z * error)


def _undefined(positives, negatives):
    if not positives or not negatives:
        return "no {} case, so the AUC is undefined".format("negative" if positives else "positive")
    if positives < 2 or negatives < 2:
        return "a single {} case, so the variance is undefined".format("positive" if positives < 2 else "negative")
    return ""


def _counts(labels):
    positives = int(labels.sum())
    return positives, len(labels) - positives


def _checked(labels, scores, rows=None):
    """Labels as (n,) bool and scores as (k, n) float64."""
    labels, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, np.float64))
    if labels.ndim != 1 or scores.ndim != 2 or scores.shape[1] != len(labels) or rows not in (None, len(scores)):
        raise ValueError("labels of shape {} do not fit scores of shape {}".format(labels.shape, scores.shape))
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(scores).any():
        raise ValueError("scores must not be nan")
    return labels.astype(bool), scores
