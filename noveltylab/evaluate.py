"""Runs a trained method over images: novelty scores, validation loss, reconstructions. No labels here."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.base import Method


@torch.inference_mode()
def in_batches(
    method: Method,
    preprocess: Preprocess,
    images: Tensor,
    function: Callable[[Tensor], dict[str, Tensor]],
    batch_size: int,
) -> dict[str, Tensor]:
    """`function` of all images (N, C, H, W) uint8, batch by batch on the method's device, in evaluation mode.

    Returns the columns of `function`, concatenated on the CPU; always in float32, whatever the precision of training.
    """
    was_training = method.training
    method.eval()
    batches = [
        function(preprocess(part.to(method.device)).contiguous(memory_format=torch.channels_last))
        for part in torch.split(images, batch_size)
    ]
    method.train(was_training)
    return {name: torch.cat([batch[name].float() for batch in batches]).cpu() for name in batches[0]}


def novelty_scores(
    method: Method, preprocess: Preprocess, images: Tensor, batch_size: int
) -> dict[str, NDArray[np.float64]]:
    """Every named novelty score of uint8 images (N, C, H, W): name -> (N,), raw, larger is more novel."""
    columns = in_batches(method, preprocess, images, method.novelty_score, batch_size)
    return {name: column.numpy().astype(np.float64) for name, column in columns.items()}


def validation_loss(method: Method, preprocess: Preprocess, images: Tensor, batch_size: int) -> float:
    """Mean validation loss over held-out inliers, uint8 (N, C, H, W)."""
    columns = in_batches(method, preprocess, images, lambda x: {"loss": method.validation_loss(x)}, batch_size)
    return float(columns["loss"].double().mean())


def reconstructions(method: Method, preprocess: Preprocess, images: Tensor) -> NDArray[np.float32] | None:
    """Reconstructions of a few uint8 images (N, C, H, W) in [0, 1] for display; None if the method makes none."""

    def reconstruct(x: Tensor) -> dict[str, Tensor]:
        x_hat = method.reconstruct(x)
        return {} if x_hat is None else {"x_hat": preprocess.to_unit(x_hat)}

    columns = in_batches(method, preprocess, images, reconstruct, max(len(images), 1))
    return columns["x_hat"].numpy() if columns else None
