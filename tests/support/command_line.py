"""A command line as a user types it, run in this process."""

import pytest

from dist_mnist.__main__ import main


def call(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
) -> tuple[int, str, str]:
    """Run a command line in this process; return its status, output and errors."""
    monkeypatch.setattr("sys.argv", ["dist-mnist", *arguments])
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err
