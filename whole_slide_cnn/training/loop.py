"""Epochs of updates, validation, the best checkpoint, and a log."""

import csv
import io
import math
import os
import time
from typing import Dict, List, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.engines.base import Engine, Prediction
from whole_slide_cnn.errors import SlideError, TrainingError
from whole_slide_cnn.files import write_text
from whole_slide_cnn.models.weights import save_weights
from whole_slide_cnn.training.checkpoint import save_checkpoint
from whole_slide_cnn.training.slides import Sampler, SlideSource
from whole_slide_cnn.training.times import UPDATE_COLUMNS, TimeRecord

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

BEST, LAST, WEIGHTS, LOG = "best.npz", "last.npz", "best.h5", "log.csv"


class Means(NamedTuple):
    """Mean loss and accuracy over slides; nan where there were none."""

    loss: float
    accuracy: float


class Trainer:
    """Trains an engine on the slides of a configuration.

    The best checkpoint is the one with the lowest validation loss, or training loss where nothing is validated.

    Args:
        optimiser: the one the engine was built with.
        train: slides to train on.
        val: slides to validate on, or None.
    """

    def __init__(self, config: TrainConfig, engine: Engine, optimiser, train: SlideSource, val: Optional[SlideSource]):
        self._config = config
        self._engine = engine
        self._optimiser = optimiser
        self._train = train
        self._val = val
        self._rows: List[Dict] = []
        self._times = TimeRecord(config.outputs.train_times, UPDATE_COLUMNS)

    def run(self):
        """Train to the end of the last epoch; returns the rows of the log.

        Raises:
            TrainingError: the loss is not a number, all slides are broken, or more of them than the set share.
        """
        settings = self._config.train
        stream = self._train.canvases(Sampler(self._train.records, self._config.seed), tqdm.write)
        best = math.inf
        try:
            for epoch in range(1, settings.epochs + 1):
                started = time.monotonic()
                trained = self._run_epoch(stream, epoch)
                seconds = time.monotonic() - started
                validated = self._validate(epoch)
                self._log(epoch, trained, validated, seconds)
                loss = trained.loss if math.isnan(validated.loss) else validated.loss
                is_best = loss < best
                best = min(best, loss)
                self._save(epoch, best, is_best)
                tqdm.write(_summary(epoch, settings.epochs, trained, validated, is_best))
        finally:
            stream.close()
        self._check_failures()
        return self._rows

    def _run_epoch(self, stream, epoch: int) -> Means:
        settings = self._config.train
        predictions, labels = [], []
        with slide_bar(
            "epoch {}/{}".format(epoch, settings.epochs), settings.updates_per_epoch * settings.batch_size
        ) as bar:
            for update in range(settings.updates_per_epoch):
                started = time.monotonic()
                records, batch = self._update(stream)
                done = (epoch - 1) * settings.updates_per_epoch + update + 1
                self._times.add(done, len(records), time.monotonic() - started)
                predictions += batch
                labels += [record.label for record in records]
                bar.update(len(records))
                bar.set_postfix_str("loss {:.4f}".format(np.mean([prediction.loss for prediction in predictions])))
        return _means(predictions, labels)

    def _update(self, stream):
        """One optimiser step on the next ``batch_size`` readable slides. A slide that breaks in the middle of it is
        replaced by the next one, and its step starts again from the weights before it."""
        pairs = []
        try:
            while True:
                while len(pairs) < self._config.train.batch_size:
                    pairs.append(next(stream))
                records, canvases = zip(*pairs)
                try:
                    predictions = self._engine.train_batch(canvases, [record.label for record in records])
                except SlideError as error:
                    tqdm.write(self._train.fail(error))
                    for record, canvas in pairs:
                        if record.slide_id == error.slide:
                            canvas.close()
                    pairs = [pair for pair in pairs if pair[0].slide_id != error.slide]
                    continue
                _refuse_nan(records, predictions)
                return records, predictions
        finally:
            for _, canvas in pairs:
                canvas.close()

    def _validate(self, epoch: int) -> Means:
        if self._val is None:
            return Means(math.nan, math.nan)
        predictions, labels = [], []
        stream = self._val.canvases(self._val.records, tqdm.write)
        with slide_bar("validation {}".format(epoch), len(self._val) - len(self._val.failed)) as bar:
            for record, canvas in stream:
                try:
                    predictions.append(self._engine.predict(canvas, record.label))
                    labels.append(record.label)
                except SlideError as error:
                    tqdm.write(self._val.fail(error))
                finally:
                    canvas.close()
                bar.update()
        return _means(predictions, labels)

    def _log(self, epoch: int, trained: Means, validated: Means, seconds: float):
        settings = self._config.train
        slides = settings.updates_per_epoch * settings.batch_size
        self._rows.append(
            {
                "epoch": epoch,
                "updates": epoch * settings.updates_per_epoch,
                "learning_rate": self._optimiser.learning_rate,
                "train_loss": trained.loss,
                "train_accuracy": trained.accuracy,
                "val_loss": validated.loss,
                "val_accuracy": validated.accuracy,
                "slides_per_minute": round(60.0 * slides / seconds, 3),
                "seconds": round(seconds, 3),
            }
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, LOG_COLUMNS)
        writer.writeheader()
        for row in self._rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})
        write_text(os.path.join(self._config.result_dir, LOG), text.getvalue())

    def _save(self, epoch: int, best: float, is_best: bool):
        self._times.write()
        state = self._engine.state()
        progress = {"epoch": epoch, "best_loss": best}
        save_checkpoint(os.path.join(self._config.result_dir, LAST), self._engine.network, state, progress)
        if is_best:
            save_checkpoint(os.path.join(self._config.result_dir, BEST), self._engine.network, state, progress)
            for path in (os.path.join(self._config.result_dir, WEIGHTS), self._config.outputs.weights):
                if path is not None:
                    save_weights(path, self._engine.network, state)

    def _check_failures(self):
        """End with an error where more slides were skipped than the configuration allows (design, law 5)."""
        sources = [source for source in (self._train, self._val) if source is not None]
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


def _refuse_nan(records, predictions):
    for record, prediction in zip(records, predictions):
        if not math.isfinite(prediction.loss):
            raise TrainingError(
                "the loss of slide {} is {}; lower train.learning_rate, or check the slide".format(
                    record.slide_id, prediction.loss
                )
            )


def _means(predictions: List[Prediction], labels: List[int]) -> Means:
    if not predictions:
        return Means(math.nan, math.nan)
    right = [int(np.argmax(prediction.probabilities)) == label for prediction, label in zip(predictions, labels)]
    return Means(float(np.mean([prediction.loss for prediction in predictions])), float(np.mean(right)))


def _summary(epoch: int, epochs: int, trained: Means, validated: Means, is_best: bool) -> str:
    text = "epoch {}/{}: train loss {:.4f}, accuracy {:.3f}".format(epoch, epochs, *trained)
    if not math.isnan(validated.loss):
        text += "; validation loss {:.4f}, accuracy {:.3f}".format(*validated)
    return text + (" (best so far)" if is_best else "")


class SlideBar(tqdm):
    """A progress bar in slides per minute."""

    @property
    def format_dict(self):
        values = super().format_dict
        rate = values["rate"] or (values["n"] / values["elapsed"] if values["elapsed"] else 0.0)
        values["slides_per_minute"] = "{:.1f}".format(60.0 * rate)
        return values


def slide_bar(text: str, slides: int) -> SlideBar:
    """A progress bar with slides per minute and the time left; silent where standard error is no terminal."""
    return SlideBar(
        total=slides,
        desc=text,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} slides, {slides_per_minute}/min, "
        "{remaining} left{postfix}",
        leave=False,
        disable=None,
    )
