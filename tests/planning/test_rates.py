"""Rates of this machine."""

import time

from whole_slide_cnn.models.network import Network
from whole_slide_cnn.planning import rates
from whole_slide_cnn.sizes import Size


def test_a_machine_without_a_gpu_is_a_device_of_its_own(monkeypatch):
    """Rates from the fastest run of each: a product of matrices of side 768, and a copy of 2^25 bytes."""
    seconds = iter([[0.5, 0.25, 1.0], [0.125, 2.0, 0.5]])

    def timed(action, repeats):
        action()
        return next(seconds)

    monkeypatch.setattr(rates, "_times", timed)
    machine = rates.host_machine(10**9)
    assert (machine.device_bytes, machine.host_bytes) == (10**9, 0)
    assert machine.float32_flops == machine.half_flops == 2 * 768**3 / 0.25
    assert machine.memory_rate == 2 * 2**25 / 0.125


def test_the_clock_runs_while_the_work_is_done():
    first, second = rates._times(lambda: time.sleep(0.02), 2)
    assert 0.02 <= min(first, second) < 0.2


def test_the_scale_is_measured_time_over_modelled(monkeypatch):
    """A machine that is modelled as twice as slow has half the scale."""
    network, machine = Network("tiny", "gmp", "softmax", 2), rates.host_machine(10**9)
    times = []

    def timed(action, repeats):
        action()
        times.append(repeats)
        return [1.0, 3.0, 9.0] if repeats > 1 else [1.0]

    monkeypatch.setattr(rates, "_times", timed)
    scales = {}
    for training in (True, False):
        scales[training] = rates.measured_scale(network, "float32", training, machine, (Size(128, 128),))
    assert scales[False] > 1.5 * scales[True] > 0  # three seconds for a step that is modelled as shorter
    assert times == [1, 5, 1, 5]
