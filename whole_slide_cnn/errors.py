"""Errors a user can act on. Every command prints them as one sentence and exits non-zero."""


class WholeSlideError(Exception):
    """Base of all errors caused by the input or the machine rather than by a defect of this package."""


class ConfigError(WholeSlideError):
    """A configuration key or value cannot be used."""


class ManifestError(WholeSlideError):
    """A data list is malformed, names unknown classes, or lets a case into two splits."""


class SlideError(WholeSlideError):
    """One slide cannot be read; ``slide`` is its name in the manifest."""

    def __init__(self, slide, reason):
        super().__init__("slide {}: {}".format(slide, reason))
        self.slide = slide
        self.reason = reason


class WeightsError(WholeSlideError):
    """A weight file or checkpoint does not belong to the model."""


class TensorTooLargeError(WholeSlideError):
    """An operation would touch a tensor of 2^31 elements or more."""


class MemoryBudgetError(WholeSlideError):
    """A run cannot fit into the memory it was given."""


class TrainingError(WholeSlideError):
    """Training cannot go on."""


class Interrupted(Exception):
    """A signal ended a command in good order: nothing is lost, and nothing was wrong. ``signal`` is its number; the
    sentence is empty where another process says it."""

    def __init__(self, signal, sentence):
        super().__init__(sentence)
        self.signal = signal
