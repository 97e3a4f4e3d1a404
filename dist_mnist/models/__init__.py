"""Networks, losses and classifiers."""
