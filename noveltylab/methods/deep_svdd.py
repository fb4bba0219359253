"""Deep SVDD: Deep One-Class Classification (Ruff et al., ICML 2018).

A network without bias terms or bounded activations maps inliers close to a fixed point c; the score is the distance from it.
With biases, a bounded activation or a free c the network could map everything onto c (propositions 1 to 3). Before, an
auto-encoder is trained whose encoder the network is; c is the mean of what that encoder makes of the training images.

"Code" below is the authors' later PyTorch code. What differs between it and the paper, and what stands here:
- layers: the LeNets of both, leakiness 0.01 and batch norm without scale and shift (code); 0.1 in the paper;
- decoder: the mirror image, starting from a matrix product so that any size goes, and ending without an activation so that
  any scale goes; the code squeezes the code into 4 x 4 maps and ends with a sigmoid. It is thrown away after pretraining;
- one planned number of epochs for both phases: `pretrain` is the first one's share. Adam for each (code), the rate divided
  by 10 after a share of the phase (`lr_drop`: code; two rates in the paper, 1e-4 and 1e-5);
- |c_i| < 0.1 is pushed to 0.1 with its sign, against a unit that zero weights satisfy (code); the paper says nothing of it;
- soft boundary: R is the (1 - nu) quantile of the distances, which minimises eq. 3 for the network as it is. It is set before
  every epoch, from each image's distance when it was last met; the paper does so every few epochs, the code after every
  step, from that step's images. As in the code R is 0 at first (`warm_up`: 10 of 150 epochs);
- weight decay as Adam's L2 term, as in the code; the loss of eqs. 3 and 4 is reported without it;
- selection: the lowest loss on held-out inliers, never an epoch of pretraining; the authors take the last epoch.
The printed numbers come from the authors' first code (Theano), which differs from the later one: pretraining keeps its rate, on
MNIST with a weight decay of 1e-3 (`ae_lr_drop=1 ae_weight_decay=1e-3`), batch norm has scale and shift, and the first layer's
filters start from a dictionary of image patches. The last two are not offered.
Images: conf/tuned/ sets Deep SVDD's own contrast normalisation (data.contrast=gcn). Published mean AUROC: MNIST P2 0.948,
CIFAR-10 P2 0.6481.
"""

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method

#: Channels of the blocks, each of which halves the image, and length of the code (section 4.1).
ARCHITECTURES: dict[str, tuple[tuple[int, ...], int]] = {"mnist": ((8, 4), 32), "cifar10": ((32, 64, 128), 128)}
CENTRE_EPS = 0.1


# Networks.


def block(convolution: nn.Module, channels: int, resize: nn.Module) -> list[nn.Module]:
    """Convolution, batch norm without parameters, leaky ReLU, and a pooling or its reverse."""
    return [convolution, nn.BatchNorm2d(channels, eps=1e-4, affine=False), nn.LeakyReLU(), resize]


def encoder(channels: int, widths: tuple[int, ...], latent: int, side: tuple[int, int]) -> nn.Sequential:
    """The network of Deep SVDD: images (B, C, H, W) -> codes (B, latent); no bias anywhere. `side` is the last map's."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *widths)):
        layers += block(nn.Conv2d(before, after, 5, padding=2, bias=False), after, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * math.prod(side), latent, bias=False))


def decoder(channels: int, widths: tuple[int, ...], latent: int, side: tuple[int, int]) -> nn.Sequential:
    """Codes (B, latent) -> images (B, C, H, W), unbounded; for pretraining alone."""
    spread = nn.Linear(latent, widths[-1] * math.prod(side), bias=False)
    layers: list[nn.Module] = [nn.BatchNorm1d(latent, eps=1e-4, affine=False), spread]
    layers += [nn.Unflatten(1, (widths[-1], *side)), nn.LeakyReLU(), nn.Upsample(scale_factor=2)]
    for before, after in pairwise(reversed(widths)):
        layers += block(nn.ConvTranspose2d(before, after, 5, padding=2, bias=False), after, nn.Upsample(scale_factor=2))
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[0], channels, 5, padding=2, bias=False))


def initialise(module: nn.Module) -> None:
    """Glorot's uniform weights."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, gain=nn.init.calculate_gain("leaky_relu", 0.01))


# Objectives, centre and radius (section 3).


def reconstruction_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """The auto-encoder's loss: squared difference of images (B, C, H, W), summed over the pixels -> (B,)."""
    return (x - x_hat).square().flatten(1).sum(1)


def squared_distance(z: Tensor, centre: Tensor) -> Tensor:
    """||z - c||^2, eq. 5, of codes (B, D) -> (B,); averaged over the images it is eq. 4 without its weight decay."""
    return (z - centre).square().sum(1)


def soft_boundary(distance: Tensor, radius: Tensor, nu: float) -> Tensor:
    """Eq. 3 without its weight decay, an image's share: R^2 + max(0, d - R^2) / nu; squared distances (B,) -> (B,)."""
    return radius.square() + (distance - radius.square()).relu() / nu


def guarded_mean(z: Tensor) -> Tensor:
    """The centre: mean (D,) of codes (N, D); what is closer to 0 than CENTRE_EPS goes there, keeping its sign."""
    mean = z.mean(0)
    return torch.where(mean.abs() < CENTRE_EPS, CENTRE_EPS * mean.sign(), mean)


def quantile_radius(distance: Tensor, nu: float) -> Tensor:
    """R: the (1 - nu) quantile of the distances, from squared distances (N,)."""
    return distance.sqrt().quantile(1 - nu)


class DeepSVDD(Method):
    """An encoder, pretrained with a decoder, then drawn together around the centre."""

    own_schedule = "method.lr_drop, method.ae_lr_drop"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        objective: Literal["one-class", "soft-boundary"] = "one-class",
        nu: Annotated[float, Field(gt=0, le=1)] = 0.1,
        warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.067,
        lr: Annotated[float, Field(gt=0)] = 1e-4,
        lr_drop: Annotated[float, Field(ge=0, le=1)] = 0.333,
        weight_decay: Annotated[float, Field(ge=0)] = 5e-7,
        pretrain: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        ae_lr: Annotated[float, Field(gt=0)] = 1e-4,
        ae_lr_drop: Annotated[float, Field(ge=0, le=1)] = 0.333,
        ae_weight_decay: Annotated[float, Field(ge=0)] = 5e-7,
        architecture: Literal["auto", "mnist", "cifar10"] = "auto",
    ) -> None:
        super().__init__(image_shape)
        channels, height, width = image_shape
        name = ("mnist" if channels == 1 else "cifar10") if architecture == "auto" else architecture
        widths, latent = ARCHITECTURES[name]
        shrink = 2 ** len(widths)
        if height % shrink or width % shrink:
            raise ValueError(f"data.size={height}: method.architecture={name} takes a multiple of {shrink}")
        self.objective, self.nu, self.warm_up, self.pretrain = objective, nu, warm_up, pretrain
        #: by optimizer: rate, share of the phase after which it drops, weight decay
        self.settings = {"autoencoder": (ae_lr, ae_lr_drop, ae_weight_decay), "encoder": (lr, lr_drop, weight_decay)}
        side = (height // shrink, width // shrink)
        self.encoder = encoder(channels, widths, latent, side)
        self.decoder = decoder(channels, widths, latent, side)
        self.apply(initialise)
        self.register_buffer("centre", torch.zeros(latent))
        self.register_buffer("radius", torch.zeros(()))
        #: soft boundary: squared distance of each training image when it was last met
        self.register_buffer("distances", torch.zeros(0))
        self.centre: Tensor
        self.radius: Tensor
        self.distances: Tensor
        self.centred = False  # whether the centre is final; until then the training images are needed
        self.images: Tensor | None = None
        self.begun = -1.0  # `progress` of the epoch that `_begin_epoch` has seen

    @property
    def phase(self) -> tuple[str, float]:
        """The optimizer in use and the share of its phase that is over, in [0, 1), rounded so that 0.4 is 0.4."""
        if self.progress < self.pretrain:
            return "autoencoder", round(self.progress / self.pretrain, 9)
        return "encoder", round((self.progress - self.pretrain) / (1 - self.pretrain), 9)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        networks = {"autoencoder": nn.ModuleList([self.encoder, self.decoder]), "encoder": self.encoder}
        return {
            name: torch.optim.Adam(networks[name].parameters(), self._rate(name), weight_decay=decay, fused=True)
            for name, (_, _, decay) in self.settings.items()
        }

    def _rate(self, name: str) -> float:
        rate, drop, _ = self.settings[name]
        phase, over = self.phase
        return rate / 10 if name == phase and over >= drop else rate

    # Training.

    def prepare(self, train: Tensor) -> None:
        """Centre and distances of the network as initialised, which are final without pretraining."""
        self.images = train
        self._place_centre()
        self.centred = self.pretrain == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step. Losses: while pretraining `recon`, then `loss` (eq. 3 or 4), `distance` and, for eq. 3, `radius`."""
        if self.progress != self.begun:
            self._begin_epoch()
        if self.phase[0] == "autoencoder":
            recon = reconstruction_error(batch.x, self.decoder(self.encoder(batch.x))).mean()
            self.minimise(recon, "autoencoder")
            return {"recon": recon.detach()}
        distance = squared_distance(self.encoder(batch.x), self.centre)
        loss = self._objective(distance).mean()
        self.minimise(loss, "encoder")
        losses = {"loss": loss.detach(), "distance": distance.detach().mean()}
        if self.objective == "soft-boundary":
            self.distances.index_copy_(0, batch.index, distance.detach().to(self.distances))
            losses["radius"] = self.radius.clone()
        return losses

    def _begin_epoch(self) -> None:
        """Sets the rates; after pretraining, places the centre once and the radius for this epoch."""
        self.begun = self.progress
        for name, optimizer in self._optimizers_by_name.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rate(name)
        phase, over = self.phase
        if phase == "autoencoder":
            return
        if not self.centred:
            self._place_centre()
            self.centred = True
        self.images = None
        if self.objective == "soft-boundary" and over >= self.warm_up:
            self.radius = quantile_radius(self.distances, self.nu)

    @torch.no_grad()
    def _place_centre(self) -> None:
        """Centre and, for eq. 3, distances: one pass over the training images in evaluation mode and float32."""
        assert self.images is not None
        was_training = self.encoder.training
        self.encoder.eval()
        with torch.autocast(self.images.device.type, enabled=False):
            z = torch.cat([self.encoder(part) for part in torch.split(self.images, 512)])
        self.encoder.train(was_training)
        self.centre = guarded_mean(z)
        if self.objective == "soft-boundary":
            self.distances = squared_distance(z, self.centre)

    def _objective(self, distance: Tensor) -> Tensor:
        """Eq. 3 or 4 for each image, squared distances (B,) -> (B,)."""
        return distance if self.objective == "one-class" else soft_boundary(distance, self.radius, self.nu)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["centred"] = self.centred

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.centred = checkpoint["centred"]

    # The score (eq. 5).

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("distance",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`distance`: squared distance from the centre, less R^2 with a soft boundary (above 0 is outside), (B,)."""
        return {"distance": squared_distance(self.embed(x), self.centre) - self.radius.square()}

    def validation_loss(self, x: Tensor) -> Tensor:
        """Eq. 3 or 4 of held-out inliers, (B,); infinite while pretraining, whose epochs are not to be selected."""
        loss = self._objective(squared_distance(self.embed(x), self.centre))
        return loss if self.phase[0] == "encoder" else torch.full_like(loss, math.inf)

    def embed(self, x: Tensor) -> Tensor:
        """The code, (B, D)."""
        z: Tensor = self.encoder(x)
        return z
