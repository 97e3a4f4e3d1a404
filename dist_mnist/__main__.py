"""The door: `python -m dist_mnist [COMMAND] key=value ...`, also as `dist-mnist`.

Listens for signals first, since everything else takes a while to import.
"""

import difflib
import importlib
import os
import sys

from dist_mnist.config.errors import InputError
from dist_mnist.distributed import cpu_threads, signals

COMMANDS = {
    "train": "train a network and test it; the default",
    "evaluate": "score a checkpoint on the test set",
    "predict": "read the digits in pictures: predict IMAGE... key=value ...",
    "serve": "draw a digit on a page and see what the network reads",
}


def main() -> None:
    """Run the command that the command line names; a signal gives the exit status STOPPED."""
    _open_closed_streams()
    try:
        signals.install()
        cpu_threads.wait_briefly()  # before torch is loaded
        name = _take_command(sys.argv)
        importlib.import_module(f"dist_mnist.commands.{name}").main()
    except InputError as error:
        from dist_mnist.commands.cli import fail

        fail(error)
    except signals.Stopped as stop:
        if (os.environ.get("RANK") or "0") == "0" and not isinstance(stop, signals.AgreedStop):
            print(
                f"stopped early by {stop}: start again with the same run_dir to continue",
                file=sys.stderr,
            )
        signals.end(signals.STOPPED)


def _open_closed_streams() -> None:
    """Let streams that were closed (`>&-`) lead nowhere.

    Otherwise the first files that are opened get their numbers, and what a library or another
    program prints ends in these files.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest one that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode))  # noqa: PTH123, SIM115


def _take_command(arguments: list[str]) -> str:
    """Remove the command from the arguments and return it; print the commands for `--help`."""
    first = arguments[1] if len(arguments) > 1 else ""
    if first in ("--help", "-h"):
        print(_usage())
    if not first or first[0] in "-+~" or "=" in first:
        return "train"
    if first not in COMMANDS:
        nearest = difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{first} is not a command: did you mean {nearest}? The commands are "
            f"{', '.join(COMMANDS)}; everything else is key=value."
        )
    return arguments.pop(1)


def _usage() -> str:
    rows = [f"  {name:<12}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "python -m dist_mnist [COMMAND] key=value ...                           one process",
            "torchrun --standalone --nproc_per_node=4 -m dist_mnist [COMMAND] ...   four processes",
            "",
            "COMMAND is one of these; `COMMAND --help` lists its keys:",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
