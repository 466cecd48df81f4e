"""Kernels for GPUs, and how they are launched."""
