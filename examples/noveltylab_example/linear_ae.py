"""A linear auto-encoder, trained with Adam."""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab import Method
from noveltylab.methods.base import Batch, detached


class LinearAE(Method):
    """Reconstructs an image from a linear code of it."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        latent_size: PositiveInt = 32,
    ) -> None:
        super().__init__(image_shape)
        channels, height, width = image_shape
        pixels = channels * height * width
        self.lr = lr
        self.encoder = nn.Linear(pixels, latent_size)
        self.decoder = nn.Linear(latent_size, pixels)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"autoencoder": torch.optim.Adam(self.parameters(), self.lr)}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        loss = self.validation_loss(batch.x).mean()
        self.minimise(loss, "autoencoder")
        return detached({"mse": loss})

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("mse",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        return {"mse": self.validation_loss(x)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return (x - self.reconstruct(x)).square().flatten(1).mean(1)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x.flatten(1))).view_as(x)
