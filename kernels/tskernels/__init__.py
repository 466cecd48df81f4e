"""Kernel registry and kernels."""
