"""The model language, its compiler driver and command line."""

__version__ = "0.1.0"
