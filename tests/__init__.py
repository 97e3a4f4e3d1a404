"""Tests: a file for each module, and one each for the launch, the package and the layers."""
