"""Deep SVDD: Deep One-Class Classification (Ruff et al., ICML 2018).

A network without bias terms or bounded activations maps inliers close to a fixed point c; the score
is the distance from it. With biases, a bounded activation or a free c the network could map
everything onto c (propositions 1 to 3). Before, an auto-encoder is trained whose encoder the
network is; c is the mean of what that encoder makes of the training images.

The authors have two codes. The printed numbers come from the first one (Theano); the later one
(PyTorch) is what the defaults follow. What differs between them and the paper, and what stands
here:
- layers: the LeNets of both, leakiness 0.01; 0.1 in the paper;
- batch norm: with a learned scale and shift in the first code (`batch_norm=learned`), without in
  the later one. A shift is a bias by another name, which section 3.3 warns of; the printed numbers
  have it;
- first filters: atoms of a dictionary learned on patches of the training images in the first code,
  on MNIST (`first_filters=dictionary`);
- other initial weights: Glorot's with a leaky ReLU's gain, as the first code has them in its
  convolutions; its matrix product goes without the gain (`glorot_gain=convolutions`). The later
  code has PyTorch's own on MNIST;
- decoder: the mirror image, starting from a matrix product so that any size goes, and ending
  without an activation so that any scale goes. Both codes squeeze the code into 4 x 4 maps and end
  with a sigmoid (`decoder=squeezed`). The mirror image normalises the code before it on every data
  set; of the authors' codes the later one alone does so, on CIFAR-10 alone. It is thrown away after
  pretraining;
- one planned number of epochs for both phases: `pretrain` is the first one's share. Adam for each
  (both codes), the rate divided by 10 after a share of the phase (`lr_drop`: later code; two rates
  in the paper, 1e-4 and 1e-5). In the first code pretraining keeps its rate;
- |c_i| < 0.1 is pushed to 0.1 with its sign, against a unit that zero weights satisfy (both codes);
  the paper says nothing of it;
- soft boundary: R is the (1 - nu) quantile of the distances, which minimises eq. 3 for the network
  as it is. It is set before every epoch, from each image's distance when it was last met; the paper
  does so every few epochs, the later code after every step, from that step's images. As in the code
  R is 0 at first (`warm_up`: 10 of 150 epochs);
- weight decay as Adam's L2 term, of weights and, while pretraining, of batch norm's scales, never
  of its shifts (first code); the loss of eqs. 3 and 4 is reported without it;
- selection: the lowest loss on held-out inliers, never an epoch of pretraining, nor of a soft
  boundary whose radius is still 0; the authors take the last epoch, and hold no image out;
- batches: drawn anew in each epoch; the first code shuffles batches that stay as they are.
Recipes (conf/recipe/deep_svdd.yaml): `default` is the later code, `first_code` the first one on top
of it; both set Deep SVDD's own contrast normalisation (data.contrast=gcn). Published mean AUROC:
MNIST P2 0.948, CIFAR-10 P2 0.6481.
Measured on MNIST's digits 0, 3, 5 and 8 (printed 0.980, 0.919, 0.885, 0.939): 0.987, 0.906, 0.892,
0.934 by the first code, 0.951, 0.904 and 0.907 on 0, 3 and 8 by the later one
(experiments/learn/deep_svdd.yaml).
"""

import math
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method, Phase

#: Channels of the blocks, each of which halves the image, and length of the code (section 4.1).
ARCHITECTURES: dict[str, tuple[tuple[int, ...], int]] = {
    "mnist": ((8, 4), 32),
    "cifar10": ((32, 64, 128), 128),
}
#: Least distance of each of the centre's values from 0.
CENTRE_EPS = 0.1
#: Both codes' decoders start from square maps of this side, whatever the size of the images.
SQUEEZED_SIDE = 4
#: By architecture: the one side that such a decoder gives, and the padding of its convolutions but
#: the last.
SQUEEZED: dict[str, tuple[int, tuple[int, ...]]] = {
    "mnist": (28, (2, 1)),
    "cifar10": (32, (2, 2, 2)),
}

#: Of the dictionary of the first filters: images drawn, patches drawn from them, patches per step.
DICTIONARY_IMAGES, DICTIONARY_PATCHES, DICTIONARY_BATCH = 500, 10_000, 10


# Networks.


def block(
    convolution: nn.Module, channels: int, resize: nn.Module, learned: bool
) -> list[nn.Module]:
    """Convolution, batch norm, leaky ReLU, and a pooling or its reverse.

    Batch norm has scale and shift where `learned`.
    """
    return [
        convolution,
        nn.BatchNorm2d(channels, eps=1e-4, affine=learned),
        nn.LeakyReLU(),
        resize,
    ]


def encoder(
    channels: int, widths: tuple[int, ...], latent: int, side: tuple[int, int], learned: bool
) -> nn.Sequential:
    """The network of Deep SVDD: images (B, C, H, W) -> codes (B, latent). `side` is the last map's."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *widths)):
        convolution = nn.Conv2d(before, after, 5, padding=2, bias=False)
        layers += block(convolution, after, nn.MaxPool2d(2), learned)
    values = widths[-1] * math.prod(side)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(values, latent, bias=False))


def mirror_decoder(
    channels: int, widths: tuple[int, ...], latent: int, side: tuple[int, int], learned: bool
) -> nn.Sequential:
    """Codes (B, latent) -> images (B, C, H, W), unbounded; for pretraining alone."""
    first_map = (widths[-1], *side)
    layers: list[nn.Module] = [
        nn.BatchNorm1d(latent, eps=1e-4, affine=learned),
        nn.Linear(latent, math.prod(first_map), bias=False),
        nn.Unflatten(1, first_map),
        nn.LeakyReLU(),
        nn.Upsample(scale_factor=2),
    ]
    for before, after in pairwise(reversed(widths)):
        convolution = nn.ConvTranspose2d(before, after, 5, padding=2, bias=False)
        layers += block(convolution, after, nn.Upsample(scale_factor=2), learned)
    layers.append(nn.ConvTranspose2d(widths[0], channels, 5, padding=2, bias=False))
    return nn.Sequential(*layers)


def squeezed_decoder(
    channels: int, widths: tuple[int, ...], latent: int, paddings: tuple[int, ...], learned: bool
) -> nn.Sequential:
    """The authors' decoder: codes (B, latent) as maps of 4 x 4 -> images (B, C, H, W) in (0, 1).

    Each block doubles the side. On MNIST, which has a block less, it is doubled before the first
    one too, and the second convolution shrinks it from 16 to 14.
    """
    maps = latent // SQUEEZED_SIDE**2
    layers: list[nn.Module] = [
        nn.Unflatten(1, (maps, SQUEEZED_SIDE, SQUEEZED_SIDE)),
        nn.LeakyReLU(),
    ]
    if len(widths) == 2:
        layers.append(nn.Upsample(scale_factor=2))
    steps = pairwise((maps, *reversed(widths)))
    for (before, after), padding in zip(steps, paddings, strict=True):
        convolution = nn.Conv2d(before, after, 5, padding=padding, bias=False)
        layers += block(convolution, after, nn.Upsample(scale_factor=2), learned)
    layers.append(nn.Conv2d(widths[0], channels, 5, padding=2, bias=False))
    layers.append(nn.Sigmoid())
    return nn.Sequential(*layers)


def initialise(module: nn.Module, gain_of_products: bool) -> None:
    """Glorot's uniform weights with a leaky ReLU's gain, which matrix products may go without."""
    gain = nn.init.calculate_gain("leaky_relu", 0.01)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight, gain=gain)
    elif isinstance(module, nn.Linear):
        if not gain_of_products:
            gain = 1.0
        nn.init.xavier_uniform_(module.weight, gain=gain)


def dictionary_filters(images: Tensor, count: int, side: int, seed: int) -> Tensor:
    """Atoms of a sparse dictionary of patches, as filters (count, C, side, side).

    Each has a norm of 1 at most.

    Args:
        images: Training images (N, C, H, W), preprocessed.
        count: How many filters.
        side: Of a filter.
        seed: Of the drawn images and patches and of the learning.
    """
    random = np.random.default_rng(seed)
    # all windows of the drawn images
    count_drawn = min(DICTIONARY_IMAGES, len(images))
    drawn = random.choice(len(images), count_drawn, replace=False)
    sample = images[torch.from_numpy(drawn).to(images.device)].float().cpu().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(sample, (side, side), axis=(2, 3))
    rows, columns = windows.shape[2:4]
    # patches drawn from them, of mean 0 and deviation 1 in each pixel
    picture = random.integers(len(windows), size=DICTIONARY_PATCHES)
    row = random.integers(rows, size=DICTIONARY_PATCHES)
    column = random.integers(columns, size=DICTIONARY_PATCHES)
    patches = windows[picture, :, row, column].reshape(DICTIONARY_PATCHES, -1)
    patches = patches.astype(np.float64)
    patches -= patches.mean(0)
    patches /= np.maximum(patches.std(0), 1e-8)
    # each patch is met once: no second round, and no early end
    learner = MiniBatchDictionaryLearning(
        count,
        alpha=1,
        max_iter=1,
        batch_size=DICTIONARY_BATCH,
        tol=0,
        max_no_improvement=None,
        random_state=seed,
    )
    learner.fit(patches)
    atoms = learner.components_.reshape(count, images.shape[1], side, side)
    # Theano convolves, and so turns its filters by 180 degrees
    filters = np.ascontiguousarray(atoms[:, :, ::-1, ::-1])
    return torch.from_numpy(filters).float()


def parameter_groups(network: nn.Module, decay: float, decay_scales: bool) -> list[dict[str, Any]]:
    """Adam's groups: weights with their decay, and parameters without.

    Where batch norm has parameters: shifts never decay.
    """
    groups: dict[float, list[nn.Parameter]] = {decay: [], 0.0: []}
    for module in network.modules():
        is_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        for name, parameter in module.named_parameters(recurse=False):
            decays = not is_norm or (decay_scales and name == "weight")
            value = decay if decays else 0.0
            groups[value].append(parameter)
    return [
        {"params": parameters, "weight_decay": value}
        for value, parameters in groups.items()
        if parameters
    ]


# Objectives, centre and radius (section 3).


def reconstruction_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """The auto-encoder's loss, a sum over the pixels -> (B,).

    Squared difference of images (B, C, H, W).
    """
    return (x - x_hat).square().flatten(1).sum(1)


def squared_distance(z: Tensor, centre: Tensor) -> Tensor:
    """||z - c||^2, eq. 5, of codes (B, D) -> (B,).

    Averaged over the images it is eq. 4 without its weight decay.
    """
    return (z - centre).square().sum(1)


def soft_boundary(distance: Tensor, radius: Tensor, nu: float) -> Tensor:
    """Eq. 3 without its weight decay, an image's share: R^2 + max(0, d - R^2) / nu.

    Squared distances (B,) -> (B,).
    """
    outside = (distance - radius.square()).relu()
    return radius.square() + outside / nu


def guarded_mean(z: Tensor) -> Tensor:
    """The centre: mean (D,) of codes (N, D).

    What is closer to 0 than CENTRE_EPS goes there, keeping its sign.
    """
    mean = z.mean(0)
    is_small = mean.abs() < CENTRE_EPS
    return torch.where(is_small, CENTRE_EPS * mean.sign(), mean)


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
        lr: PositiveFloat = 1e-4,
        lr_drop: Annotated[float, Field(ge=0, le=1)] = 0.333,
        weight_decay: NonNegativeFloat = 5e-7,
        pretrain: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        ae_lr: PositiveFloat = 1e-4,
        ae_lr_drop: Annotated[float, Field(ge=0, le=1)] = 0.333,
        ae_weight_decay: NonNegativeFloat = 5e-7,
        architecture: Literal["auto", "mnist", "cifar10"] = "auto",
        batch_norm: Literal["fixed", "learned"] = "fixed",
        first_filters: Literal["random", "dictionary"] = "random",
        glorot_gain: Literal["all", "convolutions"] = "all",
        decoder: Literal["mirror", "squeezed"] = "mirror",
    ) -> None:
        super().__init__(image_shape)
        channels, height, width = image_shape
        name: str = architecture
        if architecture == "auto":
            name = "mnist" if channels == 1 else "cifar10"
        widths, latent = ARCHITECTURES[name]
        shrink = 2 ** len(widths)
        if height % shrink or width % shrink:
            raise ValueError(
                f"data.size={height}: method.architecture={name} takes a multiple of {shrink}"
            )
        self.objective = objective
        self.nu = nu
        self.warm_up = warm_up
        self.pretrain = pretrain
        #: by optimizer: rate, share of the phase after which it drops, weight decay
        self.settings = {
            "autoencoder": (ae_lr, ae_lr_drop, ae_weight_decay),
            "encoder": (lr, lr_drop, weight_decay),
        }
        self.first_filters = first_filters
        # networks
        side = (height // shrink, width // shrink)
        learned = batch_norm == "learned"
        self.encoder = encoder(channels, widths, latent, side, learned)
        if decoder == "squeezed":
            size, paddings = SQUEEZED[name]
            if (height, width) != (size, size):
                raise ValueError(
                    f"data.size={height}: method.decoder=squeezed with method.architecture={name} takes {size}"
                )
            self.decoder = squeezed_decoder(channels, widths, latent, paddings, learned)
        else:
            self.decoder = mirror_decoder(channels, widths, latent, side, learned)
        self.apply(partial(initialise, gain_of_products=glorot_gain == "all"))
        # what the network is drawn to, and the state of the phases
        self.register_buffer("centre", torch.zeros(latent))
        self.register_buffer("radius", torch.zeros(()))
        #: soft boundary: squared distance of each training image when it was last met
        self.register_buffer("distances", torch.zeros(0))
        self.centre: Tensor
        self.radius: Tensor
        self.distances: Tensor
        #: whether the centre is final; until then the training images are needed
        self.centred = False
        self.images: Tensor | None = None
        #: `progress` of the epoch that `_begin_epoch` has seen
        self.begun = -1.0

    @property
    def phases(self) -> list[Phase]:
        """Pretraining, with a soft boundary epochs whose radius is 0, and training by eq. 3 or 4."""
        phases: list[Phase] = []
        start = self.pretrain
        if self.pretrain:
            phases.append(Phase("of pretraining", 0.0, selectable=False))
        if self.objective == "soft-boundary" and self.warm_up > 0:
            phases.append(Phase("with a radius of 0", self.pretrain))
            # `phase` rounds to nine digits
            start = self.pretrain + (self.warm_up - 5e-10) * (1 - self.pretrain)
        if phases:
            phases.append(Phase("of one-class training", start))
        return phases

    @property
    def phase(self) -> tuple[str, float]:
        """The optimizer in use and the share of its phase that is over, in [0, 1).

        Rounded so that 0.4 is 0.4.
        """
        if self.progress < self.pretrain:
            share = self.progress / self.pretrain
            return "autoencoder", round(share, 9)
        share = (self.progress - self.pretrain) / (1 - self.pretrain)
        return "encoder", round(share, 9)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        networks = {
            "autoencoder": nn.ModuleList([self.encoder, self.decoder]),
            "encoder": self.encoder,
        }
        optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, (_, _, decay) in self.settings.items():
            groups = parameter_groups(networks[name], decay, decay_scales=name == "autoencoder")
            optimizers[name] = torch.optim.Adam(groups, self._rate(name), fused=True)
        return optimizers

    def _rate(self, name: str) -> float:
        rate, drop, _ = self.settings[name]
        phase, over = self.phase
        if name == phase and over >= drop:
            return rate / 10
        return rate

    # Training.

    def prepare(self, train: Tensor) -> None:
        """First filters, then centre and distances of the network as initialised.

        They are final without pretraining.
        """
        self.images = train
        if self.first_filters == "dictionary":
            first = next(module for module in self.encoder if isinstance(module, nn.Conv2d))
            seed = int(torch.randint(2**31, ()))
            filters = dictionary_filters(train, first.out_channels, first.kernel_size[0], seed)
            with torch.no_grad():
                first.weight.copy_(filters)
        self._place_centre()
        self.centred = self.pretrain == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step.

        Losses: while pretraining `recon`, then `loss` (eq. 3 or 4), `distance` and, for eq. 3,
        `radius`.
        """
        if self.progress != self.begun:
            self._begin_epoch()
        if self.phase[0] == "autoencoder":
            x_hat = self.decoder(self.encoder(batch.x))
            recon = reconstruction_error(batch.x, x_hat).mean()
            self.minimise(recon, "autoencoder")
            return {"recon": recon.detach()}
        distance = squared_distance(self.encoder(batch.x), self.centre)
        loss = self._objective(distance).mean()
        self.minimise(loss, "encoder")
        distance = distance.detach()
        losses = {"loss": loss.detach(), "distance": distance.mean()}
        if self.objective == "soft-boundary":
            self.distances.index_copy_(0, batch.index, distance.to(self.distances))
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
        """Places the centre and, for eq. 3, the distances.

        One pass over the training images in evaluation mode and float32.
        """
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
        if self.objective == "one-class":
            return distance
        return soft_boundary(distance, self.radius, self.nu)

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
        """`distance`: squared distance from the centre, (B,).

        Less R^2 with a soft boundary: above 0 is outside.
        """
        distance = squared_distance(self.embed(x), self.centre)
        return {"distance": distance - self.radius.square()}

    def validation_loss(self, x: Tensor) -> Tensor:
        """Eq. 3 or 4 of held-out inliers, (B,).

        Infinite while pretraining, whose epochs are not to be selected.
        """
        distance = squared_distance(self.embed(x), self.centre)
        loss = self._objective(distance)
        if self.phase[0] == "autoencoder":
            return torch.full_like(loss, math.inf)
        return loss

    def embed(self, x: Tensor) -> Tensor:
        """The code, (B, D)."""
        z: Tensor = self.encoder(x)
        return z
