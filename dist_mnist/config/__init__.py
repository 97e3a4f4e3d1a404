"""What may be asked for: schemas, checks and errors. Imports no torch."""

__version__ = "0.1.0"
