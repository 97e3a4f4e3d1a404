import logging
import shlex
from pathlib import Path

import pytest

from tests.support.tracking import track


def test_commands_for_wandb_can_be_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = {"kind": "step", "epoch": 1, "step": 1, "train/loss": 0.5}
    (tmp_path / "my run").mkdir()
    with caplog.at_level(logging.INFO):
        track(tmp_path / "my run", "offline", [], [line])
    for command, folder in (("leet", "wandb"), ("sync", "wandb/offline-run-*")):
        (shown,) = [text for text in caplog.messages if f"wandb {command} " in text]
        assert shlex.split(shown)[-1] == f"{tmp_path}/my run/{folder}"
