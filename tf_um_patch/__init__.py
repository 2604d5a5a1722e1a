"""Device memory that may exceed the device: a preloaded shim under TensorFlow, and operations that move memory.

``python -m tf_um_patch run -- COMMAND`` runs a command whose CUDA allocations are managed memory, which the driver
pages between device and host; ``python -m tf_um_patch doctor`` says what this machine can do. In a graph, the
operations of :func:`tf_um_patch.ops.load_ops` move tensors ahead of their use. Importing this package starts nothing.
"""
