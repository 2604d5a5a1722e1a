"""SIGINT, SIGTERM and SIGUSR1, sent to real processes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from whole_slide_cnn.training.signals import StopSignals

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# A library that computes for long between two instructions of Python is played by a C function that waits.
PROGRAM = """
import ctypes, signal, sys, time
from whole_slide_cnn.training.signals import StopSignals

def long_call(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ctypes.CDLL(None).poll(None, 0, int(1000 * seconds))

before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
with StopSignals(lambda text: print(text, flush=True)) as signals:
    print("ready", flush=True)
    while signals.received is None or {deaf}:
        long_call({seconds})
assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
print("saved", signals.received, flush=True)
"""


@pytest.fixture
def start():
    """A function (seconds, deaf=False, **options) -> a process, once it is ready, that looks that often for a signal; a
    deaf one never stops."""
    started = []

    def run(seconds, deaf=False, **options):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.replace("{seconds}", str(seconds)).replace("{deaf}", str(deaf))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            **options,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_noted(start, number):
    process = start(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert output.splitlines() == [
        "{}: stopping after this update or slide; once more ends at once, unsaved".format(number.name),
        "saved {}".format(int(number)),
    ]


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGTERM)])
def test_the_second_signal_ends_it_at_once(start, numbers):
    """Also while a library computes, when Python would not even have heard of the first one."""
    process = start(60, deaf=True)
    process.send_signal(numbers[0])
    assert "stopping after this update" in process.stdout.readline()
    process.send_signal(numbers[1])
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + numbers[1] and "saved" not in output


def test_an_ignored_signal_stays_ignored(start):
    process = start(0.05, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "SIGINT" not in output and output.splitlines()[-1] == "saved 15"


def test_nothing_happens_outside_the_main_thread():
    handler, found = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopSignals(pytest.fail) as signals:
            found.append((signals.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, handler)]
