"""The files of a run directory, written whole or not at all."""
