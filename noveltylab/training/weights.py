"""Saves and loads weights and checkpoints: whole or absent, and read without running code."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from noveltylab.data.datamodule import NoveltyData
from noveltylab.methods.base import Method
from noveltylab.results.files import open_regular, write_atomic


def save_weights(path: Path, method: Method, data: NoveltyData, **facts: Any) -> None:
    """Weights of the method and of its preprocessing, with plain facts, loadable with
    `weights_only=True`.
    """
    save_file(
        {"method": method.state_dict(), "preprocess": data.preprocess.state_dict(), **facts}, path
    )


def load_weights(path: Path, method: Method) -> None:
    """Puts the saved weights into the method."""
    method.load_state_dict(load_file(path, method.device)["method"])


def load_file(path: str | Path, device: Any = "cpu") -> Any:
    """What `save_file` wrote; no pipe is waited for, no code is run."""
    with open_regular(path) as file:
        return torch.load(file, map_location=device, weights_only=True)


def save_file(content: dict[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints are whole or absent, and are read back without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_file(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        return load_file(path, map_location or "cpu")
