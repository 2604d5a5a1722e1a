"""``summary.md``: results, figures and their origin on one page."""

from typing import Any, Mapping, Optional, Sequence, Tuple

from whole_slide_cnn.evaluation.cases import RULE
from whole_slide_cnn.evaluation.delong import Auc
from whole_slide_cnn.evaluation.scores import Report, format_auc

_VERSIONS = ("whole_slide_cnn", "python", "tensorflow", "tensorflow-gpu", "numpy")


def summary_markdown(
    title: str,
    slides: Report,
    cases: Report,
    figures: Sequence[Tuple[str, str]],
    failed: Mapping[str, str],
    origin: Mapping[str, Any],
) -> str:
    """The page as Markdown.

    Args:
        title: its heading.
        slides: report on slides.
        cases: report on cases.
        figures: captions and files of figures, the files relative to the page.
        failed: slides that could not be read, with the reason.
        origin: as :func:`whole_slide_cnn.provenance.provenance` describes it.
    """
    names = [entry.name for entry in slides.classes]
    parts = ["# " + _text(title)]
    parts += ["## Slides", _overall(slides), _table(slides)]
    parts += ["## Cases", _overall(cases), _table(cases), _text(RULE.format(names[0]))]
    if failed:
        parts += ["## Not scored", "\n".join("* {}: {}".format(_text(n), _text(r)) for n, r in failed.items())]
    if figures:
        parts += ["## Figures"] + ["![{}]({})".format(_text(name), _link(path)) for name, path in figures]
    parts += ["## Origin", _origin(origin)]
    return "\n\n".join(parts) + "\n"


def _overall(report: Report) -> str:
    text = "{} {}, accuracy {:.3f}".format(report.slides, report.unit, report.accuracy)
    return text if report.loss is None else text + ", mean loss {:.4f}".format(report.loss)


def _table(report: Report) -> str:
    percent = "{:.0f} %".format(100 * report.classes[0].auc.confidence)
    header = ("class", report.unit, "predicted", "correct", "AUC ({} interval, DeLong)".format(percent))
    rows = [(e.name, e.slides, e.predicted, e.correct, _auc(e.auc)) for e in report.classes]
    return _rows(header, rows)


def _auc(auc: Auc) -> str:
    return "{}: {}".format(format_auc(auc), auc.note) if auc.note else format_auc(auc)


def _origin(origin: Mapping[str, Any]) -> str:
    versions = ["{} {}".format(name, origin["versions"][name]) for name in _VERSIONS if name in origin["versions"]]
    rows = [
        ("written", origin["time_utc"]),
        ("command", " ".join(origin["command"])),
        ("commit", origin["commit"] or "not in a checkout"),
        ("seed", origin["seed"]),
        ("versions", ", ".join(versions)),
    ]
    if origin.get("checkpoint"):
        rows.append(("checkpoint", "{path}, SHA-256 {sha256}".format(**origin["checkpoint"])))
    for name, entry in origin["data_lists"].items():
        rows.append(("list " + name, "{path}, {rows} slides, SHA-256 {sha256}".format(**entry)))
    return _rows(("what", "value"), rows)


def _rows(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header)] + [[_text(str(cell)) for cell in row] for row in rows]
    return "\n".join("| {} |".format(" | ".join(line)) for line in lines)


def _text(text: str) -> str:
    """Text without meaning to Markdown."""
    for character in "\\`*_[]<>|#$":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _link(path: str) -> Optional[str]:
    return "<{}>".format(path) if " " in path else path
