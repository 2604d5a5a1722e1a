"""Which engine to take, and a plan as a user reads it."""

from typing import List, NamedTuple, Optional, Sequence, Tuple

from whole_slide_cnn.planning.estimate import Estimate, Target, Work

GB = 1e9


class Recommendation(NamedTuple):
    """What to run.

    Attributes:
        estimate: the one that is recommended; None where nothing fits.
        reason: one sentence.
    """

    estimate: Optional[Estimate]
    reason: str


def recommend(work: Work, estimates: Sequence[Estimate]) -> Recommendation:
    """The fastest of what fits and computes in the type that was asked for; of equals the one that needs less."""
    asked = [item for item in estimates if item.compute == work.compute]
    fitting = [item for item in asked if item.fits and item.seconds is not None]
    if not fitting:
        return Recommendation(None, "nothing fits: " + "; ".join(_refusals(asked)))
    best = min(fitting, key=lambda item: (item.seconds, item.device_bytes + item.host_bytes))
    others = sorted((item for item in fitting if item.engine != best.engine), key=lambda item: item.seconds)
    parts = ["the fastest that fits"]
    if others:
        parts.append("{} takes {} a slide".format(label(others[0]), readable_seconds(others[0].seconds)))
    refusals = [text for text in _refusals(asked) if not text.startswith(best.engine)]
    return Recommendation(best, "; ".join(parts + refusals))


def _refusals(asked: Sequence[Estimate]) -> List[str]:
    """One reason for each engine of which nothing fits."""
    fitting = {item.engine for item in asked if item.fits}
    last = {item.engine: item for item in asked if item.engine not in fitting}
    return ["{} does not fit ({})".format(engine, item.reason) for engine, item in last.items()]


def label(item: Estimate) -> str:
    """An engine with what is turned on in it."""
    return item.engine + (" + " + item.variant if item.variant else "")


def settings(work: Work, target: Target, item: Estimate) -> Tuple[str, ...]:
    """The keys of a configuration that run an estimate."""
    lines = ["engine: {}".format(item.engine)]
    if item.engine == "streaming":
        lines.append("streaming: {{window: {}}}".format(work.window))
    if item.engine == "unified":
        megabytes = target.machine.device_bytes // 2 // 10**6 if target.gpu else work.unified.group_mb
        lines.append("unified: {{strip_mb: {:g}, group_mb: {:g}}}".format(work.unified.strip_mb, megabytes))
    return tuple(lines)


def table(work: Work, target: Target, estimates: Sequence[Estimate]) -> str:
    """A plan as text: the machine, a row for each estimate, and the recommendation."""
    machine, height, width = target.machine, *work.canvas
    memory = "device {:.1f} GB, ".format(machine.device_bytes / GB) if target.gpu else ""
    host = machine.host_bytes if target.gpu else machine.device_bytes
    lines = [
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
        "{:<45} {:>9} {:>9} {:>9} {:>9} {:>11}  {}".format(
            "engine", "type", "device GB", "host GB", "s/slide", "slides/min", "fits"
        ),
    ]
    for item in estimates:
        lines.append(
            "{:<45} {:>9} {:>9} {:>9} {:>9} {:>11}  {}".format(
                label(item), item.compute, *_numbers(item), "yes" if item.fits else "no: " + item.reason
            )
        )
    best = recommend(work, estimates)
    lines.append("")
    if best.estimate is None:
        return "\n".join(lines + [best.reason])
    lines.append("recommended: {} ({})".format(label(best.estimate), best.reason))
    return "\n".join(lines + ["  " + line for line in settings(work, target, best.estimate)])


def _numbers(item: Estimate) -> Tuple[str, ...]:
    known = item.device_bytes or item.host_bytes
    return (
        "{:.1f}".format(item.device_bytes / GB) if item.device_bytes else "-",
        "{:.1f}".format(item.host_bytes / GB) if known else "-",
        "-" if item.seconds is None else "{:.3g}".format(item.seconds),
        "-" if item.seconds is None else "{:.3g}".format(60 / item.seconds),
    )


def sentence(item: Estimate, target: Target) -> str:
    """One line before a run."""
    device = "device memory {:.2f} GB, ".format(item.device_bytes / GB) if target.gpu else ""
    seconds = "" if item.seconds is None else ", about {} a slide".format(readable_seconds(item.seconds))
    return "plan for {}: {}host memory {:.2f} GB{}".format(target.name, device, item.host_bytes / GB, seconds)


def readable_seconds(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, factor in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * factor:
            return "{:.1f} {}".format(seconds / factor, unit)
    return "{:.3g} s".format(seconds)
