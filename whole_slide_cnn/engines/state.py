"""Variables of a graph by name: what they hold, and how that is set."""

from typing import Callable, Dict, Iterable, Iterator, List, Mapping

import numpy as np
import tensorflow.compat.v1 as tf

from whole_slide_cnn.errors import WeightsError

_FED_AT_ONCE = 2**24  # bytes


class Variables:
    """Reads and sets variables of the current graph, which must have no session yet.

    Args:
        variables: by name.
    """

    def __init__(self, variables: Mapping[str, tf.Variable]):
        self._variables = dict(variables)
        self.values = {name: variable.read_value() for name, variable in self._variables.items()}
        self._feeds = {name: tf.placeholder(v.dtype.base_dtype, v.shape) for name, v in self._variables.items()}
        self._assigns = {name: tf.assign(v, self._feeds[name]) for name, v in self._variables.items()}

    def read(self, session: tf.Session) -> Dict[str, np.ndarray]:
        """Values by name."""
        return session.run(self.values)

    def assign(self, session: tf.Session, values: Mapping[str, np.ndarray]):
        """Set some variables, by some megabytes at a time."""
        for names in self.portions(values):
            self._set(session, {name: values[name] for name in names})

    def update(
        self,
        session: tf.Session,
        function: Callable[[List[np.ndarray]], List[np.ndarray]],
    ):
        """Set every variable to what a function makes of its value; it is called with the values of some variables at a
        time, in the order in which they were given here."""
        for names in self.portions(self._variables):
            changed = function(session.run([self.values[name] for name in names]))
            self._set(session, dict(zip(names, changed)))

    def check(self, values: Mapping[str, np.ndarray]):
        """Refuse what is not of these variables.

        Raises:
            WeightsError: a name is unknown or a shape differs.
        """
        for name, value in values.items():
            if name not in self._variables:
                raise WeightsError("there is no variable '{}' in this model".format(name))
            shape = tuple(self._feeds[name].shape.as_list())
            if shape != np.shape(value):
                raise WeightsError(
                    "variable '{}' has shape {} in this model, but {} in the file".format(name, shape, np.shape(value))
                )

    def reset(self, session: tf.Session):
        """Scalars to the value that they begin with, all others to zero."""
        # Fed, not by initialisers: TensorFlow folds those into constants as large as the variables, and every graph
        # that it optimises keeps a copy.
        session.run([variable.initializer for variable in self._variables.values() if not variable.shape.ndims])
        zeros = {
            name: np.broadcast_to(variable.dtype.as_numpy_dtype(0), variable.shape.as_list())
            for name, variable in self._variables.items()
            if variable.shape.ndims
        }
        self.assign(session, zeros)

    def portions(self, names: Iterable[str]) -> Iterator[List[str]]:
        """Variables by some megabytes at a time: each call of the session takes milliseconds whatever its size, but fed
        all at once, a ResNet-50 and its Adam state would be in memory three times over."""
        portion: List[str] = []
        for name in names:
            portion.append(name)
            if sum(self._bytes_of(n) for n in portion) >= _FED_AT_ONCE:
                yield portion
                portion = []
        if portion:
            yield portion

    def _set(self, session: tf.Session, values: Mapping[str, np.ndarray]):
        feed = {self._feeds[name]: value for name, value in values.items()}
        session.run([self._assigns[name].op for name in values], feed)

    def _bytes_of(self, name: str) -> int:
        return self._feeds[name].shape.num_elements() * self._feeds[name].dtype.size
