"""What the engines ask of TensorFlow and of the C library on this machine. Importing it imports no TensorFlow."""

import ctypes
import os

from tf_um_patch.host import may_have_gpu

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
