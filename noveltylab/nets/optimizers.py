"""The optimizer that most methods share."""

import torch
from torch import nn


def adam(
    *networks: nn.Module | None,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Adam over the parameters of all these networks; None stands for a network switched off."""
    parameters: list[nn.Parameter] = []
    for network in networks:
        if network is not None:
            parameters += network.parameters()
    return torch.optim.Adam(parameters, lr, (beta1, beta2), eps, fused=True)
