"""The learner behind which an engine computes: a network on whole slides with slide labels (2021 and 2022 papers)."""

import os
from typing import List, Optional, Sequence

import numpy as np

from whole_slide_cnn.engines.interface import Engine, Prediction
from whole_slide_cnn.models.weights import save_weights
from whole_slide_cnn.running.communicator import Communicator
from whole_slide_cnn.running.names import WEIGHTS
from whole_slide_cnn.running.optimisers import Adam
from whole_slide_cnn.running.slides import SlideSample
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.training.learner import Learner, Measures, State
from whole_slide_cnn.training.progress import Tally


class EngineLearner(Learner):
    """Reports the mean loss, and the share of slides whose label is the class with the highest probability.

    Args:
        engine: with the weights and the optimiser state to go on from; closed with the learner.
        optimiser: the one the engine was built with.
        weights: a further file for the best weights, besides the one in the result folder.
    """

    metrics = ("loss", "accuracy")
    nothing = Tally(0, (0.0, 0))

    def __init__(self, engine: Engine, optimiser: Adam, weights: Optional[str] = None):
        self.engine = engine
        self.model = engine.network
        self._optimiser = optimiser
        self._weights = weights

    @property
    def learning_rate(self) -> float:
        """The optimiser's, which reads it at every step."""
        return self._optimiser.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float):
        self._optimiser.learning_rate = value

    def update(self, samples: Sequence[SlideSample]) -> List[Measures]:
        """See :meth:`Learner.update`; the step follows the mean gradient over the slides."""
        canvases, labels = [sample.canvas for sample in samples], [sample.record.label for sample in samples]
        predictions = self.engine.train_batch(canvases, labels)
        return [_measures(prediction, sample.record) for prediction, sample in zip(predictions, samples)]

    def predict(self, sample: SlideSample) -> Measures:
        """See :meth:`Learner.predict`."""
        return _measures(self.engine.predict(sample.canvas, sample.record.label), sample.record)

    def state(self) -> State:
        """See :meth:`Learner.state`: weights and the optimiser's moments."""
        return self.engine.state()

    def load_state(self, values: State):
        """See :meth:`Learner.load_state`."""
        self.engine.load_state(values)

    def reduce_over(self, group: Communicator):
        """See :meth:`Learner.reduce_over`: gradients are averaged, or summed where each process adds a part of every
        slide's."""
        self.engine.reduce_gradients = group.allreduce_mean if self.engine.group is None else group.allreduce_sum

    def export(self, folder: str, state: State):
        """See :meth:`Learner.export`: weights as HDF5 in the order of Keras."""
        for path in (os.path.join(folder, WEIGHTS), self._weights):
            if path is not None:
                save_weights(path, self.model, state)

    def close(self):
        """Close the engine."""
        self.engine.close()


def _measures(prediction: Prediction, record: Record) -> Measures:
    """Loss, and 1 where the label is the most probable class."""
    return float(prediction.loss), int(int(np.argmax(prediction.probabilities)) == record.label)
