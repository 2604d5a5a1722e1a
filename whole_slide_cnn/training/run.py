"""A whole training run: the result folder readied, slides opened, a learner made, trained and closed."""

import contextlib
import os
from typing import Any, Callable, Optional, Tuple

from whole_slide_cnn.config import TrainConfig, resolved_yaml
from whole_slide_cnn.evaluation.plots import plot_learning_curves
from whole_slide_cnn.files import write_text
from whole_slide_cnn.models.network import make_network
from whole_slide_cnn.provenance import write_provenance, write_resumption
from whole_slide_cnn.running import assembly, names
from whole_slide_cnn.running.communicator import Communicator, SingleCommunicator
from whole_slide_cnn.running.slides import Prepare
from whole_slide_cnn.training import run_folder
from whole_slide_cnn.training.engine_learner import EngineLearner
from whole_slide_cnn.training.learner import Learner, State
from whole_slide_cnn.training.loop import Trainer

# From a resolved configuration and the state to go on from, or None where the run begins, to a learner in that state.
# All processes make theirs at the same time.
MakeLearner = Callable[[TrainConfig, Optional[State]], Learner]


def train_engine(
    config: TrainConfig, resume: bool = False, overwrite: bool = False, group: Optional[Communicator] = None
):
    """Train the network of a configuration by its engine; see :func:`train_learner`."""
    group = SingleCommunicator() if group is None else group
    with group.after_first():
        assembly.shares_windows(config, group)
        sources = assembly.open_splits(config, "train")
        prepare, extra_memory = assembly.make_augmentation(config)
    network, others = make_network(config), sum(size for _, size in extra_memory)

    def resolve(config: TrainConfig) -> TrainConfig:
        if resume:
            config = run_folder.with_choices_of_run(config, network)
        return assembly.resolve(config, training=True, processes=group.local_size, others=others)

    def make_learner(config: TrainConfig, state: Optional[State]) -> EngineLearner:
        optimiser = assembly.make_optimiser(config)
        engine = assembly.make_engine(config, network, optimiser, group.say, state, extra_memory, group)
        return EngineLearner(engine, optimiser, config.outputs.weights)

    train_learner(config, network, make_learner, sources, prepare, resume, overwrite, group, resolve)


def train_learner(
    config: TrainConfig,
    model: Any,
    make_learner: MakeLearner,
    sources,
    prepare: Optional[Prepare] = None,
    resume: bool = False,
    overwrite: bool = False,
    group: Optional[Communicator] = None,
    resolve: Callable[[TrainConfig], TrainConfig] = lambda config: config,
):
    """Train a learner as a configuration says; checkpoints, log, curves and provenance go to its result folder.

    Args:
        model: what is trained (:attr:`~whole_slide_cnn.training.learner.Learner.model`).
        make_learner: makes what learns it.
        sources: slide sources by the name of their data list, ``train`` among them; closed at the end.
        prepare: applied to the canvas of every slide that is trained on.
        resume: go on from the checkpoint in the folder, if there is one.
        overwrite: remove an earlier run from the folder.
        group: the processes that train together, all of which make this call; None for one process. Process 0 alone
            writes, and reads what earlier runs left.
        resolve: decides, in process 0, what the configuration leaves to the machine.

    Raises:
        Interrupted: a signal stopped the run; a checkpoint to go on from was written.
    """
    group, folder = SingleCommunicator() if group is None else group, config.result_dir
    with contextlib.ExitStack() as stack:
        for source in sources.values():
            stack.enter_context(source)
        begun = _begin(config, model, resume, overwrite, group, resolve) if group.rank == 0 else None
        config, state, resumed = group.broadcast(begun)
        del begun
        learner = stack.enter_context(make_learner(config, state))
        del state  # as large as the model and its optimiser
        if group.rank == 0:
            stack.callback(_plot_curves, folder)
        Trainer(config, learner, sources["train"], sources.get("val"), resumed, group, prepare).run()
    group.say("best checkpoint: {}".format(os.path.join(folder, names.BEST)))


def _begin(
    config: TrainConfig,
    model: Any,
    resume: bool,
    overwrite: bool,
    group: Communicator,
    resolve: Callable[[TrainConfig], TrainConfig],
) -> Tuple[TrainConfig, Optional[State], Optional[run_folder.Resumption]]:
    """Ready the result folder: the resolved configuration, and the state and progress to go on from, or None twice."""
    config = resolve(config)
    folder = config.result_dir
    state, resumed = run_folder.begin(config, model, resume, overwrite, group.size) or (None, None)
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


def _plot_curves(folder: str):
    if os.path.exists(os.path.join(folder, names.LOG)):
        plot_learning_curves(os.path.join(folder, names.CURVES), os.path.join(folder, names.LOG))
