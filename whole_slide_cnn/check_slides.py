"""Open and sample every slide of a data list before anyone trains on it; list the broken ones."""

import argparse
import csv
import dataclasses
import math
import os
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np
from tqdm import tqdm

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import Data, load_config
from whole_slide_cnn.errors import ConfigError, SlideError, WholeSlideError
from whole_slide_cnn.files import replacing
from whole_slide_cnn.running.slides import load_splits
from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import SlideCanvas
from whole_slide_cnn.slides.manifest import Record, load_manifest, manifest_classes, slide_path
from whole_slide_cnn.slides.reader import READERS, open_slide
from whole_slide_cnn.slides.settings import SlideSettings

EXIT_BROKEN = 1
_SAMPLE_SIDE = 256


class SlideCheck(NamedTuple):
    """How to open and sample the slides of a data list.

    Attributes:
        folder: where the slides are.
        extension: added to each ``slide_id`` that does not have it.
        settings: how slides will be read; without a wanted µm/px or ratio any resolution will do.
        canvas: what they will be placed on, or None; a slide that is cropped by it is told of in a warning.
        samples: random positions per level, besides its corners.
        seed: of these positions.
    """

    folder: str
    extension: str = ""
    settings: SlideSettings = SlideSettings()
    canvas: Optional[Size] = None
    samples: int = 8
    seed: int = 0

    def find_fault(self, record: Record) -> Optional[str]:
        """Why a slide cannot be used, or None where nothing is wrong with it."""
        try:
            path = slide_path(record, self.folder, self.extension)
            with open_slide(path, record.slide_id, self.settings.reader) as slide:
                if self.settings.mpp is not None or self.settings.ratio is not None:
                    resampled = self.settings.for_record(record).resample(slide)
                    if self.canvas is not None:
                        SlideCanvas(resampled, self.canvas)
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
    data = None if options.config is None else load_config(options.config, options.set).data
    records, check = _records(options, data), _check(options, data)
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


def _records(options: argparse.Namespace, data: Optional[Data]) -> Tuple[Record, ...]:
    """The slides to check, each once: of the given list, or of all lists that the configuration names."""
    if options.manifest is not None:
        return load_manifest(options.manifest, manifest_classes(options.manifest) if data is None else data.classes)
    assert data is not None, "there is a list or a configuration"
    splits = load_splits(data)
    if not splits:
        raise ConfigError("{} names no data list; give one by --manifest".format(options.config))
    return tuple({record.slide_id: record for records in splits.values() for record in records}.values())


def _check(options: argparse.Namespace, data: Optional[Data]) -> SlideCheck:
    """How to check them: as the configuration has it, but for what the command line says otherwise."""
    if data is None:
        folder, extension, settings, canvas = (
            os.path.dirname(os.path.abspath(options.manifest)),
            "",
            SlideSettings(),
            None,
        )
    else:
        folder, extension, settings, canvas = data.slides, data.extension, SlideSettings.of(data), Size(*data.canvas)
    if options.mpp is not None or options.ratio is not None:
        settings = dataclasses.replace(settings, mpp=options.mpp, ratio=options.ratio)
    given = {"slide_mpp": options.slide_mpp, "reader": options.reader}
    settings = dataclasses.replace(settings, **{key: value for key, value in given.items() if value is not None})
    return SlideCheck(
        folder if options.slides is None else options.slides,
        extension if options.extension is None else options.extension,
        settings,
        canvas,
        options.samples,
        options.seed,
    )


def _write_report(path: str, results: Tuple[Tuple[Record, Optional[str]], ...]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("slide_id", "status", "reason"))
        for record, reason in results:
            writer.writerow((record.slide_id, "fine" if reason is None else "broken", reason or ""))


def _parse(arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m whole_slide_cnn.check_slides",
        description=__doc__,
        epilog="Options go before what the configuration says; without one, slides are only resized where --mpp or "
        "--ratio is given.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="configuration (YAML) whose slides are checked as it reads them"
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of it")
    parser.add_argument(
        "--manifest",
        help="CSV with case_id,slide_id,label[,mpp], or slide,class (default: all data lists of the configuration)",
    )
    parser.add_argument("--slides", help="folder of the slides (default: that of the data list)")
    parser.add_argument("--extension", help="extension to add to the slide names, such as .svs")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--mpp", type=_positive, help="µm/px to train at; slides of unknown µm/px then count as broken")
    scale.add_argument("--ratio", type=_positive, help="resize ratio to train at, relative to level 0")
    parser.add_argument("--slide-mpp", type=_positive, help="µm/px of slides for which the data list has none")
    parser.add_argument("--reader", choices=READERS, help="which library reads (default: auto)")
    parser.add_argument("--samples", type=int, default=8, help="random positions per level (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of these positions (default: 0)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="slides at a time")
    parser.add_argument("--report", help="CSV file to write the state of every slide to")
    options = parser.parse_args(arguments)
    if options.config is None and (options.manifest is None or options.set):
        parser.error("--set needs --config" if options.set else "give --config, --manifest or both")
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
