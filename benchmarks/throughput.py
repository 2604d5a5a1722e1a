"""Throughput and memory of training and inference: ``make bench-throughput``.

Figure 6 of the 2021 paper and figure 3 of the 2022 paper, on this machine: images per minute and peak memory over the
size of the canvas, of every engine, of ``streaming`` with its techniques switched off, and of other implementations
(``--peer``). Each canvas, engine and mode is measured in a process of its own. What the planner refuses is shown with
its sentence, and what it predicts beside what was measured. ``--preset step`` compares one training step with the work
that it takes without any halo, at the convolution rate that is measured in the same run.

Without ``--full`` the time is limited (``--minutes``): small canvases come first, and what no time is left for is
predicted only. Writes ``throughput.json`` and ``throughput.html``, which holds its figures, into ``--output``.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional

import yaml
from bench import cases as what
from bench import machine, page, peer, statistics, worker
from bench.cases import Case
from bench.slides import SlideKind

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.files import make_folder, write_text

FULL_ITERATIONS = 30
MINUTES = 9.0
CASE_SECONDS = 25.0  # where time is limited: no iteration of a case is begun after these
_STARTING = 12.0  # seconds that a process takes before its first step, at most
_PLANNING_SHARE = 0.25  # of limited time that planning may take
_LONGEST = 24 * 3600.0

# By name: options that differ from the defaults, where the command line does not say otherwise.
PRESETS: Dict[str, Dict[str, Any]] = {
    # One training step of torchvision's ResNet-50, gamma and beta trained, GMP, float32, 25 % tissue.
    "step": {
        "sides": [4096, 8192],
        "modes": ["train", "predict"],
        "only": ["streaming", "staged"],
        "ablation": [],
        "iterations": 1,
        "minutes": 0.0,
        "measure": True,
        "winners": True,
    },
}


def main(arguments) -> int:
    options = parse(arguments)
    if options.task:
        return task(json.loads(options.task))
    make_folder(options.output)
    report = Run(options).report()
    name = os.path.join(options.output, "throughput")
    write_text(name + ".json", json.dumps(report, indent=1) + "\n")
    write_text(name + ".html", page.html(report))
    print("\n" + page.floor_text(report))
    print("numbers: {0}.json, figures: {0}.html".format(name))
    return 1 if any("failed" in row for row in report["rows"]) else 0


def parse(arguments) -> argparse.Namespace:
    """The options, with the preset's where they are not given."""
    first = parser()
    name = first.parse_known_args(arguments)[0].preset
    first.set_defaults(**PRESETS.get(name, {}))
    options = first.parse_args(arguments)
    if options.full:
        options.minutes, options.measure = 0.0, True
    if options.iterations is None:
        options.iterations = FULL_ITERATIONS if options.full else 3
    if options.iterations < 1 or options.warmup < 0:
        raise ConfigError("--iterations must be 1 or more, and --warmup 0 or more")
    if not options.sides:
        raise ConfigError("--sides needs a size")
    options.given = engine_options(options.set)
    known = [row[0] for row in what.engine_rows(options.given) + what.technique_rows(options.given)]
    unknown = [name for name in options.only if name not in known]
    if unknown:
        raise ConfigError("--only: there is no {!r}; there are {}".format(unknown[0], ", ".join(known)))
    try:
        options.peers = [peer.parse(text, options.peer_python) for text in options.peer]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return options


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--output", default=os.path.join("results", "throughput"), metavar="FOLDER", help="default: %(default)s")
    add("--preset", choices=sorted(PRESETS), help="step: one training step at 4,096 and 8,192 px against its floor")
    add(
        "--sides",
        type=int,
        nargs="+",
        default=list(what.SIDES),
        metavar="PX",
        help="of canvases (default: %(default)s)",
    )
    add("--modes", nargs="+", choices=what.MODES, default=list(what.MODES))
    ablation = "canvases on which techniques of streaming are switched off one by one (default: %(default)s)"
    add("--ablation", type=int, nargs="*", default=[2344], metavar="PX", help=ablation)
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="rows to measure, such as streaming; all of them otherwise",
    )
    add("--backbone", default="resnet50")
    add("--pooling", default="gmp")
    add("--compute", default="float32")
    add(
        "--set",
        action="append",
        default=[],
        metavar="ENGINE.KEY=VALUE",
        help="an engine's option, as in a configuration",
    )
    add("--weights", metavar="FILE", help="weights to start from; random ones otherwise")
    add("--tissue", type=float, default=0.25, metavar="SHARE", help="of the canvas (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the slides")
    add("--photographs", metavar="FOLDER", help="compose slides of photographs (LungMosaic), a subfolder per class")
    add("--slide", metavar="FILE", help="a slide file instead, scaled to fit each canvas")
    add("--full", action="store_true", help="{} iterations, without a limit of time".format(FULL_ITERATIONS))
    add("--minutes", type=float, default=MINUTES, help="limit of time; 0 for none (default: %(default)s)")
    add("--iterations", type=int, metavar="N", help="at most (default: 3; 30 with --full)")
    add("--warmup", type=int, default=1, metavar="N", help="steps before them (default: %(default)s)")
    add("--memory-gb", type=float, help="what a run may take; what is free otherwise")
    add("--measure", action="store_true", help="predict times from small measured steps, as plan --measure does")
    winners = "find the cells that have a gradient by a forward pass; the floor of training counts what they see"
    add("--winners", action="store_true", help=winners)
    peers = (
        "another implementation: lightstream, hms2, or any name with the path of a program that runs it; PATH is its "
        "interpreter, virtual environment or checkout, TILE in pixels"
    )
    add("--peer", action="append", default=[], metavar="NAME[=PATH][@TILE]", help=peers)
    add("--peer-python", default=sys.executable, metavar="PYTHON", help="interpreter of peers whose PATH is a checkout")
    add("--task", help=argparse.SUPPRESS)
    return made


def engine_options(texts: List[str]) -> Dict[str, Dict[str, Any]]:
    """Options by engine, checked as those of a configuration are."""
    given: Dict[str, Dict[str, Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        engine, _, name = key.partition(".")
        if engine not in ENGINES or not name or not equals:
            raise ConfigError("--set {}: give ENGINE.KEY=VALUE, such as streaming.window=512".format(text))
        given.setdefault(engine, {})[name] = yaml.safe_load(value)
    for engine, keys in given.items():
        try:
            ENGINES[engine].options(**keys)
        except TypeError:
            raise ConfigError(
                "--set: {} has no option of one of these names: {}".format(engine, ", ".join(keys))
            ) from None
    return given


class Run:
    """A run of the benchmark: its processes, one after the other, and what they found."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.began = options, time.monotonic()
        kind = "file" if options.slide else "mosaic" if options.photographs else "noise"
        folder = os.path.join(options.output, "slides") if kind == "mosaic" else None
        slide = SlideKind(kind, options.tissue, options.seed, options.slide or options.photographs, folder)
        names = ("backbone", "pooling", "compute", "weights", "warmup", "iterations", "memory_gb")
        self.setting = worker.Setting(slide=slide, **{name: getattr(options, name) for name in names})
        names = [item.name for item in options.peers]
        self.cases = list(
            what.cases(options.sides, options.modes, options.ablation, options.given, options.only, names)
        )

    def left(self) -> float:
        """Seconds until the limit of time."""
        return self.options.minutes * 60 - (time.monotonic() - self.began) if self.options.minutes else _LONGEST

    def report(self) -> Dict[str, Any]:
        """Everything, in plain values."""
        options = {key: value for key, value in vars(self.options).items() if key not in ("task", "peers", "given")}
        found: Dict[str, Any] = {"machine": machine.describe(), "options": options}
        found["slide"] = self.setting.slide.sentence()
        found.update(self._alone("rates", measure=self.options.measure))
        target = worker.target_from(found["target"])
        self.cases = [worker.settled(case, target, self.setting.memory_gb) for case in self.cases]
        floors = {
            side: self._alone("floor", side=side, winners=self.options.winners)
            for side in sorted({case.side for case in self.cases})
        }
        found["floors"] = {str(side): values for side, values in floors.items()}
        plans = self._plans(found["target"], {str(side): values["tissue"] for side, values in floors.items()})
        found["rows"] = []
        with tempfile.TemporaryDirectory() as folder:
            for case in self.cases:
                row = dict(case._asdict(), tissue=floors[case.side]["tissue"] if case.blank else 1.0)
                planned = {} if case.runner == "peer" else plans.get(key_of(case))
                row.update(self._row(case, planned, folder))
                found["rows"].append(row)
                print(page.line(row), flush=True)
        found["seconds"] = time.monotonic() - self.began
        return found

    def _row(self, case: Case, planned: Optional[Dict[str, Any]], folder: str) -> Dict[str, Any]:
        """What is known of a case in the end: planned, refused, left out, failed, or measured."""
        if planned is None:
            return {"left_out": "it was not planned in the time that planning had"}
        if "refused" in planned:
            return planned
        left, seconds = self.left(), planned.get("predicted_seconds")
        if left < _STARTING or (seconds and _STARTING + seconds * (self.setting.warmup + 1) > left):
            text = "{:.0f} s were left of {:g} minutes".format(max(left, 0), self.options.minutes)
            return dict(
                planned,
                left_out=text
                + ("" if seconds is None else ", and a step is predicted to take {:.3g} s".format(seconds)),
            )
        if case.runner == "peer":
            (one,) = (item for item in self.options.peers if item.name == case.engine)
            found = peer.run(one, self.setting, case, folder, left)
        else:
            limit = min(CASE_SECONDS, left) if self.options.minutes else None
            found = self._child("case", left, case=case._asdict(), seconds_left=limit)
        if "seconds" in found:
            found["step"] = statistics.summary(found["seconds"])
            found["images_per_minute"] = statistics.summary(statistics.per_minute(found["seconds"]))
        return dict(planned, **found)

    def _plans(self, target: Dict[str, Any], tissue: Dict[str, float]) -> Dict[str, Dict[str, Any]]:
        """What the planner says of cases, by :func:`key_of`; those that it got to."""
        rows = [case._asdict() for case in self.cases if case.runner == "engine"]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "plans.jsonl")
            limit = min(self.left(), _PLANNING_SHARE * 60 * self.options.minutes or _LONGEST)
            self._child("plans", limit, cases=rows, target=target, tissue=tissue, path=path)
            if not os.path.exists(path):
                return {}
            with open(path, encoding="utf-8") as stream:
                lines = [json.loads(line) for line in stream if line.endswith("\n")]
        return {line["key"]: line["plan"] for line in lines}

    def _alone(self, name: str, **more: Any) -> Dict[str, Any]:
        """A task without which nothing can be said.

        Raises:
            ConfigError: it failed.
        """
        found = self._child(name, _LONGEST, **more)
        if "failed" in found:
            raise ConfigError("{}: {}".format(name, found["failed"]))
        return found

    def _child(self, name: str, timeout: float, **more: Any) -> Dict[str, Any]:
        told = dict(more, task=name, setting=self.setting._asdict())
        return peer.last_line(
            [sys.executable, os.path.abspath(__file__), "--task", json.dumps(told)], max(timeout, 1.0)
        )


def key_of(case: Case) -> str:
    """A case's name among plans."""
    return "{} {} {}".format(case.name, case.side, case.mode)


def task(told: Dict[str, Any]) -> int:
    """What a process of its own does; its last line is JSON."""
    setting, name = worker.Setting.of(told["setting"]), told["task"]
    if name == "rates":
        found = worker.rates(setting, told["measure"])
    elif name == "floor":
        found = worker.floor_of(setting, told["side"], told["winners"])
    elif name == "plans":
        found = write_plans(setting, told)
    else:
        case = Case(**told["case"])
        found = worker.RUNNERS[case.runner](setting, case, told["seconds_left"])
    print("\n" + json.dumps(found))
    return 0


def write_plans(setting: worker.Setting, told: Dict[str, Any]) -> Dict[str, Any]:
    """Plan cases, a line of the file for each as it is found. What is refused on a canvas is not planned on larger
    ones: no engine takes less there."""
    target, refused = worker.target_from(told["target"]), {}
    with open(told["path"], "w", encoding="utf-8") as stream:
        for values in told["cases"]:
            case = Case(**values)
            smaller = refused.get((case.name, case.mode))
            if smaller is None:
                found = worker.plan(setting, case, target, told["tissue"][str(case.side)])
                if "refused" in found:
                    refused[case.name, case.mode] = case.side, found["refused"]
            else:
                found = {"refused": "as at {:,} px: {}".format(*smaller)}
            stream.write(json.dumps({"key": key_of(case), "plan": found}) + "\n")
            stream.flush()
    return {}


if __name__ == "__main__":
    run_command(main)
