"""Bootstrap intervals for cases that are not independent of each other: whole groups of them are resampled.

Slides that show the same specimen, or synthetic slides composed of the same photographs, err together. Cases that
share anything belong to one group, directly or through others; the groups are what is independent, and an interval must
come from resampling them (Davison and Hinkley 1997, Bootstrap Methods and their Application, 3.8). All cases of a drawn
group come along, so a replicate is a weight for every case: how often its group was drawn. Several statistics of the
same weights (two models, several classes) are paired, and so are their differences.

The intervals are percentiles of the replicates. With few groups (a dozen) they are somewhat too narrow.
"""

import dataclasses
import math
from typing import Any, Dict, Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.delong import CONFIDENCE

REPLICATES = 2000


@dataclasses.dataclass(frozen=True)
class BootstrapInterval:
    """A statistic of all cases with the percentiles of its replicates."""

    value: float
    low: float
    high: float
    confidence: float
    replicates: int  # in which the statistic is defined


def linked_groups(shared: Sequence[Iterable[Hashable]]) -> np.ndarray:
    """Number the groups of cases that share something, directly or through other cases.

    Args:
        shared: for each case what it may share with others, such as the names of photographs. A case that shares
            nothing is a group of its own.

    Returns:
        (cases,) int, from 0 on.
    """
    columns: Dict[Hashable, int] = {}
    pairs = [(row, columns.setdefault(name, len(columns))) for row, names in enumerate(shared) for name in set(names)]
    count = len(shared)
    rows, names = np.array(pairs, int).reshape(-1, 2).T
    links = csr_matrix((np.ones(len(rows)), (rows, count + names)), shape=(count + len(columns),) * 2)
    _, found = connected_components(links, directed=False)
    return np.unique(found[:count], return_inverse=True)[1]


def group_weights(groups: Sequence[int], replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """How often each case is in each replicate: as many groups as there are, drawn with replacement.

    Args:
        groups: (cases,) number of each case's group.

    Returns:
        (replicates, cases) int, the same for the same groups and seed.

    Raises:
        WholeSlideError: there is one group only.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1 if len(member) else 0
    if count < 2:
        raise WholeSlideError(
            "all {} cases are linked to each other, so there are no independent groups to resample".format(len(member))
        )
    drawn = np.random.RandomState(seed).randint(count, size=(replicates, count))
    times = np.stack([np.bincount(row, minlength=count) for row in drawn])
    return times[:, member]


def weighted_auc(labels: Any, scores: Any, weights: np.ndarray) -> np.ndarray:
    """The AUC in every replicate: (replicates,), nan where a class is absent.

    Args:
        labels: (cases,) true or 1 for positives.
        scores: (cases,) higher for positives; ties count one half.
        weights: (replicates, cases) as from :func:`group_weights`.

    Raises:
        ValueError: shapes differ, or a score is nan.
    """
    labels, scores, weights = np.asarray(labels, bool), np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    if labels.shape != scores.shape or weights.ndim != 2 or weights.shape[1:] != labels.shape:
        raise ValueError("labels {}, scores {} and weights {} differ".format(labels.shape, scores.shape, weights.shape))
    if np.isnan(scores).any():
        raise ValueError("scores must not be nan")
    order = np.argsort(scores, kind="stable")
    starts = np.unique(scores[order], return_index=True)[1]
    positive, negative = (
        np.add.reduceat(weights[:, order] * kind[order], starts, axis=1) for kind in (labels, ~labels)
    )
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def weighted_mean(values: Any, weights: np.ndarray) -> np.ndarray:
    """The mean of values (cases,) in every replicate: (replicates,), nan where no case with a value was drawn.

    Cases without a value (nan) do not count.
    """
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return weights[:, known].dot(values[known]) / weights[:, known].sum(axis=1)


def percentile_interval(value: float, samples: np.ndarray, confidence: float = CONFIDENCE) -> BootstrapInterval:
    """The interval that holds the middle of the replicates.

    Args:
        value: the statistic of all cases, each counted once.
        samples: (replicates,) the statistic in every replicate; nan does not count.
        confidence: share of the replicates within, in (0, 1).
    """
    defined = np.asarray(samples, np.float64)
    defined = defined[~np.isnan(defined)]
    low = high = math.nan
    if len(defined):
        low, high = np.percentile(defined, [50 * (1 - confidence), 50 * (1 + confidence)])
    return BootstrapInterval(float(value), float(low), float(high), confidence, len(defined))
