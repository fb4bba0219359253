"""GPND (Pidhorskyi et al., Generative Probabilistic Novelty Detection with Adversarial Autoencoders).

NeurIPS 2018, arXiv 1807.02588. The decoder of an adversarial auto-encoder draws a surface through
the space of images, one point for each code. The density of an image is that of its place on the
surface, times that of its distance from it. An outlier lies in an unlikely place, or far away.

PAPER
- Four networks: encoder, decoder, a discriminator of images (drawn codes, decoded) and one of codes;
  codes are to be N(0, I), decoded ones to look like images, and images are rebuilt (cross entropy).
- p(x) = p(w_par) p(w_perp): near x_hat the decoder is replaced by its tangent, J = U S V^T its
  Jacobian at the code z, and p(w_par) = |det S^-1| p(z).
- p(z) is a product of generalised Gaussians, fitted to the codes of the training inliers.
- p(w_perp) is that of a length, |w_perp| = |x - x_hat|, spread evenly over the sphere of that radius
  in m - n dimensions, for m values of an image and n of a code; the density of the length is a
  histogram over the training inliers.

CODE (the authors', podgorskiy/GPND)
- Layers, initial weights N(0, 0.02), batch norm's scales 1, Adam at 2e-3 with beta1 0.5, codes of 16
  values; the decoder ends in a tanh, of which grey values are (tanh + 1) / 2; 0.3 times the mean cross
  entropy and 2 times the loss of codes; 30 bins, straight to 0 below the first bin, 1e-308 where the
  histogram is 0.
- Its released version leaves the Jacobian out (`jacobian=false`), and takes 96 for m - n, of images
  of 1,024 pixels: (20 * 20 - 16) / 4. That is `share=0.095`; the paper has 1.
- Its rate falls to a quarter every 30 epochs; its threshold is chosen with labelled outliers.
- MNIST is padded to 32 pixels. A code whose density is 0 in double precision has -1000 for its log.

CHOICE
- The Jacobian is the decoder's, by forward mode. CODE has a line for the encoder's, its inverse on
  the surface.
- A generalised Gaussian's place is the mean, its shape that with the same ratio of mean absolute and
  mean squared deviation, its scale the most likely one. CODE searches all three by simplex steps.
- The sphere's surface is 2 pi^(k/2) / Gamma(k/2) r^(k-1); CODE's constant differs, no rank does.
- Networks see images in [-1, 1], CODE's in [0, 1]. Lengths are twice as long, which shifts all scores
  alike. MNIST is resized to 32 pixels.
- One draw of codes serves both steps on images, as the decoder does not change in between; CODE
  draws twice, so that of three batches that batch norm averages over two are drawn, here one of two.
- Densities of codes are kept as logarithms, which need no value for 0.
- The rate stays as it is (`trainer.lr_decay_from`); the epoch is the one of the least cross entropy on
  held-out inliers.
"""

import math
import threading
import warnings
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method, detached, frozen
from noveltylab.nets.losses import bce, bernoulli_nll, discriminator_loss, wide
from noveltylab.nets.optimizers import adam

#: Images in a batch where statistics of many are computed.
BATCH = 64
BINS = 30
#: log(1e-308), where the histogram is 0.
FLOOR = math.log(1e-308)
#: Shapes of a generalised Gaussian that are looked at: 2 is a Gaussian, 1 a Laplacian.
SHAPES = (0.2, 10.0)
#: Halvings of that interval, on a log scale.
HALVINGS = 40
#: torch's forward mode has levels that all threads share: one thread at a time.
_FORWARD = threading.Lock()


# Networks (code).


def downward(channels: int, base: int) -> list[nn.Module]:
    """Images (B, C, 8 h, 8 w) -> maps (B, 4 base, h, w)."""
    return [
        nn.Conv2d(channels, base // 2, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(base // 2, 2 * base, 4, 2, 1),
        nn.BatchNorm2d(2 * base),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * base, 4 * base, 4, 2, 1),
        nn.BatchNorm2d(4 * base),
        nn.LeakyReLU(0.2),
    ]


def ending(base: int, side: tuple[int, int], out: int) -> list[nn.Module]:
    """Those maps -> (B, out): the convolution whose kernel is the whole map."""
    return [nn.Flatten(), nn.Linear(4 * base * side[0] * side[1], out)]


def upward(channels: int, base: int, side: tuple[int, int], latent: int) -> nn.Sequential:
    """Codes (B, n) -> images (B, C, 8 h, 8 w) before their tanh."""
    first_map = (2 * base, *side)
    layers: list[nn.Module] = [
        nn.Linear(latent, math.prod(first_map)),
        nn.Unflatten(1, first_map),
    ]
    for before, after in pairwise((2 * base, 2 * base, base, channels)):
        layers += [
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.ConvTranspose2d(before, after, 4, 2, 1),
        ]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """For `Module.apply`: weights N(0, 0.02) and biases 0; batch norm keeps torch's."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


# The density on the surface.


def log_volume(jacobian: Tensor) -> Tensor:
    """log |det S| of J = U S V^T, (B,): Jacobians (B, m, n), m >= n."""
    values: Tensor = torch.linalg.svdvals(jacobian)
    return values.clamp_min(1e-12).log().sum(1)


def fit_gennorm(z: Tensor) -> Tensor:
    """Place, scale and shape of a generalised Gaussian for each column of z (N, n), (3, n)."""
    place = z.mean(0)
    # codes that do not vary have a scale, too
    deviations = (z - place).abs().clamp_min(1e-3)
    ratio = deviations.mean(0).square() / deviations.square().mean(0)
    low = torch.full_like(place, math.log(SHAPES[0]))
    high = torch.full_like(place, math.log(SHAPES[1]))
    # Gamma(2/b)^2 / (Gamma(1/b) Gamma(3/b)) rises with the shape b
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inverse = (-middle).exp()
        terms = 2 * (2 * inverse).lgamma() - inverse.lgamma() - (3 * inverse).lgamma()
        too_low = terms.exp() < ratio
        low = torch.where(too_low, middle, low)
        high = torch.where(too_low, high, middle)
    shape = low.exp()
    scale = (shape * deviations.pow(shape).mean(0)).pow(1 / shape)
    return torch.stack([place, scale, shape])


def gennorm_log_p(z: Tensor, parameters: Tensor) -> Tensor:
    """log p(z) of codes (B, n), the sum over their values, (B,)."""
    place, scale, shape = parameters.unbind()
    constant = (shape / (2 * scale)).log() - (1 / shape).lgamma()
    powers = ((z - place).abs() / scale).pow(shape)
    return (constant - powers).sum(1)


# The density of the distance from it.


def fit_histogram(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Edges (31,) of 30 equal bins over all lengths (N,), and the density in each (30,)."""
    low, high = lengths.amin(), lengths.amax()
    width = ((high - low) / BINS).clamp_min(1e-6)
    index = ((lengths - low) / width).long().clamp(0, BINS - 1)
    counts = torch.bincount(index, minlength=BINS)
    edges = low + width * torch.arange(BINS + 1, device=lengths.device)
    return edges, counts / (len(lengths) * width)


def histogram_log_p(lengths: Tensor, edges: Tensor, density: Tensor) -> Tensor:
    """log p of lengths (B,), FLOOR beyond the last bin and where one is empty."""
    width = edges[1] - edges[0]
    index = ((lengths - edges[0]) / width).floor().long().clamp(0, BINS - 1)
    p = density[index]
    # straight to 0 below the first bin
    p = torch.where(lengths < edges[0], density[0] * lengths / edges[0], p)
    p = torch.where(lengths > edges[-1], torch.zeros_like(p), p)
    is_empty = p <= 0
    return torch.where(is_empty, torch.full_like(p, FLOOR), torch.where(is_empty, 1, p).log())


def sphere_log_area(lengths: Tensor, dimensions: float) -> Tensor:
    """log of the surface of the sphere of each radius (B,) in so many dimensions."""
    half = dimensions / 2
    constant = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
    return constant + (dimensions - 1) * lengths.log()


class GPND(Method):
    """Encoder, decoder and both discriminators; the statistics of codes and distances.

    `share`: of the m - n dimensions across the surface, how many count.
    """

    not_exportable: ClassVar[str] = "its score takes a Jacobian for each image"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 2e-3,
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        channels: Annotated[int, Field(ge=2)] = 128,
        latent_size: PositiveInt = 16,
        w_recon: NonNegativeFloat = 0.3,
        w_lat: NonNegativeFloat = 2.0,
        jacobian: bool = True,
        share: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ) -> None:
        super().__init__(image_shape)
        colours, height, width = image_shape
        if height % 8 or width % 8:
            raise ValueError(
                f"data.size={height}: GPND halves the image three times; take 8, 16, ..."
            )
        values = colours * height * width
        if latent_size >= values:
            raise ValueError(f"method.latent_size={latent_size}: an image has {values} values")
        self.lr = lr
        self.beta1 = beta1
        self.latent_size = latent_size
        self.w_recon = w_recon
        self.w_lat = w_lat
        self.jacobian = jacobian
        #: dimensions across the surface
        self.across = max(1.0, share * (values - latent_size))
        side = (height // 8, width // 8)
        self.encoder = nn.Sequential(
            *downward(colours, channels), *ending(channels, side, latent_size)
        )
        self.decoder = upward(colours, channels, side, latent_size)
        self.discriminator = nn.Sequential(
            *downward(colours, channels), *ending(channels, side, 1), nn.Flatten(0)
        )
        self.latent_discriminator = nn.Sequential(
            nn.Linear(latent_size, channels),
            nn.LeakyReLU(0.2),
            nn.Linear(channels, channels),
            nn.LeakyReLU(0.2),
            nn.Linear(channels, 1),
            nn.Flatten(0),
        )
        self.apply(initialise)
        # of the training inliers: generalised Gaussians of codes, a histogram of distances
        self.register_buffer("gennorm", torch.ones(3, latent_size))
        self.register_buffer("edges", torch.arange(BINS + 1.0))
        self.register_buffer("density", torch.full((BINS,), 1 / BINS))
        self.gennorm: Tensor
        self.edges: Tensor
        self.density: Tensor

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "discriminator": adam(self.discriminator, lr=self.lr, beta1=self.beta1),
            "generator": adam(self.decoder, lr=self.lr, beta1=self.beta1),
            "latent_discriminator": adam(self.latent_discriminator, lr=self.lr, beta1=self.beta1),
            "autoencoder": adam(self.encoder, self.decoder, lr=self.lr, beta1=self.beta1),
        }

    # Training.

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of each: images' discriminator, decoder, codes' discriminator, auto-encoder.

        Losses `discriminator`, `generator`, `latent_discriminator`, `latent` and `recon`.
        """
        drawn = torch.randn(len(batch.x), self.latent_size, device=batch.x.device)
        fake = self.decode(drawn)
        losses = self._update_images(batch.x, fake)
        z = self.encoder(batch.x)
        losses |= self._update_latent_discriminator(torch.randn_like(z), z.detach())
        losses |= self._update_autoencoder(batch.x, z)
        return losses

    def _update_images(self, x: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """D tells images (1) from decoded draws (0), then the decoder fools it."""
        loss = discriminator_loss(self.discriminator(x), self.discriminator(fake.detach()))
        self.minimise(loss, "discriminator")
        with frozen(self.discriminator):
            fooled = bce(self.discriminator(fake), 1).mean()
            self.minimise(fooled, "generator")
        return detached({"discriminator": loss, "generator": fooled})

    def _update_latent_discriminator(self, drawn: Tensor, z: Tensor) -> dict[str, Tensor]:
        """D_z tells draws of N(0, I) (1) from codes (0)."""
        loss = discriminator_loss(self.latent_discriminator(drawn), self.latent_discriminator(z))
        self.minimise(loss, "latent_discriminator")
        return {"latent_discriminator": loss.detach()}

    def _update_autoencoder(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Encoder and decoder rebuild x, and the encoder fools D_z."""
        with frozen(self.latent_discriminator):
            latent = bce(self.latent_discriminator(z), 1).mean()
            recon = self.cross_entropy(x, z).mean()
            self.minimise(self.w_recon * recon + self.w_lat * latent, "autoencoder")
        return detached({"latent": latent, "recon": recon})

    def cross_entropy(self, x: Tensor, z: Tensor) -> Tensor:
        """Of the grey values of x (B, C, H, W) and those decoded of z, a mean over pixels, (B,)."""
        # (tanh a + 1) / 2 is the sigmoid of 2 a
        logits = 2 * wide(self.decoder(z))
        return bernoulli_nll(wide(x), logits) / x[0].numel()

    def decode(self, z: Tensor) -> Tensor:
        """Codes (B, n) -> images (B, C, H, W) in (-1, 1)."""
        x_hat: Tensor = self.decoder(z).tanh()
        return x_hat

    def validation_loss(self, x: Tensor) -> Tensor:
        """The cross entropy of held-out inliers, (B,)."""
        return self.cross_entropy(x, self.encoder(x))

    # The score.

    def prepare_score(self, train: Tensor) -> None:
        """Fits both densities to the training inliers, under the weights of now."""
        codes, lengths = [], []
        for part in torch.split(train, BATCH):
            z = self.encoder(part)
            codes.append(wide(z))
            lengths.append(self.distance(part, z))
        self.gennorm = fit_gennorm(torch.cat(codes))
        self.edges, self.density = fit_histogram(torch.cat(lengths))

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """|x - x_hat| of x (B, C, H, W) and its code z, (B,)."""
        difference = wide(x) - wide(self.decode(z))
        length: Tensor = difference.flatten(1).square().sum(1).clamp_min(1e-12).sqrt()
        return length

    def jacobians(self, z: Tensor) -> Tensor:
        """dx_hat/dz of codes (B, n), (B, m, n), by forward mode; batch norm as in evaluation."""

        def image(code: Tensor) -> Tensor:
            return self.decode(code[None]).flatten()

        # a tensor made under inference mode has no tangent
        with _FORWARD, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            # torch's own, where forward mode is first used
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
            jacobians: Tensor = torch.func.vmap(torch.func.jacfwd(image))(z.detach().clone())
        return jacobians

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("novelty", "parallel", "perpendicular", "distance")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`novelty`: -log p(x), the sum of `parallel` and `perpendicular`; `distance`: |x - x_hat|."""
        z = self.encoder(x)
        parallel = -gennorm_log_p(wide(z), self.gennorm)
        if self.jacobian:
            parallel = parallel + log_volume(wide(self.jacobians(z)))
        length = self.distance(x, z)
        log_p = histogram_log_p(length, self.edges, self.density)
        perpendicular = sphere_log_area(length, self.across) - log_p
        return {
            "novelty": parallel + perpendicular,
            "parallel": parallel,
            "perpendicular": perpendicular,
            "distance": length,
        }

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in (-1, 1)."""
        return self.decode(self.encoder(x))

    def embed(self, x: Tensor) -> Tensor:
        """The code, (B, n)."""
        z: Tensor = self.encoder(x)
        return z
