"""Errors that a user can act on: one sentence with its remedy."""


class UnifiedMemoryError(Exception):
    """Base of all errors of this package."""


class OptionError(UnifiedMemoryError):
    """An option or an environment variable cannot be used."""


class BuildError(UnifiedMemoryError):
    """Something cannot be compiled, or what was compiled does not fit this TensorFlow."""


class DriverError(UnifiedMemoryError):
    """The CUDA driver is missing, or a function of it failed."""
