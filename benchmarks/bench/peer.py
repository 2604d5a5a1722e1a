"""Other implementations on the same slide and weights, by their own Python and a program that knows how to."""

import json
import os
import subprocess
from typing import Any, Dict, NamedTuple, Optional

import numpy as np

from bench.cases import Case
from bench.slides import open_slide, whole
from bench.worker import LABEL, Setting, weights_of

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers")


class Peer(NamedTuple):
    """Another implementation.

    Attributes:
        name: what figures call it.
        program: the file that runs it (see ``peers/measure.py`` for what it is told and says).
        python: the interpreter that has it installed.
        path: of its checkout, where it is not installed.
        tile: its tile in pixels; its own default where not given.
    """

    name: str
    program: str
    python: str
    path: Optional[str] = None
    tile: Optional[int] = None


def parse(text: str, python: str) -> Peer:
    """A peer as the command line names it: ``NAME``, ``NAME=PATH``, and ``@TILE`` after either.

    The path is that of an interpreter, of a virtual environment, or of a checkout, which ``python`` then runs. A name
    that no program of ``peers/`` has needs the path of such a program.

    Args:
        python: the interpreter where the path names none.

    Raises:
        ValueError: there is no such program.
    """
    text, _, tile = text.partition("@")
    name, _, path = text.partition("=")
    program, checkout = os.path.join(FOLDER, name + "_peer.py"), None
    inside = os.path.join(path, "bin", "python")
    if path.endswith(".py"):
        program = path
    elif path and os.path.isfile(path):
        python = path
    elif path and os.path.isfile(inside):
        python = inside
    elif path:
        checkout = os.path.abspath(path)
        if not os.path.isdir(checkout):
            raise ValueError("peer {}: there is no {}".format(name, path))
    if not os.path.isfile(program):
        known = sorted(file[: -len("_peer.py")] for file in os.listdir(FOLDER) if file.endswith("_peer.py"))
        raise ValueError("no program runs the peer {}; known are {}".format(name, ", ".join(known)))
    return Peer(name, program, python, checkout, int(tile) if tile else None)


def run(peer: Peer, setting: Setting, case: Case, folder: str, timeout: float) -> Dict[str, Any]:
    """Measure a peer on a case.

    Args:
        folder: for the slide and the weights.

    Returns:
        What its program said, or {"failed": why}.
    """
    from whole_slide_cnn.models.weights import is_torchvision, save_weights

    if not is_torchvision(setting.network):
        return {"failed": "{} has no torchvision form; choose resnet18 or resnet50".format(setting.backbone)}
    slide, weights = os.path.join(folder, "slide-{}.npy".format(case.side)), os.path.join(folder, "weights.npz")
    if not os.path.exists(slide):
        with open_slide(setting.slide, case.side) as canvas:
            np.save(slide, whole(canvas))
    if not os.path.exists(weights):
        save_weights(weights, setting.network, weights_of(setting))
    names = ("backbone", "pooling", "compute", "warmup", "iterations")
    orders = dict({name: getattr(setting, name) for name in names}, mode=case.mode, label=LABEL, gradients=None)
    orders.update(slide=slide, weights=weights, tile=peer.tile, path=peer.path)
    told = os.path.join(folder, "orders.json")
    with open(told, "w", encoding="utf-8") as stream:
        json.dump(orders, stream)
    return last_line([peer.python, peer.program, told], timeout, PYTHONPATH=os.path.dirname(os.path.dirname(FOLDER)))


def last_line(command, timeout: float, **variables: str) -> Dict[str, Any]:
    """What a process printed as its last line, in JSON, or {"failed": why}."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    try:
        done = subprocess.run(command, env=dict(os.environ, **variables), timeout=timeout, **pipes)
    except OSError as error:
        return {"failed": "{}: {}".format(command[0], error.strerror)}
    except subprocess.TimeoutExpired:
        return {"failed": "it was ended after {:.0f} s".format(timeout)}
    if done.returncode < 0:
        return {"failed": "it was ended by signal {}, perhaps for lack of memory".format(-done.returncode)}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        return {"failed": "its last line is no JSON"}
