"""``train``: optimiser, learning rate, epochs, and when something is saved."""

import dataclasses
from typing import Optional

from whole_slide_cnn.config.options import Section, option
from whole_slide_cnn.errors import ConfigError

OPTIMIZERS = ("adam", "adamw")
LR_SCALINGS = ("none", "sqrt")
ON_PLATEAU = ("reduce", "rollback")
SHARES = ("slides", "windows")


@dataclasses.dataclass(frozen=True)
class Training(Section):
    """The training loop."""

    optimizer: str = option("adam, or adamw (Adam with decoupled weight decay).", "adam", choices=OPTIMIZERS)
    learning_rate: float = option("Step size of the optimizer.", 2e-5, above=0)
    weight_decay: float = option("Decoupled weight decay of adamw; adam has none and ignores it.", 0.01, at_least=0)
    beta1: float = option("Decay rate of the running mean of gradients.", 0.9, at_least=0, below=1)
    beta2: float = option("Decay rate of the running mean of squared gradients.", 0.999, at_least=0, below=1)
    epsilon: float = option("Added to the denominator of the update.", 1e-8, above=0)
    share: str = option(
        "What several processes share: slides (each computes slides of its own), or windows (all compute one slide "
        "together, which engine staged alone does; test and heatmap as well).",
        "slides",
        choices=SHARES,
    )
    lr_scaling: str = option(
        "What learning_rate and min_learning_rate are multiplied by: none (1) or sqrt (the square root of the number "
        "of processes that train together, each on slides of its own).",
        "none",
        choices=LR_SCALINGS,
    )
    min_learning_rate: float = option("The learning rate is never reduced below this.", 0.0, at_least=0)
    reduce_factor: float = option("What the learning rate is multiplied by on a plateau.", 0.1, above=0, below=1)
    reduce_patience: Optional[int] = option(
        "Epochs in a row without a lower validation loss (training loss where nothing is validated) that are a plateau "
        "and reduce the learning rate, until it is min_learning_rate; null never reduces it.",
        None,
        at_least=1,
    )
    min_improvement: float = option(
        "A loss has to be lower by more than this for reduce_patience and early_stop_patience to count from its epoch; "
        "the best weights are those of the lowest loss all the same.",
        0.0,
        at_least=0,
    )
    on_plateau: str = option(
        "What else happens when the learning rate is reduced: reduce (nothing), or rollback (the weights return to "
        "those of the best epoch, and the optimizer's running means with them: they are neither kept nor set to zero).",
        "reduce",
        choices=ON_PLATEAU,
    )
    early_stop_patience: Optional[int] = option(
        "Epochs in a row without a lower validation loss, at a learning rate that is not reduced any more, that end "
        "the run before its last epoch; null never does.",
        None,
        at_least=1,
    )
    epochs: int = option(
        "Number of epochs; each ends with a validation and a checkpoint.", 100, at_least=1, may_change=True
    )
    updates_per_epoch: int = option("Optimizer updates in one epoch.", 100, at_least=1)
    batch_size: int = option(
        "Slides whose mean gradient makes one update; of each process, where several train on slides of their own.",
        1,
        at_least=1,
    )
    checkpoint_every_minutes: float = option(
        "Minutes after which the next update or validated slide is followed by a checkpoint, besides that at each "
        "epoch's end.",
        10.0,
        above=0,
        may_change=True,
    )
    checkpoint_every_updates: Optional[int] = option(
        "Updates after which a checkpoint is written, besides that at each epoch's end and those by the clock; null "
        "leaves it to the clock.",
        None,
        at_least=1,
        may_change=True,
    )
    tensorboard: bool = option(
        "Whether scalars for TensorBoard are written to the folder tensorboard in result_dir.", True, may_change=True
    )

    def check_rules(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                "train.min_learning_rate: {} is above train.learning_rate, {}".format(
                    self.min_learning_rate, self.learning_rate
                )
            )
        if self.on_plateau == "rollback" and self.reduce_patience is None:
            raise ConfigError("train.on_plateau: rollback needs train.reduce_patience, which says what a plateau is")
        if None not in (self.reduce_patience, self.early_stop_patience) and not self.min_learning_rate:
            raise ConfigError(
                "train.early_stop_patience: counts from the last reduction of the learning rate; give "
                "train.min_learning_rate, so that there is a last one"
            )
