"""`python -m tests.benchmarks.peak_memory COMMAND...`: run a command and print its time and memory.

After the command's own output, this prints a line of JSON with its `wall_seconds` and the
`largest_process_mb`, the peak memory of its largest process.

This must be a separate, small process without torch. The system keeps one maximum for
all children of a process, and a new process starts out with the memory that its parent held.
"""

import json
import resource
import subprocess
import sys
import time


def main() -> None:
    """Run the command and exit with its status."""
    started = time.perf_counter()
    status = subprocess.run(sys.argv[1:], check=False).returncode
    seconds = time.perf_counter() - started
    peak = peak_memory_mb(resource.RUSAGE_CHILDREN)
    print(json.dumps({"wall_seconds": seconds, "largest_process_mb": peak}))
    sys.exit(abs(status))


def peak_memory_mb(who: int = resource.RUSAGE_SELF) -> float:
    """Return the peak memory of this process, or of its largest child."""
    units_per_mb = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(who).ru_maxrss / units_per_mb


if __name__ == "__main__":
    main()
