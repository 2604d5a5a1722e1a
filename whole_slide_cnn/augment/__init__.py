"""Random changes of training slides, window by window (2022, Methods and Fig. 7b): ``augmented(canvas, ...)``."""

from whole_slide_cnn.augment.canvas import AugmentedCanvas, augmented
from whole_slide_cnn.augment.parameters import TransformParameters, ranges_of, sample_parameters

__all__ = ["AugmentedCanvas", "TransformParameters", "augmented", "sample_parameters", "ranges_of"]
