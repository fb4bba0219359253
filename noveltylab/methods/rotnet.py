"""RotNet: a classifier that tells which of four turns an image was given.

How sure it is of the turn is the score.

Rotation prediction is from Gidaris et al. (ICLR 2018); one-class detection by predicted
transformations from Golan and El-Yaniv (Deep Anomaly Detection Using Geometric Transformations,
NeurIPS 2018); the rows called RotNet in the papers' tables stand in Hendrycks et al. (Using
Self-Supervised Learning Can Improve Model Robustness, NeurIPS 2019). Trained to tell the turns of
inliers, the network is unsure of, or wrong about, those of an outlier.

What stands here, and what differs in the sources:
- the four rotations alone, all of each image in every step; Golan: 72 (flips and shifts by 8 pixels
  too, geometric.py); Hendrycks' own row predicts shifts beside rotations;
- score: mean negative log-probability of the right turn; Golan's simple score (commented out in the
  code, for a Dirichlet fit) and Hendrycks' code average the probability itself, `probability` here;
- network: Golan's wide residual network, depth 10, width 4, by Adam at 1e-3, 3 epochs of 72 images
  each; Hendrycks: SGD with Nesterov's momentum and cosine decay, random mirroring. The rate is not
  decayed here and nothing is mirrored;
- of an inlier class that looks the same however it is turned (discs; partly the digits 0, 1, 8)
  there is nothing to learn: look at `accuracy`, 0.25 is chance, and at the held-out loss. Published
  mean AUROC: CIFAR-10 P2 0.833.
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.losses import wide
from noveltylab.nets.wide_resnet import initialise, wide_residual_network

TURNS = 4


# The task.


def turned(x: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, H) by 0, 90, 180 and 270 degrees (4 B, C, H, H), and which turn, (4 B,).

    Turn by turn.
    """
    images = torch.cat([torch.rot90(x, turn, (2, 3)) for turn in range(TURNS)])
    turns = torch.arange(TURNS, device=x.device)
    return images, turns.repeat_interleave(x.shape[0])


def log_probability(logits: Tensor) -> Tensor:
    """Log-probability of the right turn, (4, B), from logits (4 B, 4).

    The images are ordered as by `turned`.
    """
    log_p = F.log_softmax(wide(logits), 1)
    return log_p.view(TURNS, -1, TURNS).diagonal(dim1=0, dim2=2).T


class RotNet(Method):
    """One classifier of turns."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 0.0,
        depth: Annotated[int, Field(ge=10)] = 10,
        width: PositiveFloat = 4.0,
    ) -> None:
        super().__init__(image_shape)
        channels, height, breadth = image_shape
        if height != breadth:
            raise ValueError(
                f"data.size={height}: RotNet takes square images, not {height} x {breadth}"
            )
        self.lr = lr
        self.weight_decay = weight_decay
        network = wide_residual_network(channels, depth, width, TURNS)
        self.network = network.apply(initialise)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = torch.optim.Adam(
            self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True
        )
        return {"network": optimizer}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on all turns of the batch.

        Losses `cross_entropy`, and `accuracy`, the share of turns told rightly.
        """
        images, turns = turned(batch.x)
        logits = self.network(images)
        loss = -log_probability(logits).mean()
        self.minimise(loss, "network")
        is_right = logits.argmax(1) == turns
        return {"cross_entropy": loss.detach(), "accuracy": is_right.float().mean()}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("nll", "probability")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`nll`: mean over the turns of -log p(right turn).

        `probability`: minus the mean of p itself; (B,) each.
        """
        images, _ = turned(x)
        log_p = log_probability(self.network(images))
        return {"nll": -log_p.mean(0), "probability": -log_p.exp().mean(0)}

    def validation_loss(self, x: Tensor) -> Tensor:
        """The cross-entropy, (B,)."""
        return self.novelty_score(x)["nll"]

    def embed(self, x: Tensor) -> Tensor:
        """Features of the image as it is, (B, 64 width)."""
        features: Tensor = self.network[:-1](x)
        return features
