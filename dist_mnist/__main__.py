"""`python -m dist_mnist`: the main job."""

from dist_mnist.cli import main

main()
