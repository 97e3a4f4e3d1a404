"""The files in which wandb keeps a run: every start of a run directory adds one to the same run.

A file is a log in the format of LevelDB: blocks of 32 KiB, in them chunks of records, in every
record a protobuf message. What a crash leaves of one can stop `wandb sync` for all of them: one
that never began stops it altogether, and it reads no further than a record that was torn off.
"""

import json
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FILE_HEADER = b":W&B\xe1\xbe\x00"
BLOCK_BYTES = 32768
CHUNK_HEADER = struct.Struct("<IHB")  # checksum, bytes, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Held:
    """What a wandb run already has.

    Attributes:
        next_row: wandb's own number, `_step`, for the row to come.
        latest_start: When the newest file was begun, in seconds since 1970.
    """

    next_row: int = 0
    latest_start: float = 0.0
    _rows: set[tuple[int, str]] = field(default_factory=set)

    def add(self, number: int, keys: Iterable[str], step: int) -> None:
        """Take note of a row: wandb's number for it, its keys and our global step."""
        self.next_row = max(self.next_row, number + 1)
        self._rows.add((step, _kind(keys)))

    def has(self, keys: Iterable[str], step: int) -> bool:
        """Say whether there is a row with just these keys at our global step."""
        return (step, _kind(keys)) in self._rows


def _kind(keys: Iterable[str]) -> str:
    """Return what tells rows of one step apart; interned, for there may be many rows."""
    return sys.intern(" ".join(sorted(key for key in keys if not key.startswith("_"))))


def read_run(folder: Path, run_id: str) -> Held:
    """Return what the files of a run hold, and mend what a crash has left of them.

    A file that was torn off is cut back to its last whole record, one that never began is removed.

    Args:
        folder: The `wandb` folder of a run directory; nobody may be writing to it.
        run_id: The run.

    Raises:
        OSError: A file cannot be read or mended.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    held = Held()
    for path in folder.glob(f"*run-*/run-{run_id}.wandb"):
        content = path.read_bytes()
        if not (content.startswith(FILE_HEADER) or FILE_HEADER.startswith(content.rstrip(b"\0"))):
            continue  # another version's, and not ours to mend
        began, end = False, 0
        for payload, end in _records(content):  # noqa: B007 the last is needed below
            record = Record.FromString(payload)
            if record.HasField("run"):
                began = True
                held.latest_start = max(held.latest_start, record.run.start_time.ToSeconds())
            elif record.HasField("history"):
                row = {
                    item.key or item.nested_key[0]: item.value_json for item in record.history.item
                }
                held.add(record.history.step.num, row, json.loads(row.get("step", "-1")))
        if not began:
            shutil.rmtree(path.parent)
        elif end < len(content):
            with path.open("r+b") as file:
                file.truncate(end)
    return held


def _records(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield every record and where it ends, up to the first one that is not whole."""
    if not content.startswith(FILE_HEADER):
        return
    position, pieces = len(FILE_HEADER), list[bytes]()
    while True:
        room = BLOCK_BYTES - position % BLOCK_BYTES
        if room < CHUNK_HEADER.size:  # too little for a chunk: the block was filled up
            position += room
        chunk = _chunk(content, position)
        if chunk is None:
            return
        kind, payload = chunk
        if (kind in (FULL, FIRST)) == bool(
            pieces
        ):  # the end of a record, or its beginning, is lost
            return
        pieces.append(payload)
        position += CHUNK_HEADER.size + len(payload)
        if kind in (FULL, LAST):
            yield b"".join(pieces), position
            pieces.clear()


def _chunk(content: bytes, position: int) -> tuple[int, bytes] | None:
    """Return the type and the bytes of one chunk; None where there is no whole one."""
    start = position + CHUNK_HEADER.size
    if start > len(content):
        return None
    checksum, length, kind = CHUNK_HEADER.unpack(content[position:start])
    payload = content[start : start + length]
    if kind not in (FULL, FIRST, MIDDLE, LAST):
        return None
    if checksum != zlib.crc32(payload, zlib.crc32(bytes([kind]))):  # also where it is cut short
        return None
    return kind, payload
