"""Benchmarks of every room: kernels beside the limits of the machine, whole runs, scaling studies, other programs."""
