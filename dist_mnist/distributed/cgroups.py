"""The control groups around this process, which limit its cores and memory. Imports no torch."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def group_folders(controller: str) -> Iterator[Path]:
    """Yield the folders of the groups around this process, the innermost first.

    Version 2 has one tree for all controllers. Version 1 has a tree for each, which is mounted by
    its name, alone or with those that share it.

    Args:
        controller: "cpu" or "memory".
    """
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from folders_around(ROOT, path)
            elif controller in controllers.split(","):
                for mount in dict.fromkeys((controller, controllers)):
                    yield from folders_around(ROOT / mount, path)


def folders_around(root: Path, path: str) -> Iterator[Path]:
    """Yield a group's folder and those above it; in a container, only the root exists."""
    inside = Path(path.strip("/"))
    for folder in (inside, *inside.parents):
        yield root / folder
