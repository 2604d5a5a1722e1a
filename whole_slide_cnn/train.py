"""Train a network on whole slides: ``python -m whole_slide_cnn.train --config FILE``."""

import argparse

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import config_help, load_config


def parser() -> argparse.ArgumentParser:
    """The command line of ``train``."""
    arguments = argparse.ArgumentParser(prog="python -m whole_slide_cnn.train", description=__doc__.splitlines()[0])
    arguments.add_argument("--config", metavar="FILE", help="configuration (YAML)")
    arguments.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a key, such as train.epochs=3"
    )
    earlier = arguments.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in the result folder, or begin where it holds none: the same command starts a "
        "run and continues it",
    )
    earlier.add_argument("--overwrite", action="store_true", help="remove an earlier run from the result folder first")
    arguments.add_argument("--help-config", action="store_true", help="list every key of a configuration and exit")
    return arguments


def train(config, resume=False, overwrite=False, group=None):
    """Train as a configuration says; see :func:`whole_slide_cnn.training.run.train_engine`."""
    from whole_slide_cnn.training.run import train_engine

    train_engine(config, resume, overwrite, group)


def main(arguments):
    """Parse, load the configuration, train, together with the other processes that a launcher started.

    Exit codes: 0 when the run is complete, 143, 130 or 138 when SIGTERM, SIGINT or SIGUSR1 stopped it and the same
    command with ``--resume`` goes on, 2 for an error.
    """
    options = parser().parse_args(arguments)
    if options.help_config:
        print(config_help())
        return 0
    if options.config is None:
        parser().error("--config is required")
    from whole_slide_cnn.running.communicator import communicator, use_own_gpu

    with communicator() as group:
        use_own_gpu(group)
        with group.after_first():
            config = load_config(options.config, options.set)
        train(config, options.resume, options.overwrite, group)
    return 0


if __name__ == "__main__":
    run_command(main)
