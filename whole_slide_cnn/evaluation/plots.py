"""Figures as PNG files. Drawn on their own canvas, so that a caller's pyplot backend is left alone."""

import csv
import math
from typing import Any, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.scores import evaluate, format_auc, positives_of
from whole_slide_cnn.files import replacing

DPI = 150
CURVES = (("loss", "Loss"), ("accuracy", "Accuracy"))
RATE = "learning_rate"
SETS = (("train", "training", ":"), ("val", "validation", "-"))  # prefix, name, line style


def plot_roc(path: str, labels: Any, probabilities: Any, classes: Sequence[str]) -> None:
    """Draw one one-vs-rest ROC curve per class, its AUC and 95 % interval in the legend.

    A class without positives or without negatives has no curve and is listed as undefined.

    Args:
        path: PNG file, replaced atomically.
        labels: (slides,) class indices, or bool (slides, classes).
        probabilities: (slides, classes).
        classes: class names.

    Raises:
        WholeSlideError: there is no slide, a probability is not finite, or the file cannot be written.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    report = evaluate(labels, probabilities, classes)
    positives = positives_of(labels, len(classes))
    figure, (axes,) = _figure(1, (5.5, 5.5))
    for index, entry in enumerate(report.classes):
        name = "{}: AUC {}".format(plain(entry.name), format_auc(entry.auc))
        if math.isnan(entry.auc.value):
            axes.plot([], [], label=name)
            continue
        false_rate, true_rate, _ = roc_curve(positives[:, index], probabilities[:, index], drop_intermediate=False)
        axes.plot(false_rate, true_rate, label=name)
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=0.8)
    axes.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.legend(loc="lower right", fontsize="small")
    _save(figure, path)


def plot_learning_curves(path: str, log_path: str) -> None:
    """Draw loss and accuracy over epochs, training dotted, validation solid (2021, Fig. 3), and the learning rate.

    Args:
        path: PNG file, replaced atomically.
        log_path: CSV log with the columns ``epoch`` and any of ``train_loss``, ``val_loss``, ``train_accuracy`` and
            ``val_accuracy``, and perhaps ``learning_rate``; other columns are ignored, empty cells are gaps.

    Raises:
        WholeSlideError: the log is missing or unreadable or has nothing to draw, or the figure cannot be written.
    """
    columns = _read_log(log_path)
    rates = columns.get(RATE)
    count = len(CURVES) + (rates is not None)
    figure, all_axes = _figure(count, (4.5 * count, 3.8))
    for axes, (quantity, title) in zip(all_axes, CURVES):
        for prefix, name, style in SETS:
            values = columns.get("{}_{}".format(prefix, quantity))
            if values is not None:
                axes.plot(columns["epoch"], values, linestyle=style, marker=".", color="C0", label=name)
        axes.set(xlabel="Epoch", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(fontsize="small")
        if quantity == "accuracy":
            axes.set_ylim(-0.02, 1.02)
    if rates is not None:
        axes = all_axes[-1]
        axes.plot(columns["epoch"], rates, marker=".", color="C1")
        axes.set(xlabel="Epoch", ylabel="Learning rate")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if min(rates) > 0 and max(rates) > 2 * min(rates):  # falls by factors; nan compares false
            axes.set_yscale("log")
    _save(figure, path)


def _figure(columns, inches):
    figure = Figure(figsize=inches, dpi=DPI)
    FigureCanvasAgg(figure)  # attaches itself to the figure
    axes = [figure.add_subplot(1, columns, index + 1) for index in range(columns)]
    return figure, axes


def _save(figure: Figure, path: str) -> None:
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def plain(text: str) -> str:
    """Text without meaning to matplotlib, which reads what stands between dollar signs as a formula."""
    return text.replace("$", r"\$")


def _read_log(path):
    wanted = ["epoch"] + ["{}_{}".format(prefix, quantity) for prefix, _, _ in SETS for quantity, _ in CURVES]
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise WholeSlideError("{}: cannot read the log: {}".format(path, error.strerror)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise WholeSlideError("{}: not a CSV log: {}".format(path, error)) from error
    if not rows:
        raise WholeSlideError("{}: the log has no epoch to draw".format(path))
    present = [name for name in wanted if name in rows[0]]
    if "epoch" not in present or len(present) < 2:
        raise WholeSlideError("{}: the log has no column epoch, or none of {}".format(path, ", ".join(wanted[1:])))
    present += [RATE] if RATE in rows[0] else []
    return {name: [_number(row[name], path, name) for row in rows] for name in present}


def _number(text, path, column):
    try:
        return float(text) if text else math.nan
    except ValueError as error:
        raise WholeSlideError("{}: column {} has {!r}, which is no number".format(path, column, text)) from error
