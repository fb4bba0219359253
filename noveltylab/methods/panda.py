"""PANDA: features of a network trained elsewhere, drawn together around their own centre.

Reiss, Cohen, Bergman and Hoshen, "PANDA: Adapting Pretrained Features for Anomaly Detection and
Segmentation" (CVPR 2021, arXiv 2010.05903). The last stages of a network that was trained on
ImageNet train on by a compactness loss: the squared distance of an inlier's features from the
centre, the mean of the training inliers' features before any training, which stays. All features
in the centre would be the least loss of all; against this collapse stand a fixed number of epochs
(early stopping) or elastic weight consolidation (EWC), which holds each weight to its old value by
the Fisher information that it had. The score is the distance to the k nearest training inliers.

The paper's steps are below in its order: features, compactness loss, elastic weight consolidation,
score.

Choices (CHOICE), and what the authors' code has (CODE):
- CHOICE: the network is EfficientNet-Lite0 by default, whose weights the extra brings; CODE has
  ResNet-152, its average-pooled last maps, images of 224 pixels cut out of 256 (`recipe=paper` has
  the network; images are stretched to 224 pixels, nothing is cut off).
- CODE: the last two stages train (`trained_stages`), by SGD at 1e-2 with momentum 0.9 and weight
  decay 5e-5, the norm of all gradients cut to 1e-3, batches of 32; batch norm stays in evaluation
  mode: its statistics do not move, its scales and shifts train.
- CODE: the loss is divided by the number of features D, and so it is here. The norm of the gradient
  being cut, this matters beside EWC alone.
- CODE: 15 epochs without EWC, 50 with it in its README (`recipe=paper`), nothing is held out. The
  paper's other early stopping, which scores by several epochs' networks and takes the highest of
  their normalised scores, is not here: it would need all of their weights.
- CHOICE: the loss of held-out inliers falls for as long as features draw together; so it is the
  number of epochs that stops, and selection by it takes the last epoch or one near it.
- CHOICE: the Fisher information is that of the training inliers, of labels drawn from the network's
  own classifying head (the file of weights must hold it), `fisher_images` of them, one gradient an
  image. CODE ships one of ImageNet, made with its labels, for its own network alone.
- CODE: EWC's weight is 1e4, its Fisher information that of ImageNet; of the inliers it is another
  number, so that the same weight holds more or less tightly.
- CODE: the score is the sum of the two nearest squared distances.
- CHOICE: the neighbours' features are computed anew from the training images for every epoch that
  is looked at or kept (`prepare_score`), and kept with its weights. Published mean AUROC: CIFAR-10
  0.962, Fashion-MNIST 0.956, by a ResNet-152 (experiments/published.yaml).
"""

from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.backbone import BUNDLED, Backbone, take_weights
from noveltylab.nets.classifier import classifier_of, same_parameters
from noveltylab.nets.neighbours import nearest_squares

#: Images in a batch where features of many are computed.
BATCH = 32


# Compactness loss (section 3.2).


def compactness(features: Tensor, centre: Tensor) -> Tensor:
    """|phi(x) - c|^2 / D of features (B, D), (B,)."""
    return (features - centre).square().mean(1)


# Elastic weight consolidation (section 3.2, after Kirkpatrick et al., 2017).


class Elastic(nn.Module):
    """sum_i F_i (theta_i - theta*_i)^2 / 2, of the weights that train.

    `anchor` (P,) has these weights as they were, `fisher` (P,) their Fisher information; both are
    taken anew from the trained weights and the training images wherever training begins, so that no
    checkpoint holds them.
    """

    anchor: Tensor
    fisher: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.zeros(0), persistent=False)
        self.register_buffer("fisher", torch.zeros(0), persistent=False)

    def forward(self, parameters: list[nn.Parameter]) -> Tensor:
        """The penalty, a scalar."""
        step = flat(parameters) - self.anchor
        return (self.fisher * step.square()).sum() / 2


def flat(tensors: list[Any]) -> Tensor:
    """All values of tensors one after the other, (P,)."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def fisher_diagonal(
    classify: nn.Module, parameters: list[nn.Parameter], images: Tensor, seed: int
) -> Tensor:
    """The mean over images of (d log p(y | x) / d theta)^2, y drawn from p(y | x), (P,).

    Args:
        classify: Images (1, 3, H, W) -> logits (1, classes); in evaluation mode.
        parameters: Those of it whose information is wanted.
        images: (N, 3, H, W), as `classify` takes them.
        seed: Of the drawn labels.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(flat(parameters)).detach()
    for image in images:
        log_p = F.log_softmax(classify(image[None]), 1)[0]
        label = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
        gradients = torch.autograd.grad(log_p[int(label)], parameters)
        total += flat(list(gradients)).square()
    return total / len(images)


class PANDA(Method):
    """A backbone whose last stages train, a fixed centre, and the features of the training set.

    `backbone`, `weights`, `trained_on`, `stages`, `input_size`: as of method=features;
    `trained_stages`: how many of the last stages train; `clip`: norm to which the gradients are cut;
    `ewc`: whether weights are held to their old values, with the weight `ewc_weight`, by the Fisher
    information of `fisher_images` training inliers; `k`: neighbours of the score.
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
        lr: PositiveFloat = 1e-2,
        momentum: NonNegativeFloat = 0.9,
        weight_decay: NonNegativeFloat = 5e-5,
        clip: PositiveFloat = 1e-3,
        ewc: bool = False,
        ewc_weight: PositiveFloat = 1e4,
        fisher_images: PositiveInt = 256,
        k: PositiveInt = 2,
    ) -> None:
        super().__init__(image_shape)
        self.trained_on = trained_on  # type: ignore[misc]  # that of its class
        self.weights_file = weights
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.clip = clip
        self.ewc_weight = ewc_weight
        self.fisher_images = fisher_images
        self.k = k
        # features
        self.backbone = Backbone(backbone, tuple(stages), input_size, max(image_shape[1:]))
        self.backbone.let_train(trained_stages)
        size = sum(self.backbone.channels)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("bank", torch.zeros(0, size))
        self.centre: Tensor
        self.bank: Tensor
        # elastic weight consolidation
        self.elastic: Elastic | None = None
        if ewc:
            self.elastic = Elastic()
        #: the whole network with its head, until the Fisher information is taken; it never trains
        self.classifier: list[nn.Module] = []

    # Features (section 3.1).

    def take_pretrained(self) -> None:
        self.pretrained = take_weights(self.backbone, self.weights_file)
        if self.elastic is not None:
            self.classifier = [classifier_of(self.backbone, self.weights_file)]

    def prepare(self, train: Tensor) -> None:
        """The centre and the bank of the network as it came, and EWC's Fisher information."""
        with torch.no_grad():
            self.prepare_score(train)
            self.centre = self.bank.mean(0)
        if self.elastic is not None:
            self._hold(self.elastic, train)

    def _hold(self, elastic: Elastic, train: Tensor) -> None:
        """Takes what EWC holds the weights to."""
        if not self.classifier:
            raise ValueError("method.ewc=true: needs weights that were trained elsewhere")
        parameters = self.backbone.trained()
        elastic.anchor = flat(parameters).detach().clone()
        (classifier,) = self.classifier
        self.classifier = []
        classifier.to(train.device)
        images = self.backbone.stretched(train[: self.fisher_images])
        same = same_parameters(classifier, self.backbone)
        elastic.fisher = fisher_diagonal(classifier, same, images, seed=0)

    # Training.

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        parameters = self.backbone.trained()
        optimizer = torch.optim.SGD(
            parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

        def cut(*_: Any) -> None:
            nn.utils.clip_grad_norm_(parameters, self.clip)

        # right before the step: gradients have their own scale there, whatever the precision
        optimizer.register_step_pre_hook(cut)
        return {"backbone": optimizer}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of SGD.

        Losses: `compactness`, and with EWC `ewc`, the penalty with its weight.
        """
        loss = compactness(self.embed(batch.x), self.centre).mean()
        losses = {"compactness": loss.detach()}
        if self.elastic is not None:
            penalty = self.ewc_weight * self.elastic(self.backbone.trained())
            losses["ewc"] = penalty.detach()
            loss = loss + penalty
        self.minimise(loss, "backbone")
        return losses

    def validation_loss(self, x: Tensor) -> Tensor:
        """The loss of held-out inliers, (B,); EWC's penalty is the same for all."""
        loss = compactness(self.embed(x), self.centre)
        if self.elastic is not None and len(self.elastic.anchor):
            loss = loss + self.ewc_weight * self.elastic(self.backbone.trained())
        return loss

    # The score (section 3.3).

    def prepare_score(self, train: Tensor) -> None:
        """The training set's features under the weights of now."""
        self.bank = torch.cat([self.embed(part) for part in torch.split(train, BATCH)])

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("knn",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`knn`: sum of the squared distances to the k nearest training inliers, (B,)."""
        return {"knn": nearest_squares(self.embed(x), self.bank, self.k).sum(1)}

    def embed(self, x: Tensor) -> Tensor:
        """The features, (B, D)."""
        return self.backbone.pooled(x)
