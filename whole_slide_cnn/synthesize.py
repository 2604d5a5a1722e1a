"""Make a data set of synthetic slides: ``python -m whole_slide_cnn.synthesize --output FOLDER``.

Without ``--photographs`` the tissue is drawn by code; with it, slides are composed of the photographs in a folder with
one subfolder per class (LungMosaic, when these are LC25000's).
"""

import argparse
import concurrent.futures
import csv
import io
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from typing import Optional, Sequence

import numpy as np
import PIL
import scipy
import tifffile
from PIL import Image
from tqdm import tqdm

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.files import make_folder, replacing, write_text
from whole_slide_cnn.slides.pyramid import write_pyramid
from whole_slide_cnn.synthesis.colour_baseline import RESULT_FILE, Sample, baseline, check_folder, format_report
from whole_slide_cnn.synthesis.photographs import SPLITS, FolderPhotographs, ProceduralPhotographs, split_by_source
from whole_slide_cnn.synthesis.synthetic import SlideComposer, SlideSettings, photograph_colours

DESCRIPTION = "dataset.json"
_composer: Optional[SlideComposer] = None  # of this worker process


def main(arguments: Sequence[str]) -> int:
    """Make a data set and check its colours; exit code 1 where they tell the classes apart."""
    options = _parse(arguments)
    settings = SlideSettings(
        options.size, tuple(options.tissue), tuple(options.lesion), options.classes[0], options.seed, options.group
    )
    _check_options(options)
    source = _source(options)
    splits = split_by_source(source.photographs, options.seed)
    SlideComposer(source, splits, {}, settings)  # refuses what it cannot compose before anything is written
    _prepare_folder(options.output, options.overwrite)
    description = _description(options, splits)
    _write_description(options.output, description)  # first, so that --overwrite knows an interrupted run's folder
    colours = photograph_colours(source, splits)
    started = time.time()
    slides = _write_slides(options, (source, splits, colours, settings))
    _write_lists(options, slides)
    description.update(complete=True, slides=slides, raw_photographs=_raw_baseline(splits, colours))
    _write_description(options.output, description)
    print("{} slides in {:.0f} s: {}".format(len(slides), time.time() - started, options.output))
    report = check_folder(options.output)
    print(format_report(report))
    return 0 if report["passed"] else 1


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m whole_slide_cnn.synthesize",
        description="Make synthetic slides with lesion masks, data lists, and a check that colour gives nothing away.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="folder to write")
    add("--photographs", metavar="FOLDER", help="folder with one subfolder of tissue photographs per class")
    add("--classes", nargs="+", default=["normal", "adenocarcinoma", "squamous"], metavar="CLASS",
        help="the first is the normal tissue all slides are made of")  # fmt: skip
    for split, count in zip(SPLITS, (40, 12, 20)):
        add("--" + split, type=int, default=count, metavar="N", help="slides per class for " + split)
    add("--size", type=int, default=1024, help="side of the slides in pixels")
    add("--mpp", type=float, default=1.0, help="micrometres per pixel to state in the slides and lists")
    add("--tissue", nargs=2, type=float, default=[0.3, 0.6], metavar="SHARE", help="least and most tissue per slide")
    add("--lesion", nargs=2, type=float, default=[0.1, 0.4], metavar="SHARE", help="least and most lesion per tissue")
    add("--group", type=int, metavar="N",
        help="divide the sources of val and of test into groups of N per class and let each slide draw from one group, "
        "so that slides of different groups share no photograph")  # fmt: skip
    add("--seed", type=int, default=0, help="of everything random")
    add("--workers", type=int, default=2, help="processes")
    add("--overwrite", action="store_true", help="replace a data set that an earlier run left in the folder")
    return parser.parse_args(arguments)


def _check_options(options):
    for name in SPLITS + ("workers",):
        if getattr(options, name) < 1:
            raise WholeSlideError("--{} must be 1 or more, not {}".format(name, getattr(options, name)))
    if not (np.isfinite(options.mpp) and options.mpp > 0):
        raise WholeSlideError("--mpp must be above 0, not {}".format(options.mpp))
    if len(set(options.classes)) < max(2, len(options.classes)):
        raise WholeSlideError("--classes needs two or more different classes, not {}".format(" ".join(options.classes)))


def _source(options):
    if options.photographs:
        return FolderPhotographs(options.photographs, options.classes)
    return ProceduralPhotographs(tuple(options.classes), seed=options.seed)


def _prepare_folder(folder, overwrite):
    """Make the folder; empty it of an earlier data set, but never of anything else."""
    make_folder(folder)
    if not os.listdir(folder):
        return
    if not overwrite:
        raise WholeSlideError("{} is not empty; name a new folder or add --overwrite".format(folder))
    if not os.path.isfile(os.path.join(folder, DESCRIPTION)):
        raise WholeSlideError("{} holds no data set to overwrite; name a new folder".format(folder))
    try:
        for name in ("slides", "masks"):
            if os.path.isdir(os.path.join(folder, name)):
                shutil.rmtree(os.path.join(folder, name))
        for name in [split + ".csv" for split in SPLITS] + [RESULT_FILE]:
            if os.path.exists(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
    except OSError as error:
        raise WholeSlideError("cannot remove the old data set in {}: {}".format(folder, error.strerror)) from error


def _description(options, splits):
    arguments = {name: value for name, value in vars(options).items() if name not in ("output", "overwrite", "workers")}
    return {
        "complete": False,
        "arguments": arguments,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pillow": PIL.__version__,
            "tifffile": tifffile.__version__,
        },
        "sources": {
            split: {label: sorted({p.source for p in photographs}) for label, photographs in parts.items()}
            for split, parts in splits.items()
        },
    }


def _write_description(folder, description):
    write_text(os.path.join(folder, DESCRIPTION), json.dumps(description, indent=1) + "\n")


def _write_slides(options, composer_arguments):
    """Compose and write all slides; their descriptions in the order of the lists."""
    jobs = [
        (options.output, options.mpp, split, label, block)
        for split in SPLITS
        for block in range(getattr(options, split))
        for label in options.classes
    ]
    progress = {"total": len(jobs), "unit": "slide", "desc": "synthesize", "file": sys.stderr}
    if options.workers == 1:
        _start_worker(composer_arguments)
        return [_write_slide(job) for job in tqdm(jobs, **progress)]
    # A fresh process instead of a fork: the caller may have threads running.
    pool = concurrent.futures.ProcessPoolExecutor(
        min(options.workers, len(jobs)), multiprocessing.get_context("spawn"), _start_worker, (composer_arguments,)
    )
    with pool:
        futures = [pool.submit(_write_slide, job) for job in jobs]
        try:
            return [future.result() for future in tqdm(futures, **progress)]
        except BrokenProcessPool as error:
            raise WholeSlideError("a worker process was ended, perhaps for lack of memory; use --workers 1") from error
        finally:
            for future in futures:
                future.cancel()


def _start_worker(composer_arguments):
    global _composer
    _composer = SlideComposer(*composer_arguments)


def _write_slide(job):
    folder, mpp, split, label, block = job
    assert _composer is not None  # set by _start_worker
    slide = _composer.compose(split, label, block)
    case = "{}-{}-{:04d}".format(split, label, block)
    write_pyramid(os.path.join(folder, "slides", case + ".tiff"), slide.image, mpp)
    with replacing(os.path.join(folder, "masks", case + ".png")) as temporary:
        Image.fromarray(slide.mask).save(temporary)
    return {
        "case_id": case,
        "slide_id": case + ".tiff",
        "label": label,
        "split": split,
        "block": block,
        "tissue_share": round(float(slide.tissue_share), 6),
        "lesion_share": round(float(slide.lesion_share), 6),
        "sources": slide.sources,
        "colour_mean": [round(float(value), 3) for value in slide.colour.mean],
        "colour_deviation": [round(float(value), 3) for value in slide.colour.deviation],
    }


def _write_lists(options, slides):
    for split in SPLITS:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case_id", "slide_id", "label", "mpp"])
        for slide in slides:
            if slide["split"] == split:
                writer.writerow([slide["case_id"], slide["slide_id"], slide["label"], options.mpp])
        write_text(os.path.join(options.output, split + ".csv"), text.getvalue())


def _raw_baseline(splits, colours):
    """How far colour alone tells the classes of the photographs apart before it is matched."""
    return baseline(
        {
            split: [
                Sample(np.concatenate([colour.mean, colour.deviation]), label, "{} {}".format(label, photograph.source))
                for label, photographs in parts.items()
                for photograph, colour in zip(photographs, colours[split][label])
            ]
            for split, parts in splits.items()
        }
    )


if __name__ == "__main__":
    run_command(main)
