"""Schemas, checks and errors of the configuration. Imports no torch."""

__version__ = "0.1.0"
