"""Decodes many pictures at once, in as many processes as there are cores."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

from dist_mnist.config.errors import InputError
from dist_mnist.distributed.cpu_threads import usable_cores
from dist_mnist.folder.decode_worker import Job, Problem, Rows, decode

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 32
ALONE = 128  # so few pictures are decoded before the first process would have started
MOST_WORKERS = 64

Decoded = list[tuple[int, Problem | None]]


def decode_all(job: Job, rows: Rows) -> Iterator[Decoded]:
    """Decode pictures and yield what has become of them, some at a time, with a progress bar.

    Args:
        job: Where the pictures are, and the file, which exists.
        rows: The row of each picture.

    Raises:
        InputError: A process ended before it had answered.
        OSError: The pixels cannot be written.
    """
    pieces = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    answers = _decode_here(job, pieces) if len(rows) <= ALONE else _decode_beside(job, pieces)
    with tqdm(
        total=len(rows),
        desc="decoding pictures",
        unit="",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:
        for piece, problems in answers:
            bar.update(len(piece))
            yield [(row, problem) for (row, _), problem in zip(piece, problems, strict=True)]


Answer = tuple[Rows, Sequence[Problem | None]]


def _decode_here(job: Job, pieces: Sequence[Rows]) -> Iterator[Answer]:
    return ((piece, decode(job, piece)) for piece in pieces)


def _decode_beside(job: Job, pieces: Sequence[Rows]) -> Iterator[Answer]:
    count = min(usable_cores(), MOST_WORKERS, len(pieces))
    workers: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    started = [_start(job) for _ in range(count)]
    for worker in started:
        workers.put(worker)

    def ask(piece: Rows) -> Answer:
        worker = workers.get()
        try:
            return piece, _ask(worker, job, piece)
        finally:
            workers.put(worker)

    threads = ThreadPoolExecutor(count)
    try:
        for future in as_completed([threads.submit(ask, piece) for piece in pieces]):
            yield future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.kill()
        threads.shutdown()
        for worker in started:
            worker.communicate()


def _start(job: Job) -> "subprocess.Popen[str]":
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "dist_mnist.folder.decode_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        text=True,
    )
    assert worker.stdin
    worker.stdin.write(json.dumps(job) + "\n")
    return worker


def _ask(worker: "subprocess.Popen[str]", job: Job, piece: Rows) -> list[Problem | None]:
    assert worker.stdin
    assert worker.stdout
    try:
        worker.stdin.write(json.dumps(piece) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise InputError(
            f"a process that decodes pictures of {job.folder} has ended, perhaps for lack of "
            f"memory, at one of {len(piece)} from {piece[0][1]} on: start again to continue there."
        )
    answer = json.loads(line)
    if isinstance(answer, dict):
        raise OSError(answer["errno"], answer["reason"])
    return [None if problem is None else Problem(*problem) for problem in answer]
