"""The log of a run: a row per epoch, as a CSV file and as a sentence."""

import csv
import io
import math
from typing import Any, Dict, Sequence, Tuple

from whole_slide_cnn.training.progress import Progress
from whole_slide_cnn.training.schedule import Turn

Row = Dict[str, Any]


def log_columns(metrics: Sequence[str]) -> Tuple[str, ...]:
    """The columns of the log of a learner with these metrics."""
    measured = tuple("{}_{}".format(split, name) for split in ("train", "val") for name in metrics)
    return ("epoch", "updates", "learning_rate") + measured + ("slides_per_minute", "seconds")


def log_row(progress: Progress, metrics: Sequence[str], trained: Sequence[float], validated: Sequence[float]) -> Row:
    """The row of the epoch that a progress is at the end of, with its metrics over training and validation slides."""
    values = (progress.epoch + 1, progress.updates, progress.schedule.learning_rate) + tuple(trained) + tuple(validated)
    speed = round(60.0 * progress.trained.slides / progress.seconds, 3), round(progress.seconds, 3)
    return dict(zip(log_columns(metrics), values + speed))


def log_text(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """The log as CSV; what is not a number is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, log_columns(metrics))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value != value else value for key, value in row.items()})
    return text.getvalue()


def summary(row: Row, epochs: int, metrics: Sequence[str], turn: Turn) -> str:
    """What is said at the end of an epoch."""
    text = "epoch {}/{}: train {}".format(row["epoch"], epochs, _measured(row, "train", metrics))
    if not math.isnan(row["val_" + metrics[0]]):
        text += "; validation {}".format(_measured(row, "val", metrics))
    if turn.improved:
        text += " (best so far)"
    if turn.reduced:
        text += "; learning rate {:g} from here on".format(turn.state.learning_rate)
    if turn.rolls_back:
        text += ", from the weights of epoch {}".format(turn.state.best_epoch)
    if turn.state.stopped:
        text += "; no better since epoch {}: stopping early".format(turn.state.best_epoch)
    return text


def _measured(row: Row, split: str, metrics: Sequence[str]) -> str:
    loss, *others = metrics
    parts = ["{} {:.4f}".format(loss, row["{}_{}".format(split, loss)])]
    return ", ".join(parts + ["{} {:.3f}".format(name, row["{}_{}".format(split, name)]) for name in others])
