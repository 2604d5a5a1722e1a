"""Frozen, checked configuration from YAML files: ``load_config("run.yaml", ["train.epochs=3"])``."""

from whole_slide_cnn.config.aliases import current_keys
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
from whole_slide_cnn.config.schema import TrainConfig, config_class
from whole_slide_cnn.config.sections.augment import Augmentation
from whole_slide_cnn.config.sections.data import MPP_TIMES_MAGNIFICATION, Data
from whole_slide_cnn.config.sections.model import BACKBONES, Model
from whole_slide_cnn.config.sections.outputs import WEIGHT_EXTENSIONS, Outputs
from whole_slide_cnn.config.sections.train import Training
from whole_slide_cnn.config.sources import parse_overrides

__all__ = [
    "Augmentation",
    "BACKBONES",
    "Data",
    "KeyHelp",
    "MPP_TIMES_MAGNIFICATION",
    "Model",
    "Outputs",
    "TrainConfig",
    "Training",
    "WEIGHT_EXTENSIONS",
    "config_class",
    "config_from_dict",
    "config_help",
    "config_to_dict",
    "current_keys",
    "describe_config",
    "fixed_values",
    "load_config",
    "parse_overrides",
    "resolved_yaml",
]
