"""The tracker on a thread of its own, in front of trackers that fail or hang."""

import time
from pathlib import Path
from threading import Event

import pytest

from dist_mnist.config.errors import InputError
from dist_mnist.record.journal import Line
from dist_mnist.tracking import tracker as module
from dist_mnist.tracking.tracker import NO_MEDIA, BackgroundTracker, Media, Tracker


class Recording(Tracker):
    """Records its calls; fails at a step."""

    def __init__(self, fails_at: int = 0) -> None:
        self.fails_at = fails_at
        self.told: list[object] = []

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:
        if line["step"] == self.fails_at:
            raise OSError("no\nroom")
        self.told.append((line["step"], media))

    def keep(self, checkpoint: Path) -> None:
        self.told.append(checkpoint)

    def finish(self, exit_code: int) -> None:
        self.told.append(exit_code)


def line(step: int) -> Line:
    return {"kind": "step", "step": step}


def test_passes_everything_on_in_order() -> None:
    recording = Recording()
    tracker = BackgroundTracker(lambda: recording)
    tracker.log(line(1))
    tracker.log(line(2), {"plot": Path("plot.png")})
    tracker.keep(Path("best"))
    tracker.finish(exit_code=7)
    assert recording.told == [(1, {}), (2, {"plot": Path("plot.png")}), Path("best"), 7]


def test_failure_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    abandoned = Event()
    recording = Recording(fails_at=2)
    tracker = BackgroundTracker(lambda: recording, abandoned.set)
    for step in (1, 2, 3, 2):
        tracker.log(line(step))
    tracker.finish(exit_code=0)
    (message,) = caplog.messages
    assert "training goes on" in message
    assert message.endswith("OSError: no room")
    assert recording.told == [(1, {}), 0]  # no rows after the missing one, but the end
    assert abandoned.is_set()


def refuse() -> Tracker:
    raise InputError("no such project")


def test_failure_after_a_signal_is_no_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> Tracker:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr("dist_mnist.distributed.signals.requested", lambda: "SIGUSR1")
    with caplog.at_level("INFO"):
        BackgroundTracker(start).finish(exit_code=75)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "wandb was stopped as well; the next start" in record.getMessage()


def test_mistake_stops_the_run() -> None:
    tracker = BackgroundTracker(refuse)
    with pytest.raises(InputError, match="no such project"):
        tracker.finish(exit_code=0)
    with pytest.raises(InputError, match="no such project"):
        tracker.log(line(1))
    tracker.finish(exit_code=1)  # the run reports an error of its own


def test_never_waits_for_a_tracker_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FINISH_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(module, "ABANDON_TIMEOUT_SECONDS", 0.1)
    end = Event()

    def hang() -> Tracker:
        end.wait()
        raise OSError("comes too late to be told")

    def abandon() -> None:
        end.wait()

    tracker = BackgroundTracker(hang, abandon)
    started = time.monotonic()
    tracker.log(line(1))
    assert time.monotonic() - started < 0.1
    tracker.finish(exit_code=0)
    assert time.monotonic() - started < 2
    end.set()
    (message,) = caplog.messages
    assert "giving up on it" in message


def test_without_wandb_nothing_happens(tmp_path: Path) -> None:
    tracker = Tracker()
    tracker.log(line(1))
    tracker.keep(tmp_path / "missing")
    tracker.finish(exit_code=0)
