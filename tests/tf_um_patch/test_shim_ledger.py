"""The shim's table of allocations against a dictionary, and its decisions against arithmetic."""

import ctypes
import os
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tf_um_patch.build import SOURCES

AUTOMATIC = 2**64 - 1
SIZES = st.one_of(st.integers(0, 200), st.sampled_from([2**63, AUTOMATIC - 1, AUTOMATIC]))


class Entry(ctypes.Structure):
    """struct tfum_entry."""

    _fields_ = [("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("place", ctypes.c_int)]


class Totals(ctypes.Structure):
    """struct tfum_totals, as far as it is looked at."""

    _fields_ = [
        ("used", ctypes.c_uint64),
        ("peak", ctypes.c_uint64),
        ("live", ctypes.c_uint64),
        ("allocations", ctypes.c_uint64 * 2),
        ("bytes", ctypes.c_uint64 * 2),
        ("frees", ctypes.c_uint64),
        ("events", ctypes.c_uint64 * 5),
    ]


class Options(ctypes.Structure):
    """struct tfum_options, as far as the policy looks at it."""

    _fields_ = [
        ("ceiling", ctypes.c_uint64),
        ("host_budget", ctypes.c_uint64),
        ("threshold", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 3),
    ]


class Memory(ctypes.Structure):
    """struct tfum_memory."""

    _fields_ = [("free", ctypes.c_uint64), ("total", ctypes.c_uint64)]


@pytest.fixture(scope="session")
def library(compilers, tmp_path_factory):
    """ledger.c and policy.c as a library of their own."""
    path = str(tmp_path_factory.mktemp("ledger") / "ledger.so")
    sources = [os.path.join(SOURCES, "shim", name) for name in ("ledger.c", "policy.c")]
    subprocess.run(["gcc", "-std=c11", "-O1", "-fPIC", "-shared", "-o", path] + sources + ["-lpthread"], check=True)
    loaded = ctypes.CDLL(path)
    loaded.tfum_totals.restype = Totals
    loaded.tfum_reported.restype = Memory
    loaded.tfum_ceiling.restype = ctypes.c_uint64
    for name in ("tfum_reserve", "tfum_take", "tfum_fits"):
        getattr(loaded, name).restype = ctypes.c_bool
    return loaded


# Few distinct addresses, many of which share a slot, so that entries move when others go.
EVENTS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 30), st.sampled_from(["take", "fail", "kept"])), max_size=80
)


@settings(deadline=None, max_examples=150)
@given(events=EVENTS, ceiling=st.integers(0, 400), stride=st.sampled_from([1, 256, 2**21, 2**32, 2**33 + 512]))
def test_the_ledger_is_a_dictionary_with_a_ceiling(library, events, ceiling, stride):
    library.tfum_ledger_lock()
    library.tfum_ledger_reset_and_unlock()
    model, peak, refused, freed = {}, 0, 0, 0
    for number, size, outcome in events:
        address = number * stride
        if address in model:
            entry = Entry()
            assert library.tfum_take(ctypes.c_uint64(address), ctypes.byref(entry))
            assert (entry.address, entry.bytes) == (address, model[address])
            if outcome == "kept":
                library.tfum_put_back(entry)
            else:
                library.tfum_release(entry)
                del model[address]
                freed += 1
            continue
        assert not library.tfum_take(ctypes.c_uint64(address), ctypes.byref(Entry()))
        if sum(model.values()) + size > ceiling:
            assert not library.tfum_reserve(ctypes.c_uint64(ceiling), ctypes.c_uint64(size))
            refused += 1
            continue
        assert library.tfum_reserve(ctypes.c_uint64(ceiling), ctypes.c_uint64(size))
        peak = max(peak, sum(model.values()) + size)
        if outcome == "fail":
            library.tfum_cancel(ctypes.c_uint64(size))
        else:
            library.tfum_commit(Entry(address, size, number % 2))
            model[address] = size
    totals = library.tfum_totals()
    assert (totals.used, totals.live, totals.peak) == (sum(model.values()), len(model), peak)
    assert (totals.frees, totals.events[0]) == (freed, refused)
    assert sum(totals.bytes) == totals.used


def test_an_address_that_comes_twice_replaces_the_first(library):
    library.tfum_ledger_lock()
    library.tfum_ledger_reset_and_unlock()
    for size, place in ((30, 0), (50, 1)):
        assert library.tfum_reserve(ctypes.c_uint64(100), ctypes.c_uint64(size))
        library.tfum_commit(Entry(4096, size, place))
    totals = library.tfum_totals()
    assert (totals.used, totals.live, list(totals.bytes)) == (50, 1, [0, 50])


@settings(deadline=None)
@given(ceiling=SIZES, used=SIZES, size=SIZES)
def test_fits_never_overflows(library, ceiling, used, size):
    fits = library.tfum_fits(*(ctypes.c_uint64(value) for value in (ceiling, used, size)))
    assert fits == (used + size <= ceiling)


@settings(deadline=None)
@example(size=0, threshold=0, works=True)
@given(size=SIZES, threshold=SIZES, works=st.booleans())
def test_place(library, size, threshold, works):
    options = Options(threshold=threshold)
    managed = library.tfum_choose_place(ctypes.byref(options), ctypes.c_uint64(size), ctypes.c_bool(works))
    assert managed == int(works and size > 0 and size >= threshold)


@settings(deadline=None)
@given(ceiling=SIZES, host=SIZES, free=SIZES, used=SIZES)
def test_reported_memory_can_always_be_allocated(library, ceiling, host, free, used):
    options = ctypes.byref(Options(ceiling=ceiling, host_budget=host))
    bound = library.tfum_ceiling(options, ctypes.c_uint64(free))
    assert bound == (min(free + host, AUTOMATIC) if ceiling == AUTOMATIC else ceiling)
    told = library.tfum_reported(options, *(ctypes.c_uint64(value) for value in (free, free, used)))
    assert told.free == max(0, min(free + host, bound, AUTOMATIC) - used)
    assert told.total == min(free + host, AUTOMATIC)
