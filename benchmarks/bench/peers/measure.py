"""What a peer program needs beside its peer: its orders, times, memory, and how it reports them.

A peer program is called with a JSON file: ``slide`` (.npy, uint8, height x width x 3), ``weights`` (.npz, torchvision's
names), ``backbone``, ``pooling``, ``compute``, ``label``, ``mode`` (train or predict), ``warmup``, ``iterations``,
``tile`` (pixels, or null for the peer's own default), ``path`` (of the peer's checkout, or null), ``gradients`` (a file
to write them to, or null). It prints one line of JSON last: ``seconds``, ``first_s``, ``losses``, ``idle_bytes``,
``peak_bytes``, ``device_peak_bytes``, ``settings`` and ``versions``.
"""

import json
import sys
import time

import numpy as np
from memory import Peak, resident_bytes


def orders():
    """What this program was told to do, with the slide's pixels and the weights."""
    with open(sys.argv[1], encoding="utf-8") as stream:
        given = json.load(stream)
    if given.get("path"):
        sys.path.insert(0, given["path"])
    given["pixels"] = np.load(given["slide"])
    with np.load(given["weights"]) as archive:
        given["values"] = {name: archive[name] for name in archive.files}
    return given


def timed(given, step, idle, device_peak=lambda: None):
    """Run the steps and measure them.

    Args:
        step: a function that makes one step and gives its loss as a number.
        idle: bytes of this process before the peer was made.
        device_peak: a function that gives the most bytes held on a GPU, or None.
    """
    seconds, losses = [], []
    with Peak() as peak:
        for _ in range(given["warmup"] + given["iterations"]):
            began = time.perf_counter()
            losses.append(float(step()))
            seconds.append(time.perf_counter() - began)
    return {
        "first_s": seconds[0],
        "seconds": seconds[given["warmup"] :],
        "losses": losses,
        "idle_bytes": idle,
        "peak_bytes": peak.bytes - idle,
        "device_peak_bytes": device_peak(),
    }


def cuda_peak():
    """The most bytes that PyTorch held on a GPU; None where there is none."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def report(found):
    """The last line of the output."""
    print("\n" + json.dumps(found), flush=True)


__all__ = ["cuda_peak", "orders", "report", "resident_bytes", "timed"]
