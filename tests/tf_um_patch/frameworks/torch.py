"""A stand-in for the few functions of PyTorch that the checks on a GPU call."""

import types

from device_numbers import LIMIT, Numbers, start

__version__ = "stand-in"
float32 = "float32"
limits = []
TOTAL = 8 << 30


def zeros(count, dtype, device):
    """A tensor on the stand-in driver's device."""
    assert dtype == float32 and device == "cuda" and 0 < limits[-1] * TOTAL < LIMIT
    return _Tensor(count)


class _Tensor:
    def __init__(self, count):
        self._numbers = Numbers(count)

    def add_(self, amount):
        self._numbers.add(amount)

    def mean(self):
        return types.SimpleNamespace(item=self._numbers.average)

    def data_ptr(self):
        return self._numbers.addresses[0]


cuda = types.SimpleNamespace(
    is_available=start,
    set_per_process_memory_fraction=limits.append,
    get_device_properties=lambda device: types.SimpleNamespace(total_memory=TOTAL),
    synchronize=lambda: None,
)
