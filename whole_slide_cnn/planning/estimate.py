"""What each engine would need on a machine, and how long it would take for a slide."""

from typing import Iterator, Optional, Sequence

from whole_slide_cnn.engines.costs import Estimate, Target, Work
from whole_slide_cnn.engines.table import ENGINES

HALF = "float16"


def estimate(
    work: Work, target: Target, engines: Optional[Sequence[str]] = None, configured: bool = False
) -> Iterator[Estimate]:
    """Some engines, and of each the ways to run it there, one after the other as they are worked out.

    What cannot be planned at all is an estimate that does not fit, with the reason.

    Args:
        engines: their names; all of them where not given.
        configured: of each engine only the way that its options ask for.
    """
    for name in ENGINES if engines is None else engines:
        yield from ENGINES[name].estimates(work, target, configured)
