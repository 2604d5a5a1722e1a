"""What pages cost and where they go: faults, memory never touched, neighbours of a moved range, discarded ranges."""

import ctypes
import statistics
from typing import Callable, Dict, List

from gpu.card import BASE_PAGE, PAGE, ProbeCard, middle, on_host, rate
from gpu.rates import FACTORS
from tf_um_patch.driver import HOST

KIB = 1024
SMALL = (BASE_PAGE, 16 * BASE_PAGE, PAGE, 8 * PAGE)  # ranges of which one access is timed


def faults(card: ProbeCard, unit: int, repeats: int) -> List[Dict]:
    """Kernels that read and write pages on the host, on the device, and pages that nothing has touched."""
    return [_faults_of(card, factor * unit, repeats) for factor in FACTORS] + [_latency(card, repeats)]


def _faults_of(card: ProbeCard, count: int, repeats: int) -> Dict:
    row: Dict = {"bytes": count}
    with card.lent(count) as address:
        row["first_touch_write"] = rate(count, card.timed(lambda: card.write(address, count, 7))[0])

        def seconds(work: Callable, location: int) -> float:
            found = []
            for _ in range(repeats):
                card.put(address, count, location)
                found.append(card.timed(work))
            return middle(found)[0]

        works = {
            "read": lambda: card.read(address, count),
            "write": lambda: card.write(address, count, 9),
            "add": lambda: card.add(address, count, 1),
        }
        for name, work in works.items():
            row[name + "_host_resident"] = rate(count, seconds(work, HOST))
            row[name + "_device_resident"] = rate(count, seconds(work, card.device))
        row["value_ok"] = card.word(address) == card.word(address + count - 4) == 9 + 2 * repeats
    fresh, moved, after = [], [], []
    for _ in range(repeats):
        with card.lent(count) as address:
            fresh.append(card.timed(lambda address=address: card.write(address, count, 3)))
        with card.lent(count) as address:
            moved.append(card.timed(lambda address=address: card.enqueue(address, count, card.device, card.compute)))
            after.append(card.timed(lambda address=address: card.write(address, count, 3)))
    row["write_never_touched"] = rate(count, middle(fresh)[0])
    row["prefetch_never_touched"] = rate(count, middle(moved)[0])
    row["prefetch_never_touched_enqueue_s"] = middle(moved)[1]
    row["write_after_that"] = rate(count, middle(after)[0])
    return row


def _latency(card: ProbeCard, repeats: int) -> Dict:
    """Microseconds of a kernel that reads a small range of a larger one, which is on the host or on the device."""
    count, found = 2 * SMALL[-1], {}
    with card.lent(count) as address:
        card.write(address, count, 1)
        for size in SMALL:
            row = {}
            for name, location in (("host_us", HOST), ("device_us", card.device)):
                times = []
                for _ in range(repeats):
                    card.put(address, count, location)
                    times.append(card.timed(lambda size=size: card.read(address, size)))
                row[name] = 1e6 * middle(times)[0]
            found[str(size)] = row
    return {"bytes": count, "read_latency": found}


RANGES = (  # title, start and bytes of a range that moves
    ("inside a block", PAGE + 256 * KIB, PAGE // 2),
    ("across a boundary", 2 * PAGE - 512 * KIB, PAGE // 2),
    ("not on a page", PAGE + 100 * KIB + 100, 300 * KIB + 500),
    ("4 KiB", PAGE + 40 * KIB, 4 * KIB),
    ("whole block", PAGE, PAGE),
)


def neighbours(card: ProbeCard, unit: int, repeats: int) -> Dict:
    """Which pages move with a range that is no whole blocks, by the host's page table and by the next access.

    ``mapped_on_cpu_after_KiB`` are the parts of the first blocks that lie on the host.
    """
    rows = []
    with card.lent(8 * PAGE) as lent:
        base = lent + -lent % PAGE
        for title, start, count in RANGES:
            for direction, before, after in (("evict", card.device, HOST), ("prefetch", HOST, card.device)):

                def move(start=start, count=count, before=before, after=after):
                    card.write(base, 7 * PAGE, 1)
                    card.put(base, 7 * PAGE, before)
                    card.put(base + start, count, after)

                move()
                row = {"title": title, "direction": direction, "start_KiB": start / KIB, "KiB": count / KIB}
                row["mapped_on_cpu_after_KiB"] = on_host(base, 4 * PAGE)
                row["first_touch_us"] = {}
                for name, place in places(start, count).items():
                    move()
                    seconds = card.timed(lambda place=place: card.read(base + place, BASE_PAGE, blocks=1))[0]
                    row["first_touch_us"][name] = 1e6 * seconds
                rows.append(row)
    return {"rows": rows, "halves_of_blocks": _halves(card, min(unit, 256 * PAGE))}


def places(start: int, count: int) -> Dict[str, int]:
    """Starts of single host pages in and around a range, the last far from it."""
    found = {
        "inside": start + count // 2,
        "before": start - BASE_PAGE,
        "after": start + count + BASE_PAGE,
        "block_start": start // PAGE * PAGE,
        "next_block_end": 4 * PAGE - BASE_PAGE,
    }
    return {name: place // BASE_PAGE * BASE_PAGE for name, place in found.items()}


def _halves(card: ProbeCard, count: int) -> Dict:
    """Free memory that evictions gain, of the first half of every block and then of the second."""
    with card.lent(count) as address:
        card.write(address, count, 1)
        card.put(address, count, card.device)
        free, gained = card.driver.memory()[0], []
        for part in (0, PAGE // 2):
            for block in range(0, count, PAGE):
                card.enqueue(address + block + part, PAGE // 2, HOST, card.down)
            card.synchronise()
            gained.append(card.driver.memory()[0] - free)
    return {"bytes": count, "free_gained_by_first_halves": gained[0], "free_gained_by_both": gained[1]}


class _Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


_ON_DEVICE, _ON_HOST = 1, 2  # types of CUmemLocation


def discard(card: ProbeCard, unit: int, repeats: int) -> Dict:
    """Whether discarded pages are neither written out nor brought in; these calls came with CUDA 13."""
    driver = card.driver
    found = {
        "available": driver.cuMemDiscardBatchAsync.available,
        "prefetch_available": driver.cuMemDiscardAndPrefetchBatchAsync.available,
    }
    if not all(found.values()):
        return found
    with card.lent(unit) as address:
        found.update(_discarded(card, address, unit, repeats))
        card.write(address, unit, 11)
        card.synchronise()
        found["value_ok_after_write"] = card.word(address) == 11
    return found


def _discarded(card: ProbeCard, address: int, count: int, repeats: int) -> Dict:
    addresses, sizes = (ctypes.c_uint64 * 1)(address), (ctypes.c_size_t * 1)(count)

    def drop():
        card.driver.cuMemDiscardBatchAsync(addresses, sizes, 1, 0, card.compute)

    def drop_and_move(kind):
        where, index = (_Location * 1)(_Location(kind, 0)), (ctypes.c_size_t * 1)(0)
        card.driver.cuMemDiscardAndPrefetchBatchAsync(addresses, sizes, 1, where, index, 1, 0, card.compute)

    def move(location):
        return lambda: card.enqueue(address, count, location, card.compute)

    def write():
        card.write(address, count, 5)

    def seconds(location, *works):
        """Of each of several works, one after the other, on pages that lie somewhere and were written."""
        found = []
        for _ in range(repeats):
            card.put(address, count, card.device)
            card.write(address, count, 3)
            card.put(address, count, location)
            found.append([card.timed(work)[0] for work in works])
        return [statistics.median(column) for column in zip(*found)]

    on_host_s, write_s = seconds(HOST, drop, write)
    on_device_s, out_s, back_s = seconds(card.device, drop, move(HOST), move(card.device))
    _, in_s = seconds(HOST, drop, move(card.device))
    both_in_s, after_s = seconds(HOST, lambda: drop_and_move(_ON_DEVICE), write)
    (both_out_s,) = seconds(card.device, lambda: drop_and_move(_ON_HOST))
    return {
        "bytes": count,
        "discard_on_host_ms": 1e3 * on_host_s,
        "discard_on_device_ms": 1e3 * on_device_s,
        "write_after_discard_on_host": rate(count, write_s),
        "to_host_after_discard": rate(count, out_s),
        "to_device_after_that": rate(count, back_s),
        "to_device_after_discard_on_host": rate(count, in_s),
        "discard_and_prefetch_to_device_from_host": rate(count, both_in_s),
        "write_after_it": rate(count, after_s),
        "discard_and_prefetch_to_host": rate(count, both_out_s),
    }
