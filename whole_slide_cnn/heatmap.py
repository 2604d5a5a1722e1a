"""Show where a network sees each class: ``python -m whole_slide_cnn.heatmap --checkpoint RESULT_DIR --output DIR``."""

import argparse
import os
import sys
from typing import Dict, Sequence, Tuple

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import TrainConfig, load_config
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.heatmaps.localisation import THRESHOLD
from whole_slide_cnn.slides.manifest import Record

CONFIG = "config.yaml"


def parser() -> argparse.ArgumentParser:
    """The command line of ``heatmap``."""
    arguments = argparse.ArgumentParser(
        prog="python -m whole_slide_cnn.heatmap",
        description="Draw class activation maps: overlays, pyramids and contours that lie on the slides.",
    )
    add = arguments.add_argument
    add("--config", metavar="FILE", help="configuration (YAML); default: config.yaml beside the checkpoint")
    add("--checkpoint", metavar="PATH", help="a checkpoint, or the result folder of a training, whose best is taken")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    chosen = arguments.add_mutually_exclusive_group()
    chosen.add_argument("--slides", metavar="LIST", help="data list (CSV) of the slides to draw")
    chosen.add_argument("--split", choices=("train", "val", "test"), default="test",
                        help="data list of the configuration to draw (default: test)")  # fmt: skip
    add("--class", dest="drawn", metavar="NAME", action="append", help="class to draw, may be repeated; default: all")
    add("--threshold", type=float, default=THRESHOLD,
        help="probability at which contours are drawn (default: %(default)s)")  # fmt: skip
    add("--masks", metavar="FOLDER", help="folder of lesion masks, <slide>.png each, to compare the maps with")
    add("--output", metavar="FOLDER", required=True, help="folder to write; each slide gets a folder in it")
    return arguments


def _config_and_checkpoint(options: argparse.Namespace) -> Tuple[TrainConfig, str]:
    """Configuration and checkpoint file from ``--config`` and ``--checkpoint``, each of which may stand for both."""
    if options.config is None and options.checkpoint is None:
        raise ConfigError("name a configuration (--config) or the result folder of a training (--checkpoint)")
    path, config_path = options.checkpoint, options.config
    if config_path is None:
        config_path = os.path.join(path if os.path.isdir(path) else os.path.dirname(path), CONFIG)
    config = load_config(config_path, options.set)
    from whole_slide_cnn.running import assembly, names

    if path is None:
        return config, assembly.trained_path(config)
    return config, os.path.join(path, names.BEST) if os.path.isdir(path) else path


def _records(options: argparse.Namespace, config: TrainConfig) -> Tuple[Sequence[Record], Dict[str, str]]:
    """The slides to draw, and the data list they are from."""
    from whole_slide_cnn.slides.manifest import load_manifest

    name, path = ("slides", options.slides) if options.slides else (options.split, getattr(config.data, options.split))
    if path is None:
        raise ConfigError("data.{} must name a data list for this command, or --slides one".format(name))
    return load_manifest(path, config.data.classes), {name: path}


def main(arguments: Sequence[str]) -> int:
    """Parse, load, draw, together with the other processes that a launcher started; exit code 1 where slides could not
    be read."""
    options = parser().parse_args(arguments)
    from whole_slide_cnn.running.communicator import communicator, use_own_gpu

    with communicator() as group:
        use_own_gpu(group)
        with group.after_first():
            config, checkpoint = _config_and_checkpoint(options)
            records, lists = _records(options, config)
        from whole_slide_cnn.heatmaps.run import draw_heatmaps

        drawn = options.drawn, options.threshold, options.masks
        failed = draw_heatmaps(config, checkpoint, options.output, records, lists, *drawn, group=group)
    if group.rank:  # process 0 says it, and the launcher may end the others when one exits with an error
        return 0
    for slide, reason in failed.items():
        print("not drawn: slide {}: {}".format(slide, reason), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
