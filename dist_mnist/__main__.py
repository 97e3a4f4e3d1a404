"""The door: `python -m dist_mnist [COMMAND] key=value ...`, also as `dist-mnist`.

Listens for signals first, since importing everything else takes a while.
"""

import os
import sys

from dist_mnist.distributed import cpu_threads, signals


def main() -> None:
    """Run the command that the command line names; after a signal, exit with status STOPPED."""
    _open_closed_streams()
    try:
        signals.install()
        cpu_threads.wait_briefly()  # before torch is loaded
        from dist_mnist.commands.cli import run_command_line

        run_command_line()
    except signals.Stopped as stop:
        if (os.environ.get("RANK") or "0") == "0" and not isinstance(stop, signals.AgreedStop):
            print(
                f"stopped early by {stop}: start again with the same run_dir to continue",
                file=sys.stderr,
            )
        signals.end(signals.STOPPED)


def _open_closed_streams() -> None:
    """Point streams that were closed (`>&-`) at the null device.

    Otherwise the first files that are opened get their numbers, and text that a library prints
    ends up in these files.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode))  # noqa: PTH123, SIM115


if __name__ == "__main__":
    main()
