"""The samples of each step, a pure function of the seed."""
