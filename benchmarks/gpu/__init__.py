"""What ``benchmarks/gpu_probe.py`` measures of a GPU."""
