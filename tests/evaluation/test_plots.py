import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.evaluation.plots import plot_learning_curves, plot_roc
from whole_slide_cnn.evaluation.scores import evaluate, format_auc

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CLASSES = ("normal", "a$b$")
LABELS = [0, 0, 0, 1, 1, 1]
PROBABILITIES = [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]]
LOG = """epoch,train_loss,train_accuracy,val_loss,val_accuracy,note
1,1.0,0.5,0.9,0.4,x
2,0.7,0.6,,
3,0.5,0.8,0.6,0.7,x
"""


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved, to look at what it shows."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    )
    return saved


def ink(path):
    """How many pixels are not white."""
    with Image.open(str(path)) as image:
        assert image.format == "PNG"
        return int((np.asarray(image.convert("L")) < 250).sum())


def test_roc_figure_shows_each_class_with_its_interval(tmp_path, figures):
    path = tmp_path / "figures" / "roc.png"
    plot_roc(str(path), LABELS, PROBABILITIES, CLASSES)
    assert ink(path) > 2000
    assert os.listdir(str(path.parent)) == ["roc.png"]
    (axes,) = figures[0].axes
    report = evaluate(LABELS, PROBABILITIES, CLASSES)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == [
        "normal: AUC " + format_auc(report.classes[0].auc),
        r"a\$b\$: AUC " + format_auc(report.classes[1].auc),
    ]
    for line, entry in zip(axes.lines, report.classes):
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
        assert area == pytest.approx(entry.auc.value, abs=1e-12)


def test_a_class_without_slides_is_listed_as_undefined(tmp_path, figures):
    plot_roc(str(tmp_path / "roc.png"), [0, 0], [[0.9, 0.1], [0.8, 0.2]], ("a", "b"))
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert legend == ["a: AUC undefined", "b: AUC undefined"]


def test_learning_curves_are_dotted_for_training_and_solid_for_validation(tmp_path, figures):
    (tmp_path / "log.csv").write_text(LOG)
    plot_learning_curves(str(tmp_path / "curves.png"), str(tmp_path / "log.csv"))
    assert ink(tmp_path / "curves.png") > 2000
    loss, accuracy = figures[0].axes
    assert [(line.get_label(), line.get_linestyle()) for line in loss.lines] == [("training", ":"), ("validation", "-")]
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [1.0, 0.7, 0.5])
    np.testing.assert_array_equal(accuracy.lines[1].get_ydata(), [0.4, np.nan, 0.7])


def test_learning_curves_without_validation(tmp_path, figures):
    (tmp_path / "log.csv").write_text("epoch,train_loss\n1,0.5\n")
    plot_learning_curves(str(tmp_path / "curves.png"), str(tmp_path / "log.csv"))
    loss, accuracy = figures[0].axes
    assert (len(loss.lines), len(accuracy.lines)) == (1, 0)


def test_learning_rate_has_a_panel_of_its_own(tmp_path, figures):
    (tmp_path / "log.csv").write_text("epoch,train_loss,learning_rate\n1,0.5,2e-5\n2,0.4,2e-5\n3,0.3,2e-6\n")
    plot_learning_curves(str(tmp_path / "curves.png"), str(tmp_path / "log.csv"))
    (_, accuracy, rate) = figures[0].axes
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), [2e-5, 2e-5, 2e-6])
    assert rate.get_yscale() == "log" and rate.get_ylabel() == "Learning rate"
    assert accuracy.get_ylim()[0] < 0 and accuracy.get_ylim()[1] > 1
    (tmp_path / "log.csv").write_text("epoch,train_loss,learning_rate\n1,0.5,2e-5\n2,0.4,\n")
    plot_learning_curves(str(tmp_path / "curves.png"), str(tmp_path / "log.csv"))
    assert figures[1].axes[2].get_yscale() == "linear"


def test_roc_of_cases_that_belong_to_several_classes(tmp_path, figures):
    positives = np.array([[True, False], [False, True], [True, True]])
    plot_roc(str(tmp_path / "roc.png"), positives, PROBABILITIES[1:4], CLASSES)
    report = evaluate(positives, PROBABILITIES[1:4], CLASSES)
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert legend[0] == "normal: AUC " + format_auc(report.classes[0].auc)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no epoch to draw"),
        ("epoch,train_loss\n", "no epoch to draw"),
        ("train_loss\n0.5\n", "no column epoch"),
        ("epoch,seconds\n1,2\n", "none of train_loss"),
        ("epoch,train_loss\n1,low\n", "column train_loss has 'low', which is no number"),
        (b"\xff\xfe", "not a CSV log"),
    ],
)
def test_broken_logs_get_one_sentence_and_no_figure(tmp_path, text, message):
    (tmp_path / "log.csv").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    with pytest.raises(WholeSlideError) as caught:
        plot_learning_curves(str(tmp_path / "curves.png"), str(tmp_path / "log.csv"))
    assert message in str(caught.value)
    assert os.listdir(str(tmp_path)) == ["log.csv"]


def test_missing_log(tmp_path):
    with pytest.raises(WholeSlideError, match="cannot read the log: No such file"):
        plot_learning_curves(str(tmp_path / "curves.png"), str(tmp_path / "absent.csv"))


def test_drawing_does_not_choose_a_pyplot_backend(tmp_path):
    """A notebook that imports the module keeps its own backend."""
    code = (
        "import sys; from whole_slide_cnn.evaluation.plots import plot_roc;"
        "plot_roc(sys.argv[1], [0, 1, 0, 1], [[.9, .1], [.2, .8], [.6, .4], [.7, .3]], ('a', 'b'));"
        "assert 'matplotlib.pyplot' not in sys.modules; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "roc.png")], check=True, cwd=ROOT)
    assert ink(tmp_path / "roc.png") > 2000
