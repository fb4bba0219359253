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
    method: Method, preprocess: Preprocess, images: Tensor, batch_size: int, held_out: Tensor | None = None
) -> dict[str, NDArray[np.float64]]:
    """Every named novelty score of uint8 images (N, C, H, W): name -> (N,), raw, larger is more novel.

    Scores made of whole columns (`combine_scores`) come last; `held_out` inliers (N_val, C, H, W) are scored for them.
    """
    columns = in_batches(method, preprocess, images, method.novelty_score, batch_size)
    if type(method).combine_scores is not Method.combine_scores:
        held = {}
        if held_out is not None and len(held_out):
            held = in_batches(method, preprocess, held_out, method.novelty_score, batch_size)
        columns |= method.combine_scores(columns, held)
    return {name: column.numpy().astype(np.float64) for name, column in columns.items()}


def validation_loss(method: Method, preprocess: Preprocess, images: Tensor, batch_size: int) -> float:
    """Mean validation loss over held-out inliers, uint8 (N, C, H, W)."""
    columns = in_batches(method, preprocess, images, lambda x: {"loss": method.validation_loss(x)}, batch_size)
    return float(columns["loss"].double().mean())


def reconstructions(method: Method, preprocess: Preprocess, images: Tensor) -> NDArray[np.float32] | None:
    """Reconstructions of a few uint8 images (N, C, H, W) in [0, 1] for display; None if the method makes none."""
    return _optional(
        method, preprocess, images, lambda x: None if (y := method.reconstruct(x)) is None else preprocess.to_unit(y)
    )


def embeddings(method: Method, preprocess: Preprocess, images: Tensor) -> NDArray[np.float32] | None:
    """Embeddings (N, D) of uint8 images (N, C, H, W); None if the method has none."""
    return _optional(method, preprocess, images, method.embed)


def _optional(
    method: Method, preprocess: Preprocess, images: Tensor, function: Callable[[Tensor], Tensor | None]
) -> NDArray[np.float32] | None:
    def column(x: Tensor) -> dict[str, Tensor]:
        value = function(x)
        return {} if value is None else {"value": value}

    columns = in_batches(method, preprocess, images, column, max(len(images), 1))
    return columns["value"].numpy() if columns else None
