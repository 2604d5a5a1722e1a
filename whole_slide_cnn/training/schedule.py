"""When the learning rate is reduced, weights return to the best ones, and training ends: a pure state machine.

The 2021 paper (methods, experiment setup) goes from 2e-5 to 2e-6 when the validation loss has not improved in 24
epochs. The 2022 paper (methods, training) goes from 1e-5 to 1e-6 after 16 epochs in a row without improvement, and
stops after 16 more.
"""

import dataclasses
import math
from typing import NamedTuple, Optional

from whole_slide_cnn.config import Training

# 2e-5 times 0.1 is a little above 2e-6: a rate this near to the lowest one is that.
_SAME = 1 + 1e-9


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a schedule does; learning rates are those of the whole run, scaled by the number of processes.

    Attributes:
        learning_rate: where it begins.
        min_learning_rate: where it ends.
        factor: what a plateau multiplies it by.
        reduce_patience: epochs without improvement that are a plateau; None: there is none.
        rolls_back: whether a plateau also brings back the state of the best epoch.
        stop_patience: epochs without improvement at the last learning rate that end the run; None: nothing does.
        min_improvement: a loss has to be lower by more than this to count as an improvement; the best epoch is that of
            the lowest loss all the same.
    """

    learning_rate: float
    min_learning_rate: float = 0.0
    factor: float = 0.1
    reduce_patience: Optional[int] = None
    rolls_back: bool = False
    stop_patience: Optional[int] = None
    min_improvement: float = 0.0


@dataclasses.dataclass(frozen=True)
class ScheduleState:
    """Where a schedule is.

    Attributes:
        learning_rate: of the next epoch.
        epoch: epochs that have ended.
        best_loss: the lowest loss so far.
        best_epoch: the epoch that had it, counted from 1; 0 before the first one has ended.
        stale: epochs since the last improvement that counted or since the last reduction, whichever was later.
        stopped: whether the run is over.
        uncounted: how much higher the loss was at the last improvement that counted.
    """

    learning_rate: float
    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    stale: int = 0
    stopped: bool = False
    uncounted: float = 0.0


class Turn(NamedTuple):
    """What the end of an epoch changes."""

    state: ScheduleState
    improved: bool
    reduced: bool
    rolls_back: bool


def make_rules(train: Training, processes: int = 1) -> Rules:
    """The rules a configuration asks for.

    With ``lr_scaling: sqrt`` both learning rates are multiplied by the square root of the number of processes, so that
    their ratio, and with it the number of reductions, stays as configured (2021 paper, methods, on data parallelism).
    """
    scale = math.sqrt(processes) if train.lr_scaling == "sqrt" else 1.0
    return Rules(
        train.learning_rate * scale,
        train.min_learning_rate * scale,
        train.reduce_factor,
        train.reduce_patience,
        train.on_plateau == "rollback",
        train.early_stop_patience,
        train.min_improvement,
    )


def first_state(rules: Rules) -> ScheduleState:
    """The state before the first epoch."""
    return ScheduleState(rules.learning_rate)


def advance(rules: Rules, state: ScheduleState, loss: float) -> Turn:
    """The turn at the end of an epoch with this loss; a loss that is not a number improves nothing."""
    state = dataclasses.replace(state, epoch=state.epoch + 1)
    counted, improved = state.best_loss + state.uncounted, loss < state.best_loss
    if improved:
        state = dataclasses.replace(state, best_loss=loss, best_epoch=state.epoch, uncounted=counted - loss)
    if loss < counted - rules.min_improvement:
        return Turn(dataclasses.replace(state, stale=0, uncounted=0.0), improved, False, False)
    state = dataclasses.replace(state, stale=state.stale + 1)
    if _reducible(rules, state):
        if rules.reduce_patience is None or state.stale < rules.reduce_patience:
            return Turn(state, improved, False, False)
        state = dataclasses.replace(state, learning_rate=_reduced(rules, state.learning_rate), stale=0)
        # an epoch that is the best one, by too little to count, has the weights that a roll-back would bring
        return Turn(state, improved, True, rules.rolls_back and not improved and state.best_epoch > 0)
    stopped = rules.stop_patience is not None and state.stale >= rules.stop_patience
    return Turn(dataclasses.replace(state, stopped=stopped), improved, False, False)


def _reducible(rules: Rules, state: ScheduleState) -> bool:
    return rules.reduce_patience is not None and state.learning_rate > rules.min_learning_rate


def _reduced(rules: Rules, rate: float) -> float:
    rate *= rules.factor
    return rules.min_learning_rate if rate <= rules.min_learning_rate * _SAME else rate
