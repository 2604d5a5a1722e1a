"""What is measured: engines of the table and variants of ``staged``, on canvases of some sizes, training or not."""

from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from whole_slide_cnn.engines.table import ENGINES

# A canvas of 75,000 px (20x in the 2022 paper) and its halves.
SIDES = (1172, 2344, 4688, 9375, 18750, 37500, 75000)
MODES = ("train", "predict")


class Technique(NamedTuple):
    """Something that makes ``staged`` faster, switched off.

    Attributes:
        name: what is missing then.
        options: of the engine that switch it off.
        blank: whether slides still say what of them is blank.
    """

    name: str
    options: Dict[str, Any] = {}
    blank: bool = True


# One line for each technique. All of them together are the streaming CNN of 2019, with its exact windows alone.
TECHNIQUES = (
    Technique("blank skipping", {"skip_blank": False}, blank=False),
    Technique("stages", {"checkpoints": "none"}),
    Technique("kept activations", {"keep_activations": False}),
    Technique("sparse backward", {"sparse_backward": False}),
)
ENGINE = "staged"
ALL_OFF = ENGINE + ", all off"


class Case(NamedTuple):
    """One measurement, in a process of its own.

    Attributes:
        name: of the engine, variant or peer, as the figures call it.
        runner: what measures it: engine, or peer.
        engine: of the table, or the peer's name.
        side: of the canvas in pixels.
        mode: train or predict.
        options: of the engine, beyond its defaults.
        blank: whether the slide says what of it is blank.
    """

    name: str
    runner: str
    engine: str
    side: int
    mode: str
    options: Dict[str, Any]
    blank: bool = True


def engine_rows(given: Dict[str, Dict[str, Any]]) -> List[Tuple[str, str, Dict[str, Any], bool]]:
    """(name, engine, options, blank) of every engine of the table, and of ``staged`` with everything off.

    Args:
        given: options by engine, which all of its rows have.
    """
    rows = [(name, name, given.get(name, {}), True) for name in ENGINES]
    return rows + [_without(ALL_OFF, TECHNIQUES, given)]


def technique_rows(given: Dict[str, Dict[str, Any]]) -> List[Tuple[str, str, Dict[str, Any], bool]]:
    """Those of ``staged`` with one technique off, unless there is only one, and that is everything."""
    if len(TECHNIQUES) < 2:
        return []
    return [_without(ENGINE + ", no " + item.name, (item,), given) for item in TECHNIQUES]


def _without(name: str, off: Sequence[Technique], given: Dict[str, Dict[str, Any]]):
    options = dict(given.get(ENGINE, {}))
    for item in off:
        options.update(item.options)
    return name, ENGINE, options, all(item.blank for item in off)


def cases(
    sides: Sequence[int],
    modes: Sequence[str],
    ablation_sides: Sequence[int],
    given: Dict[str, Dict[str, Any]],
    names: Sequence[str] = (),
    peers: Sequence[str] = (),
) -> Iterator[Case]:
    """All that is measured, small canvases first, so that a limited time buys as much as it can.

    MIL belongs here as well, once it can be trained: rows of its own, and its runner in ``bench.worker.RUNNERS``.

    Args:
        ablation_sides: canvases on which techniques are switched off one by one.
        names: of rows; all of them where not given.
        peers: names of other implementations.
    """
    for side in sorted(set(sides) | set(ablation_sides)):
        rows = engine_rows(given) if side in sides else []
        rows = rows + (technique_rows(given) if side in ablation_sides else [])
        for mode in modes:
            for name, engine, options, blank in rows:
                if not names or name in names:
                    yield Case(name, "engine", engine, side, mode, options, blank)
            for peer in peers if side in sides else ():
                yield Case(peer, "peer", peer, side, mode, {})
