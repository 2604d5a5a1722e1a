"""Learning rate, roll-back and early stop, epoch by epoch."""

import dataclasses
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.config import Training, load_config
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.training.schedule import Rules, ScheduleState, advance, first_state, make_rules

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs")
WORSE = 2.0


def rules_of(name, processes=1):
    return make_rules(load_config(os.path.join(CONFIGS, name + ".yaml")).train, processes)


def follow(rules, losses):
    """The turns of a run, which ends where the schedule says so."""
    state, turns = first_state(rules), []
    for loss in losses:
        turns.append(advance(rules, state, loss))
        state = turns[-1].state
        if state.stopped:
            break
    return turns


def test_2021_paper():
    """2e-5, and 2e-6 from the best weights once 24 epochs have brought nothing; never again after that."""
    turns = follow(rules_of("lung_2021_4x"), [1.0, 0.5] + [WORSE] * 100)
    assert [turn.improved for turn in turns[:3]] == [True, True, False]
    assert [index for index, turn in enumerate(turns, 1) if turn.reduced] == [2 + 24]
    assert [index for index, turn in enumerate(turns, 1) if turn.rolls_back] == [2 + 24]
    assert [turn.state.learning_rate for turn in turns] == [2e-5] * 25 + [2e-6] * 77
    assert (turns[-1].state.best_epoch, turns[-1].state.best_loss) == (2, 0.5)
    assert not turns[-1].state.stopped


def test_2022_paper():
    """1e-5, 1e-6 after 16 epochs without improvement, the end after 16 more; no weights return."""
    turns = follow(rules_of("lymph_node_2022_20x"), [1.0] + [WORSE] * 100)
    assert [turn.state.learning_rate for turn in turns] == [1e-5] * 16 + [1e-6] * 17
    assert [turn.state.stopped for turn in turns] == [False] * 32 + [True]
    assert not any(turn.rolls_back for turn in turns)


def test_an_improvement_starts_the_count_again():
    losses = [1.0] + [WORSE] * 15 + [0.9] + [WORSE] * 16 + [WORSE] * 15 + [0.8] + [WORSE] * 16
    turns = follow(rules_of("lymph_node_2022_20x"), losses + [WORSE])
    assert [index for index, turn in enumerate(turns, 1) if turn.reduced] == [17 + 16]
    assert len(turns) == len(losses) and turns[-1].state.stopped


def test_an_equal_loss_is_no_improvement():
    turns = follow(Rules(1.0, 0.1, 0.1, reduce_patience=2), [1.0, 1.0, 1.0])
    assert [turn.improved for turn in turns] == [True, False, False] and turns[-1].reduced


def test_an_improvement_by_too_little_makes_the_best_epoch_but_does_not_count():
    """0.75 and 0.625 are less than 0.5 below 1.0, which is what counts until 0.25 is reached."""
    rules = Rules(1.0, 0.01, 0.1, reduce_patience=3, rolls_back=True, min_improvement=0.5)
    turns = follow(rules, [1.0, 0.75, 0.625, 0.25, WORSE, 0.125, 0.0625])
    assert [turn.improved for turn in turns] == [True, True, True, True, False, True, True]
    assert [turn.state.stale for turn in turns] == [0, 1, 2, 0, 1, 2, 0]
    assert [turn.reduced for turn in turns] == [False] * 6 + [True]
    # the weights of this very epoch are the best ones
    assert turns[-1].state.best_epoch == 7 and not turns[-1].rolls_back
    assert advance(rules, dataclasses.replace(turns[-1].state, stale=2), WORSE).rolls_back


def test_without_a_margin_every_improvement_counts():
    turns = follow(Rules(1.0, 0.1, 0.1, reduce_patience=2), [1.0, 1.0, 1.0 - 1e-15, WORSE])
    assert [turn.state.stale for turn in turns] == [0, 1, 0, 1] and turns[2].improved


def test_several_reductions_end_exactly_at_the_lowest_rate():
    turns = follow(Rules(1.0, 0.2, 0.5, reduce_patience=1, rolls_back=True), [1.0] + [WORSE] * 6)
    assert [turn.state.learning_rate for turn in turns] == [1.0, 0.5, 0.25, 0.2, 0.2, 0.2, 0.2]
    assert [turn.rolls_back for turn in turns] == [False, True, True, True, False, False, False]


def test_early_stop_without_reductions():
    turns = follow(Rules(1.0, stop_patience=3), [1.0, 0.5] + [WORSE] * 9)
    assert len(turns) == 5 and turns[-1].state.learning_rate == 1.0


def test_defaults_do_nothing():
    turns = follow(make_rules(Training()), [1.0] + [WORSE] * 300)
    assert {turn.state.learning_rate for turn in turns} == {2e-5} and len(turns) == 301


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_improves_nothing(loss):
    turn = advance(Rules(1.0), ScheduleState(1.0), loss)
    assert not turn.improved and turn.state.best_epoch == 0
    assert not advance(Rules(1.0, 0.1, 0.1, 1, rolls_back=True), ScheduleState(1.0), loss).rolls_back


@pytest.mark.parametrize("scaling, factor", [("none", 1.0), ("sqrt", 3.0)])
def test_scaling_by_processes(scaling, factor):
    """Both rates, so that there is still one reduction."""
    rules = make_rules(Training(lr_scaling=scaling, min_learning_rate=2e-6, reduce_patience=1), processes=9)
    assert (rules.learning_rate, rules.min_learning_rate) == (2e-5 * factor, 2e-6 * factor)
    turns = follow(rules, [1.0] + [WORSE] * 5)
    assert sum(turn.reduced for turn in turns) == 1


RULES = st.builds(
    Rules,
    learning_rate=st.just(1.0),
    min_learning_rate=st.sampled_from([0.01, 0.1, 0.3]),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    reduce_patience=st.one_of(st.none(), st.integers(1, 4)),
    rolls_back=st.booleans(),
    stop_patience=st.one_of(st.none(), st.integers(1, 4)),
    min_improvement=st.sampled_from([0.0, 0.0, 1.0]),
)


@settings(deadline=None, max_examples=100)
@given(rules=RULES, losses=st.lists(st.one_of(st.integers(0, 5).map(float), st.just(math.nan)), max_size=40))
def test_whatever_the_losses(rules, losses):
    turns = follow(rules, losses)
    seen = [loss for loss in losses[: len(turns)] if not math.isnan(loss)]
    rates = [1.0] + [turn.state.learning_rate for turn in turns]
    assert rates == sorted(rates, reverse=True) and rates[-1] >= rules.min_learning_rate
    for before, turn in zip(rates, turns):
        assert turn.reduced == (turn.state.learning_rate < before)
        assert not (turn.improved and (turn.reduced or turn.state.stopped)) or rules.min_improvement
        returns = rules.rolls_back and turn.reduced and not turn.improved
        assert turn.rolls_back == (returns and turn.state.best_epoch > 0)
    if turns:
        last = turns[-1].state
        assert last.best_loss == min(seen, default=math.inf) and last.epoch == len(turns)
        assert (losses[last.best_epoch - 1] == last.best_loss) if seen else last.best_epoch == 0
        if last.stopped:
            assert rules.stop_patience is not None and last.epoch >= rules.stop_patience
            assert rules.min_improvement or last.epoch - last.best_epoch >= rules.stop_patience


@settings(deadline=None, max_examples=50)
@given(rules=RULES, losses=st.lists(st.floats(0, 5), max_size=20))
def test_a_state_survives_json(rules, losses):
    """What a checkpoint stores goes on as the original does, also before the first epoch, with its endless loss."""
    states = [first_state(rules)] + [turn.state for turn in follow(rules, losses)]
    for state in states:
        assert ScheduleState(**json.loads(json.dumps(dataclasses.asdict(state)))) == state


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"min_learning_rate": 1.0}, "train.min_learning_rate: 1.0 is above train.learning_rate, 2e-05"),
        ({"on_plateau": "rollback"}, "rollback needs train.reduce_patience"),
        ({"reduce_patience": 3, "early_stop_patience": 3}, "give train.min_learning_rate"),
        ({"reduce_factor": 1.0}, "reduce_factor: expected a value above 0 and below 1"),
        ({"reduce_patience": 0}, "reduce_patience: expected a value at least 1"),
    ],
)
def test_settings_that_contradict_each_other(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Training(**options)
