"""`python -m tests.benchmarks.peak_memory COMMAND...`: run a command and say what it took.

After the command's own output comes a line of JSON with its `wall_seconds` and the
`largest_process_mb`: the most memory that any one of its processes has held.

It has to be a process of its own, and a small one without torch: the system keeps one maximum for
all that a process has ever started, and a new process counts what its parent held when it began.
"""

import json
import resource
import subprocess
import sys
import time


def main() -> None:
    """Run the command, and end with its status."""
    started = time.perf_counter()
    status = subprocess.run(sys.argv[1:], check=False).returncode
    seconds = time.perf_counter() - started
    peak = peak_memory_mb(resource.RUSAGE_CHILDREN)
    print(json.dumps({"wall_seconds": seconds, "largest_process_mb": peak}))
    sys.exit(abs(status))


def peak_memory_mb(who: int = resource.RUSAGE_SELF) -> float:
    """Return the most memory that this process, or the largest of its children, has held."""
    units_per_mb = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(who).ru_maxrss / units_per_mb


if __name__ == "__main__":
    main()
