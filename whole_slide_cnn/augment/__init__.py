"""Random changes of training slides, window by window (2022, Methods and Fig. 7b): ``augmented(canvas, ...)``."""

from whole_slide_cnn.augment.canvas import AugmentedCanvas, augmented
from whole_slide_cnn.augment.draws import Draw, draw, ranges_of

__all__ = ["AugmentedCanvas", "Draw", "augmented", "draw", "ranges_of"]
