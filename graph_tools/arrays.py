"""The type of arrays in annotations: NumPy of Python 3.7 cannot name their elements at run time."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]
else:
    Array = np.ndarray
