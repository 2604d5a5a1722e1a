from whole_slide_cnn.evaluation.cases import case_scores, evaluate_cases
from whole_slide_cnn.evaluation.scores import SlideScore, evaluate_scores, format_auc
from whole_slide_cnn.evaluation.summary import summary_markdown

CLASSES = ("normal", "a|b*")
SCORES = [
    SlideScore("c{}".format(i // 2), "s{}".format(i), (i // 2) % 2, (1 - p, p), 0.5)
    for i, p in enumerate((0.1, 0.4, 0.35, 0.8, 0.3, 0.2, 0.9, 0.6))
]
ORIGIN = {
    "time_utc": "2026-01-02T03:04:05+00:00",
    "command": ["test.py", "--config", "my_file.yaml"],
    "commit": None,
    "seed": 7,
    "versions": {"python": "3.11.2", "numpy": "2.0", "scipy": "1.0"},
    "checkpoint": {"path": "/r/best.npz", "sha256": "ab12"},
    "data_lists": {"test": {"path": "/r/test.csv", "rows": 9, "sha256": "cd34"}},
}


def page(**changes):
    arguments = {
        "title": "Scores of the test list",
        "slides": evaluate_scores(SCORES, CLASSES, 0.5),
        "cases": evaluate_cases(case_scores(SCORES), CLASSES),
        "figures": [("ROC curves", "roc.png"), ("Learning curves", "../my run/learning_curves.png")],
        "failed": {"s8": "there is no file"},
        "origin": ORIGIN,
    }
    return summary_markdown(**dict(arguments, **changes))


def section(text, name):
    return text.split("## {}\n".format(name))[1].split("\n## ")[0]


def test_tables_of_slides_and_of_cases():
    text = page()
    reports = {"Slides": evaluate_scores(SCORES, CLASSES), "Cases": evaluate_cases(case_scores(SCORES), CLASSES)}
    for name, report in reports.items():
        part = section(text, name)
        rows = [line for line in part.splitlines() if line.startswith("| ")]
        assert rows[0].split(" | ")[1] == name.lower() and "95 % interval, DeLong" in rows[0]
        assert len(rows) == 4 and rows[3].startswith(r"| a\|b\* | {} | ".format(report.classes[1].slides))
        assert format_auc(report.classes[1].auc) in rows[3]
    assert "8 slides, accuracy " in text and "mean loss 0.5000" in text and "4 cases, accuracy " in text
    assert "of the first class, normal, the lowest" in section(text, "Cases")


def test_figures_failures_and_origin():
    text = page()
    assert "![ROC curves](roc.png)" in text and "![Learning curves](<../my run/learning_curves.png>)" in text
    assert section(text, "Not scored").strip() == "* s8: there is no file"
    origin = section(text, "Origin")
    for word in ("/r/best.npz, SHA-256 ab12", "9 slides", "cd34", "python 3.11.2", "| seed | 7 |", "not in a checkout"):
        assert word in origin
    assert r"my\_file.yaml" in origin and "scipy" not in origin


def test_what_there_is_not_is_left_out():
    text = page(figures=[], failed={}, origin=dict(ORIGIN, checkpoint=None))
    assert "## Figures" not in text and "## Not scored" not in text and "checkpoint" not in text
