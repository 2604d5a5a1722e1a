"""Epochs of updates, validation, checkpoints, the schedule, and a log."""

import contextlib
import csv
import io
import itertools
import math
import os
import shutil
import signal
import time
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines.interface import Engine, Prediction
from whole_slide_cnn.errors import Interrupted, SlideError, TrainingError
from whole_slide_cnn.files import replacing, write_text
from whole_slide_cnn.models.weights import save_weights
from whole_slide_cnn.running.bars import slide_bar
from whole_slide_cnn.running.checkpoint import load_checkpoint, save_checkpoint
from whole_slide_cnn.running.communicator import Communicator, SingleCommunicator
from whole_slide_cnn.running.names import BEST, LAST, LOG, SCALARS, WEIGHTS
from whole_slide_cnn.running.slides import InTurn, Prepare, Sampler, SlideSample, SlideSource, shard
from whole_slide_cnn.running.times import UPDATE_COLUMNS, TimeRecord
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.training import run_folder, schedule
from whole_slide_cnn.training.progress import Means, Progress, Tally
from whole_slide_cnn.training.scalars import Scalars
from whole_slide_cnn.training.signals import StopSignals

LOG_COLUMNS = (
    "epoch",
    "updates",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "slides_per_minute",
    "seconds",
)


class _Share(NamedTuple):
    """What one process tells the others after its share of an update, or of some slides to validate."""

    position: int
    tally: Tally
    failed: Dict[str, Dict[str, str]]
    signal: Optional[int]


class Trainer:
    """Trains an engine on the slides of a configuration.

    The best checkpoint is the one with the lowest validation loss, or training loss where nothing is validated. A run
    that was stopped or killed goes on from its last checkpoint to the same weights, bit for bit (architecture, law 5).

    Where several processes train together (2021 paper, Methods), each does the same with its share of the slides: it
    takes ``batch_size`` slides for every update, which follows the mean gradient of all processes' slides. They tell
    each other after every update, and every slide that each validates, what was found broken and whether to stop, so
    that they leave out the same slides and stop after the same update. Process 0 alone writes files.

    Args:
        engine: with the weights and the optimiser state to go on from.
        optimiser: the one the engine was built with; its learning rate follows the schedule.
        train: slides to train on.
        val: slides to validate on, or None.
        resumed: how far the run is; None for one that begins.
        group: the processes that train together; all of their engines must hold the same state.
        prepare: applied to the canvas of every slide that is trained on, with the position in the stream.
    """

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        optimiser,
        train: SlideSource,
        val: Optional[SlideSource],
        resumed: Optional[run_folder.Resumption] = None,
        group: Optional[Communicator] = None,
        prepare: Optional[Prepare] = None,
    ):
        self._config = config
        self._engine = engine
        self._optimiser = optimiser
        self._train = train
        self._val = val
        self._prepare = prepare
        self._group = SingleCommunicator() if group is None else group
        self._leads = self._group.rank == 0
        if self._group.size > 1:
            engine.reduce_gradients = self._group.allreduce_mean
        self._rules = schedule.make_rules(config.train, self._group.size)
        if resumed is None:
            self._progress = Progress(schedule.first_state(self._rules), positions=(0,) * self._group.size)
            self._origin = run_folder.origin(config, self._group.size) if self._leads else {}
        else:
            self._progress, self._origin = resumed.progress, resumed.origin
            for name, source in self._sources():
                source.failed.update(resumed.failed.get(name, {}))
        self._saved, self._saved_at = self._progress, time.monotonic()
        self._stop: Optional[int] = None
        times = config.outputs.train_times if self._leads else None
        self._times = TimeRecord(times, UPDATE_COLUMNS, self._progress.updates)

    def run(self) -> List[Dict]:
        """Train to the end of the last epoch; returns the rows of the log.

        The first SIGINT or SIGTERM is followed by a checkpoint and :class:`~whole_slide_cnn.errors.Interrupted`.

        Raises:
            Interrupted: a signal asked to stop.
            TrainingError: a loss or a weight is no number, all slides are broken, or more of them than the set share.
        """
        settings, progress = self._config.train, self._progress
        self._catch_up()
        numbered = Sampler(self._train.records, self._config.seed).since(progress.positions[self._group.rank])
        with contextlib.ExitStack() as stack:
            folder = os.path.join(self._config.result_dir, SCALARS) if settings.tensorboard and self._leads else None
            self._scalars = stack.enter_context(Scalars(folder, progress.updates, progress.epoch))
            samples = self._train.stream(self._shard(numbered), tqdm.write, self._prepare)
            stack.enter_context(contextlib.closing(samples))
            self._signals = stack.enter_context(StopSignals(self._say))
            while self._progress.epoch < settings.epochs and not self._progress.schedule.stopped:
                self._agree()
                self._stop_if_asked()
                self._optimiser.learning_rate = self._progress.schedule.learning_rate
                self._run_epoch(samples)
                self._validate()
                self._end_epoch()
        if self._leads:
            self._check_failures()
        return list(self._progress.rows)

    # Several processes.

    def _shard(self, numbered):
        return shard(numbered, self._group.rank, self._group.size)

    def _say(self, text: str):
        """What all processes know is said by one."""
        if self._leads:
            tqdm.write(text)

    def _agree(self, position: int = 0, tally: Optional[Tally] = None) -> List[_Share]:
        """Exchange shares: what any process found broken is so for all, and all stop when one was asked to."""
        failed = {name: dict(source.failed) for name, source in self._sources()}
        shares = self._group.allgather(_Share(position, tally or Tally(), failed, self._signals.received))
        for share in shares:
            for name, source in self._sources():
                source.failed.update(share.failed[name])
        self._stop = next((share.signal for share in shares if share.signal is not None), None)
        return shares

    def _sources(self) -> List[Tuple[str, SlideSource]]:
        return [(name, source) for name, source in (("train", self._train), ("val", self._val)) if source is not None]

    # An epoch.

    def _run_epoch(self, samples):
        """The updates of an epoch that have not been made yet."""
        settings, progress = self._config.train, self._progress
        done = progress.updates - progress.epoch * settings.updates_per_epoch
        title = "epoch {}/{}".format(progress.epoch + 1, settings.epochs)
        slides = settings.batch_size * self._group.size
        with slide_bar(title, settings.updates_per_epoch * slides, done * slides, self._leads) as bar:
            for _ in range(done, settings.updates_per_epoch):
                started = time.monotonic()
                shares = self._agree(*self._update(samples))
                batch = _joined(shares)
                trained = self._progress.trained.join(batch)
                seconds = time.monotonic() - started
                positions = tuple(share.position for share in shares)
                self._progress = self._progress.after_update(positions, trained, seconds)
                self._times.add(self._progress.updates, batch.slides, seconds)
                self._log_update(batch, seconds)
                bar.update(batch.slides)
                bar.set_postfix_str("loss {:.4f}".format(trained.means().loss))
                self._pause()

    def _update(self, samples) -> Tuple[int, Tally]:
        """One optimiser step on the next ``batch_size`` readable slides: the position after them, and their tally. A
        slide that breaks in the middle of it is replaced by the next one, and its step starts again from the weights
        before it."""
        batch: List[SlideSample] = []
        try:
            while True:
                while len(batch) < self._config.train.batch_size:
                    batch.append(next(samples))
                canvases = [sample.canvas for sample in batch]
                try:
                    predictions = self._engine.train_batch(canvases, [sample.record.label for sample in batch])
                except SlideError as error:
                    tqdm.write(self._train.fail(error))
                    for sample in batch:
                        if sample.record.slide_id == error.slide:
                            sample.canvas.close()
                    batch = [sample for sample in batch if sample.record.slide_id != error.slide]
                    continue
                tally = Tally()
                for sample, prediction in zip(batch, predictions):
                    self._refuse_nan(sample.record, prediction)
                    tally = tally.add(prediction, sample.record.label)
                return batch[-1].position + 1, tally
        finally:
            for sample in batch:
                sample.canvas.close()

    def _validate(self):
        """The slides of the validation list that have not been validated yet."""
        if self._val is None:
            return
        progress, size, count = self._progress, self._group.size, len(self._val)
        title = "validation {}".format(progress.epoch + 1)
        left = itertools.islice(enumerate(self._val.records), progress.val_position, None)
        with contextlib.ExitStack() as stack:
            samples = InTurn(self._val.stream(self._shard(left), tqdm.write))
            stack.enter_context(contextlib.closing(samples))
            bar = slide_bar(title, count - len(self._val.failed), progress.validated.slides, self._leads)
            stack.enter_context(bar)
            # In rounds of one slide for each process, so that the sums, and with them their last bits, do not depend
            # on when a broken slide was found to be so.
            for end in range(progress.val_position + size, count + size, size):
                sample = samples.before(end)
                found = _joined(self._agree(tally=None if sample is None else self._validate_slide(sample)))
                self._progress = self._progress.after_validated(min(end, count), self._progress.validated.join(found))
                bar.update(found.slides)
                self._pause()

    def _validate_slide(self, sample: SlideSample) -> Tally:
        try:
            prediction = self._engine.predict(sample.canvas, sample.record.label)
            self._refuse_nan(sample.record, prediction)
            return Tally().add(prediction, sample.record.label)
        except SlideError as error:
            assert self._val is not None
            tqdm.write(self._val.fail(error))
            return Tally()
        finally:
            sample.canvas.close()

    def _end_epoch(self):
        """Log, schedule and checkpoint, in an order in which nothing is lost wherever it is cut off."""
        progress = self._progress
        trained, validated = progress.trained.means(), progress.validated.means()
        turn = schedule.advance(self._rules, progress.schedule, (trained if self._val is None else validated).loss)
        row = self._row(trained, validated)
        self._progress = progress.after_epoch(turn.state, row)
        if turn.rolls_back:
            self._engine.load_state(self._group.broadcast(self._best_state() if self._leads else None))
        self._scalars.epoch(row["epoch"], {key: row[key] for key in LOG_COLUMNS if key not in ("epoch", "updates")})
        self._save()
        if turn.improved:
            self._publish_best()
        self._write_log()
        self._say(_summary(row["epoch"], self._config.train.epochs, trained, validated, turn))

    def _row(self, trained: Means, validated: Means) -> Dict:
        progress = self._progress
        return {
            "epoch": progress.epoch + 1,
            "updates": progress.updates,
            "learning_rate": progress.schedule.learning_rate,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "val_loss": validated.loss,
            "val_accuracy": validated.accuracy,
            "slides_per_minute": round(60.0 * progress.trained.slides / progress.seconds, 3),
            "seconds": round(progress.seconds, 3),
        }

    def _log_update(self, batch: Tally, seconds: float):
        means = batch.means()
        values = {
            "loss": means.loss,
            "accuracy": means.accuracy,
            "learning_rate": self._optimiser.learning_rate,
            "slides_per_minute": 60.0 * batch.slides / seconds,
        }
        self._scalars.update(self._progress.updates, values)

    def _refuse_nan(self, record: Record, prediction: Prediction):
        if not math.isfinite(prediction.loss):
            raise TrainingError(
                "the loss of slide {} is {}; {}lower train.learning_rate, or check the slide".format(
                    record.slide_id, prediction.loss, self._kept()
                )
            )

    # Stopping and going on.

    def _pause(self):
        """Between two updates or two validated slides: stop where that was asked for, save where that is due."""
        self._stop_if_asked()
        settings = self._config.train
        every = settings.checkpoint_every_updates
        due = (time.monotonic() - self._saved_at) / 60.0 >= settings.checkpoint_every_minutes
        if due or (every is not None and self._progress.updates - self._saved.updates >= every):
            self._save()

    def _stop_if_asked(self):
        if self._stop is None:
            return
        self._save()
        raise Interrupted(
            self._stop,
            "stopped by {} after {} updates, saved in {}; go on with --resume".format(
                signal.Signals(self._stop).name, self._progress.updates, self._path(LAST)
            )
            if self._leads
            else "",
        )

    def _save(self):
        """Replace the checkpoint; what it must not be ahead of is written first.

        Raises:
            TrainingError: a weight is not a number.
        """
        if not self._leads:
            return
        state = self._engine.state()
        broken = [name for name, value in state.items() if not np.isfinite(value).all()]
        if broken:
            raise TrainingError(
                "after {} updates {} holds numbers that are not finite; {}lower train.learning_rate".format(
                    self._progress.updates, broken[0], self._kept()
                )
            )
        self._scalars.flush()
        self._times.write()
        failed = {name: source.failed for name, source in self._sources()}
        values = run_folder.describe(self._progress, failed, self._origin)
        save_checkpoint(self._path(LAST), self._engine.network, state, values)
        self._saved, self._saved_at = self._progress, time.monotonic()

    def _kept(self) -> str:
        """The part of a sentence that says which checkpoint is left."""
        if not os.path.exists(self._path(LAST)):
            return ""
        if not self._leads:  # only process 0 knows of when it is
            return "the last checkpoint is kept; "
        return "the checkpoint after {} updates is kept; ".format(self._saved.updates)

    def _catch_up(self):
        """Bring the files that follow the checkpoint up to it: a run may have been killed before it wrote them."""
        state = self._progress.schedule
        if not self._progress.updates or not self._leads:
            return
        if state.best_epoch == state.epoch and not self._progress.trained.slides:
            if state.epoch:  # the checkpoint itself is the best one
                self._publish_best()
        elif state.best_epoch:
            self._best_state()
        self._write_log()

    def _publish_best(self):
        """Make the checkpoint, which holds the engine's state, the best one."""
        if not self._leads:
            return
        state = self._engine.state()
        with replacing(self._path(BEST)) as temporary:
            shutil.copyfile(self._path(LAST), temporary)
        for path in (self._path(WEIGHTS), self._config.outputs.weights):
            if path is not None:
                save_weights(path, self._engine.network, state)

    def _best_state(self) -> Dict[str, np.ndarray]:
        """Weights and optimiser state at the end of the best epoch.

        Raises:
            WeightsError: they are not there.
            TrainingError: they are those of another run.
        """
        state, values = load_checkpoint(self._path(BEST), self._engine.network)
        if values["epoch"] != self._progress.schedule.best_epoch:
            raise TrainingError(
                "{} is of epoch {}, but the best epoch of the run of {} is {}; put the right one back".format(
                    self._path(BEST), values["epoch"], LAST, self._progress.schedule.best_epoch
                )
            )
        return state

    def _write_log(self):
        if not self._progress.rows or not self._leads:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, LOG_COLUMNS)
        writer.writeheader()
        for row in self._progress.rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})
        write_text(self._path(LOG), text.getvalue())

    def _path(self, name: str) -> str:
        return os.path.join(self._config.result_dir, name)

    def _check_failures(self):
        """End with an error where more slides were skipped than the configuration allows (architecture, law 5)."""
        sources = [source for _, source in self._sources()]
        failed = {name: reason for source in sources for name, reason in source.failed.items()}
        total = sum(len(source) for source in sources)
        if len(failed) > self._config.data.max_failed_share * total:
            raise TrainingError(
                "{} of {} slides could not be read ({}), more than the share of {} that data.max_failed_share allows; "
                "the checkpoints were written without them".format(
                    len(failed), total, ", ".join(sorted(failed)), self._config.data.max_failed_share
                )
            )
        if failed:
            tqdm.write("finished without {} unreadable slides: {}".format(len(failed), ", ".join(sorted(failed))))


def _summary(epoch: int, epochs: int, trained: Means, validated: Means, turn: schedule.Turn) -> str:
    text = "epoch {}/{}: train loss {:.4f}, accuracy {:.3f}".format(epoch, epochs, *trained)
    if not math.isnan(validated.loss):
        text += "; validation loss {:.4f}, accuracy {:.3f}".format(*validated)
    if turn.improved:
        text += " (best so far)"
    if turn.reduced:
        text += "; learning rate {:g} from here on".format(turn.state.learning_rate)
    if turn.rolls_back:
        text += ", from the weights of epoch {}".format(turn.state.best_epoch)
    if turn.state.stopped:
        text += "; no better since epoch {}: stopping early".format(turn.state.best_epoch)
    return text


def _joined(shares: Sequence[_Share]) -> Tally:
    total = Tally()
    for share in shares:
        total = total.join(share.tally)
    return total
