"""Draw the pictures of docs/architecture.md: python tools/pictures.py writes docs/pictures/*.svg.

The layers are those that tests/test_repository.py holds, so that the picture cannot differ from what is enforced.
"""

import os
import runpy
import textwrap
from html import escape

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "docs", "pictures")

# What each unit is for, in the picture of the layers.
PURPOSES = {
    "errors": "one class per kind of mistake",
    "sizes": "(height, width), windows",
    "files": "atomic replacement",
    "config": "YAML to frozen values",
    "cli": "exit codes, one sentence",
    "provenance": "origin of a result",
    "slides": "files to pixels of a canvas",
    "stains": "stain vectors",
    "synthesis": "synthetic slides",
    "augment": "random changes by window",
    "models": "layers, ResNets, heads, weights",
    "engines": "direct, streaming, unified",
    "planning": "memory and time, before a run",
    "running": "what every learner shares",
    "evaluation": "scores and statistics",
    "heatmaps": "class maps and their files",
    "training": "epochs, checkpoints, agreement",
    "mil": "comparators (to come)",
    "detection": "lymph nodes (to come)",
    "review": "viewer (to come)",
}
COMMANDS = "commands: train, test, plan, heatmap, ..."

SLIDE_TO_LOSS = (
    ("slide file", "pyramid of images"),
    ("slides.reader", "pixels of a level"),
    ("slides.canvas", "working resolution, white border"),
    ("augment", "one change for all windows"),
    ("engine", "windows, strips or all"),
    ("models: trunk", "embedding map"),
    ("models: head", "pooling, dense layer, loss"),
)
GRAPH_TO_PLAN = (
    ("tf.Graph", "and what is fetched"),
    ("extract", "OpGraph: sizes, work, inputs"),
    ("order", "of the operations"),
    ("recompute", "what is not kept"),
    ("group", "what fits the device together"),
    ("prefetch, evict", "what comes and leaves ahead"),
    ("Plan", "frozen: print, draw, save"),
)
AFTER_LOSS = (("optimiser", "sums over slides and processes"),)
AFTER_PLAN = (("simulate", "seconds, bytes moved"), ("apply, verify", "edits the graph, checks the run"))

STYLE = (
    "<style>text{font:14px sans-serif;fill:#222}.name{font-weight:bold}.note{font-size:12px;fill:#555}"
    "rect{fill:#eef6f5;stroke:#00796b;rx:5}.apart{fill:#fff4e5;stroke:#b36b00}.back{fill:#fff;stroke:none}"
    "path{stroke:#555;fill:none;stroke-width:1.5}</style>"
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" style="fill:#555;stroke:none"/></marker></defs>'
)


def main():
    layers = runpy.run_path(os.path.join(ROOT, "tests", "test_repository.py"))["LAYERS"]
    for name, picture in pictures(layers).items():
        with open(os.path.join(FOLDER, name), "w", encoding="utf-8") as stream:
            stream.write(picture)


def pictures(layers):
    """File names and texts (SVG)."""
    return {
        "layers.svg": layer_picture(layers),
        "slide-to-loss.svg": flow_picture("How a slide becomes a loss", SLIDE_TO_LOSS, AFTER_LOSS),
        "graph-to-plan.svg": flow_picture("How a graph becomes a plan", GRAPH_TO_PLAN, AFTER_PLAN),
    }


def layer_picture(layers):
    """A row for each layer, the highest on top; beside them the two packages that know nothing of this one."""
    rows = [((COMMANDS, ""),)] + [tuple((unit, PURPOSES[unit]) for unit in layer) for layer in reversed(layers)]
    left, width, high, gap = 60, 560, 40, 8
    place = {}
    parts = []
    for number, row in enumerate(rows):
        top = 20 + number * (high + gap)
        each = (width - gap * (len(row) - 1)) / len(row)
        for index, (unit, purpose) in enumerate(row):
            place[unit] = top
            parts.append(box(left + index * (each + gap), top, each, high, unit, purpose))
    bottom = 20 + len(rows) * (high + gap) - gap
    parts.append(arrow(30, 24, 30, bottom - 4))
    parts.append('<text class="note" transform="translate(22 {}) rotate(-90)">imports</text>'.format(bottom / 2 + 24))
    right = left + width + 90
    tops = {"graph_tools": place["planning"] - 60, "tf_um_patch": place["engines"] + 44}
    parts.append(box(right, tops["graph_tools"], 190, 56, "graph_tools", "plans any graph; no slides", "apart"))
    parts.append(box(right, tops["tf_um_patch"], 190, 56, "tf_um_patch", "unified memory; no plans", "apart"))
    bracket, first, last = left + width + 16, place["planning"] + 4, place["engines"] + high - 4
    corners = (bracket - 10, first, bracket, first, bracket, last, bracket - 10, last)
    parts.append('<path d="M{} {}L{} {}L{} {}L{} {}"/>'.format(*corners))
    for top in tops.values():
        parts.append(arrow(bracket + 2, (first + last) / 2, right - 2, top + 28))
    parts.append(text("note", right + 95, tops["tf_um_patch"] + 74, "its module host (memory, GPU) serves all"))
    return drawing("Layers, and what may import what", right + 220, bottom + 20, parts)


def flow_picture(title, steps, ends):
    """Boxes from left to right in two rows, and what follows the last one: right of it, and below."""
    wide, high, gap = 190, 56, 36
    first = (len(steps) + 1) // 2
    parts = []
    for index, (name, note) in enumerate(steps):
        row, column = divmod(index, first)
        left, top = 20 + column * (wide + gap), 20 + row * (high + 44)
        parts.append(box(left, top, wide, high, name, note))
        if column:
            parts.append(arrow(left - gap + 2, top + high / 2, left - 2, top + high / 2))
        elif row:
            turn = 20 + (first - 1) * (wide + gap) + wide / 2
            points = (turn, top - 44, turn, top - 22, left + wide / 2, top - 22, left + wide / 2, top - 2)
            parts.append('<path marker-end="url(#tip)" d="M{} {}L{} {}L{} {}L{} {}"/>'.format(*points))
    for index, (name, note) in enumerate(ends):
        right, below = (0, high + 24) if index else (wide + gap, 0)
        parts.append(box(left + right, top + below, wide, high, name, note, "apart"))
        start = (left + wide / 2, top + high + 2) if index else (left + wide + 2, top + high / 2)
        end = (left + wide / 2, top + below - 2) if index else (left + right - 2, top + high / 2)
        parts.append(arrow(*start, *end))
    height = top + high + max(0, len(ends) - 1) * (high + 24) + 20
    return drawing(title, 20 + first * (wide + gap) - gap + 20, height, parts)


def box(left, top, width, height, name, note, kind=""):
    middle = left + width / 2
    lines = textwrap.wrap(note, max(12, int(width / 7)))
    rows = 1 + len(lines)
    first = top + height / 2 - 7.5 * (rows - 1) + 5
    parts = ['<rect class="{}" x="{:g}" y="{:g}" width="{:g}" height="{:g}"/>'.format(kind, left, top, width, height)]
    for index, line in enumerate([name] + lines):
        style = "note" if index else "name"
        parts.append(text(style, middle, first + 15 * index, line))
    return "".join(parts)


def text(style, left, top, words):
    form = '<text class="{}" x="{:g}" y="{:g}" text-anchor="middle">{}</text>'
    return form.format(style, left, top, escape(words))


def arrow(left, top, right, bottom):
    return '<path marker-end="url(#tip)" d="M{:g} {:g}L{:g} {:g}"/>'.format(left, top, right, bottom)


def drawing(title, width, height, parts):
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:g} {1:g}" width="{0:g}" height="{1:g}" role="img">'
    back = '<rect class="back" width="100%" height="100%"/>'
    return "\n".join(
        [head.format(width, height), "<title>{}</title>".format(escape(title)), STYLE, back, *parts, "</svg>\n"]
    )


if __name__ == "__main__":
    main()
