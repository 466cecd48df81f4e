"""Kernels of JAX's arrays, for the target family `jax`: XLA's operations, and Pallas where a TPU is asked for."""
