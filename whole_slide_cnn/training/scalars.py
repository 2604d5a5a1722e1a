"""Scalars for TensorBoard: one line per update and per epoch, none of them twice after a run was resumed."""

import glob
import math
import os
from typing import Dict, Optional

import tensorflow.compat.v1 as tf

from whole_slide_cnn.files import replacing

_UPDATE, _EPOCH = "update/", "epoch/"
_FILES = "events.out.tfevents.*"


class Scalars:
    """Writes to a folder. What it holds beyond the given progress, of a run that was killed, is removed first.

    Steps of tags ``update/...`` are updates, those of ``epoch/...`` epochs.

    Args:
        folder: where to write; None writes nothing.
        updates, epochs: how far the run is.
    """

    def __init__(self, folder: Optional[str], updates: int, epochs: int):
        self._writer = None
        if folder is None:
            return
        forget_later(folder, updates, epochs)
        with tf.Graph().as_default():  # TensorFlow 2 refuses one where operations run eagerly
            # without the suffix, a run that goes on within a second would empty the file it has just written
            self._writer = tf.summary.FileWriter(folder, filename_suffix=".{}".format(updates))
        if updates:  # a TensorBoard that has already shown what was removed takes it back
            self._writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), updates + 1)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._writer is not None:
            self._writer.close()

    def update(self, number: int, values: Dict[str, float]):
        """Scalars of one update, by name."""
        self._add(_UPDATE, number, values)

    def epoch(self, number: int, values: Dict[str, float]):
        """Scalars of one epoch, by name; what is not a number is left out."""
        self._add(_EPOCH, number, values)

    def flush(self):
        """Put everything into the file."""
        if self._writer is not None:
            self._writer.flush()

    def _add(self, prefix: str, step: int, values: Dict[str, float]):
        if self._writer is not None:
            entries = [
                tf.Summary.Value(tag=prefix + name, simple_value=value)
                for name, value in values.items()
                if not math.isnan(value)
            ]
            self._writer.add_summary(tf.Summary(value=entries), step)


def forget_later(folder: str, updates: int, epochs: int):
    """Remove from a folder's event files what lies beyond a progress, and what a kill cut off in the middle."""
    for path in glob.glob(os.path.join(glob.escape(folder), "." + _FILES)):
        os.remove(path)  # left behind when this function was killed
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), _FILES))):
        kept, whole = [], True
        try:
            for record in tf.python_io.tf_record_iterator(path):
                if _belongs(tf.Event.FromString(record), updates, epochs):
                    kept.append(record)
                else:
                    whole = False
        except tf.errors.DataLossError:
            whole = False
        if not any(tf.Event.FromString(record).HasField("summary") for record in kept):
            os.remove(path)
        elif not whole:
            with replacing(path) as temporary, tf.python_io.TFRecordWriter(temporary) as writer:
                for record in kept:
                    writer.write(record)


def _belongs(event: tf.Event, updates: int, epochs: int) -> bool:
    if not event.HasField("summary"):
        return True
    tags = [value.tag for value in event.summary.value]
    return event.step <= (epochs if tags and tags[0].startswith(_EPOCH) else updates)
