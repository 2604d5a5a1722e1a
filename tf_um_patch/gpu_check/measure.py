"""The checks by driver calls alone: ``python -m tf_um_patch.gpu_check.measure BUDGET`` prints them as lines of JSON.

It runs in a process of its own, because CUDA may hang. No more managed memory is asked for than a small part of what
the card has free, and pages move because they are told to, never because the card is full.
"""

import json
import statistics
import sys
from typing import Any, Dict, Iterator, List, Tuple

from tf_um_patch import driver as cuda
from tf_um_patch.driver import Driver
from tf_um_patch.errors import BuildError, DriverError
from tf_um_patch.gpu_check.card import PAGE, Card
from tf_um_patch.gpu_check.result import FAIL, PASS, SKIPPED, Check, measured, verdict
from tf_um_patch.moves import Moves

LEAST_BUDGET = 16 << 20
REPEATS = 7  # of everything that is timed; medians are taken

# What counts as working, far from what a GPU that works does: 119 times, 94 % and 1.02 on an H200 (docs/gpu.md).
LEAST_FAULT_RATIO = 2.0
LEAST_OVERLAP = 0.5
LARGEST_MANAGED_RATIO = 1.5

_CALIBRATION = 1 << 16  # rounds
_MOST_ROUNDS = 2**32 - 1


class Memory:
    """A block of memory on the card, and the word that it must hold everywhere."""

    def __init__(self, card: Card, count: int, managed: bool):
        self.card, self.count = card, count
        self.address = card.managed(count) if managed else card.plain(count)
        self.word = 0x5A5A5A5A
        card.fill(self.address, count, 0x5A)

    def add(self) -> float:
        """Seconds that a kernel took to read and write all of it."""
        self.word = (self.word + 1) % 2**32
        return self.card.kernel_seconds(lambda: self.card.add(self.address, self.count, 1))

    def move(self, location: int) -> None:
        """Move it, and wait until it is there."""
        self.card.move(self.address, self.count, location)

    def enqueue_move(self, location: int) -> None:
        """Enqueue a move on the copy stream."""
        self.card.enqueue_move(self.address, self.count, location)

    def timed_move(self, location: int) -> float:
        """Seconds that a move took on the copy stream."""
        return self.card.seconds(lambda: self.enqueue_move(location), self.card.copy)

    def location(self) -> int:
        """Where it was last told to move."""
        return self.card.driver.last_prefetch_location(self.address, self.count)

    def intact(self) -> bool:
        """Whether it holds what it must."""
        return self.card.holds(self.address, self.count, self.word)


def check_attributes(card: Card) -> Check:
    """The GPU can page managed memory while it computes."""
    values = {
        "managed_memory": measured(bool(card.attribute(cuda.MANAGED_MEMORY)), "yes or no"),
        "concurrent_managed_access": measured(bool(card.attribute(cuda.CONCURRENT_MANAGED_ACCESS)), "yes or no"),
        "multiprocessors": measured(card.blocks, "count"),
    }
    return verdict(
        "attributes",
        values["managed_memory"]["value"] and values["concurrent_managed_access"]["value"],
        "the GPU has managed memory and pages it while it computes",
        "the GPU cannot page managed memory while it computes: use one of compute capability 6.0 or later under Linux",
        values,
    )


def check_allocation(managed: Memory, plain: Memory) -> Check:
    """The driver tells managed memory from plain, and a kernel reads and writes both."""
    kinds = [managed.card.is_managed(memory.address) for memory in (managed, plain)]
    for memory in (managed, plain):
        memory.add()
    intact = managed.intact() and plain.intact()
    values = {"bytes_of_each": measured(managed.count, "bytes")}
    return verdict(
        "allocation",
        kinds == [True, False] and intact,
        "managed and plain memory hold what a kernel wrote to them",
        "memory does not hold what a kernel wrote to it: look at the card with nvidia-smi"
        if not intact
        else "the driver calls managed memory plain, or plain memory managed: update the NVIDIA driver",
        values,
    )


def check_prefetch(managed: Memory) -> Check:
    """Prefetches to the device and to the host are taken, keep contents, and have a rate."""
    device = managed.card.device
    times: Dict[int, List[float]] = {cuda.HOST: [], device: []}
    wrong = 0
    managed.move(cuda.HOST)
    for _ in range(REPEATS):
        for location in (device, cuda.HOST):
            times[location].append(managed.timed_move(location))
            wrong += managed.location() != location
    to_device, to_host = (statistics.median(times[location]) for location in (device, cuda.HOST))
    intact = managed.intact()
    values = {
        "wrong_locations": measured(wrong, "of {} moves".format(2 * REPEATS)),
        "to_device": _rate(managed.count, to_device),
        "to_host": _rate(managed.count, to_host),
        "to_device_time": measured(to_device * 1e3, "ms"),
        "to_host_time": measured(to_host * 1e3, "ms"),
    }
    return verdict(
        "prefetch",
        wrong == 0 and intact,
        "the last prefetch location followed every move, and contents were kept",
        "contents were lost on the way between device and host"
        if not intact
        else "the last prefetch location was not where memory was told to move",
        values,
    )


def check_pages(managed: Memory) -> Check:
    """Pages really move, which the last prefetch location alone does not say: a kernel waits for those on the host."""
    resident, faulting = [], []
    for _ in range(REPEATS):
        managed.move(cuda.HOST)
        faulting.append(managed.add())
        managed.move(cuda.HOST)
        managed.move(managed.card.device)
        resident.append(managed.add())
    on_demand, fast = statistics.median(faulting), statistics.median(resident)
    ratio, intact = on_demand / fast, managed.intact()
    values = {
        "on_demand_time": measured(on_demand * 1e3, "ms"),
        "resident_time": measured(fast * 1e3, "ms"),
        "on_demand": _rate(managed.count, on_demand),
        "ratio": measured(ratio, "times"),
    }
    return verdict(
        "pages",
        ratio >= LEAST_FAULT_RATIO and intact,
        "a kernel takes {:.1f} times as long on evicted pages as on prefetched ones".format(ratio),
        "contents were lost while pages moved"
        if not intact
        else "a kernel takes {:.2f} times as long on evicted pages as on prefetched ones, less than {}: they did not "
        "move".format(ratio, LEAST_FAULT_RATIO),
        values,
    )


def check_moves(managed: Memory) -> Check:
    """The code of UmPrefetch and UmEvict moves memory, without TensorFlow."""
    try:
        moves = Moves()
    except BuildError as error:
        return Check("moves", SKIPPED, str(error))
    found = []
    managed.move(managed.card.device)
    for act in (moves.evict, moves.prefetch):
        act(managed.address, managed.count)
        managed.card.driver.cuCtxSynchronize()
        found.append(managed.location())
    counters, intact = moves.counters(), managed.intact()
    values = {
        "after_evict": measured(found[0], "location"),
        "after_prefetch": measured(found[1], "location"),
        "taken_by_the_driver": measured(counters["enqueued"], "of 2 moves"),
    }
    return verdict(
        "moves",
        found == [cuda.HOST, managed.card.device] and counters["enqueued"] == 2 and intact,
        "the code of UmPrefetch and UmEvict moved memory to the host and back",
        "the code of UmPrefetch and UmEvict did not move memory to the host and back with its contents",
        values,
    )


def check_overlap(managed: Memory) -> Check:
    """A prefetch goes on while a kernel computes."""
    card, device = managed.card, managed.card.device
    alone = []
    for _ in range(REPEATS):
        managed.move(cuda.HOST)
        alone.append(managed.timed_move(device))
    prefetch = statistics.median(alone)
    rounds = rounds_for(card, prefetch)
    kernel = statistics.median(_spin(card, rounds) for _ in range(REPEATS))
    runs = []
    for _ in range(REPEATS):
        managed.move(cuda.HOST)
        runs.append(
            card.spans([(lambda: card.spin(rounds), card.compute), (lambda: managed.enqueue_move(device), card.copy)])
        )
    runs.sort(key=_end)
    middle = runs[REPEATS // 2]
    together = _end(middle)
    share = (kernel + prefetch - together) / min(kernel, prefetch) if min(kernel, prefetch) > 0 else 0.0
    computed = card.spun(rounds)
    values = {
        "kernel_time": measured(kernel * 1e3, "ms"),
        "prefetch_time": measured(prefetch * 1e3, "ms"),
        "together_time": measured(together * 1e3, "ms"),
        "overlap": measured(share, "of the shorter one"),
        "timeline": measured([[start * 1e3, end * 1e3] for start, end in middle], "ms of kernel, of prefetch"),
    }
    return verdict(
        "overlap",
        share >= LEAST_OVERLAP and computed,
        "{:.0%} of a prefetch overlaps with a kernel".format(share),
        "the kernel did not compute what it should: look at the card with nvidia-smi"
        if not computed
        else "{:.0%} of a prefetch overlaps with a kernel, less than {:.0%}: a prefetch ahead of use would gain little "
        "here".format(share, LEAST_OVERLAP),
        values,
    )


def check_managed_cost(managed: Memory, plain: Memory) -> Check:
    """Managed memory that is all on the device costs about what plain memory does."""
    managed.move(managed.card.device)
    for memory in (managed, plain):  # the first kernel after a move may still map pages
        memory.add()
    pairs = [(managed.add(), plain.add()) for _ in range(REPEATS)]
    times = [statistics.median(column) for column in zip(*pairs)]
    ratio, intact = times[0] / times[1], managed.intact() and plain.intact()
    values = {
        "managed_time": measured(times[0] * 1e3, "ms"),
        "plain_time": measured(times[1] * 1e3, "ms"),
        "plain": _rate(2 * plain.count, times[1]),
        "ratio": measured(ratio, "times"),
    }
    return verdict(
        "managed_cost",
        ratio <= LARGEST_MANAGED_RATIO and intact,
        "a kernel takes {:.2f} times as long on managed memory on the device as on plain memory".format(ratio),
        "contents were lost"
        if not intact
        else "a kernel takes {:.2f} times as long on managed memory on the device as on plain memory, more than "
        "{}".format(ratio, LARGEST_MANAGED_RATIO),
        values,
    )


def check_given_back(card: Card) -> Check:
    """All memory was given back."""
    card.close()
    values = {"allocated": measured(card.allocated, "bytes")}
    return Check("given_back", PASS, "all memory was given back", values)


NAMES = ("attributes", "allocation", "prefetch", "pages", "moves", "overlap", "managed_cost", "given_back")


def checks(budget: int) -> Iterator[Check]:
    """All results in the order of NAMES, each as soon as it is known; after a failed call the others are skipped."""
    left, card = list(NAMES), None
    reason = "the GPU does not page managed memory"
    try:
        card = Card(Driver(), budget)
        for found in _in_order(card, budget):
            left.remove(found.name)
            yield found
    except DriverError as error:
        reason = "a call of the driver failed before"
        yield Check(left.pop(0), FAIL, str(error))
    finally:
        if card is not None:
            _close_quietly(card)
    for name in left:
        yield Check(name, SKIPPED, reason)


def _in_order(card: Card, budget: int) -> Iterator[Check]:
    attributes = check_attributes(card)
    yield attributes
    if attributes.status != PASS:
        return
    count = (budget - PAGE) // 2 // PAGE * PAGE
    managed, plain = Memory(card, count, True), Memory(card, count, False)
    yield check_allocation(managed, plain)
    yield check_prefetch(managed)
    yield check_pages(managed)
    yield check_moves(managed)
    yield check_overlap(managed)
    yield check_managed_cost(managed, plain)
    yield check_given_back(card)


def _close_quietly(card: Card) -> None:
    try:
        card.close()
    except DriverError as error:
        print("giving memory back: {}".format(error), file=sys.stderr)


def rounds_for(card: Card, seconds: float) -> int:
    """Rounds that make the kernel of arithmetic take about so long."""
    _spin(card, _CALIBRATION)
    taken = min(_spin(card, _CALIBRATION) for _ in range(REPEATS))
    return max(1, min(_MOST_ROUNDS, int(_CALIBRATION * seconds / taken)))


def _spin(card: Card, rounds: int) -> float:
    return card.kernel_seconds(lambda: card.spin(rounds))


def _end(spans: List[Tuple[float, float]]) -> float:
    return max(end for _, end in spans)


def _rate(count: int, seconds: float) -> Dict[str, Any]:
    return measured(count / seconds / 1e9 if seconds > 0 else 0.0, "GB/s")


if __name__ == "__main__":
    for found in checks(int(sys.argv[1])):
        print(json.dumps(found.to_json()), flush=True)
