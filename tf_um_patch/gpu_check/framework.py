"""The shim under a framework: ``python -m tf_um_patch.gpu_check.framework NAME BUDGET`` prints what happened as JSON.

It is started by ``python -m tf_um_patch run``, as a user's program is. The framework is limited to less than the
budget by its own means, and the shim's ceiling holds it to the budget where they fail.
"""

import contextlib
import json
import sys
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from tf_um_patch import driver as cuda
from tf_um_patch.driver import Driver
from tf_um_patch.errors import BuildError
from tf_um_patch.moves import Moves
from tf_um_patch.ops import NoUmOps, load_ops
from tf_um_patch.shim import statistics

NAMES = ("tensorflow", "torch", "cupy")  # the first that sees a GPU is taken
SHARE = 0.75  # of the budget, for the framework's own limit
_TENSORS = 16  # of a tensor's size in the budget: a step needs a few, and what a framework rounds up
_FLOAT = 4  # bytes


Moved = Tuple[int, int]  # address and bytes


class Trial(NamedTuple):
    """A framework that has computed something on its GPU.

    Attributes:
        version: of the framework.
        mean: computes the mean of the numbers of a large tensor, which is 1.
        evict, prefetch: move that tensor; they return its (address, bytes), (0, 0) where nothing was moved. None where
            moves cannot be had.
        reason: why they cannot.
    """

    version: str
    mean: Callable[[], float]
    evict: Optional[Callable[[], Moved]] = None
    prefetch: Optional[Callable[[], Moved]] = None
    reason: Optional[str] = None


class NoGpu(Exception):
    """The framework sees no GPU; says so."""


def words(budget: int) -> int:
    """Numbers of the tensor that is moved: a power of two, so that single precision is exact."""
    return 1 << (budget // _TENSORS // _FLOAT).bit_length() - 1


def tensorflow_config(tf: Any, budget: int) -> Any:
    """Settings of a session that takes no more than a part of the budget, and only as it needs it."""
    config = tf.ConfigProto(allow_soft_placement=False)
    config.gpu_options.allow_growth = True
    # Only of the first GPU; the command hides the others by CUDA_VISIBLE_DEVICES, since TensorFlow 1.15 aborts where
    # visible_device_list names a GPU that is not there.
    config.gpu_options.experimental.virtual_devices.add(memory_limit_mb=[budget * SHARE / 2**20])
    return config


@contextlib.contextmanager
def tensorflow_trial(budget: int, device: str = "/gpu:0") -> Iterator[Trial]:
    """A step of gradient descent on a variable of zeros that takes it to ones."""
    import tensorflow
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session(config=tensorflow_config(tf, budget)) as session:
        if device.startswith("/gpu") and not any(found.device_type == "GPU" for found in session.list_devices()):
            raise NoGpu("TensorFlow {} sees no GPU".format(tensorflow.__version__))
        ops = load_ops()
        with tf.device(device):
            count = words(budget)
            weights = tf.get_variable("weights", [count], initializer=tf.zeros_initializer(), use_resource=True)
            loss = tf.reduce_mean(tf.square(weights - 1))
            step = weights.assign_sub(tf.gradients(loss, [weights])[0] * (count / 2), read_value=False)
            value = weights.read_value()
            mean = tf.reduce_mean(value)
            moving = [ops.evict(value), ops.prefetch(value)] if ops.available else []
        session.run(weights.initializer)
        session.run([step, loss])

        def mover(operation: Any) -> Callable[[], Moved]:
            def move() -> Moved:
                session.run(operation)
                return ops.last_move()

            return move

        evict, prefetch = map(mover, moving) if moving else (None, None)
        reason = ops.reason if isinstance(ops, NoUmOps) else None
        yield Trial(tensorflow.__version__, lambda: float(session.run(mean)), evict, prefetch, reason)


@contextlib.contextmanager
def torch_trial(budget: int) -> Iterator[Trial]:
    """A tensor of zeros to which 1 is added, by PyTorch."""
    import torch

    if not torch.cuda.is_available():
        raise NoGpu("PyTorch {} sees no GPU".format(torch.__version__))
    torch.cuda.set_per_process_memory_fraction(budget * SHARE / torch.cuda.get_device_properties(0).total_memory)
    data = torch.zeros(words(budget), dtype=torch.float32, device="cuda")
    data.add_(1.0)
    torch.cuda.synchronize()
    yield _direct(torch.__version__, lambda: float(data.mean().item()), data.data_ptr(), budget)


@contextlib.contextmanager
def cupy_trial(budget: int) -> Iterator[Trial]:
    """An array of zeros to which 1 is added, by CuPy."""
    import cupy

    if not cupy.cuda.is_available():
        raise NoGpu("CuPy {} sees no GPU".format(cupy.__version__))
    cupy.get_default_memory_pool().set_limit(size=int(budget * SHARE))
    data = cupy.zeros(words(budget), dtype="float32")
    data += 1.0
    cupy.cuda.Device().synchronize()
    yield _direct(cupy.__version__, lambda: float(data.mean()), data.data.ptr, budget)


TRIALS = {"tensorflow": tensorflow_trial, "torch": torch_trial, "cupy": cupy_trial}


def _direct(version: str, mean: Callable[[], float], address: int, budget: int) -> Trial:
    """Moves by the code of the operations, for a framework that has no operations."""
    try:
        moves = Moves()
    except BuildError as error:
        return Trial(version, mean, reason=str(error))

    def moved(act: Callable[[int, int], None]) -> Moved:
        act(address, _FLOAT * words(budget))
        return moves.last_move()

    return Trial(version, mean, lambda: moved(moves.evict), lambda: moved(moves.prefetch))


def report(trial: Trial, driver: Driver) -> Dict[str, Any]:
    """What the shim counted, what was computed, and where a tensor was after each move."""
    facts = {"version": trial.version, "mean": trial.mean(), "shim": statistics(), "reason": trial.reason}
    if trial.evict is None or trial.prefetch is None:
        return facts
    driver.cuInit(0)
    device = driver.value("cuDeviceGet", 0)
    for name, act in (("evict", trial.evict), ("prefetch", trial.prefetch)):
        with driver.primary_context(device):
            address, count = act()
            driver.cuCtxSynchronize()
            location = driver.last_prefetch_location(address, count) if count else cuda.NOWHERE
        facts[name] = {"bytes": count, "location": location, "mean": trial.mean()}
    return facts


def main(name: str, budget: int) -> Dict[str, Any]:
    """What came of a framework, or why it was not tried."""
    try:
        with TRIALS[name](budget) as trial:
            return report(trial, Driver())
    except NoGpu as error:
        return {"skipped": str(error)}
    except ImportError as error:
        return {"skipped": "{} cannot be imported ({})".format(name, error)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))), flush=True)
