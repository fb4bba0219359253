"""AE, DAE, CAE and DCAE: auto-encoders trained to rebuild inliers.

The score is what they fail to rebuild.

One convolutional network under the names of the papers' tables; each corruption is drawn anew at
every step, in training alone, and the loss compares with the clean image:
- AE, DCAE (deep convolutional auto-encoder): as configured;
- DAE (Vincent et al., ICML 2008; JMLR 2010): Gaussian noise, `noise_std=0.2`, or pixels hidden at
random, `masking=0.25`;
- CAE in the sense of context auto-encoder (after Pathak et al., CVPR 2016): `context=true` hides a
  square of `crop` pixels at a random place. In NDA's DCASE table CAE is a convolutional
  auto-encoder, so AE here.

What the tables leave open, and what stands here (all of it our choice):
- layers: three 5x5 convolutions of stride 2 with batch norm, a linear code of 16 values, the mirror
image back;
- loss and score: mean squared error over all pixels, of the clean image when scored; Pathak's loss
  looks at the hidden pixels alone, and adds an adversarial term that is left out;
- hidden pixels become 0, the middle of the [-1, 1] scale, as OLED's masks make them; Vincent's
become black. Published mean AUROC: DAE MNIST P2 0.8766, CIFAR-10 P2 0.5358; DCAE COIL-100 P1 0.949.
The layers behind them are not known to be these, and a PCA residual gives 0.955 on MNIST P2.
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.autoencoder import decoder, encoder, halvings
from noveltylab.nets.dcgan import initialise
from noveltylab.nets.losses import squared_error
from noveltylab.nets.optimizers import adam


def random_squares(count: int, height: int, width: int, crop: int, device: torch.device) -> Tensor:
    """Masks (count, 1, H, W), True inside one square of crop x crop pixels.

    Its place is drawn uniformly for each image.
    """
    top = torch.randint(height - crop + 1, (count, 1, 1, 1), device=device)
    left = torch.randint(width - crop + 1, (count, 1, 1, 1), device=device)
    rows = torch.arange(height, device=device).view(-1, 1)
    columns = torch.arange(width, device=device)
    inside_rows = (rows >= top) & (rows < top + crop)
    inside_columns = (columns >= left) & (columns < left + crop)
    return inside_rows & inside_columns


class AE(Method):
    """Encoder and decoder, minimising the squared error of images rebuilt from corrupted ones."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        latent_size: PositiveInt = 16,
        channels: PositiveInt = 32,
        noise_std: NonNegativeFloat = 0.0,
        masking: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        context: bool = False,
        crop: PositiveInt = 10,
    ) -> None:
        super().__init__(image_shape)
        image_channels, height, width = image_shape
        if context and crop > min(height, width):
            raise ValueError(
                f"method.crop={crop}: the hidden square is larger than the image, {height} x {width}"
            )
        self.lr = lr
        self.noise_std = noise_std
        self.masking = masking
        self.context = context
        self.crop = crop
        widths = (image_channels, channels, 2 * channels, 4 * channels)
        sides = halvings(height, width)
        self.encoder = encoder(widths, latent_size, sides[-1])
        self.decoder = decoder(widths[::-1], latent_size, sides[::-1])
        self.decoder.append(nn.Tanh())
        self.apply(initialise)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"autoencoder": adam(self, lr=self.lr)}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step on the reconstruction of corrupted images. Loss `mse`."""
        corrupted = self.corrupt(batch.x)
        x_hat = self.reconstruct(corrupted)
        loss = squared_error(batch.x, x_hat).mean()
        self.minimise(loss, "autoencoder")
        return {"mse": loss.detach()}

    def corrupt(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the same with noise added, then pixels hidden.

        All channels of a pixel are hidden together.
        """
        count, _, height, width = x.shape
        if self.noise_std:
            x = x + self.noise_std * torch.randn_like(x)
        if self.masking:
            draws = torch.rand(count, 1, height, width, device=x.device)
            x = x * (draws >= self.masking)
        if self.context:
            hidden = random_squares(count, height, width, self.crop, x.device)
            x = x * ~hidden
        return x

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("mse",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`mse`: squared error of the clean image, (B,)."""
        return {"mse": squared_error(x, self.reconstruct(x))}

    def validation_loss(self, x: Tensor) -> Tensor:
        """Squared error of clean inliers, (B,)."""
        return squared_error(x, self.reconstruct(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in (-1, 1)."""
        x_hat: Tensor = self.decoder(self.encoder(x))
        return x_hat

    def embed(self, x: Tensor) -> Tensor:
        """The code, (B, D)."""
        z: Tensor = self.encoder(x)
        return z
