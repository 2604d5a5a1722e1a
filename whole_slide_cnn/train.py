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
    """Train as a configuration says; checkpoints, log, curves and provenance go to its result folder.

    Args:
        resume: go on from the checkpoint in the folder, if there is one.
        overwrite: remove an earlier run from the folder.
        group: the processes that train together (:class:`whole_slide_cnn.running.communicator.Communicator`), all of
            which make this call; None for one process. Process 0 alone writes, and reads what earlier runs left.

    Raises:
        Interrupted: a signal stopped the run; a checkpoint to go on from was written.
    """
    from whole_slide_cnn.evaluation.plots import plot_learning_curves
    from whole_slide_cnn.models.network import make_network
    from whole_slide_cnn.running import assembly, names
    from whole_slide_cnn.running.communicator import SingleCommunicator
    from whole_slide_cnn.training.loop import Trainer

    group = SingleCommunicator() if group is None else group
    with group.after_first():
        sources = assembly.open_splits(config, "train")
        prepare, extra_memory = assembly.make_augmentation(config)
    network, folder = make_network(config), config.result_dir
    begun = None
    if group.rank == 0:
        begun = _begin(config, network, resume, overwrite, group, sum(size for _, size in extra_memory))
    config, state, resumed = group.broadcast(begun)
    del begun
    optimiser = assembly.make_optimiser(config)
    engine = assembly.make_engine(config, network, optimiser, group.say, state, extra_memory, group)
    del state  # as large as the model and its optimiser
    with engine:
        try:
            trainer = Trainer(
                config, engine, optimiser, sources["train"], sources.get("val"), resumed, group, prepare=prepare
            )
            trainer.run()
        finally:
            for source in sources.values():
                source.close()
            if group.rank == 0 and os.path.exists(os.path.join(folder, names.LOG)):
                plot_learning_curves(os.path.join(folder, names.CURVES), os.path.join(folder, names.LOG))
    group.say("best checkpoint: {}".format(os.path.join(folder, names.BEST)))


def _begin(config, network, resume, overwrite, group, others):
    """Ready the result folder: the resolved configuration, and the state and progress to go on from, or None twice."""
    from whole_slide_cnn.provenance import write_provenance, write_resumption
    from whole_slide_cnn.running import assembly
    from whole_slide_cnn.training import run_folder

    folder = config.result_dir
    if resume:
        config = run_folder.with_engine_of_run(config, network)
    config = assembly.resolve(config, training=True, processes=group.local_size, others=others)
    state, resumed = run_folder.begin(config, network, resume, overwrite, group.size) or (None, None)
    for path in (os.path.join(folder, "config.yaml"), config.outputs.config):
        if path is not None:
            write_text(path, resolved_yaml(config))
    if group.size > 1:
        print("{} processes train together".format(group.size))
    if resumed is None:
        write_provenance(folder, config, processes=group.size)
        if resume:
            print("no checkpoint in {} yet: starting from the beginning".format(folder))
    else:
        write_resumption(folder, config, resumed.progress.updates, processes=group.size)
        print("going on after {} updates".format(resumed.progress.updates))
    return config, state, resumed


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
