"""The record of the checks on a GPU, compared with the code and with the README and the manuals."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
RECORD = CHECKOUT / "tests" / "benchmarks" / "records" / "gpu_check.json"
# These decide how a GPU computes: if one changes, the record may no longer hold.
FILES = (
    *("dist_mnist/training/step.py", "dist_mnist/training/cuda_graph.py"),
    *("dist_mnist/training/shards.py", "dist_mnist/training/finite.py"),
    *("dist_mnist/data/augmentation.py", "dist_mnist/data/images.py"),
    *("dist_mnist/models/networks.py", "dist_mnist/models/losses.py"),
    *("dist_mnist/models/precision.py", "dist_mnist/distributed/gradients.py"),
    *("dist_mnist/distributed/gpus.py", "dist_mnist/distributed/rendezvous.py"),
)
NOT_YET = "None of this has been run on a GPU yet."  # in README, as long as it is true
HEADER = "| on one GPU | result |"  # of README's table of results
# Held to the record; the README comes first.
MANUALS = ("README.md", *(f"{folder}/README.md" for folder in ("conf", "launch", "tests")))
# A figure in a line that speaks of a GPU, such as 1.2 ms on an H100.
FIGURE = re.compile(r"(?=.*\b(GPUs?|[AHBLTV]\d{1,3})\b).*\d ?(%|ms|us|s|images/s)(\W|$)")


def read_record(path: Path = RECORD) -> dict[str, Any] | None:
    """Return the committed record of a real GPU, or None if there is none yet."""
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record["device"] == "cuda" else None


def file_hashes(root: Path = CHECKOUT) -> dict[str, str]:
    """Return the SHA-256 of each file that decides how a GPU computes."""
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in FILES}


def changed_files(record: dict[str, Any], root: Path = CHECKOUT) -> list[str]:
    """Return the files that have changed since the record was made."""
    now = file_hashes(root)
    return [name for name, digest in record["files"].items() if now.get(name) != digest]


def summary(record: dict[str, Any]) -> list[str]:
    """Return the rows of the README's table of results: each check, and its result."""
    gpu = record["checks"].get("machine", {}).get("gpu")
    return [
        f"| `{name}` | passed on an {gpu} |"
        for name, check in record["checks"].items()
        if check["ok"]
    ]


def unsupported_claims(readme: str, record: dict[str, Any] | None) -> list[str]:
    """Return the README's claims that no GPU has confirmed, and the sentence that is missing."""
    lines = readme.splitlines()
    rows: list[str] = []
    if HEADER in lines:
        after = lines[lines.index(HEADER) + 2 :]
        rows = after[: next((i for i, line in enumerate(after) if not line.startswith("|")), None)]
    shown = summary(record) if record else []
    unsupported = [row for row in rows if row not in shown]
    if record is None:
        unsupported += [line for line in lines if FIGURE.search(line)]
        unsupported += [] if NOT_YET in readme else [f"missing: {NOT_YET}"]
    elif NOT_YET in readme:
        unsupported.append(NOT_YET)
    return unsupported
