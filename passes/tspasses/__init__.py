"""Compiler passes: one file a pass."""
