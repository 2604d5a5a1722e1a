"""The order of slides, and slides opened ahead of their use."""

import itertools
import threading
import warnings
from collections import Counter

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.config import Data
from whole_slide_cnn.errors import SlideError, TrainingError
from whole_slide_cnn.running import slides
from whole_slide_cnn.running.slides import Sampler, SlideSource
from whole_slide_cnn.slides.manifest import Record


def records_of(count, mpp=None):
    return tuple(Record("case-{}".format(i), "slide-{}".format(i), i % 2, mpp) for i in range(count))


def first(iterable, count):
    return list(itertools.islice(iterable, count))


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), passes=st.integers(1, 4))
def test_every_pass_is_a_permutation(count, seed, passes):
    records = records_of(count)
    found = first(Sampler(records, seed), count * passes)
    for start in range(0, len(found), count):
        assert sorted(found[start : start + count], key=records.index) == list(records)
    assert found == first(Sampler(records, seed), count * passes)


def test_passes_and_seeds_differ():
    records = records_of(30)
    found = first(Sampler(records, 1), 90)
    orders = [tuple(found[start : start + 30]) for start in (0, 30, 60)] + [tuple(first(Sampler(records, 2), 30))]
    assert len(set(orders)) == 4


class FakeCanvas:
    """Counts how often it is closed, and how often its blank blocks are searched."""

    def __init__(self, name, log, broken_scan=False):
        self.name, self.closed, self.searched, self.given = name, 0, 0, None
        self._broken_scan = broken_scan
        log.append(self)

    def blank_blocks(self):
        if self._broken_scan:
            raise SlideError(self.name, "bad block")
        self.searched += 1
        return np.arange(15).reshape(3, 5) % 4 == 0

    def set_blank_blocks(self, blocks):
        self.given = blocks

    def close(self):
        self.closed += 1


class Opened(list):
    """Canvases made so far.

    Attributes:
        attempts: how often each slide was tried.
        settings: what each slide was last opened with.
        broken: names of slides that cannot be opened.
        broken_scan: names of slides that break while their blank blocks are searched.
    """

    def __init__(self):
        super().__init__()
        self.attempts, self.settings, self.broken, self.broken_scan = Counter(), {}, set(), set()


@pytest.fixture
def opened(monkeypatch):
    """An :class:`Opened`; no file is touched."""
    log = Opened()

    def open_canvas(path, size, settings, name):
        log.attempts[name] += 1
        log.settings[name] = settings
        if name in log.broken:
            raise SlideError(name, "not a slide")
        return FakeCanvas(name, log, name in log.broken_scan)

    monkeypatch.setattr(slides, "open_canvas", open_canvas)
    monkeypatch.setattr(slides, "slide_path", lambda record, folder, extension: record.slide_id + extension)
    return log


@pytest.fixture
def make_source(slide_set, opened):
    """A function (records, *overrides) -> SlideSource, closed at the end of the test."""
    made = []

    def make(records, *overrides):
        made.append(SlideSource(records, slide_set.config("unused", *overrides).data))
        return made[-1]

    yield make
    for source in made:
        source.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slide-opener")]


def test_canvases_come_in_order_and_are_the_callers_to_close(make_source, opened):
    records = records_of(4)
    found = list(make_source(records).canvases(records, pytest.fail))
    assert [(record, canvas.name) for record, canvas in found] == [(record, record.slide_id) for record in records]
    assert [canvas.closed for canvas in opened] == [0] * 4


def test_opens_exactly_one_slide_ahead(make_source, opened):
    records = records_of(5)
    source = make_source(records)
    stream = source.canvases(records, pytest.fail)
    next(stream)
    source._opener.submit(lambda: None).result()  # whatever was queued before this is done
    assert len(opened) == 2
    stream.close()


@pytest.mark.parametrize("used", [1, 2, 3])
def test_the_slide_opened_ahead_is_closed_when_the_caller_stops(make_source, opened, used):
    records = records_of(5)
    source = make_source(records)
    stream = source.canvases(records, pytest.fail)
    handed_out = [canvas for _, canvas in first(stream, used)]
    stream.close()
    source.close()
    assert [canvas.closed for canvas in opened if canvas not in handed_out] == [1] * (len(opened) - used)
    assert [canvas.closed for canvas in handed_out] == [0] * used


@pytest.mark.parametrize("how", ["broken", "broken_scan"])
def test_a_broken_slide_is_reported_once_and_never_opened_again(make_source, opened, how):
    records = records_of(4)
    getattr(opened, how).add("slide-1")
    source, reported = make_source(records), []
    stream = source.canvases(itertools.cycle(records), reported.append)
    found = [record.slide_id for record, _ in first(stream, 9)]
    stream.close()
    assert found == ["slide-0", "slide-2", "slide-3"] * 3
    assert opened.attempts["slide-1"] == 1
    assert len(reported) == 1 and reported[0].startswith("slide slide-1: ") and "skipped for the rest" in reported[0]
    assert list(source.failed) == ["slide-1"]
    assert [canvas.closed for canvas in opened if canvas.name == "slide-1"] == ([1] if how == "broken_scan" else [])


def test_a_slide_that_breaks_while_it_is_open_again_is_not_handed_out(make_source, opened):
    """A caller marks a slide as broken that has been opened ahead meanwhile."""
    records = records_of(2)
    source = make_source(records)
    stream = source.canvases([records[0], records[0], records[1]], pytest.fail)
    _, canvas = next(stream)
    canvas.close()
    source.fail(SlideError("slide-0", "broke later"))
    assert [record.slide_id for record, _ in stream] == ["slide-1"]
    assert [canvas.closed for canvas in opened] == [1, 1, 0]


def test_all_slides_broken(make_source, opened):
    records = records_of(3)
    opened.broken.update(record.slide_id for record in records)
    reported = []
    stream = make_source(records).canvases(itertools.cycle(records), reported.append)
    with pytest.raises(TrainingError, match="none of the 3 slides can be read"):
        next(stream)
    assert len(reported) == 3


def test_other_errors_are_not_swallowed(make_source, opened, monkeypatch):
    """A defect is no broken slide; the slide opened ahead is closed all the same."""
    records = records_of(3)
    make = slides.open_canvas
    monkeypatch.setattr(
        slides, "open_canvas", lambda *arguments: make(*arguments) if arguments[3] != "slide-0" else 1 // 0
    )
    source = make_source(records)
    with pytest.raises(ZeroDivisionError):
        next(source.canvases(records, pytest.fail))
    source.close()
    assert [canvas.closed for canvas in opened] == [1] * len(opened)
    assert source.failed == {}


def test_blank_blocks_are_searched_once_per_slide(make_source, opened):
    records = records_of(2)
    source = make_source(records)
    list(source.canvases(records * 3, pytest.fail))
    assert [canvas.searched for canvas in opened] == [1, 1, 0, 0, 0, 0]
    expected = np.arange(15).reshape(3, 5) % 4 == 0
    for canvas in opened[2:]:
        assert canvas.given.dtype == bool
        np.testing.assert_array_equal(canvas.given, expected)


def test_resolution_of_the_data_list_goes_before_that_of_the_configuration(make_source, opened):
    records = records_of(1) + records_of(3, mpp=0.25)[1:]
    list(make_source(records, "data.slide_mpp=0.5").canvases(records, pytest.fail))
    assert [opened.settings[record.slide_id].slide_mpp for record in records] == [0.5, 0.25, 0.25]


def test_real_slides(slide_set):
    """Without anything replaced: pixels arrive at the size and resolution asked for, and a missing file is a slide's
    fault."""
    config = slide_set.config("unused")
    records = tuple(Record(name, name, 0) for name in ("train-0", "absent", "train-1"))
    source, reported = SlideSource(records, config.data), []
    found = []
    for record, canvas in source.canvases(records, reported.append):
        with canvas:
            found.append((record.slide_id, canvas.size, canvas.slide.size))
            assert canvas.blank_blocks()[0].all() and not canvas.blank_blocks().all()
    source.close()
    assert found == [("train-0", (192, 208), (150, 170)), ("train-1", (192, 208), (150, 170))]
    assert len(reported) == 1 and "absent" in reported[0]


# Positions: what a resumed run takes up, and what augmentation draws from.


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), position=st.integers(0, 40))
def test_a_stream_can_be_taken_up_anywhere(count, seed, position):
    records = records_of(count)
    whole = first(Sampler(records, seed).since(0), position + 12)
    assert [number for number, _ in whole] == list(range(position + 12))
    assert first(Sampler(records, seed).since(position), 12) == whole[position:]
    assert [record for _, record in whole] == first(Sampler(records, seed), position + 12)


class Prepared:
    """A canvas made from another one."""

    def __init__(self, canvas, position):
        self.canvas, self.position, self.name = canvas, position, canvas.name

    def close(self):
        self.canvas.close()


@pytest.mark.parametrize("broken", ["slide-2", None])
def test_positions_do_not_depend_on_what_broke(make_source, opened, broken):
    """Every slide is prepared with the position it has in the stream, counted with the slides that are left out."""
    records = records_of(5)
    opened.broken.update({broken} if broken else ())
    stream = make_source(records).stream(Sampler(records, 1).since(3), lambda text: None, Prepared)
    found = first(stream, 9)
    stream.close()
    wanted = [entry for entry in first(Sampler(records, 1).since(3), 13) if entry[1].slide_id != broken]
    assert [(sample.position, sample.record) for sample in found] == wanted[:9]
    assert [sample.canvas.position for sample in found] == [sample.position for sample in found]
    assert [sample.canvas.name for sample in found] == [sample.record.slide_id for sample in found]
    for sample in found:
        sample.canvas.close()
    assert [canvas.closed for canvas in opened] == [1] * len(opened)


def test_preparation_runs_ahead_in_the_thread_that_opens(make_source, opened):
    records, threads = records_of(2), []

    def prepare(canvas, position):
        threads.append(threading.current_thread().name)
        return canvas

    list(make_source(records).stream(enumerate(records), pytest.fail, prepare))
    assert len(threads) == 2 and all(name.startswith("slide-opener") for name in threads)


@pytest.mark.parametrize("error, swallowed", [(SlideError("slide-1", "bad tile"), True), (ValueError("defect"), False)])
def test_a_preparation_that_fails_leaves_no_slide_open(make_source, opened, error, swallowed):
    records, reported = records_of(3), []

    def prepare(canvas, position):
        if canvas.name == "slide-1":
            raise error
        return canvas

    source = make_source(records)
    stream = source.stream(enumerate(records), reported.append, prepare)
    if swallowed:
        assert [sample.position for sample in stream] == [0, 2]
        assert reported == ["slide slide-1: bad tile; skipped for the rest of this run"]
    else:
        with pytest.raises(ValueError, match="defect"):
            list(stream)
    source.close()
    assert [canvas.closed for canvas in opened if canvas.name == "slide-1"] == [1]


def test_a_ratio_is_that_of_the_um_per_px_it_is_meant_for(tmp_path):
    """An Aperio slide of 40x, 0.25 um/px, by a ratio meant for 0.46 um/px."""
    path = str(tmp_path / "slide-0.svs")
    with tifffile.TiffWriter(path) as tiff:
        pixels = np.full((460, 920, 3), 200, np.uint8)
        tiff.write(pixels, tile=(64, 64), photometric="rgb", metadata=None, description="Aperio |AppMag = 40|")
    settings = {"classes": ("a", "b"), "canvas": (64, 64), "slides": str(tmp_path), "extension": ".svs", "ratio": 0.1}
    for ratio_mpp, size in ((None, (46, 92)), (0.46, (25, 50))):
        source = SlideSource(records_of(1), Data(ratio_mpp=ratio_mpp, **settings))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is larger than the canvas
            with source.open(source.records[0]) as canvas:
                assert canvas.slide.size == size
        source.close()
