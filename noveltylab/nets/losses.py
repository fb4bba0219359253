"""Per-sample losses that several methods share; which equation of a paper one is, its method says."""

import torch
from torch import Tensor
from torch.nn import functional as F


def wide(x: Tensor) -> Tensor:
    """x in float32 where it is narrower.

    Sums, exponentials and logarithms of bfloat16 lose too much.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype)


def bce(logits: Tensor, label: int) -> Tensor:
    """Binary cross entropy of logits (B,) with one label 0 or 1 for all -> (B,).

    -log sigmoid(+-logit).
    """
    if label == 1:
        logits = -logits
    return F.softplus(wide(logits))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross entropy of a discriminator that tells real from fake.

    Logits (B,) of what counts as real, with label 1, and of what is fake, with label 0 -> scalar.
    """
    real_loss = bce(real, 1).mean()
    fake_loss = bce(fake, 0).mean()
    return real_loss + fake_loss


def bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """Cross entropy of the grey values (x + 1) / 2 in [0, 1] and sigmoid(logits).

    (B, C, H, W) each -> (B,).
    """
    grey = ((x + 1) / 2).clamp(0, 1)
    entropy = F.softplus(logits) - grey * logits
    return entropy.flatten(1).sum(1)


def squared_error(x: Tensor, x_hat: Tensor, reduction: str = "mean") -> Tensor:
    """Squared difference of images (B, C, H, W), the mean or sum over their values -> (B,)."""
    error = (x - x_hat).square().flatten(1)
    if reduction == "sum":
        return error.sum(1)
    return error.mean(1)


def context_error(x: Tensor, x_hat: Tensor, norm: str = "l1") -> Tensor:
    """Absolute (l2: squared) error of images (B, C, H, W), averaged over the pixels -> (B,).

    In float32 at least.
    """
    difference = (wide(x) - wide(x_hat)).flatten(1)
    if norm == "l1":
        return difference.abs().mean(1)
    return difference.square().mean(1)


def feature_error(f: Tensor, f_hat: Tensor, norm: str = "mean_square") -> Tensor:
    """Difference of features (B, D): mean of its squares, or its Euclidean norm (l2) -> (B,).

    In float32 at least.
    """
    difference = wide(f) - wide(f_hat)
    if norm == "l2":
        norms: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norms
    return difference.square().mean(1)
