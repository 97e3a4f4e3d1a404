"""What each step sees, a pure function of the seed."""
