"""MSAD: features of a network trained elsewhere, told apart as seen from their own centre.

Reiss and Hoshen, "Mean-Shifted Contrastive Loss for Anomaly Detection" (AAAI 2023, arXiv
2106.03844). Features of unit length lie close together for the inliers of one class, so that a
contrastive loss on them, which pushes images apart, undoes at first what was learned elsewhere. On
the differences from their centre, brought to unit length, it does not. The last stages of a network
that was trained on ImageNet train on by this mean-shifted contrastive loss; the score is the cosine
distance to the k nearest training inliers.

The paper's steps are below in its order: features, two views of an image, mean-shifted contrastive
loss, angular centre loss, score.

Choices (CHOICE), and what the authors' code has (CODE):
- CHOICE: the network is EfficientNet-Lite0 by default, whose weights the extra brings; CODE has
  ResNet-152, its average-pooled last maps, images of 224 pixels cut out of 256 (`recipe=paper` has
  the network; images are stretched to 224 pixels, nothing is cut off).
- CODE: the last two stages train (`trained_stages`), by SGD at 1e-5 without momentum, weight decay
  5e-5, batches of 64, temperature 0.25, 20 epochs; batch norm stays in evaluation mode: its
  statistics do not move, its scales and shifts train.
- CODE: the two views are MoCo's: a window of 0.2 to 1 of the area, colour jitter 0.4, 0.4, 0.4, 0.1
  with probability 0.8, grey with 0.2, blur of 0.1 to 2 pixels with 0.5, mirrored with 0.5.
- CHOICE: views are made at the images' own size, whole batches at once, and stretched afterwards,
  where CODE stretches the window itself; the blur is as wide in parts of the image, so that of
  images of 32 pixels little of it is left. Jitter comes in a fixed order, CODE's in a random one.
  Grey images have no colours to change.
- CHOICE: the angular centre loss (`angular`) is the paper's, -phi(x) c, c of unit length, the sum of
  both views; CODE adds their squared distances from c, which is 2 - 2 phi(x) c, and then shifts by
  that c as well. Here the shift is by the mean itself in either case.
- CHOICE: the loss of a held-out inlier has its mirror image as the other view, and the training set
  in the place of the other images of a batch: nothing in it is random. CODE holds nothing out.
- CODE: the score is the sum of the squared distances |phi(x) - phi(y)|^2 = 2 - 2 cos of the two
  nearest; here of 1 - cos, half of that.
- CHOICE: the neighbours' features are computed anew from the training images for every epoch that
  is looked at or kept (`prepare_score`), and kept with its weights. Published mean AUROC by a
  ResNet: CIFAR-10 0.972, Fashion-MNIST 0.942 (experiments/published.yaml).
"""

import math
from typing import Literal

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.backbone import BUNDLED, Backbone, take_weights
from noveltylab.nets.losses import wide
from noveltylab.nets.neighbours import nearest_squares

#: Images in a batch where features of many are computed.
BATCH = 32
#: Widest blur as a part of the image's side: 2 of 224 pixels.
BLUR = 2 / 224


# Two views of an image: one draw per image from torch's generator, nothing asked of the device.


@torch.no_grad()
def view(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] -> as many in [-1, 1], each with its own draw."""
    with torch.autocast(x.device.type, enabled=False):
        window = random_window(len(x), x)
        grid = F.affine_grid(window, list(x.shape), align_corners=False)
        cut = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        unit = (0.5 * cut + 0.5).clamp(0, 1)
        return 2 * random_blur(random_colour(unit)) - 1


def random_window(count: int, like: Tensor) -> Tensor:
    """Maps from output to input places in [-1, 1], (count, 2, 3).

    A window of 0.2 to 1 of the area and aspect 3/4 to 4/3 inside the image, mirrored with 0.5.
    """
    draws = torch.rand(5, count, device=like.device, dtype=like.dtype)
    area, shape, left, top, mirror = draws
    area = 0.2 + 0.8 * area
    aspect = ((2 * shape - 1) * math.log(4 / 3)).exp()
    width = (area * aspect).sqrt().clamp_max(1)
    height = (area / aspect).sqrt().clamp_max(1)
    flip = 1 - 2 * (mirror < 0.5).to(like.dtype)
    zero = torch.zeros_like(area)
    x_row = torch.stack([width * flip, zero, (1 - width) * (2 * left - 1)], 1)
    y_row = torch.stack([zero, height, (1 - height) * (2 * top - 1)], 1)
    return torch.stack([x_row, y_row], 1)


def random_colour(y: Tensor) -> Tensor:
    """Jitter with probability 0.8, then grey with 0.2; y (B, C, H, W) in [0, 1].

    Brightness, contrast and saturation by 0.6 to 1.4, hue by a tenth of the circle at most; grey
    images have the first two alone.
    """
    draws = torch.rand(6, len(y), 1, 1, 1, device=y.device, dtype=y.dtype)
    brightness, contrast, saturation = 0.6 + 0.8 * draws[:3]
    jittered = adjust_brightness_accumulative(y, brightness)
    jittered = adjust_contrast_with_mean_subtraction(jittered, contrast)
    is_colour = y.shape[1] == 3
    if is_colour:
        jittered = adjust_saturation_with_gray_subtraction(jittered, saturation)
        jittered = adjust_hue(jittered, (0.2 * draws[3] - 0.1) * (2 * math.pi))
    y = torch.where(draws[4] < 0.8, jittered, y)
    if not is_colour:
        return y
    return torch.where(draws[5] < 0.2, rgb_to_grayscale(y), y)


def random_blur(y: Tensor) -> Tensor:
    """A Gaussian blur of 0.05 to 1 of the widest with probability 0.5; y (B, C, H, W)."""
    widest = BLUR * y.shape[-1]
    reach = math.ceil(3 * widest)
    draws = torch.rand(2, len(y), 1, 1, 1, device=y.device, dtype=y.dtype)
    deviation = widest * (0.05 + 0.95 * draws[0])
    blurred = y
    for axis in (2, 3):
        total = torch.zeros_like(y)
        weights = torch.zeros_like(deviation)
        side = y.shape[axis]
        places = torch.arange(side, device=y.device)
        for step in range(-reach, reach + 1):
            weight = (-0.5 * (step / deviation).square()).exp()
            shifted = blurred.index_select(axis, (places + step).clamp(0, side - 1))
            total = total + weight * shifted
            weights = weights + weight
        blurred = total / weights
    return torch.where(draws[1] < 0.5, blurred, y)


# Mean-shifted contrastive loss.


def mean_shifted(phi: Tensor, centre: Tensor) -> Tensor:
    """theta(x) = (phi(x) - c) / |phi(x) - c| of features (B, D), (B, D)."""
    return F.normalize(phi - centre, dim=1)


def contrastive_loss(theta: Tensor, other: Tensor, temperature: float) -> Tensor:
    """-log of the share that an image's other view has among all other views, (2 B,).

    exp(theta_i theta_i' / tau) / sum over k != i of exp(theta_i theta_k / tau); k runs over both
    views of all images, theta and other (B, D).
    """
    both = wide(torch.cat([theta, other]))
    logits = both @ both.T / temperature
    itself = torch.eye(len(both), device=both.device, dtype=torch.bool)
    logits = logits.masked_fill(itself, -math.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(theta))
    return F.cross_entropy(logits, partner, reduction="none")


# Angular centre loss.


def angular_loss(phi: Tensor, centre: Tensor) -> Tensor:
    """-phi(x) c of features (B, D) of unit length, c brought to unit length, (B,)."""
    return -(phi @ F.normalize(centre, dim=0))


class MSAD(Method):
    """A backbone whose last stages train, a fixed centre, and the features of the training set.

    `backbone`, `weights`, `trained_on`, `stages`, `input_size`: as of method=features;
    `trained_stages`: how many of the last stages train; `temperature`: of the contrastive loss;
    `angular`: whether the angular centre loss is added; `k`: neighbours of the score.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        backbone: str = BUNDLED,
        weights: str | None = None,
        trained_on: Literal["ImageNet", "more than ImageNet", "image and text"] = "ImageNet",
        stages: list[int] = [4],  # noqa: B006  # read, never changed
        input_size: PositiveInt | None = None,
        trained_stages: PositiveInt = 2,
        lr: PositiveFloat = 1e-5,
        momentum: NonNegativeFloat = 0.0,
        weight_decay: NonNegativeFloat = 5e-5,
        temperature: PositiveFloat = 0.25,
        angular: bool = False,
        k: PositiveInt = 2,
    ) -> None:
        super().__init__(image_shape)
        self.trained_on = trained_on  # type: ignore[misc]  # that of its class
        self.weights_file = weights
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.temperature = temperature
        self.angular = angular
        self.k = k
        self.backbone = Backbone(backbone, tuple(stages), input_size, max(image_shape[1:]))
        self.backbone.let_train(trained_stages)
        size = sum(self.backbone.channels)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("bank", torch.zeros(0, size))
        self.centre: Tensor
        self.bank: Tensor

    # Features and their centre.

    def take_pretrained(self) -> None:
        self.pretrained = take_weights(self.backbone, self.weights_file)

    def prepare(self, train: Tensor) -> None:
        """The centre and the bank of the network as it came."""
        with torch.no_grad():
            self.prepare_score(train)
            self.centre = self.bank.mean(0)

    def embed(self, x: Tensor) -> Tensor:
        """phi(x), features of unit length, (B, D)."""
        return F.normalize(wide(self.backbone.pooled(x)), dim=1)

    # Training.

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = torch.optim.SGD(
            self.backbone.trained(),
            self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        return {"backbone": optimizer}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of SGD on two views of each image.

        Losses: `contrastive`, and with the angular centre loss `angle`, that of both views.
        """
        phi = self.embed(torch.cat([view(batch.x), view(batch.x)]))
        theta, other = mean_shifted(phi, self.centre).chunk(2)
        loss = contrastive_loss(theta, other, self.temperature).mean()
        losses = {"contrastive": loss.detach()}
        if self.angular:
            angle = 2 * angular_loss(phi, self.centre).mean()
            losses["angle"] = angle.detach()
            loss = loss + angle
        self.minimise(loss, "backbone")
        return losses

    def validation_loss(self, x: Tensor) -> Tensor:
        """The loss of held-out inliers, (B,): mirrored for the other view, against the training set."""
        phi = self.embed(x)
        mirrored = self.embed(x.flip(3))
        theta = mean_shifted(phi, self.centre)
        partner = (theta * mean_shifted(mirrored, self.centre)).sum(1) / self.temperature
        others = theta @ mean_shifted(self.bank, self.centre).T / self.temperature
        loss = torch.cat([partner[:, None], others], 1).logsumexp(1) - partner
        if self.angular:
            loss = loss + angular_loss(phi, self.centre) + angular_loss(mirrored, self.centre)
        return loss

    # The score.

    def prepare_score(self, train: Tensor) -> None:
        """The training set's features under the weights of now."""
        self.bank = torch.cat([self.embed(part) for part in torch.split(train, BATCH)])

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("knn",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`knn`: sum of 1 - cos to the k nearest training inliers, (B,)."""
        return {"knn": nearest_squares(self.embed(x), self.bank, self.k).sum(1) / 2}
