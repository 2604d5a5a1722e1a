"""The planner against the papers' figures: ``make published-figures``.

Nothing is run: steps are built as graphs, planned and simulated on the papers' V100 with 32 GB. One set of assumptions,
that of :mod:`whole_slide_cnn.planning.devices`, serves all rows. What a row computes is inferred, since the papers do
not state the precision of each figure.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional

from whole_slide_cnn.engines.costs import Estimate, Target, Work
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.engines.unified.description import Unified
from whole_slide_cnn.engines.unified.options import UnifiedOptions
from whole_slide_cnn.engines.unified.variants import VARIANTS, WHOLE_MB, UnifiedVariant
from whole_slide_cnn.files import write_text
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.planning.devices import GPUS, HOST_SHARE, machine_of
from whole_slide_cnn.planning.estimate import HALF
from whole_slide_cnn.sizes import Size

GB = 1e9
HOST_BYTES = 768 * 10**9
PLAIN, GROUPS_PREFETCH = VARIANTS[0], VARIANTS[2]


@dataclass(frozen=True)
class Row:
    """One published figure.

    Attributes:
        what: what it is.
        inferred: the configuration that is assumed.
        published: as printed in the paper.
        predicted: the planner's.
        unit: of both.
        low: least ratio of predicted to published that is asked for; None where the row is for information.
        high: largest.
        remark: what the two do not share, if anything.
    """

    what: str
    inferred: str
    published: float
    predicted: Optional[float]
    unit: str
    low: Optional[float] = None
    high: Optional[float] = None
    remark: str = ""

    @property
    def ratio(self) -> Optional[float]:
        return None if self.predicted is None else self.predicted / self.published

    @property
    def within(self) -> Optional[bool]:
        if self.low is None:
            return None
        return self.ratio is not None and self.low <= self.ratio <= self.high


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    options = parser.parse_args(arguments)
    planned = Planned()
    rows = [row for make in ROWS for row in make(planned)]
    print(table(rows))
    missed = [row.what for row in rows if row.within is False]
    print("\n" + ("outside their bands: " + "; ".join(missed) if missed else "all rows with a band are within it"))
    if options.json:
        values = [dict(vars(row), ratio=row.ratio, within=row.within) for row in rows]
        write_text(options.json, json.dumps(values, indent=2) + "\n")
    return 1 if missed else 0


class Planned:
    """Estimates on the papers' machine, each made once."""

    def __init__(self):
        self._target = Target("V100-32GB", machine_of(GPUS["V100-32GB"], HOST_BYTES), True)
        self._made: Dict[tuple, Estimate] = {}

    def __call__(
        self,
        engine: str,
        side: int,
        compute: str = "float32",
        variant: UnifiedVariant = PLAIN,
        backbone: str = "fixup_resnet50",
        tissue: float = 1.0,
    ) -> Estimate:
        key = (engine, side, compute, variant.name, backbone, tissue)
        if key not in self._made:
            work = Work(
                Network(backbone, "gmp", "softmax", 3),
                Size(side, side),
                compute,
                tissue=tissue,
                options={"unified": UnifiedOptions(strip_mb=WHOLE_MB)},
            )
            if engine == "unified":
                (self._made[key],) = Unified().variants(work, self._target, (variant,))
            else:
                (self._made[key],) = ENGINES[engine].estimates(work, self._target)
        return self._made[key]

    def unoptimised(self, side) -> Estimate:
        """Plain unified memory in float32."""
        return self("unified", side)

    def optimised(self, side) -> Estimate:
        """Half precision, Group Execution and Group Prefetch."""
        return self("unified", side, HALF, GROUPS_PREFETCH)


def memory_rows(planned: Planned) -> List[Row]:
    unified, direct = planned.unoptimised(18750), planned("direct", 4688, HALF)
    return [
        Row(
            "memory, 18,750 px, unified memory",
            "float32, plain, device and host",
            618.9,
            (unified.device_bytes + unified.host_bytes) / GB,
            "GB",
            0.8,
            1.2,
        ),
        Row("memory, 4,688 px, plain training", "fp16, direct", 19.1, direct.device_bytes / GB, "GB", 0.8, 1.2),
    ]


def speed_rows(planned: Planned) -> List[Row]:
    speed_up = planned.unoptimised(11000).seconds / planned.optimised(11000).seconds
    return [
        Row("images/min, 18,750 px, unified memory", "float32, plain", 0.153, 60 / planned.unoptimised(18750).seconds,
            "images/min", 1 / 1.5, 1.5),
        Row("speed-up at 11,000 px", "float32, plain, against fp16, groups, prefetch", 6.26, speed_up, "times",
            0.75, 1.25),
        Row("16 GPUs optimised against 1 unoptimised", "the same; all 16 as fast as one", 64.6, 16 * speed_up, "times",
            remark="8 GPUs share a host's links and memory, which is not modelled"),
    ]  # fmt: skip


def host_rows(planned: Planned) -> List[Row]:
    """What the host must have. The published figure is what it has, of which a run may take a share."""
    plain, optimised = (made.host_bytes / GB for made in (planned.unoptimised(21500), planned.optimised(21500)))
    small, large = planned.optimised(11000).host_bytes, planned.unoptimised(11000).host_bytes
    return [
        Row("host memory, 21,500 px, unoptimised: above 768 GB", "float32, plain", 768, plain, "GB", HOST_SHARE, 99,
            "refused"),
        Row("host memory, 21,500 px, optimised: below 768 GB", "fp16, groups, prefetch", 768, optimised, "GB", 0,
            HOST_SHARE, "accepted"),
        Row("host memory, optimised over unoptimised: below half", "the same, 11,000 px", 0.5, small / large, "times",
            0, 1),
    ]  # fmt: skip


def streaming_rows(planned: Planned) -> List[Row]:
    """For information: the papers state neither the windows nor how much of the images was tissue."""
    rows = []
    for side, tissue, name, published in (
        (18750, 1.0, "streaming CNN", 1.49),
        (18750, 0.25, "ESCNN", 3.48),
        (75000, 1.0, "streaming CNN", 0.0928),
        (75000, 0.25, "ESCNN", 0.912),
    ):
        found = planned("streaming", side, backbone="resnet50", tissue=tissue)
        what = "images/min, {:,} px, {}".format(side, name)
        inferred = "float32, {:.0f} % tissue, windows of 1,024 px, without augmentation".format(100 * tissue)
        remark = "windows and tissue share are not published"
        rows.append(Row(what, inferred, published, 60 / found.seconds, "images/min", remark=remark))
    flat = planned("streaming", 75000, backbone="resnet50")
    rows.append(
        Row("memory, ESCNN, 75,000 px", "float32, windows of 1,024 px", 8.5, flat.device_bytes / GB, "GB",
            remark="8 to 9 in the paper; grows with the window, not with the canvas")
    )  # fmt: skip
    return rows


ROWS: List[Callable[[Planned], List[Row]]] = [memory_rows, speed_rows, host_rows, streaming_rows]


def table(rows: List[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| figure | inferred | published | predicted | ratio | band | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        band = "" if row.low is None else "{:.2f} to {:.2f}".format(row.low, row.high)
        band = band.replace("0.00 to", "at most").replace(" to 99.00", " at least")
        said = {True: "within", False: "MISSED", None: ""}[row.within]
        said = ", ".join(text for text in (row.remark, said) if text)
        numbers = (
            "{:.4g} {}".format(row.published, row.unit),
            "{:.4g}".format(row.predicted),
            "{:.2f}".format(row.ratio),
        )
        lines.append("| {} | {} | {} | {} | {} | {} | {} |".format(row.what, row.inferred, *numbers, band, said))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
