"""Which engine to take, and a plan as a user reads it."""

from typing import NamedTuple, Optional, Sequence, Tuple

from whole_slide_cnn.engines.costs import Estimate, Target, Work
from whole_slide_cnn.engines.memory import GB
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.planning.estimate import HALF


class Recommendation(NamedTuple):
    """What to run.

    Attributes:
        estimate: the one that is recommended; None where nothing fits.
        reason: one sentence.
    """

    estimate: Optional[Estimate]
    reason: str


def recommend(work: Work, estimates: Sequence[Estimate]) -> Recommendation:
    """The fastest of what fits and computes in the type that was asked for. Times within a twentieth of each other are
    taken as equal: then the simpler engine."""
    asked = [item for item in estimates if item.compute == work.compute]
    fitting = [_Timed(item, item.seconds) for item in asked if item.fits and item.offered and item.seconds is not None]
    if not fitting:
        return Recommendation(None, "nothing fits in {}: {}".format(work.compute, _refusals(asked)) + _half(estimates))
    fastest, simpler = min(timed.seconds for timed in fitting), list(ENGINES)
    best = min(
        (timed for timed in fitting if timed.seconds <= _EQUAL * fastest),
        key=lambda timed: (simpler.index(timed.estimate.engine), timed.seconds),
    ).estimate
    parts = ["the fastest that fits"]
    others = [timed for timed in fitting if timed.estimate.engine != best.engine]
    if others:
        other = min(others, key=lambda timed: timed.seconds)
        parts.append("{} takes {} a slide".format(label(other.estimate), readable_seconds(other.seconds)))
    refused = _refusals([item for item in asked if item.engine != best.engine])
    return Recommendation(best, "; ".join(parts + ([refused] if refused else [])))


_EQUAL = 1.05


class _Timed(NamedTuple):
    """What fits, with its seconds."""

    estimate: Estimate
    seconds: float


def _half(estimates: Sequence[Estimate]) -> str:
    """What half precision would make possible."""
    fitting = [item for item in estimates if item.compute == HALF and item.fits and item.offered]
    if not fitting:
        return ""
    return "; {} in {} fits: set model.compute: {}".format(label(fitting[-1]), HALF, HALF)


def _refusals(asked: Sequence[Estimate]) -> str:
    """One reason for each engine of which nothing fits."""
    fitting = {item.engine for item in asked if item.fits and item.offered}
    last = {item.engine: item for item in asked if item.engine not in fitting and not item.fits}
    return "; ".join("{} does not fit ({})".format(engine, item.reason) for engine, item in last.items())


def label(item: Estimate) -> str:
    """An engine with what is turned on in it."""
    return item.engine + (" + " + item.variant if item.variant else "")


def settings(item: Estimate) -> Tuple[str, ...]:
    """The keys of a configuration that run an estimate."""
    lines = ["engine: {}".format(item.engine)]
    if item.settings:
        values = (
            "{}: {}".format(key, value if isinstance(value, str) else "%g" % value) for key, value in item.settings
        )
        lines.append("{}: {{{}}}".format(item.engine, ", ".join(values)))
    return tuple(lines)


def heading(work: Work, target: Target) -> str:
    """What is planned, for which machine, and the names of the columns."""
    machine, (height, width) = target.machine, work.canvas
    memory = "device {:.1f} GB, ".format(machine.device_bytes / GB) if target.gpu else ""
    host = machine.host_bytes if target.gpu else machine.device_bytes
    return "\n".join(
        (
            "canvas {} x {} px, {}, {}, {}; {:.0f} % tissue".format(
                height,
                width,
                work.network.backbone,
                work.compute,
                "training" if work.training else "predicting",
                100 * work.tissue,
            ),
            "on {}: {}host {:.1f} GB for a run".format(target.name, memory, host / GB),
            "",
            _COLUMNS.format("engine", "type", "device GB", "host GB", "s/slide", "slides/min", "fits"),
        )
    )


_COLUMNS = "{:<33} {:>13} {:>9} {:>8} {:>8} {:>10}  {}"


def row(item: Estimate) -> str:
    """One line of the table."""
    return _COLUMNS.format(label(item), item.compute, *_numbers(item), "yes" if item.fits else "no: " + item.reason)


def conclusion(work: Work, target: Target, estimates: Sequence[Estimate]) -> str:
    """The recommendation, and the keys that follow it."""
    best = recommend(work, estimates)
    if best.estimate is None:
        return best.reason
    lines = ["recommended: {} ({})".format(label(best.estimate), best.reason)]
    lines += ["  " + line for line in settings(best.estimate)]
    lines.append(ENGINES[best.estimate.engine].how_to_run(work, target))
    return "\n".join(filter(None, lines))


def _numbers(item: Estimate) -> Tuple[str, ...]:
    known = item.device_bytes or item.host_bytes
    return (
        "{:.3g}".format(item.device_bytes / GB) if item.device_bytes else "-",
        "{:.3g}".format(item.host_bytes / GB) if known else "-",
        "-" if item.seconds is None else "{:.3g}".format(item.seconds),
        "-" if item.seconds is None else "{:.3g}".format(60 / item.seconds),
    )


def sentence(item: Estimate, target: Target) -> str:
    """One line before a run on a GPU."""
    seconds = "" if item.seconds is None else ", about {} a slide".format(readable_seconds(item.seconds))
    return "plan for {}: device memory {:.2f} GB, host memory {:.2f} GB{}".format(
        target.name, item.device_bytes / GB, item.host_bytes / GB, seconds
    )


def readable_seconds(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, factor in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * factor:
            return "{:.1f} {}".format(seconds / factor, unit)
    return "{:.3g} s".format(seconds)
