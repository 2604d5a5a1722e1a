"""Pictures to augment, and a stand-in for CuPy."""

import types

import numpy as np
import pytest


@pytest.fixture(scope="session")
def picture():
    """A function (height, width, seed) -> white with a patch of noise that is dark, pale and coloured in places."""

    def make(height, width, seed=0):
        random = np.random.RandomState(seed)
        pixels = np.full((height, width, 3), 255, np.uint8)
        top, left = random.randint(0, height // 2 + 1), random.randint(0, width // 2 + 1)
        part = pixels[top : top + (height + 1) // 2, left : left + (width + 1) // 2]
        part[...] = random.randint(0, 256, part.shape)
        return pixels

    return make


@pytest.fixture(scope="session")
def other_module():
    """NumPy under another name: what is written for CuPy runs on it, on the CPU."""
    module = types.ModuleType("other")
    module.__getattr__ = lambda name: getattr(np, name)
    return module
