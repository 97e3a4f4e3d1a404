"""The data of each step, a pure function of the seed."""
