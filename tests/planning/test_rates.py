"""Rates of this machine."""

from whole_slide_cnn.models.network import Network
from whole_slide_cnn.planning import rates
from whole_slide_cnn.sizes import Size


def test_a_machine_without_a_gpu_is_a_device_of_its_own():
    machine = rates.host_machine(10**9)
    assert (machine.device_bytes, machine.host_bytes) == (10**9, 0)
    assert 1e8 < machine.float32_flops < 1e14 and 1e8 < machine.memory_rate < 1e13


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
