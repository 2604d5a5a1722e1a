"""Small and large lesions, maximum and average pooling: ``python benchmarks/lungmosaic.py --photographs FOLDER``.

Slides are composed of photographs of lung tissue (LC25000, one subfolder per class), once with small and once with
large lesions. For each of the two a network is trained with global maximum pooling (GMP) and one with average pooling
(GAP), on slide labels alone and with the same configuration. The networks for large lesions start from random weights,
those for small ones from the network of the same pooling for large ones, and train less long. All steps are commands of
the package; finished ones are not done again, so the same command goes on after an interruption.

The test lists are read last: first all trainings end and choose their checkpoint, and the heat maps of the validation
slides choose the threshold at which a heat map marks a lesion. Then every network scores its test list once.

Reported are, on slides of the test list:

* AUC of each class against the rest with two 95 % intervals. DeLong's takes slides for independent. They are not:
  slides show the same source photographs. Therefore test slides are made in groups that have no source photograph in
  common (``synthesize --group``), and the other interval is a percentile bootstrap over these groups: all slides of a
  drawn group come along. Which slides belong together is found from the sources that the data set records. (Resampling
  single photographs would not do. A slide has many, so that a product of their multiplicities would nearly always be 0
  and a mean nearly always 1: intervals that say nothing, or are far too narrow.)
* the same bootstrap for the accuracy, for the localisation, and, paired, for the difference between the poolings.
* localisation: pixel AUC of the heat map of the slide's own class against the lesion's mask, on tissue, and the
  intersection over union at the threshold chosen, beside that of marking all tissue; means over slides with a lesion.
* what a regression on the slides' colour and tissue area alone reaches.
"""

import argparse
import csv
import json
import math
import os

SETS = {"large": (0.3, 0.6), "small": (0.1, 0.2)}  # least and most lesion per tissue
STARTS = {"small": "large"}  # whose network of the same pooling a set's starts from; others start from random weights
EPOCHS = {"small": 8}  # of a set, in place of the configuration's
POOLINGS = ("gmp", "gap")
LEAST_SOURCES = 3  # of each class in a group
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = "study"
_COLOUR_KEYS = (("value", "auc"), ("low", "low"), ("high", "high"))


def main(arguments):
    from whole_slide_cnn.evaluation.scores import without_nan
    from whole_slide_cnn.files import write_text
    from whole_slide_cnn.provenance import git_commit, versions

    options = _parse(arguments)
    sets = [name for name in SETS if name in options.sets]
    runs = [(name, pooling) for name in sets for pooling in options.poolings]
    for name in sets:
        make_slides(options, name)
    for run in runs:
        train(options, run)
        measure(options, run, "val", 0.5)
    if options.no_test:
        return 0
    results = []
    for run in runs:
        threshold = best_threshold(os.path.join(_folder(options, run), "heatmaps-val", "thresholds.csv"))
        measure(options, run, "test", threshold)
        results.append(evaluate(options, run, threshold))
    document = {
        "options": vars(options),
        "commit": git_commit(),
        "versions": versions(),
        "runs": results,
        "differences": [compare(options, name) for name in sets if set(options.poolings) == set(POOLINGS)],
    }
    path = os.path.join(options.output, RESULTS)
    text = to_markdown(document)
    write_text(path + ".json", json.dumps(without_nan(document), indent=2) + "\n")
    write_text(path + ".md", text)
    print(text)
    print("tables: {0}.md, numbers: {0}.json".format(path))
    return 0


def _parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--photographs", metavar="FOLDER", help="photographs, one subfolder per class; without, they are drawn by code")
    add("--output", default=os.path.join("results", "lungmosaic"), metavar="FOLDER", help="folder to write")
    add("--config", default=os.path.join(ROOT, "configs", "lungmosaic.yaml"), metavar="FILE", help="of all trainings")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the configuration")
    add("--sets", nargs="+", choices=sorted(SETS), default=list(SETS), help="sizes of lesions")
    add("--poolings", nargs="+", choices=POOLINGS, default=list(POOLINGS))
    for split, count in (("train", 120), ("val", 28), ("test", 60)):
        add("--" + split, type=int, default=count, metavar="N", help="slides per class for " + split)
    add("--size", type=int, default=512, help="side of the slides in pixels")
    add(
        "--no-test", action="store_true", help="end before a test list is read, as where several of these train at once"
    )
    add("--seed", type=int, default=0, help="of the slides; the configuration has that of the training")
    return parser.parse_args(arguments)


def make_slides(options, name):
    """Make one data set, unless it is there.

    Raises:
        WholeSlideError: the folder holds another one, or colour alone tells its classes apart.
    """
    from whole_slide_cnn import synthesize
    from whole_slide_cnn.config import load_config
    from whole_slide_cnn.errors import WholeSlideError

    folder = os.path.join(options.output, name)
    classes = load_config(options.config, options.set).data.classes
    wanted = {
        "classes": list(classes),
        "size": options.size,
        "lesion": list(SETS[name]),
        "group": LEAST_SOURCES,
        "seed": options.seed,
    }
    wanted.update({split: getattr(options, split) for split in ("train", "val", "test")})
    description = os.path.join(folder, synthesize.DESCRIPTION)
    found = _read_json(description) if os.path.exists(description) else None
    if found and found["complete"]:
        for key, value in wanted.items():
            if found["arguments"][key] != value:
                raise WholeSlideError(
                    "{} was made with {} {}, not {}; name another --output".format(
                        folder, key, found["arguments"][key], value
                    )
                )
        return
    command = ["--output", folder] + (["--overwrite"] if found else [])
    for key, value in dict(wanted, photographs=options.photographs).items():
        if value is not None:
            command += ["--" + key] + [str(item) for item in (value if isinstance(value, list) else [value])]
    if synthesize.main(command):
        raise WholeSlideError("colour tells the slides of {} apart; use another --seed".format(folder))


def train(options, run):
    """Train one network, or go on where its training was interrupted."""
    from whole_slide_cnn import train as training

    print("--- training {}, {} lesions".format(*reversed(run)), flush=True)
    start = []
    if run[0] in STARTS:
        weights = os.path.join(_folder(options, (STARTS[run[0]], run[1])), "best.h5")
        start = ["--set", "model.weights=" + os.path.abspath(weights)]
    if run[0] in EPOCHS:
        start += ["--set", "train.epochs={}".format(EPOCHS[run[0]])]
    training.main(_configured(options, run) + start + ["--resume"])


def measure(options, run, split, threshold):
    """Score a list, and compare heat maps of its slides with a lesion with the masks."""
    from whole_slide_cnn import heatmap
    from whole_slide_cnn import test as scoring
    from whole_slide_cnn.errors import WholeSlideError
    from whole_slide_cnn.evaluation.results import SUMMARY
    from whole_slide_cnn.heatmaps.tables import THRESHOLDS
    from whole_slide_cnn.provenance import describe_file

    folder, data = _folder(options, run), os.path.join(options.output, run[0])
    steps = []
    checkpoint = describe_file(os.path.join(folder, "best.npz"))
    if not _is_of(os.path.join(folder, split, SUMMARY), checkpoint):
        steps.append((scoring, ["--split", split]))
    maps = os.path.join(folder, "heatmaps-" + split)
    if not _is_of(os.path.join(maps, THRESHOLDS), checkpoint):
        lesions = _write_lesions(os.path.join(data, split + ".csv"), os.path.join(folder, split + "-lesions.csv"))
        steps.append(
            (
                heatmap,
                ["--slides", lesions, "--masks", os.path.join(data, "masks"), "--output", maps]
                + ["--threshold", str(threshold)],
            )
        )
    for command, more in steps:
        if command.main(_configured(options, run) + more):
            raise WholeSlideError("slides of {} that were just made cannot be read".format(data))


def best_threshold(path):
    """The threshold with the highest mean IoU; the lowest of equals."""
    rows = _read_csv(path)
    return float(max(rows, key=lambda row: float(row["mean_iou"]))["threshold"])


def evaluate(options, run, threshold):
    """What is reported of one network, in JSON types."""
    import numpy as np

    from whole_slide_cnn.evaluation.bootstrap import percentile_interval, weighted_auc, weighted_mean
    from whole_slide_cnn.evaluation.scores import evaluate_scores

    scores, classes, weights = _scores(options, run)
    report = evaluate_scores(scores, classes)
    labels = np.array([score.label for score in scores])
    probabilities = np.array([score.probabilities for score in scores])
    correct = [score.prediction == score.label for score in scores]
    found = _read_csv(os.path.join(_folder(options, run), "heatmaps-test", "localisation.csv"))
    localised = {row["slide_id"]: row for row in found}

    def interval(value, samples):
        return vars(percentile_interval(value, samples))

    def mean_over_lesions(column):
        texts = [localised.get(score.slide_id, {}).get(column) for score in scores]
        values = np.array([float(text) if text else math.nan for text in texts])
        return interval(np.nanmean(values), weighted_mean(values, weights))

    return {
        "set": run[0],
        "pooling": run[1],
        "slides": len(scores),
        "slides_with_lesion": len(localised),
        "groups": int(_groups(options, run, scores).max()) + 1,
        "epoch": _best_epoch(os.path.join(_folder(options, run), "log.csv")),
        "accuracy": interval(report.accuracy, weighted_mean(correct, weights)),
        "threshold": threshold,
        "pixel_auc": mean_over_lesions("pixel_auc"),
        "iou": mean_over_lesions("iou"),
        "iou_of_all_tissue": float(np.mean([float(r["lesion_pixels"]) / float(r["tissue_pixels"]) for r in found])),
        "classes": [
            {
                "name": entry.name,
                "delong": vars(entry.auc),
                "groups": interval(entry.auc.value, weighted_auc(labels == index, probabilities[:, index], weights)),
                "colour": _read_json(os.path.join(options.output, run[0], "colour_baseline.json"))["splits"]["test"][
                    entry.name
                ],
            }
            for index, entry in enumerate(report.classes)
        ],
    }


def compare(options, name):
    """AUC of GMP minus that of GAP for each class, paired, on one data set, in JSON types."""
    import numpy as np

    from whole_slide_cnn.evaluation.bootstrap import percentile_interval, weighted_auc
    from whole_slide_cnn.evaluation.delong import delong_test

    both = {pooling: _scores(options, (name, pooling)) for pooling in POOLINGS}
    scores, classes, weights = both["gmp"]
    labels = np.array([score.label for score in scores])
    rows = []
    for index, title in enumerate(classes):
        gmp, gap = (np.array([score.probabilities[index] for score in both[pooling][0]]) for pooling in POOLINGS)
        test = delong_test(labels == index, gmp, gap)
        samples = weighted_auc(labels == index, gmp, weights) - weighted_auc(labels == index, gap, weights)
        rows.append(
            {"name": title, "delong": vars(test), "groups": vars(percentile_interval(test.difference, samples))}
        )
    return {"set": name, "classes": rows}


def to_markdown(document):
    """The tables of ``study.md``."""
    lines = [
        "| lesions | pooling | class | AUC (DeLong) | over groups of photographs | colour and tissue area only |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in document["runs"]:
        for entry in run["classes"]:
            cells = [run["set"], run["pooling"].upper(), entry["name"], _interval(entry["delong"])]
            lines.append(_row(cells + [_range(entry["groups"]), _interval(_value_first(entry["colour"]))]))
    lines += [
        "",
        "| lesions | pooling | epoch | accuracy | pixel AUC | threshold | IoU at it | IoU of all tissue |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in document["runs"]:
        cells = [run["set"], run["pooling"].upper(), str(run["epoch"]), _interval(run["accuracy"])]
        cells += [_interval(run["pixel_auc"]), "{:.2f}".format(run["threshold"]), _interval(run["iou"])]
        lines.append(_row(cells + ["{:.3f}".format(run["iou_of_all_tissue"])]))
    if document["differences"]:
        lines += ["", "| lesions | class | GMP - GAP | DeLong p |", "| --- | --- | --- | --- |"]
    for difference in document["differences"]:
        for entry in difference["classes"]:
            cells = [difference["set"], entry["name"], _interval(entry["groups"], "{:+.3f}")]
            lines.append(_row(cells + [_probability(entry["delong"]["p_value"])]))
    return "\n".join(lines) + "\n"


def _row(cells):
    return "| {} |".format(" | ".join(cells))


def _value_first(found):
    """The colour baseline's AUC in the form of the others; undefined where there were too few slides."""
    return {key: math.nan if found.get(old) is None else found[old] for key, old in _COLOUR_KEYS}


def _interval(found, form="{:.3f}"):
    if found["value"] is None or math.isnan(found["value"]):
        return "undefined"
    return "{} ({})".format(form, _range(found, form)).format(found["value"])


def _probability(value):
    if value is None or math.isnan(value):
        return "undefined"
    return "< 0.001" if value < 0.001 else "{:.3f}".format(value)


def _range(found, form="{:.3f}"):
    return "{0} to {0}".format(form).format(found["low"], found["high"])


def _folder(options, run):
    return os.path.join(options.output, "-".join(run))


def _configured(options, run):
    """The arguments that make the study's configuration that of one run."""
    data = os.path.abspath(os.path.join(options.output, run[0]))
    values = {
        "result_dir": os.path.abspath(_folder(options, run)),
        "data.train": os.path.join(data, "train.csv"),
        "data.val": os.path.join(data, "val.csv"),
        "data.test": os.path.join(data, "test.csv"),
        "data.slides": os.path.join(data, "slides"),
        "model.pooling": run[1],
    }
    arguments = ["--config", options.config]
    for text in options.set + ["{}={}".format(key, value) for key, value in values.items()]:
        arguments += ["--set", text]
    return arguments


def _is_of(path, checkpoint):
    """Whether the last file that a command writes is there, and is of this checkpoint, as its provenance says."""
    provenance = os.path.join(os.path.dirname(path), "provenance.json")
    if not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(provenance):
        return False
    return _read_json(provenance)["checkpoint"]["sha256"] == checkpoint["sha256"]


def _write_lesions(path, target):
    """Write the data list of the slides that have a lesion, all but those of the first class; returns its path."""
    from whole_slide_cnn.files import replacing

    rows = _read_csv(path)
    with replacing(target) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if row["label"] != rows[0]["label"])
    return target


def _scores(options, run):
    """Scores of a run's test slides, the classes, and the weights of its slides in the replicates."""
    from whole_slide_cnn.evaluation.bootstrap import group_weights
    from whole_slide_cnn.evaluation.scores import read_scores

    scores, classes = read_scores(os.path.join(_folder(options, run), "test", "scores.csv"))
    return scores, classes, group_weights(_groups(options, run, scores))


def _groups(options, run, scores):
    """Numbers of the groups of slides that share source photographs."""
    from whole_slide_cnn.evaluation.bootstrap import linked_groups

    slides = _read_json(os.path.join(options.output, run[0], "dataset.json"))["slides"]
    sources = {slide["slide_id"]: slide["sources"] for slide in slides}
    return linked_groups([sum(sources[score.slide_id].values(), []) for score in scores])


def _best_epoch(path):
    return int(min(_read_csv(path), key=lambda row: float(row["val_loss"]))["epoch"])


def _read_csv(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _read_json(path):
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


if __name__ == "__main__":
    from whole_slide_cnn.cli import run_command

    run_command(main)
