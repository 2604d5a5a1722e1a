"""Other programs under the shim: right values, managed memory, and a ceiling that holds.

Each runs in a process that ``python -m tf_um_patch run`` started, and is no part of this package's own.
"""

import importlib.util
from typing import Any, Callable, Dict, Optional

from tf_um_patch.driver import Driver
from tf_um_patch.gpu_check.framework import NoGpu
from tf_um_patch.shim import statistics

LARGE = 64 << 20  # words of the array that is asked about
_INPUT, _KERNEL = (2, 65, 67, 48), (3, 3, 48, 64)  # of a convolution: NHWC, HWIO


def pytorch(beyond: int) -> Dict[str, Any]:
    """PyTorch: a convolution in three types without TF32, a large tensor, and one beyond the ceiling."""
    import torch

    if not torch.cuda.is_available():
        raise NoGpu("PyTorch {} sees no GPU".format(torch.__version__))
    torch.backends.cudnn.allow_tf32 = False
    image, kernel = (torch.tensor(value) for value in _convolution())
    image, kernel = image.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
    exact = torch.nn.functional.conv2d(image, kernel, padding=1).numpy()
    errors = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = torch.nn.functional.conv2d(image.cuda().to(dtype), kernel.cuda().to(dtype), padding=1)
        errors[str(dtype).rpartition(".")[2]] = _error(found.double().cpu().numpy(), exact)
    large = torch.ones(LARGE, device="cuda")
    return {
        "version": torch.__version__,
        "reported_free_and_total": list(torch.cuda.mem_get_info()),
        "errors": errors,
        "sum_is_right": float(large.double().sum()) == LARGE,
        "large_is_managed": _is_managed(large.data_ptr()),
        "beyond_ceiling": _refusal(lambda: torch.empty(beyond, dtype=torch.uint8, device="cuda")),
    }


def jax(beyond: int) -> Dict[str, Any]:
    """JAX: a product of matrices at its highest precision, a large array, and one beyond the ceiling."""
    import jax as library
    import numpy as np

    if library.default_backend() != "gpu":
        raise NoGpu("JAX {} sees no GPU".format(library.__version__))
    numpy = library.numpy
    random = np.random.RandomState(0)
    left, right = random.randn(1024, 2048).astype(np.float32), random.randn(2048, 512).astype(np.float32)
    product = library.jit(lambda a, b: numpy.dot(a, b, precision="highest"))(left, right)
    large = numpy.ones(LARGE, numpy.float32)
    stats = library.devices()[0].memory_stats()
    return {
        "version": library.__version__,
        "errors": {"float32": _error(np.asarray(product), left.astype(np.float64) @ right)},
        "sum_is_right": float(numpy.sum(large)) == LARGE,
        "large_is_managed": _is_managed(large.unsafe_buffer_pointer()),
        "memory_stats": {name: value for name, value in (stats or {}).items() if value},
        "beyond_ceiling": _refusal(lambda: numpy.ones(beyond, numpy.uint8).block_until_ready()),
    }


def tensorflow(beyond: int) -> Dict[str, Any]:
    """TensorFlow: a convolution and both its gradients in four types, with TF32 as it is switched by default."""
    import tensorflow as library

    tf = library.compat.v1
    with tf.Session(config=_tensorflow_config(tf)) as session:
        if not any(device.device_type == "GPU" for device in session.list_devices()):
            raise NoGpu("TensorFlow {} sees no GPU".format(library.__version__))
    exact = _tensorflow_convolution(tf, tf.float64, "/cpu:0")
    errors = {}
    for dtype in (tf.float64, tf.float32, tf.bfloat16, tf.float16):
        found = _tensorflow_convolution(tf, dtype, "/gpu:0")
        names = ("forward", "input_gradient", "kernel_gradient")
        errors[dtype.name] = {name: _error(*pair) for name, pair in zip(names, zip(found, exact))}
    switch = getattr(library.config.experimental, "tensor_float_32_execution_enabled", None)
    return {
        "version": library.__version__,
        "tensor_float_32": None if switch is None else switch(),
        "errors": errors,
    }


PROGRAMS = {"torch": pytorch, "jax": jax, "tensorflow": tensorflow}


def program(name: str, beyond: int) -> Dict[str, Any]:
    """What a program found, and what the shim counted in it.

    Args:
        beyond: bytes of an array that must not fit under the ceiling.
    """
    if importlib.util.find_spec(name) is None:
        return {"skipped": "{} is not installed".format(name)}
    try:
        found = PROGRAMS[name](beyond)
    except NoGpu as error:
        return {"skipped": str(error)}
    counted = statistics()
    found["shim"] = None if counted is None else {key: value for key, value in counted.items() if value}
    return found


def _convolution():
    import numpy as np

    random = np.random.RandomState(0)
    return random.randn(*_INPUT), random.randn(*_KERNEL)


def _tensorflow_convolution(tf, dtype, device: str):
    """Output, input gradient and kernel gradient of the mean of squares, in float64."""
    with tf.Graph().as_default(), tf.Session(config=_tensorflow_config(tf)) as session:
        given = [tf.placeholder(tf.float64, value.shape) for value in _convolution()]
        with tf.device(device):
            image, kernel = (tf.cast(value, dtype) for value in given)
            output = tf.nn.conv2d(image, kernel, strides=[1, 1, 1, 1], padding="SAME")
            loss = tf.reduce_mean(tf.square(tf.cast(output, tf.float64)))
            wanted = [tf.cast(value, tf.float64) for value in [output] + tf.gradients(loss, [image, kernel])]
        return session.run(wanted, dict(zip(given, _convolution())))


def _tensorflow_config(tf):
    config = tf.ConfigProto(allow_soft_placement=False)
    config.gpu_options.allow_growth = True
    return config


def _error(found, exact) -> float:
    """Relative L2 error of an array."""
    import numpy as np

    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _is_managed(address: int) -> bool:
    """Whether an array of this process is managed memory; its context is current."""
    driver = Driver()
    with driver.primary_context(0):
        return driver.is_managed(address)


def _refusal(allocate: Callable[[], Any]) -> Optional[str]:
    """What a program said where it could not allocate, or None where it could."""
    try:
        allocate()
    except Exception as error:  # of a type of the program's
        return "{}: {}".format(type(error).__name__, str(error).strip().partition("\n")[0][:200])
    return None
