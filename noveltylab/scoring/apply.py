"""Runs a trained method over images: novelty scores, validation loss, reconstructions.

No labels here.

Held-out inliers and new images are scored by one function, `score_alike`, for p-values compare
their scores: an image has the same score to the last bit, however many others are scored with it
and wherever it stands among them.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.base import Method, Row
from noveltylab.nets.batch_norm import (
    batch_norms,
    fold_batch_norm,
    put_statistics,
    statistics_of,
)
from noveltylab.scoring.batches import (
    Tensors,
    channels_last,
    columns_alike,
    columns_in_threads,
    default_dtype,
    dtype_of,
    features_alike,
    features_in_batches,
    in_batches,
)
from noveltylab.scoring.kept_features import kept_features

#: Score name -> its values, (N,).
Columns = dict[str, NDArray[np.float64]]
#: In [0, 1], for display.
Images = NDArray[np.float32]
TitledImages = tuple[str, Images]


def novelty_scores(
    method: Method,
    preprocess: Preprocess,
    images: Tensor,
    batch_size: int,
    held_out: Tensor | None = None,
) -> Columns:
    """Every named novelty score of uint8 images (N, C, H, W): name -> (N,).

    Raw, larger is more novel.

    Scores made of whole columns (`combine_scores`) come last; `held_out` inliers (N_val, C, H, W)
    are scored for them.
    """
    if method.features_key:
        features = kept_features(method, preprocess, images)
        return to_float64(features_in_batches(method, features, batch_size))
    columns = in_batches(method, preprocess, images, method.novelty_score, batch_size)
    if type(method).combine_scores is not Method.combine_scores:
        val_columns = {}
        if held_out is not None and len(held_out):
            val_columns = in_batches(method, preprocess, held_out, method.novelty_score, batch_size)
        columns |= method.combine_scores(columns, val_columns)
    return to_float64(columns)


def to_float64(columns: Tensors) -> Columns:
    """Columns on the CPU as NumPy arrays of float64."""
    return {name: column.numpy().astype(np.float64) for name, column in columns.items()}


def score_alike(
    method: Method, preprocess: Preprocess, images: Tensor, only: str | None = None
) -> Tensors:
    """Scores uint8 images (N, C, H, W), N >= 1: name -> (N,), float32 on the CPU.

    All scores, or the one named `only` and those that it is made of.

    In batches of one size, the last of which is filled up. By one of torch's threads: call it
    inside `single_threads`, or use `score_in_threads`. The method is in evaluation mode, as
    `deployed` gives it.
    """
    return columns_alike(method, preprocess, images, scores_of(method, only))


def score_in_threads(
    method: Method, preprocess: Preprocess, images: Tensor, only: str | None = None
) -> Tensors:
    """As `score_alike`, the same bits, by all of torch's threads."""
    return columns_in_threads(method, preprocess, images, scores_of(method, only))


def scores_of(method: Method, only: str | None) -> Callable[[Tensor], Tensors]:
    """What scores images (B, C, H, W): all scores, or one where it is not made of others."""
    if only is None or type(method).combine_scores is not Method.combine_scores:
        return method.novelty_score
    name = only

    def single(x: Tensor) -> Tensors:
        return {name: method.single_score(x, name)}

    return single


def held_out_scores(method: Method, preprocess: Preprocess, images: Tensor) -> Columns:
    """Every named score of held-out inliers, uint8 (N, C, H, W): name -> (N,).

    As `deployed` would give it to new images.
    """
    ready = deployed(method)
    if method.features_key:
        features = kept_features(method, preprocess, images)
        return to_float64(features_alike(method, features))
    columns = score_in_threads(ready, preprocess, images)
    columns |= ready.combine_scores(columns, columns)
    return to_float64(columns)


def deployed(method: Method) -> Method:
    """The method as it scores new images.

    In evaluation mode, batch norms folded in, without what training needs.

    A copy, but of methods that are fitted once: these have nothing to fold.
    """
    if not method.iterative:
        return method.eval()
    left_behind: dict[int, Any] = {id(method._optimizers_by_name): {}}
    if method.graph is not None:
        left_behind[id(method.graph)] = None
    ready = copy.deepcopy(method, left_behind).eval().requires_grad_(False)
    fold_batch_norm(ready)
    channels_last(ready)
    return ready


@torch.no_grad()
def renew_batch_norm(
    method: Method, preprocess: Preprocess, images: Tensor, batch_size: int
) -> None:
    """Takes the statistics of batch norms anew, from `images`, uint8 (N, C, H, W).

    Each is the mean over batches. All else is in evaluation mode, without dropout. In an order of
    its own, always the same; a last batch that is smaller is left out. A layer that
    `pass_for_batch_norm` does not use keeps its statistics.
    """
    layers = batch_norms(method)
    was_training = method.training
    device = method.device
    momenta = [layer.momentum for layer in layers]
    before = [statistics_of(layer) for layer in layers]
    # whole batches in a random order
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    batches = torch.split(order, batch_size)
    if len(batches) > 1 and len(batches[-1]) < batch_size:
        batches = batches[:-1]
    # new statistics
    method.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    dtype = dtype_of(method)
    with default_dtype(dtype), torch.random.fork_rng(gpus(method)):
        torch.manual_seed(0)
        for rows in batches:
            x = preprocess(images[rows].to(device)).to(dtype)
            method.pass_for_batch_norm(x.contiguous(memory_format=torch.channels_last))
    # all else as it was
    for layer, statistics, momentum in zip(layers, before, momenta, strict=True):
        layer.momentum = momentum
        if not int(layer.num_batches_tracked or 0):
            put_statistics(layer, statistics)
    method.train(was_training)


def gpus(method: Method) -> list[torch.device]:
    """The method's GPU, whose random state is kept apart; [] on a CPU."""
    return [method.device] if method.device.type == "cuda" else []


@contextmanager
def fresh_batch_norm(
    method: Method, preprocess: Preprocess, images: Tensor, batch_size: int
) -> Iterator[None]:
    """Inside, batch norms have statistics taken anew (`renew_batch_norm`).

    Afterwards those of training again.
    """
    layers = batch_norms(method)
    before = [statistics_of(layer) for layer in layers]
    renew_batch_norm(method, preprocess, images, batch_size)
    try:
        yield
    finally:
        for layer, statistics in zip(layers, before, strict=True):
            put_statistics(layer, statistics)


def scores_by_training_set(method: Method) -> bool:
    """Whether the score needs the training set under the weights that score."""
    return type(method).prepare_score is not Method.prepare_score


@torch.no_grad()
def prepare_score(method: Method, preprocess: Preprocess, images: Tensor) -> None:
    """Lets the method take anew what its score needs of the training images, uint8 (N, C, H, W)."""
    if not scores_by_training_set(method):
        return
    was_training = method.training
    method.eval()
    dtype = dtype_of(method)
    with default_dtype(dtype):
        method.prepare_score(preprocess(images.to(method.device)).to(dtype))
    method.train(was_training)


def validation_loss(
    method: Method, preprocess: Preprocess, images: Tensor, batch_size: int
) -> float:
    """Mean validation loss over held-out inliers, uint8 (N, C, H, W)."""

    def losses(x: Tensor) -> Tensors:
        return {"loss": method.validation_loss(x)}

    columns = in_batches(method, preprocess, images, losses, batch_size)
    return float(columns["loss"].double().mean())


def reconstructions(method: Method, preprocess: Preprocess, images: Tensor) -> Images | None:
    """Reconstructions of a few uint8 images (N, C, H, W) in [0, 1] for display.

    None if the method makes none.
    """

    def reconstruct(x: Tensor) -> Tensor | None:
        reconstruction = method.reconstruct(x)
        return None if reconstruction is None else preprocess.to_unit(reconstruction)

    return _optional(method, preprocess, images, reconstruct)


def novelty_maps(
    method: Method, preprocess: Preprocess, images: Tensor, batch_size: int
) -> Images | None:
    """How novel each pixel of uint8 images (N, C, H, W) is, (N, H, W); None without such maps."""
    if not method.gives_map:
        return None

    def maps(x: Tensor) -> Tensors:
        value = method.novelty_map(x)
        assert value is not None
        return {"map": value}

    columns = in_batches(method, preprocess, images, maps, batch_size)
    return columns["map"].numpy()


def explanations(method: Method, preprocess: Preprocess, images: Tensor) -> dict[str, Images]:
    """The rows that a method puts under a few uint8 images (N, C, H, W).

    Title -> (N, C, H, W) in [0, 1].
    """

    def rows(x: Tensor) -> Tensors:
        return {row.title: _in_unit(row, preprocess) for row in method.explain(x)}

    columns = in_batches(method, preprocess, images, rows, max(len(images), 1))
    return {title: column.numpy() for title, column in columns.items()}


@torch.no_grad()
def image_rows(
    method: Method, preprocess: Preprocess, train: Tensor, inliers: Tensor, outliers: Tensor
) -> dict[str, list[TitledImages]]:
    """A method's own pictures from a few uint8 images (N, C, H, W) each.

    What is random in them is drawn from seed 0, and leaves no trace in the generators.

    Returns:
        Name -> (title, images in [0, 1]) of each row.
    """
    was_training = method.training
    method.eval()
    dtype = dtype_of(method)
    with default_dtype(dtype), torch.random.fork_rng(gpus(method)):
        torch.manual_seed(0)
        parts = []
        for part in (train, inliers, outliers):
            x = preprocess(part.to(method.device))
            parts.append(x.to(dtype))
        pictures = method.image_rows(*parts)
    method.train(was_training)
    titled_rows: dict[str, list[TitledImages]] = {}
    for name, rows in pictures.items():
        titled_rows[name] = []
        for row in rows:
            images = _in_unit(row, preprocess).float().cpu()
            titled_rows[name].append((row.title, images.numpy()))
    return titled_rows


def _in_unit(row: Row, preprocess: Preprocess) -> Tensor:
    return row.images if row.unit else preprocess.to_unit(row.images)


def reconstruction_errors(
    method: Method, preprocess: Preprocess, images: Tensor, reconstruction: Images
) -> Images:
    """Mean absolute error over the channels of reconstructed uint8 images (N, C, H, W): (N, H, W)."""
    with torch.inference_mode():
        x = preprocess(images.to(method.device))
        target = preprocess.to_unit(x).cpu().numpy()
    errors: Images = np.abs(target - reconstruction).mean(1)
    return errors


def embeddings(
    method: Method, preprocess: Preprocess, images: Tensor
) -> NDArray[np.float32] | None:
    """Embeddings (N, D) of uint8 images (N, C, H, W); None if the method has none."""
    return _optional(method, preprocess, images, method.embed)


def _optional(
    method: Method,
    preprocess: Preprocess,
    images: Tensor,
    function: Callable[[Tensor], Tensor | None],
) -> NDArray[np.float32] | None:
    def column(x: Tensor) -> Tensors:
        value = function(x)
        return {} if value is None else {"value": value}

    columns = in_batches(method, preprocess, images, column, max(len(images), 1))
    if not columns:
        return None
    return columns["value"].numpy()
