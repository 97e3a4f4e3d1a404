"""`python -m tests.benchmarks [NAME ...]`: run benchmarks and write their records.

Without a name, all of them run. Each prints its tables and writes a JSON record; some draw a
picture.
"""

import argparse
from pathlib import Path

from tests.benchmarks import (
    balance,
    beside,
    finetune,
    freehand,
    loop,
    peers,
    reproducible,
    residence,
    scaling,
    serving,
    startup,
    time_to_accuracy,
    tuning,
)

BENCHMARKS = {
    "peers": peers.run,
    "loop": loop.run,
    "startup": startup.run,
    "tuning": tuning.run,
    "reproducible": reproducible.run,
    "reproducible_accuracy": reproducible.run_accuracy,
    "time_to_990": time_to_accuracy.run_990,
    "time_to_995": time_to_accuracy.run_995,
    "time_to_997": time_to_accuracy.run_997,
    "scaling": scaling.run,
    "beside": beside.run,
    "balance": balance.run,
    "residence": residence.run,
    "freehand": freehand.run,
    "serving": serving.run,
    "finetune": finetune.run,
}


def main() -> None:
    """Parse the command line and run the benchmarks that it names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, help="how often each contender runs, in turn")
    parser.add_argument("--data", default="data", help="the folder of the MNIST files")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    for name in arguments.names or BENCHMARKS:
        options = {} if arguments.rounds is None else {"rounds": arguments.rounds}
        BENCHMARKS[name](folder=arguments.out, data=arguments.data, **options)


if __name__ == "__main__":
    main()
