"""The page: figures and tables in one HTML file that needs nothing else."""

import base64
import html as markup
import io
from typing import Any, Dict, List, Optional, Sequence

from bench.cases import ENGINE
from bench.statistics import box, per_minute

GMAC = 1e9
MB = 1e6
DPI = 110
# As published, V100 with 32 GB: (canvas, what, images/min of training). Tissue shares were not stated.
PUBLISHED = (
    (18750, "unified memory (2021)", 0.153),
    (18750, "streaming CNN (2019)", 1.49),
    (18750, "ESCNN (2022)", 3.48),
    (75000, "streaming CNN (2019)", 0.0928),
    (75000, "ESCNN (2022)", 0.912),
)
STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { padding: .25em .6em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.text { text-align: left; }
tr.no td { color: #777; }
img { max-width: 100%; }
"""


def html(report: Dict[str, Any]) -> str:
    """The whole page."""
    rows = report["rows"]
    parts = ["<h1>Throughput and memory</h1>", _paragraph(introduction(report))]
    parts += [_figure(four_panels(rows), "Images per minute and peak memory over the canvas")]
    techniques = [row for row in rows if row["engine"] == ENGINE and "step" in row]
    if len({row["name"] for row in techniques}) > 1:
        parts += [
            "<h2>Techniques of staged</h2>",
            _figure(bars(techniques), "Seconds of a step with techniques off"),
        ]
    parts += ["<h2>All cases</h2>", _paragraph(LEGEND), _table(HEADINGS, [cells(row) for row in rows], rows)]
    parts += ["<h2>Against the work without any halo</h2>", _paragraph(floor_sentence(report))]
    parts += [_table(FLOOR_HEADINGS, floor_cells(report))]
    published = [["{:,}".format(side), what, "{:g}".format(rate)] for side, what, rate in PUBLISHED]
    parts += ["<h2>Published</h2>", _paragraph(PUBLISHED_LEGEND), _table(("canvas", "method", "images/min"), published)]
    parts += ["<h2>Machine</h2>", _table(("", ""), [[key, str(value)] for key, value in report["machine"].items()])]
    parts += [_table(("option", ""), [[key, str(value)] for key, value in report["options"].items()])]
    head = '<meta charset="utf-8"><title>Throughput and memory</title><style>{}</style>'.format(STYLE)
    return "<!doctype html>\n<html><head>{}</head><body>\n{}\n</body></html>\n".format(head, "\n".join(parts))


LEGEND = (
    "Seconds of a step: median and quartiles of the iterations, warm-up left out. Memory: peak of the resident set "
    "above the idle process, or of TensorFlow's allocator on a GPU. Percentages say how far the prediction is from the "
    "measurement."
)
PUBLISHED_LEGEND = (
    "V100 with 32 GB, training, ResNet-50 (2022, Fig. 3); for information: the share of tissue is not stated."
)
HEADINGS = (
    "row", "canvas", "mode", "tissue", "n", "s per step", "quartiles", "predicted s", "", "images/min", "peak MB",
    "predicted MB", "", "remark",
)  # fmt: skip
FLOOR_HEADINGS = (
    "row",
    "canvas",
    "mode",
    "f",
    "GMAC",
    "floor s",
    "measured s",
    "times the floor",
    "kept: GMAC",
    "times",
)


def introduction(report: Dict[str, Any]) -> str:
    """What was measured, and how."""
    options, machine = report["options"], report["machine"]
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    limit = "without a limit of time" if not options["minutes"] else "within {:g} minutes".format(options["minutes"])
    return (
        "{}, pooling {}, {}, batches of one slide. Slides: {}. {} warm-up step(s), then at most {} iterations, {}; "
        "reading files and augmentation are not part of a step. {}, {} cores, {}. {}, commit {}."
    ).format(
        options["backbone"], options["pooling"], options["compute"], report["slide"], options["warmup"],
        options["iterations"], limit, machine["cpu"], machine["cores"], gpus, machine["date"], machine["commit"],
    )  # fmt: skip


def status(row: Dict[str, Any]) -> str:
    """measured, refused, left out, or failed."""
    for key, text in (("refused", "refused"), ("left_out", "left out"), ("failed", "failed")):
        if key in row:
            return text
    return "measured"


def remark(row: Dict[str, Any]) -> str:
    """Why there is no measurement; for a peer how it was set."""
    for key in ("refused", "left_out", "failed"):
        if key in row:
            return "{}: {}".format(status(row), row[key])
    settings = dict(row.get("settings", {}), **row.get("versions", {}))
    return ", ".join("{} {}".format(key, value) for key, value in settings.items())


def peak(row: Dict[str, Any]) -> Optional[int]:
    """Measured peak: of the allocator on a GPU, else of the resident set."""
    return row.get("device_peak_bytes") or row.get("peak_bytes")


def cells(row: Dict[str, Any]) -> List[str]:
    """A row of the table of all cases."""
    step, seconds, memory = row.get("step"), row.get("predicted_seconds"), row.get("predicted_bytes")
    return [
        row["name"],
        "{:,}".format(row["side"]),
        row["mode"],
        "{:.0%}".format(row["tissue"]),
        str(step["number"]) if step else "",
        "{:.3g}".format(step["median"]) if step else "",
        "{:.3g} to {:.3g}".format(step["q1"], step["q3"]) if step else "",
        "" if seconds is None else "{:.3g}".format(seconds),
        "{:+.0%}".format(seconds / step["median"] - 1) if step and seconds else "",
        "{:.3g}".format(row["images_per_minute"]["median"]) if step else "",
        "{:,.0f}".format(peak(row) / MB) if peak(row) else "",
        "" if memory is None else "{:,.0f}".format(memory / MB),
        "{:+.0%}".format(memory / peak(row) - 1) if memory and peak(row) else "",
        remark(row),
    ]


def line(row: Dict[str, Any]) -> str:
    """A case in one line, while the benchmark runs."""
    found = "{:<22} {:>6} px  {:<8}".format(row["name"], row["side"], row["mode"])
    if "step" not in row:
        return found + remark(row)
    text = "{:9.3g} s  {:9.3g} images/min".format(row["step"]["median"], row["images_per_minute"]["median"])
    return found + text + ("  {:8,.0f} MB".format(peak(row) / MB) if peak(row) else "")


def floor_rows(report: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Measured cases beside the least work that they are: without any halo, at the measured convolution rate."""
    rate, found = report["convolutions"]["flops"], []
    for row in report["rows"]:
        floors = report["floors"][str(row["side"])]
        if "step" not in row:
            continue
        keys = ("step_macs", "step_kept_macs") if row["mode"] == "train" else ("forward_macs", "forward_macs")
        least, kept = (floors[key] for key in keys)
        measured = row["step"]["median"]
        values = {"floor_s": 2 * least / rate, "kept_s": 2 * kept / rate, "measured_s": measured}
        values.update(times=measured / (2 * least / rate), kept_times=measured / (2 * kept / rate))
        found.append(
            dict(
                values,
                name=row["name"],
                side=row["side"],
                mode=row["mode"],
                macs=least,
                kept_macs=kept,
                share=floors.get("share") if row["mode"] == "train" else None,
            )
        )
    return found


def floor_sentence(report: Dict[str, Any]) -> str:
    """What the floor is."""
    rate = report["convolutions"]
    return (
        "The floor is the work of the convolutions where they are needed, each layer by itself, for cells that are not "
        "blank (by blocks of 32 px) and the blank canvas: forward, and to train forward again and backward, at the "
        "{:,.0f} GFLOP/s at which this network's convolutions of {:,} px run forward here. Kept: the same without "
        "computing anything again. f is the share of the forward work that cells with a gradient need; where it is not "
        "shown all are taken to have one, and with maximum pooling less may do."
    ).format(rate["flops"] / 1e9, rate["side"])


def floor_cells(report: Dict[str, Any]) -> List[List[str]]:
    """Rows of the table of floors."""
    return [
        [
            row["name"], "{:,}".format(row["side"]), row["mode"],
            "" if row["share"] is None else "{:.2f}".format(row["share"]), "{:,.0f}".format(row["macs"] / GMAC),
            "{:.3g}".format(row["floor_s"]), "{:.3g}".format(row["measured_s"]), "{:.2f}".format(row["times"]),
            "{:,.0f}".format(row["kept_macs"] / GMAC), "{:.2f}".format(row["kept_times"]),
        ]
        for row in floor_rows(report)
    ]  # fmt: skip


def floor_text(report: Dict[str, Any]) -> str:
    """The floors, for a terminal."""
    rows = [list(FLOOR_HEADINGS)] + floor_cells(report)
    widths = [max(len(row[at]) for row in rows) for at in range(len(FLOOR_HEADINGS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    return floor_sentence(report) + "\n" + "\n".join(lines)


# ---- figures ----


def _colours(names: Sequence[str]) -> Dict[str, Any]:
    from matplotlib import cm

    return {name: cm.tab10(index % 10) for index, name in enumerate(names)}


def _axes(count_rows: int, count_columns: int, size):
    """A figure on a canvas of its own, so that a caller's pyplot is left alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(count_rows, count_columns, squeeze=False)


def four_panels(rows: Sequence[Dict[str, Any]]):
    """Training and inference: images per minute as boxes above, peak memory as points below."""
    names, sides = list(dict.fromkeys(row["name"] for row in rows)), sorted({row["side"] for row in rows})
    figure, axes = _axes(2, 2, (13, 9))
    colours, width = _colours(names), 0.8 / max(1, len(names))
    for column, (mode, title) in enumerate((("train", "training"), ("predict", "inference"))):
        rate, memory = axes[0][column], axes[1][column]
        for axis, what in ((rate, "images per minute"), (memory, "peak memory, GB")):
            axis.set(title=title, ylabel=what, yscale="log", xticks=range(len(sides)), xlim=(-0.6, len(sides) - 0.4))
            axis.set_xticklabels(["{:,}".format(side) for side in sides])
            axis.grid(axis="y", alpha=0.3)
        for row in (row for row in rows if row["mode"] == mode):
            at = sides.index(row["side"]) + (names.index(row["name"]) - (len(names) - 1) / 2) * width
            _draw(row, rate, memory, at, width, colours[row["name"]])
    _legend(axes[0][0], names, colours)
    figure.supxlabel("side of the canvas, px") if hasattr(figure, "supxlabel") else None
    figure.tight_layout()
    return figure


def _draw(row, rate, memory, at: float, width: float, colour):
    open_point = {"marker": "D", "markersize": 5, "markerfacecolor": "none", "color": colour, "linestyle": ""}
    if "step" in row:
        line = {"color": colour}
        rate.bxp([box(per_minute(row["seconds"]))], positions=[at], widths=[0.8 * width], manage_ticks=False,
                 boxprops=line, medianprops=line, whiskerprops=line, capprops=line,
                 flierprops={"markeredgecolor": colour, "markersize": 3})  # fmt: skip
    if row.get("predicted_seconds") and "refused" not in row:
        rate.plot([at], [60 / row["predicted_seconds"]], **open_point)
    if peak(row):
        memory.plot([at], [peak(row) / 1e9], marker="o", markersize=6, color=colour, linestyle="")
    if row.get("predicted_bytes"):
        memory.plot([at], [row["predicted_bytes"] / 1e9], **open_point)
    if status(row) in ("refused", "failed"):
        for axis in (rate, memory):
            axis.plot([at], [0.02], marker="x", color=colour, transform=axis.get_xaxis_transform(), clip_on=False)


def _legend(axis, names: Sequence[str], colours) -> None:
    for name in names:
        axis.plot([], [], marker="s", linestyle="", color=colours[name], label=name)
    for marker, filled, label in (("D", "none", "predicted"), ("x", "k", "does not fit, or failed")):
        axis.plot([], [], marker=marker, markerfacecolor=filled, linestyle="", color="k", label=label)
    axis.legend(fontsize="small", loc="lower left")


def bars(rows: Sequence[Dict[str, Any]]):
    """Seconds of a step of ``streaming`` and its variants, in each mode, on the canvases that have them."""
    panels = sorted({(row["side"], row["mode"]) for row in rows}, key=lambda panel: (panel[0], panel[1] != "train"))
    panels = [panel for panel in panels if sum((row["side"], row["mode"]) == panel for row in rows) > 1]
    if not panels:
        return None
    figure, axes = _axes(1, len(panels), (3.6 * len(panels) + 2, 3.2))
    for axis, (side, mode) in zip(axes[0], panels):
        chosen = [row for row in rows if (row["side"], row["mode"]) == (side, mode)]
        axis.barh([row["name"] for row in chosen], [row["step"]["median"] for row in chosen], color="tab:blue")
        axis.invert_yaxis()
        axis.set(title="{:,} px, {}".format(side, mode), xlabel="s per step")
    figure.tight_layout()
    return figure


def _figure(figure, text: str) -> str:
    if figure is None:
        return ""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return '<p><img alt="{}" src="data:image/png;base64,{}"></p>'.format(markup.escape(text), data)


def _paragraph(text: str) -> str:
    return "<p>{}</p>".format(markup.escape(text))


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], of: Optional[Sequence[Dict[str, Any]]] = None
) -> str:
    """A table; rows of cases that were not measured are grey."""
    lines = ["<tr>{}</tr>".format("".join("<th>{}</th>".format(markup.escape(text)) for text in headings))]
    for index, row in enumerate(rows):
        grey = ' class="no"' if of is not None and "step" not in of[index] else ""
        last = len(row) - 1
        made = (
            "<td{}>{}</td>".format(' class="text"' if at == last else "", markup.escape(cell))
            for at, cell in enumerate(row)
        )
        lines.append("<tr{}>{}</tr>".format(grey, "".join(made)))
    return "<table>\n{}\n</table>".format("\n".join(lines))
