"""VAE: Auto-Encoding Variational Bayes, scored by minus the evidence lower bound.

Kingma and Welling, ICLR 2014.

The encoder gives a Gaussian over codes, q(z|x), the decoder the likelihood of an image given a
code, p(x|z); training maximises a lower bound on log p(x). An outlier costs more nats to rebuild,
to encode, or both.

The paper defines the bound, not a novelty detector. What stands here:
- score: minus the bound, or one of its two terms. With `score_draws=0` (ours) the code is the mean
  of q(z|x), which rebuilds better than a draw and is no bound any more; n > 0 averages over the
  same n draws for every image, which is the bound's own estimate, and makes `recon` minus the
  reconstruction probability of An and Cho (2015);
- likelihood: Gaussian of fixed deviation `decoder_std` (ours; the paper lets the decoder give a
  deviation) or Bernoulli (the paper's for MNIST), on (x + 1) / 2 as a probability;
- layers: convolutional, as our plain auto-encoder has them; the paper's are one hidden layer of
tanh units;
- `beta` weighs the divergence (Higgins et al., ICLR 2017); the bound has 1.
Published mean AUROC: MNIST P2 0.9696, CIFAR-10 P2 0.5833; neither layers nor score behind them are
stated in the tables.
"""

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from noveltylab.methods.base import Batch, Method, detached
from noveltylab.nets.autoencoder import decoder, encoder, halvings
from noveltylab.nets.dcgan import initialise
from noveltylab.nets.losses import bernoulli_nll, wide
from noveltylab.nets.optimizers import adam

# The two terms of the bound (eq. 3), in nats.


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)), appendix B, summed over the code; (B, D) each -> (B,)."""
    values = mean.square() + log_var.expm1() - log_var
    return 0.5 * values.sum(1)


def gaussian_nll(x: Tensor, logits: Tensor, std: float) -> Tensor:
    """-log N(x; tanh(logits), std^2), summed over pixels and channels; (B, C, H, W) each -> (B,)."""
    deviation = (x - logits.tanh()) / std
    squares = deviation.square().flatten(1).sum(1)
    normaliser = math.log(std) + 0.5 * math.log(2 * math.pi)  # of a pixel
    return 0.5 * squares + x[0].numel() * normaliser


class VAE(Method):
    """Encoder and decoder, minimising the divergence and the negative log likelihood of one draw."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        latent_size: PositiveInt = 32,
        channels: PositiveInt = 32,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        decoder_std: PositiveFloat = 0.5,
        beta: NonNegativeFloat = 1.0,
        score_draws: NonNegativeInt = 0,
    ) -> None:
        super().__init__(image_shape)
        image_channels, height, width = image_shape
        self.lr = lr
        self.likelihood = likelihood
        self.decoder_std = decoder_std
        self.beta = beta
        widths = (image_channels, channels, 2 * channels, 4 * channels)
        sides = halvings(height, width)
        self.encoder = encoder(widths, 2 * latent_size, sides[-1])  # mean and log variance
        self.decoder = decoder(widths[::-1], latent_size, sides[::-1])
        self.apply(initialise)
        # The same draws for every image, so that a score depends on nothing but its image; none is
        # the mean alone.
        generator = torch.Generator().manual_seed(0)
        draws = torch.randn(score_draws, latent_size, generator=generator)
        if not score_draws:
            draws = torch.zeros(1, latent_size)
        self.register_buffer("draws", draws, persistent=False)
        self.draws: Tensor

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"vae": adam(self, lr=self.lr)}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step on minus the bound, with one draw an image (section 2.3).

        Losses `elbo`, `recon`, `kl` in nats.
        """
        mean, log_var = self.encode(batch.x)
        noise = torch.randn_like(mean)
        terms = self.terms(batch.x, mean, log_var, noise)
        losses = {name: term.mean() for name, term in terms.items()}
        self.minimise(losses["elbo"], "vae")
        return detached(losses)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x) for images (B, C, H, W).

        (B, D) each, in float32 under mixed precision.
        """
        mean, log_var = wide(self.encoder(x)).chunk(2, 1)
        return mean, log_var

    def terms(self, x: Tensor, mean: Tensor, log_var: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Minus the bound and its terms for z = mean + std * noise (eq. 10); noise (B, D) or (D,).

        (B,) each.
        """
        z = mean + (0.5 * log_var).exp() * noise
        logits = wide(self.decoder(z))
        is_gaussian = self.likelihood == "gaussian"
        recon = (
            gaussian_nll(x, logits, self.decoder_std) if is_gaussian else bernoulli_nll(x, logits)
        )
        kl = divergence(mean, log_var)
        return {"elbo": recon + self.beta * kl, "recon": recon, "kl": kl}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("elbo", "recon", "kl")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """Minus the bound, minus the log likelihood and the divergence in nats, (B,) each.

        `recon` is a mean over draws.
        """
        mean, log_var = self.encode(x)
        draws = [self.terms(x, mean, log_var, noise) for noise in self.draws]
        scores: dict[str, Tensor] = {}
        for name in self.score_names:
            terms = torch.stack([draw[name] for draw in draws])
            scores[name] = terms.mean(0)
        return scores

    def validation_loss(self, x: Tensor) -> Tensor:
        """Minus the bound of held-out inliers, (B,), as scored."""
        return self.novelty_score(x)["elbo"]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoder's mean at the mean code, (B, C, H, W) in (-1, 1)."""
        mean, _ = self.encode(x)
        logits: Tensor = self.decoder(mean)
        if self.likelihood == "gaussian":
            return logits.tanh()
        return 2 * logits.sigmoid() - 1

    def embed(self, x: Tensor) -> Tensor:
        """The mean code, (B, D)."""
        mean, _ = self.encode(x)
        return mean
