"""Distributed multi-GPU training, small enough to read."""

__version__ = "0.1.0"
