"""What the engines ask of TensorFlow and of the C library on this machine. Importing it imports no TensorFlow."""

import ctypes
import os
from typing import Callable, Optional

from tf_um_patch.host import may_have_gpu
from whole_slide_cnn.errors import ConfigError

TENSOR_FLOAT_32 = "tensorfloat32"
_OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # NVIDIA's libraries read it when they start; 0 is stronger than what a program asks
_rounds_products: Optional[bool] = None  # what this process has chosen; None before its first engine on a GPU

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_LARGE_BLOCK = 4 * 2**20


def keep_freed_memory_small():
    """Ask the C library to give blocks of 4 MiB and more back to the system when they are freed.

    By default glibc raises that limit to 32 MiB as it goes, keeps what is freed, and fragments it: a run then takes a
    quarter more memory than its tensors need, and no plan can say how much (docs/measurements.md). Costs a few percent
    of time on the CPU. Set ``MALLOC_MMAP_THRESHOLD_`` to choose another limit.

    It holds for the whole process, and so commands call it, before they make an engine; no engine does.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)


def has_gpu() -> bool:
    """Whether TensorFlow will compute on a GPU; told without starting its driver."""
    import tensorflow.compat.v1 as tf

    return bool(tf.test.is_built_with_cuda()) and may_have_gpu()


def choose_products(compute: str) -> None:
    """Choose, for this process, whether its GPU rounds what it multiplies in float32 to TensorFloat-32 (10 bits after
    the point): with ``tensorfloat32`` alone. TensorFlow 2 by itself does. Without a GPU nothing is chosen.

    It must come before the process's first convolution, because a convolution keeps the kernel that it began with; so
    a process keeps to its choice. The head and the loss of half precision are float32 as well. Only float64 goes
    with both.

    Raises:
        ConfigError: an engine of this process has chosen otherwise.
    """
    global _rounds_products
    if compute == "float64" or not has_gpu():
        return
    rounds = compute == TENSOR_FLOAT_32
    if _rounds_products not in (None, rounds):
        raise ConfigError(
            "compute {} needs a process of its own: on a GPU tensorfloat32 cannot share one with float32, bfloat16 or "
            "float16, because convolutions keep the kernels that they began with".format(compute)
        )
    switch = _tensorflow_switch()
    if switch is not None:
        switch(rounds)
    elif not rounds:  # TensorFlow 1.15 knows nothing of it, but is also built, by NVIDIA, on libraries that do it
        os.environ.setdefault(_OVERRIDE, "0")
    _rounds_products = rounds


def _tensorflow_switch() -> Optional[Callable[[bool], None]]:
    import tensorflow.compat.v1 as tf

    return getattr(tf.config.experimental, "enable_tensor_float_32_execution", None)


def rounds_products(compute: str) -> bool:
    """Whether products in a type are TensorFloat-32 where the GPU has that."""
    return compute == TENSOR_FLOAT_32 and has_gpu() and os.environ.get(_OVERRIDE) != "0"


def unrolls_patches(compute: str) -> bool:
    """Whether TensorFlow's convolution gradients on this machine unroll their input into patches: its own CPU kernels
    do, oneDNN (TensorFlow 2, in float32 and bfloat16) and cuDNN do not."""
    import tensorflow.compat.v1 as tf

    if has_gpu():
        return False
    has_onednn = int(tf.__version__.split(".")[0]) >= 2 and os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0"
    return compute in ("float64", "float16") or not has_onednn


def session_config():
    """The ``ConfigProto`` of a session that takes GPU memory as it is needed, so that what is used can be seen and
    shared."""
    import tensorflow.compat.v1 as tf

    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if not has_gpu():
        # Operations one after the other, each on all cores. oneDNN's compiled kernels are kept once per thread that ran
        # an operation, so with more threads memory would grow for hundreds of steps; and the order of sums is fixed.
        config.inter_op_parallelism_threads = -1
    return config
