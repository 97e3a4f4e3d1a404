"""Tests: a folder for each wing of the package, and support/ for the helpers that they share."""
