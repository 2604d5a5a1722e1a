"""Split a data list into train.csv, val.csv and test.csv, stratified by class, no case in two of them."""

import argparse
import collections
import csv
import io
import os
from typing import Dict, List, Sequence, Tuple

from sklearn.model_selection import train_test_split

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.errors import ManifestError, WholeSlideError
from whole_slide_cnn.files import write_text
from whole_slide_cnn.slides.manifest import HEADER, MPP_COLUMN, SPLITS, Record, load_manifest, manifest_classes


def main(arguments=None) -> None:
    """Entry point of ``python -m whole_slide_cnn.split``."""
    options = _parse(arguments)
    classes = options.classes or manifest_classes(options.manifest)
    splits = split_records(load_manifest(options.manifest, classes), classes, options.fractions, options.seed)
    for split, records in splits.items():
        write_text(os.path.join(options.output, split + ".csv"), _as_csv(records, classes))
    print(_summary(splits, classes))
    print("written to {}: {}".format(options.output, ", ".join(split + ".csv" for split in splits)))


def split_records(
    records: Sequence[Record], classes: Sequence[str], fractions: Sequence[float], seed: int
) -> Dict[str, Tuple[Record, ...]]:
    """Distribute cases over train, val and test with about the same share of every class in each.

    All slides of a case stay together. A case whose slides differ in class counts as its highest one, since class 0 is
    normally the absence of a finding. The result depends on the cases, not on their order in the list.

    Args:
        records: all slides.
        classes: class names, for messages.
        fractions: shares of the cases for train, val and test; above 0, 1 in all.
        seed: 0 or more.

    Raises:
        WholeSlideError: the fractions are unusable, or a class has too few cases.
    """
    usable = len(fractions) == len(SPLITS) and all(fraction > 0 for fraction in fractions)
    if not (usable and abs(sum(fractions) - 1) <= 1e-6):
        raise WholeSlideError(
            "the fractions for train, val and test must be above 0 and sum to 1, not {}".format(
                " ".join("{:g}".format(fraction) for fraction in fractions)
            )
        )
    if not 0 <= seed < 2**32:
        raise WholeSlideError("the seed must be from 0 to 2^32 - 1, not {}".format(seed))
    case_labels = _case_labels(records)
    _require_enough(case_labels, classes, len(SPLITS))
    homes = _split_cases(case_labels, classes, fractions, seed)
    return {split: tuple(record for record in records if homes[record.case_id] == split) for split in SPLITS}


def _case_labels(records: Sequence[Record]) -> Dict[str, int]:
    labels: Dict[str, int] = {}
    for record in records:
        labels[record.case_id] = max(record.label, labels.get(record.case_id, 0))
    return dict(sorted(labels.items()))


def _split_cases(
    case_labels: Dict[str, int], classes: Sequence[str], fractions: Sequence[float], seed: int
) -> Dict[str, str]:
    """The split of every case."""
    cases = list(case_labels)
    test_count = _count("test", len(cases), fractions[2], case_labels)
    val_count = _count("val", len(cases), fractions[1], case_labels)
    try:
        rest, test = _draw(cases, case_labels, test_count, seed)
        train, val = _draw(rest, case_labels, val_count, seed)
    except ValueError as error:  # a class is down to one case, or fewer places than classes are left
        raise _too_few(case_labels, classes) from error
    homes: Dict[str, str] = {}
    for split, members in zip(SPLITS, (train, val, test)):
        if {case_labels[case] for case in members} != set(case_labels.values()):
            raise _too_few(case_labels, classes)
        homes.update((case, split) for case in members)
    return homes


def _draw(cases: List[str], case_labels: Dict[str, int], count: int, seed: int) -> Tuple[List[str], List[str]]:
    labels = [case_labels[case] for case in cases]
    return train_test_split(cases, test_size=count, stratify=labels, random_state=seed)


def _count(split: str, cases: int, fraction: float, case_labels: Dict[str, int]) -> int:
    count, classes = int(cases * fraction + 0.5), len(set(case_labels.values()))
    if count < classes:
        raise ManifestError(
            "{} would get {} of {} cases, fewer than the {} classes; raise its fraction or add cases".format(
                split, count, cases, classes
            )
        )
    return count


def _require_enough(case_labels: Dict[str, int], classes: Sequence[str], needed: int) -> None:
    counts = collections.Counter(case_labels.values())
    for label, name in enumerate(classes):
        if counts[label] < needed:
            raise ManifestError(
                "class {} has {} case(s), too few: train, val and test need at least one each".format(
                    name, counts[label]
                )
            )


def _too_few(case_labels: Dict[str, int], classes: Sequence[str]) -> ManifestError:
    label, count = min(collections.Counter(case_labels.values()).items(), key=lambda item: item[1])
    return ManifestError(
        "class {} has {} cases, too few for each split to get one by these fractions; "
        "add cases or make the fractions more equal".format(classes[label], count)
    )


def _as_csv(records: Sequence[Record], classes: Sequence[str]) -> str:
    with_mpp = any(record.mpp is not None for record in records)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER + ((MPP_COLUMN,) if with_mpp else ()))
    for record in records:
        row = [record.case_id, record.slide_id, classes[record.label]]
        if with_mpp:
            row.append("" if record.mpp is None else repr(record.mpp))
        writer.writerow(row)
    return stream.getvalue()


def _summary(splits: Dict[str, Tuple[Record, ...]], classes: Sequence[str]) -> str:
    """A table of slides per class and split, and the cases of each split."""
    width = max(len(name) for name in list(classes) + ["slides"]) + 2
    lines = ["".join([" " * 6] + [name.rjust(width) for name in list(classes) + ["slides", "cases"]])]
    for split, records in splits.items():
        labels = collections.Counter(record.label for record in records)
        numbers = [labels[label] for label in range(len(classes))]
        numbers += [len(records), len({record.case_id for record in records})]
        lines.append("".join([split.ljust(6)] + [str(number).rjust(width) for number in numbers]))
    return "\n".join(lines)


def _parse(arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m whole_slide_cnn.split", description=__doc__)
    parser.add_argument("--manifest", required=True, help="CSV with case_id,slide_id,label[,mpp], or slide,class")
    parser.add_argument("--output", required=True, help="folder for train.csv, val.csv and test.csv")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=(0.6, 0.2, 0.2),
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the cases (default: 0.6 0.2 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another split (default: 0)")
    parser.add_argument("--classes", nargs="+", help="class names in order (default: the labels found, sorted)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
