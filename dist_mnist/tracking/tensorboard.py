"""The journal as TensorBoard's event file."""

import logging
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dist_mnist.record.journal import Line
from dist_mnist.tracking.tracker import NO_MEDIA, Media, Tracker, charts

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5  # how far TensorBoard's page is behind the run


class TensorBoardRun(Tracker):
    """An event file in the run directory's `tensorboard/`, which replaces earlier ones."""

    def __init__(self, run_dir: Path, lines: Sequence[Line]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # not installed everywhere

        self._folder = run_dir / "tensorboard"
        _clear(self._folder)
        # An open TensorBoard has read the earlier file: this makes it forget those steps.
        self._writer = SummaryWriter(str(self._folder), purge_step=0, flush_secs=FLUSH_SECONDS)
        self._last_steps: dict[str, int] = {}
        for line in lines:
            self.log(line)

    def log(self, line: Line, media: Media = NO_MEDIA) -> None:  # noqa: D102
        step = line["step"]
        for name, value in charts(line):
            # An epoch's line need not repeat a point of its last step's line.
            if self._last_steps.get(name) != step:
                self._writer.add_scalar(name, value, step)
                self._last_steps[name] = step
        for name, content in media.items():
            if isinstance(content, Path):
                self._writer.add_image(name, _pixels(content), step)

    def finish(self, exit_code: int) -> None:  # noqa: D102
        self._writer.close()
        if exit_code == 0:
            logger.info("TensorBoard: tensorboard --logdir %s", shlex.quote(str(self._folder)))


def _clear(folder: Path) -> None:
    """Empty earlier event files, and wait until a new file's name sorts behind theirs.

    An open TensorBoard stops at a file that is deleted, and only goes on to files whose names sort
    later; they begin with the second in which they were made.
    """
    earlier = [*folder.glob("events.out.tfevents.*")]
    for path in earlier:
        os.truncate(path, 0)
    if earlier:
        time.sleep(1 - time.time() % 1)


def _pixels(path: Path) -> torch.Tensor:
    """Return a picture as uint8 of shape (3, H, W)."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    with Image.open(path) as picture:
        pixels: torch.Tensor = pil_to_tensor(picture.convert("RGB"))
        return pixels
