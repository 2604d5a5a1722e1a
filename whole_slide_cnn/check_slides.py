"""Open and sample every slide of a data list before anyone trains on it; list the broken ones."""

import argparse
import csv
import math
import os
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np
from tqdm import tqdm

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.errors import SlideError, WholeSlideError
from whole_slide_cnn.files import replacing
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.manifest import Record, load_manifest, manifest_classes, slide_path
from whole_slide_cnn.slides.reader import READERS, open_slide
from whole_slide_cnn.slides.resample import ResampledSlide

EXIT_BROKEN = 1
_SAMPLE_SIDE = 256


class SlideCheck(NamedTuple):
    """How to open and sample the slides of a data list.

    Attributes:
        folder: where the slides are.
        extension: added to each ``slide_id`` that does not have it.
        mpp: the µm/px that will be asked of the slides, or None.
        ratio: the resize ratio that will be asked of them, or None.
        slide_mpp: µm/px of slides for which the data list has none, or None.
        reader: see :func:`whole_slide_cnn.slides.reader.open_slide`.
        samples: random positions per level, besides its corners.
        seed: of these positions.
    """

    folder: str
    extension: str = ""
    mpp: Optional[float] = None
    ratio: Optional[float] = None
    slide_mpp: Optional[float] = None
    reader: str = "auto"
    samples: int = 8
    seed: int = 0

    def find_fault(self, record: Record) -> Optional[str]:
        """Why a slide cannot be used, or None where nothing is wrong with it."""
        try:
            path = slide_path(record, self.folder, self.extension)
            with open_slide(path, record.slide_id, self.reader) as slide:
                if self.mpp is not None or self.ratio is not None:
                    ResampledSlide(slide, self.mpp, self.ratio, self.slide_mpp if record.mpp is None else record.mpp)
                # A generator per slide, so that neither its place in the list nor the threads matter.
                random = np.random.RandomState([self.seed, zlib.crc32(record.slide_id.encode("utf-8"))])
                for level, size in enumerate(slide.level_sizes):
                    for window in sample_windows(size, self.samples, random):
                        slide.read_level(level, window)
        except SlideError as error:
            return error.reason
        except Exception as error:  # one odd file must not hide the state of all others
            return "{}: {}".format(type(error).__name__, error)
        return None


def sample_windows(size: Size, samples: int, random: np.random.RandomState) -> Iterator[Window]:
    """The four corners of an image, the last pixel included, then ``samples`` random positions."""
    height, width = min(_SAMPLE_SIDE, size.height), min(_SAMPLE_SIDE, size.width)
    last_top, last_left = size.height - height, size.width - width
    for top, left in sorted({(0, 0), (0, last_left), (last_top, 0), (last_top, last_left)}):
        yield Window(top, left, height, width)
    for _ in range(samples):
        yield Window(random.randint(last_top + 1), random.randint(last_left + 1), height, width)


def main(arguments=None) -> int:
    """Entry point of ``python -m whole_slide_cnn.check_slides``; returns the exit code."""
    options = _parse(arguments)
    records = load_manifest(options.manifest, manifest_classes(options.manifest))
    folder = os.path.dirname(os.path.abspath(options.manifest)) if options.slides is None else options.slides
    check = SlideCheck(
        folder,
        options.extension,
        options.mpp,
        options.ratio,
        options.slide_mpp,
        options.reader,
        options.samples,
        options.seed,
    )
    with ThreadPoolExecutor(options.workers) as pool:
        progress = tqdm(pool.map(check.find_fault, records), total=len(records), unit="slide", file=sys.stderr)
        results = tuple(zip(records, tuple(progress)))
    if options.report:
        _write_report(options.report, results)
    broken = [(record, reason) for record, reason in results if reason is not None]
    for record, reason in broken:
        print("broken: {}: {}".format(record.slide_id, reason))
    print(
        "{} of {} slides are broken".format(len(broken), len(records))
        if broken
        else "all {} slides are fine".format(len(records))
    )
    return EXIT_BROKEN if broken else 0


def _write_report(path: str, results: Tuple[Tuple[Record, Optional[str]], ...]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("slide_id", "status", "reason"))
        for record, reason in results:
            writer.writerow((record.slide_id, "fine" if reason is None else "broken", reason or ""))


def _parse(arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m whole_slide_cnn.check_slides", description=__doc__)
    parser.add_argument("--manifest", required=True, help="CSV with case_id,slide_id,label[,mpp], or slide,class")
    parser.add_argument("--slides", help="folder of the slides (default: that of the data list)")
    parser.add_argument("--extension", default="", help="extension to add to the slide names, such as .svs")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--mpp", type=_positive, help="µm/px to train at; slides of unknown µm/px then count as broken")
    scale.add_argument("--ratio", type=_positive, help="resize ratio to train at, relative to level 0")
    parser.add_argument("--slide-mpp", type=_positive, help="µm/px of slides for which the data list has none")
    parser.add_argument("--reader", choices=READERS, default="auto", help="which library reads (default: auto)")
    parser.add_argument("--samples", type=int, default=8, help="random positions per level (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of these positions (default: 0)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="slides at a time")
    parser.add_argument("--report", help="CSV file to write the state of every slide to")
    options = parser.parse_args(arguments)
    if options.samples < 0 or options.seed < 0 or options.workers < 1:
        raise WholeSlideError("--samples and --seed must not be negative, and --workers must be at least 1")
    return options


def _positive(text: str) -> float:
    value = float(text)  # argparse turns the ValueError into a sentence
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError("{} is not above 0".format(text))
    return value


if __name__ == "__main__":
    run_command(main)
