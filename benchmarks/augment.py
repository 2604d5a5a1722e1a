"""What window-wise augmentation reads and costs: ``python benchmarks/augment.py``.

A slide with a square of noise in its middle is augmented for the windows that the streaming engine would compute in one
forward pass. The rows say how much of the slide is read for them, against reading all of it as augmentation of a whole
slide does, what is held in memory in both cases, and how long a megapixel takes apart from reading.
"""

import argparse
import json
import os
import sys
import tempfile
import time

from whole_slide_cnn.sizes import Size, Window
from whole_slide_cnn.slides.canvas import Canvas
from whole_slide_cnn.slides.settings import SlideSettings

HEADER = (
    "tissue",
    "windows",
    "output MP",
    "read MP",
    "whole MP",
    "bytes",
    "read s",
    "whole s",
    "held MB",
    "ms/MP",
    "cpu ms/MP",
)
ROW = "{:>7.0%} {:>8.1f}" + " {:>9.1f}" * 3 + " {:>8.2f}x {:>9.2f} {:>9.2f} {:>4.0f}/{:<4.0f} {:>9.1f} {:>9.1f}"


class CountedCanvas(Canvas):
    """A canvas that counts the pixels read from it, and the time that takes."""

    def __init__(self, canvas: Canvas):
        super().__init__(canvas.name, canvas.size, canvas.blank_colour)
        self.set_blank_blocks(canvas.blank_blocks())
        self._canvas = canvas
        self.pixels = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def close(self):
        self._canvas.close()

    def _read(self, window):
        started, started_cpu = time.perf_counter(), time.process_time()
        pixels = self._canvas.read(window)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - started_cpu
        self.pixels += window.height * window.width
        return pixels


def windows_of(canvas: Canvas, backbone: str, side: int):
    """The rectangles of pixels that the streaming engine reads of a canvas in a forward pass."""
    from whole_slide_cnn.engines.streaming.cover import blank_cells, grid_cover
    from whole_slide_cnn.engines.streaming.plan import window_side
    from whole_slide_cnn.models import geometry
    from whole_slide_cnn.models.resnet import TRUNKS

    trunk = TRUNKS[backbone]()
    wanted = ~blank_cells(trunk, canvas.size, canvas.blank_blocks())
    interior = tuple(geometry.interior_cells(trunk, extent) for extent in canvas.size)
    cores = grid_cover(wanted, window_side(trunk, canvas.size.height, side), interior)
    return [geometry.window_geometry(trunk, canvas.size, core).pixels for core in cores]


def measure(options, share: float) -> dict:
    """One row: means over draws for a slide of which ``share`` is tissue."""
    from memory import write_slide

    from whole_slide_cnn.augment import augmented
    from whole_slide_cnn.augment.canvas import PROCESS_BYTES
    from whole_slide_cnn.config import Augmentation
    from whole_slide_cnn.slides.canvas import open_canvas

    size = Size(options.side, options.side)
    settings = Augmentation(preset=options.preset, device=options.device)
    totals = dict.fromkeys(("windows", "computed", "read", "seconds", "cpu", "read_seconds", "largest"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "slide.tiff")
        write_slide(path, options.side, int(round(options.side * share**0.5)))
        with open_canvas(path, size, SlideSettings(mpp=1.0)) as canvas:
            started = time.perf_counter()
            canvas.read(Window(0, 0, *size))
            whole_seconds = time.perf_counter() - started
            blank = canvas.blank_blocks()
        for position in range(options.draws):
            with open_canvas(path, size, SlideSettings(mpp=1.0)) as canvas:
                canvas.set_blank_blocks(blank)
                source = CountedCanvas(canvas)
                changed = augmented(source, settings, options.seed, position)
                windows = windows_of(changed, options.backbone, options.window)
                started, started_cpu = time.perf_counter(), time.process_time()
                for window in windows:
                    changed.read(window)
                totals["seconds"] += time.perf_counter() - started - source.seconds
                totals["cpu"] += time.process_time() - started_cpu - source.cpu_seconds
                totals["windows"] += len(windows)
                totals["computed"] += sum(window.height * window.width for window in windows)
                totals["largest"] += max(window.height * window.width for window in windows)
                totals["read"] += source.pixels
                totals["read_seconds"] += source.seconds
    mean = {name: total / options.draws for name, total in totals.items()}
    pixels = options.side**2
    return {
        "tissue_share": share,
        "windows": mean["windows"],
        "computed_megapixels": mean["computed"] / 1e6,
        "read_megapixels": mean["read"] / 1e6,
        "whole_megapixels": pixels / 1e6,
        "bytes_reduction": pixels / mean["read"],
        "held_bytes": 3 * mean["largest"] + PROCESS_BYTES,
        "whole_held_bytes": 6 * pixels,
        "read_seconds": mean["read_seconds"],
        "whole_read_seconds": whole_seconds,
        "ms_per_megapixel": 1e9 * mean["seconds"] / mean["computed"],
        "cpu_ms_per_megapixel": 1e9 * mean["cpu"] / mean["computed"],
    }


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192, metavar="PX", help="side of the canvas")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5], help="shares of tissue")
    parser.add_argument("--preset", default="paper_2021")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--backbone", default="fixup_resnet50")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=3, help="augmentations per slide")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    options = parser.parse_args(arguments)
    print(("{:>7} {:>8}" + " {:>9}" * 9).format(*HEADER))
    rows = []
    for share in options.shares:
        row = measure(options, share)
        rows.append(row)
        print(
            ROW.format(
                share,
                row["windows"],
                row["computed_megapixels"],
                row["read_megapixels"],
                row["whole_megapixels"],
                row["bytes_reduction"],
                row["read_seconds"],
                row["whole_read_seconds"],
                row["held_bytes"] / 1e6,
                row["whole_held_bytes"] / 1e6,
                row["ms_per_megapixel"],
                row["cpu_ms_per_megapixel"],
            ),
            flush=True,
        )
    if options.json:
        from whole_slide_cnn.files import write_text

        write_text(options.json, json.dumps({"options": vars(options), "rows": rows}, indent=2) + "\n")
        print("table: {}".format(os.path.abspath(options.json)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
