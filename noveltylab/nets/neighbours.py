"""Nearest neighbours among features, for methods whose score they are."""

import torch
from torch import Tensor


def nearest_squares(x: Tensor, bank: Tensor, k: int) -> Tensor:
    """Squared distances of features x (B, D) to the k nearest of the bank (N, D), (B, k).

    To all of them if there are fewer. For unit vectors |x - y|^2 = 2 - 2 cos(x, y).
    """
    distances = torch.cdist(x, bank)
    nearest = distances.topk(min(k, len(bank)), dim=1, largest=False).values
    return nearest.square()
