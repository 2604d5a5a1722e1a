"""A schedule of 40 kernels in a device that explicit evictions hold small: what the simulator says, on a real card.

A chain of maps is computed forward and back, as in training: 23 blocks, of which the device holds 6, least recently
used first to leave. No memory is oversubscribed. The plan is pure; the report holds it, so that it can be simulated.
"""

import contextlib
import statistics
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from gpu.card import PAGE, ProbeCard
from tf_um_patch.driver import HOST
from tf_um_patch.gpu_check.measure import rounds_for

DEPTH = 20
COMPUTE_SECONDS = (0.002, 0.006)  # of each kernel, beside what it reads and writes
LEAST_CAPACITY = 6  # two kernels' blocks, of which the next is brought while the first is used
RUNS = 3  # that are timed, after one that is not


class Step(NamedTuple):
    """Names of the blocks that a kernel reads and writes."""

    reads: Tuple[str, ...]
    writes: Tuple[str, ...]

    @property
    def touched(self) -> Tuple[str, ...]:
        return self.reads + self.writes


class Move(NamedTuple):
    """What happens before a step: blocks that leave, those it touches, and those of the next step that are brought."""

    evict: Tuple[str, ...]
    touch: Tuple[str, ...]
    ahead: Tuple[str, ...]


def steps_of(depth: int = DEPTH) -> List[Step]:
    """Kernels of a chain of maps x0 to xN, and of its gradients, which take turns in two blocks."""
    steps = [Step(("x{}".format(index),), ("x{}".format(index + 1),)) for index in range(depth)]
    given = "x{}".format(depth)
    for turn, index in enumerate(reversed(range(depth)), 1):
        gradient = "g{}".format(turn % 2)
        steps.append(Step(("x{}".format(index), given), (gradient,)))
        given = gradient
    return steps


def blocks_of(steps: Sequence[Step]) -> List[str]:
    """All blocks, in the order of their first use."""
    return list(dict.fromkeys(name for step in steps for name in step.touched))


def plan(steps: Sequence[Step], capacity: int, lookahead: bool) -> List[Move]:
    """What to evict, least recently used first, and bring in an iteration that follows another.

    Args:
        capacity: blocks that the device holds.
        lookahead: make room for the next step's blocks too, and bring them.
    """
    resident: List[str] = []
    moves, twice = [], list(steps) * 2
    for index, step in enumerate(twice):
        # None at the very end: the next iteration begins with what this one leaves.
        following = twice[index + 1].touched if lookahead and index + 1 < len(twice) else ()
        kept = list(dict.fromkeys(step.touched + following))
        resident = [name for name in resident if name not in kept]
        leaving = max(0, len(resident) + len(kept) - capacity)
        moves.append(Move(tuple(resident[:leaving]), step.touched, following))
        resident = resident[leaving:] + kept
    return moves[len(steps) :]


def resident_after(moves: Sequence[Move]) -> List[str]:
    """What the device holds after an iteration, and so before it."""
    resident: List[str] = []
    for move in list(moves) * 2:
        used = move.touch + move.ahead
        resident = [name for name in resident if name not in used and name not in move.evict] + list(used)
    return resident


def schedule(card: ProbeCard, unit: int, repeats: int) -> Dict:
    """The plan, and seconds of an iteration in five ways for each length of kernels."""
    size = max(PAGE, 4 * unit // 26 // PAGE * PAGE)
    steps, capacity = steps_of(), max(LEAST_CAPACITY, unit // size)
    by_use, ahead = plan(steps, capacity, False), plan(steps, capacity, True)
    found = {
        "block_bytes": size,
        "capacity_blocks": capacity,
        "blocks": blocks_of(steps),
        "steps": [step._asdict() for step in steps],
        "lru": [move._asdict() for move in by_use],
        "lookahead": [move._asdict() for move in ahead],
        "evicted_blocks_lru": sum(len(move.evict) for move in by_use),
        "evicted_blocks_lookahead": sum(len(move.evict) for move in ahead),
        "runs": {},
    }
    replay = Replay(card, steps, size)
    for seconds in COMPUTE_SECONDS:
        rounds = rounds_for(card, seconds)
        found["runs"]["spin_{:g}ms".format(1e3 * seconds)] = {
            "all resident": replay.timed(replay.plain, blocks_of(steps), rounds),
            "on demand": replay.timed(lambda: replay.on_demand(by_use), resident_after(by_use), rounds),
            "ahead, one stream": replay.timed(lambda: replay.prefetched(ahead, card.up), resident_after(ahead), rounds),
            "ahead, two streams": replay.timed(
                lambda: replay.prefetched(ahead, card.down), resident_after(ahead), rounds
            ),
            "ahead, two streams, slack": replay.timed(
                lambda: replay.prefetched(ahead, card.down, slack=True), resident_after(ahead), rounds
            ),
        }
    return found


class Replay:
    """Runs the kernels of steps on blocks of memory, with moves in different ways."""

    def __init__(self, card: ProbeCard, steps: Sequence[Step], size: int):
        self.card, self.steps, self.size = card, steps, size
        self.at = {name: card.managed(size) for name in blocks_of(steps)}
        self.rounds = 1
        self._events = contextlib.ExitStack()

    def timed(self, run: Callable[[], None], resident: Sequence[str], rounds: int) -> Dict:
        """Seconds of an iteration after another, by the host's clock."""
        self.rounds = rounds
        for name, address in self.at.items():
            self.card.write(address, self.size, 1)
            self.card.put(address, self.size, self.card.device if name in resident else HOST)
        found = []
        for _ in range(1 + RUNS):
            with self._events:
                found.append(self.card.wall(run))
        times, enqueueing = zip(*found[1:])
        return {
            "s": statistics.median(times),
            "all_s": list(times),
            "enqueue_s": statistics.median(enqueueing),
            "free": self.card.driver.memory()[0],
        }

    def plain(self) -> None:
        """Kernels alone."""
        for step in self.steps:
            self._compute(step)

    def on_demand(self, moves: Sequence[Move]) -> None:
        """Evictions between the kernels, which fault in what they need."""
        for step, move in zip(self.steps, moves):
            self._move(move.evict, HOST, self.card.compute)
            self._compute(step)

    def prefetched(self, moves: Sequence[Move], down: int, slack: bool = False) -> None:
        """Evictions and prefetches for the next kernel beside this one.

        Args:
            down: the stream of evictions; prefetches have another, or the same.
            slack: prefetches wait for the evictions of the step before only, as if there were a block more room.
        """
        card, up = self.card, self.card.up
        computed: Optional[int] = None
        brought: Optional[int] = None
        gone: Optional[int] = None
        for step, move in zip(self.steps, moves):
            card.wait(down, computed)
            if slack:
                card.wait(up, gone)
            self._move(move.evict, HOST, down)
            gone = card.reached(down, self._events)
            if not slack:
                card.wait(up, gone)
            card.wait(card.compute, brought)
            self._move(move.ahead, card.device, up)
            brought = card.reached(up, self._events)
            self._compute(step)
            computed = card.reached(card.compute, self._events)
        card.wait(card.compute, brought)

    def _move(self, names: Sequence[str], location: int, stream: int) -> None:
        for name in names:
            self.card.enqueue(self.at[name], self.size, location, stream)

    def _compute(self, step: Step) -> None:
        for name in step.reads:
            self.card.read(self.at[name], self.size)
        for name in step.writes:
            self.card.write(self.at[name], self.size, 1)
        self.card.spin(self.rounds)
