"""`python -m dist_mnist` and `dist-mnist`: listens for signals first, then does the work."""

import os
import sys

from dist_mnist.distributed import signals


def main() -> None:
    """Train, as the command line says; a signal that cuts it short gives the status STOPPED."""
    try:
        signals.install()
        from dist_mnist import cli  # which takes a while, in which a signal may come

        cli.main()
    except signals.Stopped as stop:
        if os.environ.get("RANK", "0") == "0" and not isinstance(stop, signals.AgreedStop):
            print(
                f"stopped early by {stop}: start it again with the same run_dir and it goes on",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(signals.STOPPED)  # as in cli: at once, whatever other ranks do


if __name__ == "__main__":
    main()
