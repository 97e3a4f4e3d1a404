"""`python -m dist_mnist`: the main job."""

from dist_mnist.cli import main

if __name__ == "__main__":
    main()
