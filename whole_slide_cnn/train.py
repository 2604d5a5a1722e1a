"""Train a network on whole slides: ``python -m whole_slide_cnn.train --config FILE``."""

import argparse
import os

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.config import config_help, load_config, resolved_yaml
from whole_slide_cnn.files import write_text


def parser() -> argparse.ArgumentParser:
    """The command line of ``train``."""
    arguments = argparse.ArgumentParser(prog="python -m whole_slide_cnn.train", description=__doc__.splitlines()[0])
    arguments.add_argument("--config", metavar="FILE", help="configuration (YAML)")
    arguments.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a key, such as train.epochs=3"
    )
    arguments.add_argument("--help-config", action="store_true", help="list every key of a configuration and exit")
    return arguments


def train(config):
    """Train as a configuration says; checkpoints, log, curves and provenance go to its result folder."""
    from whole_slide_cnn.evaluation.plots import plot_learning_curves
    from whole_slide_cnn.provenance import write_provenance
    from whole_slide_cnn.training import setup
    from whole_slide_cnn.training.loop import BEST, LOG, Trainer

    sources = setup.open_splits(config, "train")
    config = setup.settle(config, training=True)
    folder = config.result_dir
    for path in (os.path.join(folder, "config.yaml"), config.outputs.config):
        if path is not None:
            write_text(path, resolved_yaml(config))
    write_provenance(folder, config)
    optimiser = setup.make_optimiser(config)
    with setup.make_engine(config, setup.make_network(config), optimiser) as engine:
        try:
            Trainer(config, engine, optimiser, sources["train"], sources.get("val")).run()
        finally:
            for source in sources.values():
                source.close()
            if os.path.exists(os.path.join(folder, LOG)):
                plot_learning_curves(os.path.join(folder, "learning_curves.png"), os.path.join(folder, LOG))
    print("best checkpoint: {}".format(os.path.join(folder, BEST)))


def main(arguments):
    """Parse, load the configuration, train."""
    options = parser().parse_args(arguments)
    if options.help_config:
        print(config_help())
        return 0
    if options.config is None:
        parser().error("--config is required")
    train(load_config(options.config, options.set))
    return 0


if __name__ == "__main__":
    run_command(main)
