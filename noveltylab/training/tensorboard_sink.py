"""TensorBoard: event files in the run's folder, which `tensorboard --logdir outputs` finds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from noveltylab.command.validate import flatten
from noveltylab.training.sink import Card, Sink

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardFiles(Sink):
    """Losses as scalars over iterations; config, tags, notes, result and pictures at step 0."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        self.writer: SummaryWriter | None = None

    def open(self, iteration: int) -> "SummaryWriter":
        """The writer, in which what an earlier process wrote after `iteration` counts no more."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.card.folder / "tensorboard"
        writer = SummaryWriter(str(folder), purge_step=iteration + 1)
        texts = {"tags": ", ".join(self.card.all_tags), "notes": self.card.notes}
        for name, text in texts.items():
            if text:
                writer.add_text(name, text)
        self.writer = writer
        return writer

    @rank_zero_only
    def rewind(self, iteration: int) -> None:
        self.open(iteration)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One point of each curve, on disk at once: a killed run has them all."""
        writer: Any = self.writer or self.open(0)
        for name, value in metrics.items():
            writer.add_scalar(name, float(value), step)
        writer.flush()

    def conclude(self, summary: dict[str, Any], pictures: list[Path]) -> None:
        """The result as scalars `result/...` and in the table of hyperparameters; the pictures."""
        from torch.utils.tensorboard.summary import hparams

        writer: Any = self.writer or self.open(0)
        numbers = {}
        for name, value in summary.items():
            if isinstance(value, int | float):
                numbers[f"result/{name}"] = float(value)
            elif value:
                writer.add_text(f"result/{name}", str(value))
        for name, number in numbers.items():
            writer.add_scalar(name, number, 0)
        options = {key: _plain(value) for key, value in flatten(self.card.config).items()}
        for part in hparams(options, dict.fromkeys(numbers)):  # type: ignore[no-untyped-call]  # untyped in torch
            writer.file_writer.add_summary(part)
        for path in pictures:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image(path.stem, pixels, 0, dataformats="HWC")
        writer.close()

    def fail(self, reason: str) -> None:
        """`result/failed` is 1, and `result/reason` says why."""
        writer: Any = self.writer or self.open(0)
        writer.add_scalar("result/failed", 1.0, 0)
        writer.add_text("result/reason", reason)
        writer.close()


def _plain(value: Any) -> Any:
    """An option as a table of hyperparameters takes it: a number, a switch or a text."""
    return value if isinstance(value, bool | int | float | str) else str(value)
