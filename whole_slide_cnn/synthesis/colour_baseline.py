"""Does colour alone tell the classes of a synthetic data set apart? It must not.

A logistic regression on simple figures of colour and tissue area is trained on the train split of a data set that
``whole_slide_cnn.synthesize`` wrote, and its AUC on every split must stay below a limit.
"""

import csv
import json
import os
from typing import NamedTuple

import numpy as np
import openslide
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from whole_slide_cnn.errors import ManifestError, SlideError
from whole_slide_cnn.files import write_text
from whole_slide_cnn.synthesis.photographs import SPLITS

LIMIT = 0.65  # area under the ROC curve
FEATURES = tuple(
    "{} {} {}".format(region, figure, channel)
    for region in ("tissue", "slide")
    for figure in ("mean", "deviation")
    for channel in ("red", "green", "blue")
) + ("tissue area",)
LEAST_SLIDES = 8  # of each class in a split; with fewer, chance alone passes the limit too often to judge
RESULT_FILE = "colour_baseline.json"
_FOLDS = 5
_TILE = 2048


class Sample(NamedTuple):
    """What one slide or photograph contributes.

    ``features`` is (number of features,); samples of one ``group`` stay together in cross-validation.
    """

    features: np.ndarray
    label: str
    group: str


def slide_features(path):
    """Mean and deviation per channel of the pixels that are not exactly white and of all, and the former's share.

    Returns:
        float64 (13,), in the order of ``FEATURES``.

    Raises:
        SlideError: the slide cannot be read or is all white.
    """
    tissue, everything = np.zeros((3, 256)), np.zeros((3, 256))
    try:
        with openslide.OpenSlide(path) as slide:
            for tile in _tiles(slide):
                everything += _histogram(tile.reshape(-1, 3))
                tissue += _histogram(tile[(tile < 255).any(axis=2)])
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(os.path.basename(path), "cannot be read ({}); synthesize it again".format(error)) from error
    if not tissue.any():
        raise SlideError(os.path.basename(path), "is white throughout; a synthetic slide has tissue")
    parts = [figures for counts in (tissue, everything) for figures in _mean_and_deviation(counts)]
    return np.concatenate(parts + [[tissue[0].sum() / everything[0].sum()]])


def _histogram(pixels):
    """How often each value occurs in each channel of uint8 pixels (count, 3): (3, 256)."""
    return np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])


def _mean_and_deviation(counts):
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ np.arange(256.0)
    return mean, np.sqrt((share * (np.arange(256.0) - mean[:, None]) ** 2).sum(axis=1))


def _tiles(slide):
    width, height = slide.dimensions
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            size = min(_TILE, width - left), min(_TILE, height - top)
            yield np.asarray(slide.read_region((left, top), 0, size))[..., :3]


def baseline(samples):
    """One-vs-rest AUC of a logistic regression on standardised features.

    It is trained on the train split; that split itself is scored by cross-validation.

    Args:
        samples: ``{split: [Sample]}`` for train, val and test.

    Returns:
        ``{split: {label: {"auc", "low", "high", "samples", "judged"}}}``: AUC with its 95 % interval after Hanley
        and McNeil, how many samples have the label, and whether these and the others suffice to judge. AUC and
        interval are None where a split or the folds of train lack positives or negatives.
    """
    labels = sorted({sample.label for part in samples.values() for sample in part})
    return {
        split: {label: _one_vs_rest(samples["train"], samples[split], label, split == "train") for label in labels}
        for split in samples
    }


def _one_vs_rest(train, part, label, cross_validate):
    features, truth = _arrays(train, label)
    if cross_validate:
        scores = _cross_validated(features, truth, [sample.group for sample in train])
    else:
        evaluated, _ = _arrays(part, label)
        scores = _fit(features, truth).decision_function(evaluated) if 0 < truth.sum() < len(truth) else None
        _, truth = _arrays(part, label)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    result = {"samples": positives, "judged": min(positives, negatives) >= LEAST_SLIDES}
    if scores is None or not positives or not negatives:
        return dict(result, auc=None, low=None, high=None, judged=False)
    auc = float(roc_auc_score(truth, scores))
    half = 1.96 * _standard_error(auc, positives, negatives)
    return dict(result, auc=auc, low=max(0.0, auc - half), high=min(1.0, auc + half))


def _arrays(samples, label):
    return np.stack([sample.features for sample in samples]), np.array([sample.label == label for sample in samples])


def _fit(features, truth):
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, truth)


def _cross_validated(features, truth, groups):
    """Decision values from models that saw neither the sample nor its group; None with fewer than two groups.

    Groups are dealt out by their number of positives, so that each fold gets its share.
    """
    names = sorted(set(groups))
    member = np.array([names.index(group) for group in groups])
    kinds = np.bincount(member, truth).astype(np.int64)
    folds = min(_FOLDS, int(np.bincount(kinds)[np.unique(kinds)].min()))
    if folds < 2:
        return None
    scores = np.empty(len(truth))
    for _, held_out in StratifiedKFold(folds, shuffle=True, random_state=0).split(kinds, kinds):
        test = np.isin(member, held_out)
        scores[test] = _fit(features[~test], truth[~test]).decision_function(features[test])
    return scores


def _standard_error(auc, positives, negatives):
    """Hanley and McNeil 1982."""
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    return float(np.sqrt(max(variance, 0.0) / (positives * negatives)))


def check_folder(folder):
    """Check a synthetic data set and write ``colour_baseline.json`` into its folder.

    Returns:
        dict: ``splits`` as from :func:`baseline`, ``limit``, ``highest`` AUC judged (None if none was), ``passed``,
        ``features``, and ``raw_photographs``: the same for the single photographs before their colour was matched.

    Raises:
        ManifestError: the folder is no synthetic data set.
        SlideError: a slide cannot be read.
    """
    description = _read_description(folder)
    groups = {slide["slide_id"]: "{} {}".format(slide["split"], slide["block"]) for slide in description["slides"]}
    splits = baseline({split: _read_split(folder, split, groups) for split in SPLITS})
    judged = [result["auc"] for part in splits.values() for result in part.values() if result["judged"]]
    highest = max(judged) if judged else None
    report = {
        "passed": highest is None or highest < LIMIT,
        "highest": highest,
        "limit": LIMIT,
        "splits": splits,
        "features": list(FEATURES),
        "raw_photographs": description["raw_photographs"],
    }
    write_text(os.path.join(folder, RESULT_FILE), json.dumps(report, indent=2) + "\n")
    return report


def _read_description(folder):
    path = os.path.join(folder, "dataset.json")
    try:
        with open(path, encoding="utf-8") as stream:
            description = json.load(stream)
        description["slides"], description["raw_photographs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            "{} does not describe a complete data set; make it with whole_slide_cnn.synthesize".format(path)
        ) from error
    return description


def _read_split(folder, split, groups):
    path = os.path.join(folder, split + ".csv")
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        named = [(row["slide_id"], row["label"], groups[row["slide_id"]]) for row in rows]
    except (OSError, KeyError) as error:
        raise ManifestError("{} does not belong to the data set beside it ({})".format(path, error)) from error
    return [
        Sample(slide_features(os.path.join(folder, "slides", slide_id)), label, group)
        for slide_id, label, group in named
    ]


def format_report(report):
    """The report as lines of text."""
    lines = ["AUC (95 % interval) of a logistic regression on colour and tissue area, one class against the rest:"]
    lines += _table(report["splits"])
    lines.append("For reference, the same on single photographs before their colour was matched:")
    lines += _table(report["raw_photographs"])
    if report["highest"] is None:
        lines.append("Not judged: that takes {} slides or more of each class in a split.".format(LEAST_SLIDES))
    else:
        verdict = "passed" if report["passed"] else "FAILED: colour tells the classes apart"
        lines.append("Highest {:.3f}, limit {:.2f}: {}".format(report["highest"], report["limit"], verdict))
    return "\n".join(lines)


def _table(splits):
    labels = sorted({label for part in splits.values() for label in part})
    width = max(len(label) for label in labels) + 2
    yield "  {:<{w}}".format("class", w=width) + "".join("{:<24}".format(split) for split in splits)
    for label in labels:
        cells = (_cell(part[label]) for part in splits.values())
        yield ("  {:<{w}}".format(label, w=width) + "".join("{:<24}".format(cell) for cell in cells)).rstrip()


def _cell(result):
    if result["auc"] is None:
        return "too few"
    return "{auc:.3f} ({low:.3f} to {high:.3f})".format(**result)
