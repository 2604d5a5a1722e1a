"""From a configuration to networks, engines and slides: what train and test have in common."""

import dataclasses
from typing import Dict, Sequence, Tuple

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines import ENGINES
from whole_slide_cnn.engines.base import Engine
from whole_slide_cnn.engines.memory import check_memory, engine_memory
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.models.weights import load_weights
from whole_slide_cnn.slides.manifest import check_disjoint, load_manifest
from whole_slide_cnn.training.optimisers import Adam
from whole_slide_cnn.training.slides import SlideSource

SPLITS = ("train", "val", "test")


def make_network(config: TrainConfig) -> Network:
    """The network a configuration asks for."""
    model = config.model
    return Network(model.backbone, model.pooling, model.activation, len(config.data.classes), model.class0_bias)


def make_optimiser(config: TrainConfig) -> Adam:
    """The optimiser a configuration asks for."""
    train = config.train
    decay = train.weight_decay if train.optimizer == "adamw" else 0.0
    return Adam(train.learning_rate, train.beta1, train.beta2, train.epsilon, decay)


def make_engine(
    config: TrainConfig,
    network: Network,
    optimiser=None,
    report=print,
    extra_memory: Sequence[Tuple[str, int]] = (),
) -> Engine:
    """The engine a configuration asks for, with its weights' first values.

    States the predicted memory first, and refuses what cannot fit (design, law 4).

    Args:
        extra_memory: bytes that the run needs beside the engine, by what they are for.

    Raises:
        MemoryBudgetError: the run needs more memory than it may use.
        WeightsError: the file of initial weights cannot be used.
    """
    options = {"window": config.streaming.window} if config.engine == "streaming" else {}
    plan = engine_memory(
        config.engine, network, config.data.canvas, config.model.compute, optimiser is not None, **options
    )
    plan = dataclasses.replace(plan, parts=plan.parts + tuple(extra_memory))
    report(plan.sentence())
    check_memory(plan, config.memory_gb)
    weights = network.initial_weights(config.seed)
    if optimiser is not None and config.model.weights is not None:
        loaded, summary = load_weights(config.model.weights, network)
        report("weights from {}: {}".format(config.model.weights, summary))
        weights.update(loaded)
    engine = ENGINES[config.engine](network, config.data.canvas, config.model.compute, optimiser, **options)
    engine.load_state(weights)
    return engine


def open_splits(config: TrainConfig, *required: str) -> Dict[str, SlideSource]:
    """The data lists a configuration names, checked against each other.

    Raises:
        ConfigError: a required list is not named.
        ManifestError: a list is malformed or a case is in two of them.
    """
    for name in required:
        if getattr(config.data, name) is None:
            raise ConfigError("data.{} must name a data list for this command".format(name))
    records = {
        name: load_manifest(getattr(config.data, name), config.data.classes)
        for name in SPLITS
        if getattr(config.data, name) is not None
    }
    check_disjoint(records)
    return {name: SlideSource(split, config.data) for name, split in records.items()}
