"""Checks that only a GPU can answer, in ten minutes, as one record."""
