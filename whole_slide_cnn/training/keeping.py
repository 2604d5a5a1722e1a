"""What a run leaves in its result folder while it goes on: checkpoints, the best weights, the log, curves and times.

``last.npz`` decides alone how far a run is; everything else follows it, in an order in which nothing is lost wherever
the process is cut off (:mod:`whole_slide_cnn.training.run_folder`). Of several processes only the first one writes.
"""

import os
import shutil
import time
from typing import Any, Dict, Mapping

import numpy as np

from whole_slide_cnn.config import TrainConfig
from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.files import replacing, write_text
from whole_slide_cnn.running.checkpoint import load_checkpoint, save_checkpoint
from whole_slide_cnn.running.names import BEST, LAST, LOG, SCALARS
from whole_slide_cnn.running.slides import SlideSource
from whole_slide_cnn.running.times import UPDATE_COLUMNS, TimeRecord
from whole_slide_cnn.training import run_folder
from whole_slide_cnn.training.learner import Learner, State
from whole_slide_cnn.training.log import log_columns, log_text
from whole_slide_cnn.training.progress import Progress, Tally
from whole_slide_cnn.training.scalars import Scalars


class Keeper:
    """Keeps a run; entered while it goes on.

    Args:
        sources: the data lists by name, whose broken slides a checkpoint remembers.
        progress: how far the run is.
        origin: what decides the run's numbers (:func:`~whole_slide_cnn.training.run_folder.origin`).
        leads: whether this process writes.
    """

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        sources: Mapping[str, SlideSource],
        progress: Progress,
        origin: Dict[str, Any],
        leads: bool = True,
    ):
        self._config = config
        self._learner = learner
        self._sources = dict(sources)
        self._origin = origin
        self._leads = leads
        self._saved, self._saved_at = progress, time.monotonic()
        self._times = TimeRecord(config.outputs.train_times if leads else None, UPDATE_COLUMNS, progress.updates)
        self._scalars = Scalars(None, 0, 0)  # none before the run is entered

    def __enter__(self) -> "Keeper":
        folder = self.path(SCALARS) if self._config.train.tensorboard and self._leads else None
        self._scalars = Scalars(folder, self._saved.updates, self._saved.epoch)
        return self

    def __exit__(self, *exception):
        self._scalars.__exit__(*exception)

    def path(self, name: str) -> str:
        """A file of the result folder."""
        return os.path.join(self._config.result_dir, name)

    # Checkpoints.

    def save_if_due(self, progress: Progress):
        """Save where the configuration asks for it, by the clock or by the number of updates."""
        settings = self._config.train
        every = settings.checkpoint_every_updates
        due = (time.monotonic() - self._saved_at) / 60.0 >= settings.checkpoint_every_minutes
        if due or (every is not None and progress.updates - self._saved.updates >= every):
            self.save(progress)

    def save(self, progress: Progress):
        """Replace the checkpoint; what it must not be ahead of is written first.

        Raises:
            TrainingError: a weight is not a number.
        """
        if not self._leads:
            return
        state = self._learner.state()
        broken = [name for name, value in state.items() if not np.isfinite(value).all()]
        if broken:
            raise TrainingError(
                "after {} updates {} holds numbers that are not finite; {}lower train.learning_rate".format(
                    progress.updates, broken[0], self.kept()
                )
            )
        self._scalars.flush()
        self._times.write()
        failed = {name: source.failed for name, source in self._sources.items()}
        values = run_folder.describe(progress, failed, self._origin)
        save_checkpoint(self.path(LAST), self._learner.model, state, values)
        self._saved, self._saved_at = progress, time.monotonic()

    def kept(self) -> str:
        """The part of a sentence that says which checkpoint is left."""
        if not os.path.exists(self.path(LAST)):
            return ""
        if not self._leads:  # only process 0 knows of when it is
            return "the last checkpoint is kept; "
        return "the checkpoint after {} updates is kept; ".format(self._saved.updates)

    def publish_best(self):
        """Make the checkpoint, which holds the learner's state, the best one."""
        if not self._leads:
            return
        state = self._learner.state()
        with replacing(self.path(BEST)) as temporary:
            shutil.copyfile(self.path(LAST), temporary)
        self._learner.export(self._config.result_dir, state)

    def best_state(self, progress: Progress) -> State:
        """The state at the end of the best epoch.

        Raises:
            WeightsError: it is not there.
            TrainingError: it is that of another run.
        """
        state, values = load_checkpoint(self.path(BEST), self._learner.model)
        if values["epoch"] != progress.schedule.best_epoch:
            raise TrainingError(
                "{} is of epoch {}, but the best epoch of the run of {} is {}; put the right one back".format(
                    self.path(BEST), values["epoch"], LAST, progress.schedule.best_epoch
                )
            )
        return state

    def catch_up(self, progress: Progress):
        """Bring the files that follow the checkpoint up to it: a run may have been killed before it wrote them."""
        schedule = progress.schedule
        if not progress.updates or not self._leads:
            return
        if schedule.best_epoch == schedule.epoch and not progress.trained.slides:
            if schedule.epoch:  # the checkpoint itself is the best one
                self.publish_best()
        elif schedule.best_epoch:
            self.best_state(progress)
        self.write_log(progress)

    # What follows them.

    def write_log(self, progress: Progress):
        """Replace the log by the rows of all epochs that have ended."""
        if progress.rows and self._leads:
            write_text(self.path(LOG), log_text(progress.rows, self._learner.metrics))

    def record_update(self, progress: Progress, batch: Tally, seconds: float):
        """Note the time and the curves of an update of all processes; ``progress`` is that after it."""
        self._times.add(progress.updates, batch.slides, seconds)
        values = dict(zip(self._learner.metrics, self._learner.means(batch)))
        values.update(learning_rate=self._learner.learning_rate, slides_per_minute=60.0 * batch.slides / seconds)
        self._scalars.update(progress.updates, values)

    def record_epoch(self, row: Dict[str, Any]):
        """Note the curves of an epoch."""
        columns = log_columns(self._learner.metrics)
        self._scalars.epoch(row["epoch"], {key: row[key] for key in columns if key not in ("epoch", "updates")})
