"""Epochs of updates and validation, with a schedule, until a run ends or is asked to stop."""

import contextlib
import itertools
import signal
import time
from typing import Any, Dict, Generator, List, Optional

from tqdm import tqdm

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.errors import Interrupted, TrainingError
from whole_slide_cnn.running.bars import slide_bar
from whole_slide_cnn.running.communicator import Communicator, SingleCommunicator
from whole_slide_cnn.running.names import LAST
from whole_slide_cnn.running.sharing import Sharing
from whole_slide_cnn.running.slides import InTurn, Prepare, Sampler, SlideSample, SlideSource
from whole_slide_cnn.training import run_folder, schedule
from whole_slide_cnn.training.agreement import Agreement, Share, joined
from whole_slide_cnn.training.keeping import Keeper
from whole_slide_cnn.training.learner import Learner
from whole_slide_cnn.training.log import log_row, summary
from whole_slide_cnn.training.progress import Progress, Tally
from whole_slide_cnn.training.signals import StopSignals
from whole_slide_cnn.training.steps import Steps


class Trainer:
    """Trains a learner on the slides of a configuration.

    The best checkpoint is the one with the lowest validation loss, or training loss where nothing is validated. A run
    that was stopped or killed goes on from its last checkpoint to the same weights, bit for bit (architecture, law 5).

    Where several processes train together (2021 paper, Methods), each does the same with its share of the slides: it
    takes ``batch_size`` slides for every update, which follows the mean of all processes' updates. They tell each other
    after every update, and every slide that each validates, what was found broken and whether to stop, so that they
    leave out the same slides and stop after the same update. Process 0 alone writes files. With
    ``train.share: windows`` all take the same slides, which count once.

    Args:
        learner: with the state to go on from.
        train: slides to train on.
        val: slides to validate on, or None.
        resumed: how far the run is; None for one that begins.
        group: the processes that train together; all of their learners must hold the same state.
        prepare: applied to the canvas of every slide that is trained on, with its position in the stream.
    """

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        train: SlideSource,
        val: Optional[SlideSource],
        resumed: Optional[run_folder.Resumption] = None,
        group: Optional[Communicator] = None,
        prepare: Optional[Prepare] = None,
    ):
        self._config = config
        self._learner = learner
        self._train = train
        self._val = val
        self._prepare = prepare
        self._group = SingleCommunicator() if group is None else group
        self._sources = {name: source for name, source in (("train", train), ("val", val)) if source is not None}
        self._sharing = Sharing(self._group, config.train.share == "windows")
        self._together = Agreement(self._group, self._sources, self._sharing)
        if self._group.size > 1:
            learner.reduce_over(self._group)
        self._rules = schedule.make_rules(config.train, self._sharing.size)
        self._signals = StopSignals(self._together.say)
        leads, origin = self._together.leads, {}
        if resumed is None:
            positions, nothing = (0,) * self._sharing.size, learner.nothing
            self._progress = Progress(schedule.first_state(self._rules), 0, positions, nothing, validated=nothing)
            origin = run_folder.origin(config, self._group.size) if leads else {}
        else:
            self._progress, origin = resumed.progress, resumed.origin
            for name, source in self._sources.items():
                source.failed.update(resumed.failed.get(name, {}))
        self._keeper = Keeper(config, learner, self._sources, self._progress, origin, leads)
        self._steps = Steps(learner, self._keeper.kept, self._sharing)

    def run(self) -> List[Dict[str, Any]]:
        """Train to the end of the last epoch; returns the rows of the log.

        The first SIGINT or SIGTERM is followed by a checkpoint and :class:`~whole_slide_cnn.errors.Interrupted`.

        Raises:
            Interrupted: a signal asked to stop.
            TrainingError: a loss or a weight is no number, all slides are broken, or more of them than the set share.
        """
        settings, progress = self._config.train, self._progress
        self._keeper.catch_up(progress)
        numbered = Sampler(self._train.records, self._config.seed).since(progress.positions[self._sharing.rank])
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._keeper)
            samples = self._train.stream(self._sharing.shard(numbered), self._sharing.report, self._prepare)
            stack.enter_context(contextlib.closing(samples))
            stack.enter_context(self._signals)
            while self._progress.epoch < settings.epochs and not self._progress.schedule.stopped:
                self._agree()
                self._stop_if_asked()
                self._learner.learning_rate = self._progress.schedule.learning_rate
                self._run_epoch(samples)
                self._validate()
                self._end_epoch()
        if self._together.leads:
            self._check_failures()
        return list(self._progress.rows)

    # An epoch.

    def _run_epoch(self, samples: Generator[SlideSample, None, None]):
        """The updates of an epoch that have not been made yet."""
        settings, progress = self._config.train, self._progress
        done = progress.updates - progress.epoch * settings.updates_per_epoch
        title = "epoch {}/{}".format(progress.epoch + 1, settings.epochs)
        slides = settings.batch_size * self._sharing.size
        with slide_bar(title, settings.updates_per_epoch * slides, done * slides, self._together.leads) as bar:
            for _ in range(done, settings.updates_per_epoch):
                started = time.monotonic()
                shares = self._agree(*self._steps.update(self._train, samples, settings.batch_size))
                batch = joined(shares, self._learner.nothing)
                trained = self._progress.trained.join(batch)
                seconds = time.monotonic() - started
                positions = tuple(share.position for share in shares)
                self._progress = self._progress.after_update(positions, trained, seconds)
                self._keeper.record_update(self._progress, batch, seconds)
                bar.update(batch.slides)
                bar.set_postfix_str("loss {:.4f}".format(self._learner.means(trained)[0]))
                self._pause()

    def _validate(self):
        """The slides of the validation list that have not been validated yet."""
        if self._val is None:
            return
        progress, size, count = self._progress, self._sharing.size, len(self._val)
        title = "validation {}".format(progress.epoch + 1)
        left = itertools.islice(enumerate(self._val.records), progress.val_position, None)
        nothing = self._learner.nothing
        with contextlib.ExitStack() as stack:
            samples = InTurn(self._val.stream(self._sharing.shard(left), self._sharing.report))
            stack.enter_context(contextlib.closing(samples))
            readable = count - len(self._val.failed)
            bar = stack.enter_context(slide_bar(title, readable, progress.validated.slides, self._together.leads))
            # In rounds of one slide for each share, so that the sums, and with them their last bits, do not depend
            # on when a broken slide was found to be so.
            for end in range(progress.val_position + size, count + size, size):
                mine = self._steps.validate(self._val, samples.before(end))
                found = joined(self._agree(tally=mine), nothing)
                self._progress = self._progress.after_validated(min(end, count), self._progress.validated.join(found))
                bar.update(found.slides)
                self._pause()

    def _end_epoch(self):
        """Log, schedule and checkpoint, in an order in which nothing is lost wherever it is cut off."""
        progress, metrics = self._progress, self._learner.metrics
        trained, validated = (self._learner.means(tally) for tally in (progress.trained, progress.validated))
        turn = schedule.advance(self._rules, progress.schedule, (trained if self._val is None else validated)[0])
        row = log_row(progress, metrics, trained, validated)
        self._progress = progress.after_epoch(turn.state, row)
        if turn.rolls_back:
            best = self._keeper.best_state(self._progress) if self._together.leads else None
            self._learner.load_state(self._group.broadcast(best))
        self._keeper.record_epoch(row)
        self._keeper.save(self._progress)
        if turn.improved:
            self._keeper.publish_best()
        self._keeper.write_log(self._progress)
        self._together.say(summary(row, self._config.train.epochs, metrics, turn))

    # Agreeing and stopping.

    def _agree(self, position: int = 0, tally: Optional[Tally] = None) -> List[Share]:
        """Exchange shares with the other processes; those of no slides where there is nothing to tell."""
        return self._together.exchange(
            self._signals.received, position, self._learner.nothing if tally is None else tally
        )

    def _pause(self):
        """Between two updates or two validated slides: stop where that was asked for, save where that is due."""
        self._stop_if_asked()
        self._keeper.save_if_due(self._progress)

    def _stop_if_asked(self):
        stop = self._together.stop
        if stop is None:
            return
        self._keeper.save(self._progress)
        sentence = "stopped by {} after {} updates, saved in {}; go on with --resume".format(
            signal.Signals(stop).name, self._progress.updates, self._keeper.path(LAST)
        )
        raise Interrupted(stop, sentence if self._together.leads else "")

    def _check_failures(self):
        """End with an error where more slides were skipped than the configuration allows (architecture, law 5)."""
        sources, share = self._sources.values(), self._config.data.max_failed_share
        failed = {name: reason for source in sources for name, reason in source.failed.items()}
        total = sum(len(source) for source in sources)
        if len(failed) > share * total:
            raise TrainingError(
                "{} of {} slides could not be read ({}), more than the share of {} that data.max_failed_share allows; "
                "the checkpoints were written without them".format(len(failed), total, ", ".join(sorted(failed)), share)
            )
        if failed:
            tqdm.write("finished without {} unreadable slides: {}".format(len(failed), ", ".join(sorted(failed))))
