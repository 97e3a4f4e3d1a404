"""The speed of dist_mnist, beside other libraries and beside the limits of the machine."""
