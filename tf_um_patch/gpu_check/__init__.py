"""``python -m tf_um_patch gpu-check``: measures on a GPU what this package claims about one.

Everything that touches the GPU runs in a process of its own with a time limit, and within a small budget of memory.
"""
