"""What one of several processes does in the tests of the communicator; it is started by an MPI launcher.

mpirun -np 2 python two_processes.py train ENGINE FILE | primitives | fail KIND | one-sided
"""

import os
import sys
import time

import numpy as np

from whole_slide_cnn.cli import run_command
from whole_slide_cnn.errors import TrainingError
from whole_slide_cnn.running.communicator import communicator

UPDATES, SIZE, RATE = 3, (112, 96), 1e-3


def slides(process, processes):
    """The slides of a process, with their labels: those that a single process takes in the same updates, dealt out."""
    from whole_slide_cnn.slides.canvas import ArrayCanvas

    found = []
    for index in range(process, 2 * UPDATES, processes):
        pixels = np.random.RandomState(index).randint(0, 256, SIZE + (3,)).astype(np.uint8)
        pixels[: 16 * (index % 3)] = 255
        found.append((ArrayCanvas(pixels), index % 2))
    return found


def train(engine_name, group):
    """Weights after three updates, which average the gradients of two slides: in one process, or one in each of two."""
    from whole_slide_cnn.engines.table import ENGINES
    from whole_slide_cnn.models.network import Network
    from whole_slide_cnn.running.optimisers import Adam
    from whole_slide_cnn.sizes import Size

    network = Network("tiny", "gmp", "softmax", 2, 0.0)
    random = np.random.RandomState(0)
    weights = {name: v + 0.02 * random.standard_normal(v.shape) for name, v in network.initial_weights(0).items()}
    mine, share = slides(group.rank, group.size), 2 // group.size
    options = {"streaming": {"window": 64}, "staged": {"tile": 64}}.get(engine_name, {})
    with ENGINES[engine_name].engine_class()(network, Size(*SIZE), "float32", Adam(RATE), **options) as engine:
        engine.load_state(weights)
        if group.size > 1:
            engine.reduce_gradients = group.allreduce_mean
        for update in range(UPDATES):
            canvases, labels = zip(*mine[update * share : (update + 1) * share])
            engine.train_batch(canvases, labels)
        return weights, engine.weights()


def check_primitives(group):
    """Every call with values that tell ranks apart."""
    rank, size = group.rank, group.size
    assert size == 2 and 0 <= group.local_rank < size
    shapes = ((), (3,), (2, 0), (2, 3, 4))
    for dtype in (np.float32, np.float64):
        arrays = [np.full(shape, rank + 1, dtype) for shape in shapes]
        means = group.allreduce_mean(arrays)
        assert all(a.shape == m.shape and m.dtype == dtype and (m == 1.5).all() for a, m in zip(arrays, means))
        assert all((total == 3).all() and total.dtype == dtype for total in group.allreduce_sum(arrays))
        assert all((array == rank + 1).all() for array in arrays)
    uneven = np.random.RandomState(rank).standard_normal(10001).astype(np.float32)
    left, right = group.allgather(group.allreduce_mean([uneven])[0].tobytes())
    assert left == right
    assert group.broadcast({"from": rank, "array": np.arange(3)} if rank == 0 else None)["from"] == 0
    assert group.allgather("process {}".format(rank)) == ["process 0", "process 1"]
    large = group.broadcast(np.arange(5 * 10**6) if rank == 0 else None)  # as a checkpoint is, unlike the rest
    np.testing.assert_array_equal(large, np.arange(5 * 10**6))
    assert [len(array) for array in group.allgather(large[: 10**6 * (1 + rank)])] == [10**6, 2 * 10**6]
    group.barrier()


def main(arguments):
    """Do what the command line says, in a group that no process leaves alone."""
    job, *rest = arguments
    with communicator() as group:
        if job == "train":
            engine, path = rest
            _, weights = train(engine, group)
            gathered = group.allgather({name: value.tobytes() for name, value in weights.items()})
            assert gathered[0] == gathered[1]
            if group.rank == 0:
                np.savez(path, **{name.replace("/", "__"): value for name, value in weights.items()})
        elif job == "primitives":
            check_primitives(group)
        elif group.rank == 1:
            time.sleep(0.5)  # the other one is waiting by now
            if rest == ["user"]:
                raise TrainingError("slide 7 is on fire")
            if rest == ["defect"]:
                raise ZeroDivisionError("a defect")
            if rest == ["killed"]:
                os.kill(os.getpid(), 9)
            sys.exit(3)
        else:
            group.allreduce_mean([np.zeros(3)])
    print("process {} of {} is done".format(group.rank, group.size))


if __name__ == "__main__":
    run_command(main)
