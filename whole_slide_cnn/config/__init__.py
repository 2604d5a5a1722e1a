"""Frozen, checked configuration from YAML files: ``load_config("run.yaml", ["train.epochs=3"])``."""

from whole_slide_cnn.config.load import (
    KeyHelp,
    config_from_dict,
    config_help,
    config_to_dict,
    describe_config,
    fixed_values,
    load_config,
    resolved_yaml,
)
from whole_slide_cnn.config.schema import (
    BACKBONES,
    ENGINES,
    MPP_TIMES_MAGNIFICATION,
    WEIGHT_EXTENSIONS,
    Augmentation,
    Data,
    Model,
    Outputs,
    Streaming,
    TrainConfig,
    Training,
)
from whole_slide_cnn.config.sources import parse_overrides

__all__ = [
    "Augmentation",
    "BACKBONES",
    "ENGINES",
    "Data",
    "KeyHelp",
    "MPP_TIMES_MAGNIFICATION",
    "Model",
    "Outputs",
    "Streaming",
    "TrainConfig",
    "Training",
    "WEIGHT_EXTENSIONS",
    "config_from_dict",
    "config_help",
    "config_to_dict",
    "describe_config",
    "fixed_values",
    "load_config",
    "parse_overrides",
    "resolved_yaml",
]
