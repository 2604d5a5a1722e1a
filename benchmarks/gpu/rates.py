"""Rates of managed memory: moves by direction, both at once, beside kernels, and the host's time for each."""

import contextlib
import ctypes
import statistics
import threading
import time
from typing import Callable, Dict, Iterator, List

from gpu.card import PAGE, ProbeCard, middle, rate
from tf_um_patch.driver import HOST
from tf_um_patch.gpu_check.measure import rounds_for

FACTORS = (1, 2, 4)  # of the unit
CHUNK = 16 * PAGE  # as the moves of a plan are


def plain_copies(card: ProbeCard, unit: int, repeats: int) -> Dict:
    """Copies between pinned host memory and plain device memory: what the link can do."""
    driver, device = card.driver, card.plain(2 * unit)
    host = driver.value("cuMemHostAlloc", 2 * unit, 0, kind=ctypes.c_void_p)

    def up():
        driver.cuMemcpyHtoDAsync_v2(device, host, unit, card.up)

    def down():
        driver.cuMemcpyDtoHAsync_v2(host + unit, device + unit, unit, card.down)

    def across():
        driver.cuMemcpyDtoDAsync_v2(device, device + unit, unit, card.compute)

    def both():
        up()
        down()

    def seconds(work):
        card.wall(work)  # the first touches pages
        return middle([card.wall(work) for _ in range(repeats)])[0]

    try:
        return {
            "bytes": unit,
            "h2d": rate(unit, seconds(up)),
            "d2h": rate(unit, seconds(down)),
            "both_sum_two_streams": rate(2 * unit, seconds(both)),
            "d2d_read_plus_written": rate(2 * unit, seconds(across)),
        }
    finally:
        card.synchronise()
        driver.cuMemFreeHost(host)


def rates(card: ProbeCard, unit: int, repeats: int) -> List[Dict]:
    """Prefetches in each direction alone, and half a range up while the other half goes down."""
    return [_rates_of(card, factor * unit, repeats) for factor in FACTORS]


def _rates_of(card: ProbeCard, count: int, repeats: int) -> Dict:
    with card.lent(count) as address:
        card.write(address, count, 1)
        down, up = [], []
        for _ in range(repeats + 1):
            for location, found in ((HOST, down), (card.device, up)):
                found.append(card.timed(lambda location=location: card.enqueue(address, count, location, card.compute)))
        row = {
            "bytes": count,
            "first_to_host_s": down[0][0],  # host pages are new
            "first_to_device_s": up[0][0],
            "to_host": rate(count, middle(down[1:])[0]),
            "to_device": rate(count, middle(up[1:])[0]),
            "to_host_all_s": [seconds for seconds, _ in down],
            "to_device_all_s": [seconds for seconds, _ in up],
            "host_s_of_enqueue_to_host": middle(down[1:])[1],
            "host_s_of_enqueue_to_device": middle(up[1:])[1],
        }
        halves = count // 2 // PAGE * PAGE
        row.update(_both_directions(card, address, halves, repeats))
        return row


def _both_directions(card: ProbeCard, address: int, half: int, repeats: int) -> Dict:
    """The first half of a range goes up and the second down: whole or in chunks, on one stream or two."""

    def up(stream, at=0, count=half):
        card.enqueue(address + at, count, card.device, stream)

    def down(stream, at=0, count=half):
        card.enqueue(address + half + at, count, HOST, stream)

    def whole(one, two):
        up(one)
        down(two)

    def chunks(one, two):
        for at, count in pieces(half):
            down(two, at, count)
            up(one, at, count)

    def threads():
        def chunks_of(move, stream):
            with card.driver.primary_context(card.device):
                for at, count in pieces(half):
                    move(stream, at, count)
                card.driver.cuStreamSynchronize(stream)

        both = [threading.Thread(target=chunks_of, args=work) for work in ((up, card.up), (down, card.down))]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()

    def measure(work: Callable, count: int) -> Dict:
        found = []
        for _ in range(repeats):
            card.put(address, half, HOST)
            card.put(address + half, half, card.device)
            found.append(card.wall(work))
        seconds, enqueueing = middle(found)
        return {"s": seconds, "sum_GBs": rate(count, seconds), "enqueue_s": enqueueing}

    return {
        "half_up_alone_s": measure(lambda: up(card.up), half)["s"],
        "half_down_alone_s": measure(lambda: down(card.up), half)["s"],
        "both_one_stream": measure(lambda: whole(card.up, card.up), 2 * half),
        "both_two_streams": measure(lambda: whole(card.up, card.down), 2 * half),
        "chunks_one_stream": measure(lambda: chunks(card.up, card.up), 2 * half),
        "chunks_two_streams": measure(lambda: chunks(card.up, card.down), 2 * half),
        "chunks_two_threads": measure(threads, 2 * half),
    }


def pieces(count: int, chunk: int = CHUNK) -> Iterator:
    """(start, bytes) of the chunks of a range; the last may be shorter."""
    for start in range(0, count, chunk):
        yield start, min(chunk, count - start)


def enqueue(card: ProbeCard, unit: int, repeats: int) -> Dict:
    """Host time of one prefetch by its size: on an idle stream, behind a kernel, and where pages are there already."""
    count = 4 * unit
    rounds = rounds_for(card, 0.1)
    with card.lent(count) as address:
        card.write(address, count, 1)
        sizes = [size for size in (PAGE * 4**power for power in range(16)) if size < count] + [count]
        table = [_enqueue_of(card, address, size, rounds, repeats) for size in sizes]
        held = []
        for _ in range(repeats):  # is the launch of a kernel held up by a prefetch that waits on another stream?
            card.put(address, unit, HOST)
            with _behind_a_kernel(card, max(1, rounds // 10)):
                card.enqueue(address, unit, card.device, card.up)
                held.append(_host_seconds(lambda: card.spin(100)))
    return {"table": table, "launch_after_prefetch_us": 1e6 * statistics.median(held)}


def _enqueue_of(card: ProbeCard, address: int, count: int, rounds: int, repeats: int) -> Dict:
    row: Dict = {"bytes": count}
    for name, there, other in (("to_device", card.device, HOST), ("to_host", HOST, card.device)):

        def move(there=there):
            card.enqueue(address, count, there, card.up)

        idle, busy, again = [], [], []
        for _ in range(repeats):
            card.put(address, count, other)
            idle.append(card.wall(move))
            card.put(address, count, other)
            with _behind_a_kernel(card, rounds):
                busy.append(_host_seconds(move))
            again.append(card.wall(move)[1])
        done, enqueueing = middle(idle)
        row[name] = {
            "idle_us": 1e6 * enqueueing,
            "done_ms": 1e3 * done,
            "behind_100ms_kernel_us": 1e6 * statistics.median(busy),
            "already_there_us": 1e6 * statistics.median(again),
        }
    return row


@contextlib.contextmanager
def _behind_a_kernel(card: ProbeCard, rounds: int) -> Iterator[None]:
    """The stream up waits for a kernel that runs while the block does."""
    with contextlib.ExitStack() as stack:
        card.spin(rounds)
        card.wait(card.up, card.reached(card.compute, stack))
        yield
        card.synchronise()


def _host_seconds(work: Callable[[], None]) -> float:
    """How long the host takes to enqueue, whatever the device is doing."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def overlap(card: ProbeCard, unit: int, repeats: int) -> Dict:
    """A move beside a kernel of arithmetic, and beside one that memory limits: seconds of each alone and of both."""
    rounds, found = rounds_for(card, 0.04), {}
    with card.lent(unit) as moved, card.lent(unit) as used:
        card.write(moved, unit, 1)
        card.write(used, unit, 1)
        kernels = {"spin": lambda: card.spin(rounds), "reads": lambda: [card.read(used, unit) for _ in range(100)]}
        for kernel, work in kernels.items():
            alone = middle([card.timed(work) for _ in range(repeats)])[0]
            for name, there, other in (("to_device", card.device, HOST), ("to_host", HOST, card.device)):
                found["{} {}".format(kernel, name)] = _overlap_of(
                    card, (moved, unit), there, other, work, alone, repeats
                )
    return found


def _overlap_of(card: ProbeCard, memory, there: int, other: int, kernel: Callable, alone: float, repeats: int) -> Dict:
    def move():
        card.enqueue(memory[0], memory[1], there, card.up)

    def both():
        kernel()
        move()

    def measure(work):
        found = []
        for _ in range(repeats):
            card.put(memory[0], memory[1], other)
            found.append(card.wall(work))
        return middle(found)[0]

    moving, together = measure(move), measure(both)
    return {
        "kernel_s": alone,
        "move_s": moving,
        "both_s": together,
        "overlap": (alone + moving - together) / min(alone, moving) if min(alone, moving) > 0 else None,
    }
