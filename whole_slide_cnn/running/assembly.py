"""From a configuration to networks, engines and slides: what train and test have in common."""

import dataclasses
import os
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.augment.canvas import PROCESS_BYTES, array_module, augmented, augments
from whole_slide_cnn.config import WEIGHT_EXTENSIONS, TrainConfig
from whole_slide_cnn.engines.interface import Engine
from whole_slide_cnn.engines.memory import check_memory
from whole_slide_cnn.engines.runtime import TENSOR_FLOAT_32, has_gpu, keep_freed_memory_small, rounds_products
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.errors import ConfigError, MemoryBudgetError, WeightsError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import Weights, load_weights
from whole_slide_cnn.planning.auto import choose_engine, estimate_run, run_target
from whole_slide_cnn.planning.recommend import readable_seconds, sentence
from whole_slide_cnn.planning.targets import work_of
from whole_slide_cnn.running.checkpoint import load_checkpoint
from whole_slide_cnn.running.communicator import Communicator, SingleCommunicator
from whole_slide_cnn.running.names import BEST
from whole_slide_cnn.running.optimisers import Adam
from whole_slide_cnn.running.slides import Prepare, SlideSource, load_splits
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import Canvas


def make_optimiser(config: TrainConfig) -> Adam:
    """The optimiser a configuration asks for."""
    train = config.train
    decay = train.weight_decay if train.optimizer == "adamw" else 0.0
    return Adam(train.learning_rate, train.beta1, train.beta2, train.epsilon, decay)


def resolve(config: TrainConfig, training: bool, report=print, processes: int = 1, others: int = 0) -> TrainConfig:
    """The configuration with what it leaves to the machine decided, which is what a run records.

    Engine ``auto`` becomes the fastest that fits, as the planner has it: into ``memory_gb``, else into half of the host
    memory that is free or, where there is a GPU, into that and the host. What the engine leaves open follows from the
    same memory. The type bfloat16 becomes float32 on a GPU
    with TensorFlow 1, which has no GPU operations for it. The type tensorfloat32 stays, because a run may go on on
    another machine; where it computes what float32 does, that is said.

    Args:
        processes: how many on this machine share its memory.
        others: bytes that the run needs beside its engine.
    """
    if config.model.compute == "bfloat16" and has_gpu() and tf.__version__.startswith("1."):
        report("compute float32 instead of bfloat16, which TensorFlow 1 cannot compute on a GPU")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, compute="float32"))
    if config.model.compute == TENSOR_FLOAT_32 and not rounds_products(config.model.compute):
        why = "NVIDIA_TF32_OVERRIDE is 0" if has_gpu() else "there is no GPU"
        report("compute tensorfloat32 is float32 here: {}".format(why))
    if config.engine == "auto":
        engine, reason = choose_engine(config, training, processes, others)
        report("engine auto: {} ({})".format(engine, reason))
        config = dataclasses.replace(config, engine=engine)
    description = ENGINES[config.engine]
    options = description.options_in(config)
    if any(getattr(options, name) is None for name in description.settled):
        decided = description.settle(options, run_target(config, processes, others))
        for name in description.settled:
            report("{}.{}: {:g}".format(config.engine, name, getattr(decided, name)))
        config = dataclasses.replace(config, **{config.engine: decided})
    return config


def make_engine(
    config: TrainConfig,
    network: Network,
    optimiser=None,
    report=print,
    state: Optional[Dict[str, np.ndarray]] = None,
    extra_memory: Sequence[Tuple[str, int]] = (),
    group: Optional[Communicator] = None,
) -> Engine:
    """The engine a configuration asks for (see :func:`resolve`), with its weights.

    States the predicted memory first, and refuses what cannot fit (architecture, law 4).

    Args:
        optimiser: of a training; None for an engine that only predicts, of which nothing else is built or planned.
        state: of a checkpoint to go on from, or the weights that predict; a training without it begins with first
            weights.
        extra_memory: bytes that the run needs beside the engine, by what they are for.
        group: the processes that make such an engine together, all with the same state; None for one process.

    Raises:
        MemoryBudgetError: the run needs more memory than it may use.
        WeightsError: the file of initial weights cannot be used.
    """
    assert optimiser is not None or state is not None, "an engine that only predicts needs weights"
    group = SingleCommunicator() if group is None else group
    training = optimiser is not None
    config = resolve(config, training, report, group.local_size, sum(size for _, size in extra_memory))
    keep_freed_memory_small()
    with group.after_first():
        _state_needs(config, training, report, extra_memory, group)
    if state is None:
        state = group.broadcast(_first_weights(config, network, report) if group.rank == 0 else None)
    description = ENGINES[config.engine]
    options = description.options_in(config)
    shared = shares_windows(config, group)
    engine = description.make(network, Size(*config.data.canvas), config.model.compute, optimiser, training, options)
    engine.group = group if shared else None
    engine.load_state(state)
    return engine


def shares_windows(config: TrainConfig, group: Communicator) -> bool:
    """Whether the processes of a group compute every slide together.

    Raises:
        ConfigError: they are to, by an engine that cannot.
    """
    if config.train.share != "windows" or group.size == 1:
        return False
    able = [name for name, description in ENGINES.items() if description.shares_windows]
    if config.engine not in able:
        raise ConfigError(
            "train.share: windows has several processes compute one slide together, which engine {} cannot; set "
            "engine: {}, or train.share: slides".format(config.engine, " or ".join(able))
        )
    return True


def _state_needs(config, training, report, extra_memory, group):
    """Say what the run will take, and refuse what cannot fit: of a GPU whose memory is known, else of the host."""
    others = sum(size for _, size in extra_memory)
    target = run_target(config, group.local_size, others)
    if target is not None and target.gpu:
        if group.rank == 0:  # all are to do the same, and planning takes seconds
            found = estimate_run(config, training, target)
            report(sentence(found, target))
            if found.reason:
                raise MemoryBudgetError("engine {}: {}".format(config.engine, found.reason))
        return
    plan = ENGINES[config.engine].memory(work_of(config, training))
    plan = dataclasses.replace(plan, parts=plan.parts + tuple(extra_memory))
    report(plan.sentence())
    check_memory(plan, config.memory_gb, group.local_size)
    if target is not None and group.rank == 0:
        found = estimate_run(config, training, target)
        if found.seconds is not None:
            report("roughly {} a slide, by the rates of this machine".format(readable_seconds(found.seconds)))


def _first_weights(config: TrainConfig, network: Network, report) -> Weights:
    """What a training begins with."""
    weights = network.initial_weights(config.seed)
    if config.model.weights is None:
        report("weights: random, from seed {}".format(config.seed))
        return weights
    loaded, summary = load_weights(config.model.weights, network)
    report("weights from {}: {}".format(config.model.weights, summary))
    return dict(weights, **loaded)


def make_augmentation(config: TrainConfig) -> Tuple[Optional[Prepare], Tuple[Tuple[str, int], ...]]:
    """What is done to the canvas of every slide that is trained on, and the memory that takes; None and nothing where
    the configuration asks for no augmentation.

    Raises:
        ConfigError: ``augment.device`` is cuda and CuPy is missing or finds no GPU.
    """
    if not augments(config.augment):
        return None, ()
    array_module(config.augment.device)

    def prepare(canvas: Canvas, position: int) -> Canvas:
        return augmented(canvas, config.augment, config.seed, position)

    return prepare, (("augmentation", PROCESS_BYTES),)


def trained_path(config: TrainConfig, path: Optional[str] = None) -> str:
    """The file of trained weights: the one given, or the one that ``outputs.weights`` names, or else the best
    checkpoint in the result folder."""
    return path or config.outputs.weights or os.path.join(config.result_dir, BEST)


def trained_weights(network: Network, path: str) -> Tuple[Weights, Dict[str, Any]]:
    """All weights of a trained network by name, and what its checkpoint says of itself (nothing for other files).

    Args:
        path: a checkpoint, or a file of weights (``.h5`` or ``.safetensors``).

    Raises:
        WeightsError: the file is missing, broken, of another model, or lacks some of the weights.
    """
    if not path.lower().endswith(WEIGHT_EXTENSIONS + (".safetensors",)):
        state, progress = load_checkpoint(path, network)
        return {spec.name: state[spec.name] for spec in network.variables}, progress
    if not os.path.isfile(path):
        raise WeightsError("weight file {} does not exist; train first, or name another one".format(path))
    weights, found = load_weights(path, network)
    lost = found.missing + found.mismatched
    if lost:
        raise WeightsError(
            "{} does not hold a whole trained {}: {} of its variables are missing or of another shape, {} among "
            "them".format(path, network.backbone, len(lost), lost[0])
        )
    return weights, {}


def open_splits(config: TrainConfig, *required: str) -> Dict[str, SlideSource]:
    """The data lists a configuration names, to open slides from; see
    :func:`whole_slide_cnn.running.slides.load_splits`."""
    return {name: SlideSource(records, config.data) for name, records in load_splits(config.data, *required).items()}
