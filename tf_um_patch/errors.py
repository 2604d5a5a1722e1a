"""Errors that a user can act on: one sentence with its remedy."""

from typing import Optional


class UnifiedMemoryError(Exception):
    """Base of all errors of this package."""


class OptionError(UnifiedMemoryError):
    """An option or an environment variable cannot be used."""


class BuildError(UnifiedMemoryError):
    """Something cannot be compiled, or what was compiled does not fit this TensorFlow."""


class DriverError(UnifiedMemoryError):
    """The CUDA driver is missing, or a function of it failed.

    Attributes:
        result: the CUresult that the function returned, or None where there was none to call.
    """

    def __init__(self, message: str, result: Optional[int] = None):
        super().__init__(message)
        self.result = result
