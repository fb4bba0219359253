"""PixelCNN (van den Oord et al., Conditional Image Generation with PixelCNN Decoders, NIPS 2016).

The density of an image is a product of conditional ones: pixel by pixel in reading order, and within
a pixel red before green before blue. One network with masked convolutions gives all of them at once.
The score is minus the log-likelihood. It is the row PixCNN of the papers' tables.

PAPER (arXiv 1606.05328; masks A and B and the order of colours, 1601.06759)
- p(x) = prod_i p(x_i | x_1 ... x_(i-1)), each factor a softmax over 256 values.
- Two stacks, so that no earlier pixel is left out: the vertical one sees the rows above, the
  horizontal one what is left in the row, and takes from the vertical one.
- A layer is tanh(W_f * x) sigmoid(W_g * x); the horizontal stack adds its input to its output.
- Mask A, of the first layer, hides the pixel itself; mask B, of the others, shows the features of
  the same and earlier colours.

CODE: none of the authors' is known. How the tables' row was made is not said anywhere: neither
layers nor training nor score. openai/pixel-cnn is another model, PixelCNN++. The port of another,
anordertoreclaim/PixelCNN, was run beside this one: docs/notes/ports.md.

CHOICE
- Kernels of 7 pixels in the first layer and 3 after it; 5 layers of 32 features, far fewer than the
  paper's. Nothing else is given to the network: no class labels.
- The layers before the softmax are two of kernel 1, each after a ReLU. They see the last layer alone,
  the port's the sum of a skip connection from each.
- `levels`: grey values that are told apart, 256 as in the paper; `recipe=default` has 16, which a CPU
  can do. Images are rounded to the nearest level, for the network and for the likelihood, and values
  beyond [-1, 1] are cut off. Bits of different `levels` are not to be compared.
- The score is the mean over pixels and colours in bits. Smooth images are likely under such a model
  whatever they show: a known weakness, and perhaps why the printed row is low.
"""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.losses import wide
from noveltylab.nets.optimizers import adam

FIRST_KERNEL, KERNEL = 7, 3

# Masked convolutions.


def colours_of(width: int, colours: int) -> Tensor:
    """The colour that each of `width` features belongs to, in blocks of nearly equal size."""
    return torch.arange(width) * colours // width


class LeftConv(nn.Conv2d):
    """A row's pixels to the left, and of the pixel itself what the mask shows.

    `before`, `after`: colours of the features that come in and go out; maps (B, len(before), H, W)
    -> (B, len(after), H, W). `kernel`: side of the kernel that is masked, odd.
    """

    def __init__(
        self, before: Tensor, after: Tensor, kernel: int, mask: Literal["A", "B"] = "B"
    ) -> None:
        # what is right of the middle would be masked: it is not there
        super().__init__(len(before), len(after), (1, kernel // 2 + 1))
        self.left = kernel // 2
        visible = before[None] < after[:, None]
        if mask == "B":
            visible = before[None] <= after[:, None]
        values = torch.ones_like(self.weight)
        values[:, :, 0, -1] = visible.to(values.dtype)
        self.register_buffer("mask", values, persistent=False)
        self.mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.left, 0))
        return F.conv2d(padded, self.weight * self.mask, self.bias)


class UpperConv(nn.Conv2d):
    """The rows above, and with mask B the row itself: maps (B, before, H, W) -> (B, after, H, W)."""

    def __init__(self, before: int, after: int, kernel: int, mask: Literal["A", "B"] = "B") -> None:
        self.above = kernel // 2
        super().__init__(before, after, (self.above + (mask == "B"), kernel))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.above, self.above, self.above, 0))
        maps = F.conv2d(padded, self.weight, self.bias)
        # with mask A one row too many: what lies above the row below the image
        return maps[:, :, : x.shape[2]]


# Gated layers of two stacks.


def gate(x: Tensor) -> Tensor:
    """Eq. 2: tanh of one half of the features times the sigmoid of the other."""
    values, gates = x.chunk(2, 1)
    return values.tanh() * gates.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks: vertical and horizontal maps -> the same."""

    def __init__(self, before: Tensor, after: Tensor, kernel: int, mask: Literal["A", "B"]) -> None:
        super().__init__()
        self.first = mask == "A"
        width = len(after)
        both = torch.cat([after, after])  # values and gates
        self.vertical = UpperConv(len(before), 2 * width, kernel, mask)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = LeftConv(before, both, kernel, mask)
        self.output = LeftConv(after, after, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)
        beside = self.horizontal(h) + self.link(above)
        step = self.output(gate(beside))
        # the image itself holds what the first layer hides
        h = step if self.first else h + step
        return gate(above), h


class Network(nn.Module):
    """Images (B, C, H, W) -> logits of every level of every value, (B, C, levels, H, W)."""

    def __init__(self, colours: int, levels: int, width: int, layers: int) -> None:
        super().__init__()
        self.colours = colours
        self.levels = levels
        image = torch.arange(colours)
        features = colours_of(width, colours)
        stack = [GatedLayer(image, features, FIRST_KERNEL, "A")]
        stack += [GatedLayer(features, features, KERNEL, "B") for _ in range(layers - 1)]
        self.layers = nn.ModuleList(stack)
        self.head = nn.Sequential(
            nn.ReLU(),
            LeftConv(features, features, 1),
            nn.ReLU(),
            LeftConv(features, image.repeat_interleave(levels), 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h)
        logits: Tensor = self.head(h)
        return logits.view(-1, self.colours, self.levels, x.shape[2], x.shape[3])


class PixelCNN(Method):
    """The likelihood of an image's values, each given those before it."""

    gives_map: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        levels: Annotated[int, Field(ge=2, le=256)] = 256,
        width: PositiveInt = 32,
        layers: PositiveInt = 5,
    ) -> None:
        super().__init__(image_shape)
        colours = image_shape[0]
        if width < colours:
            raise ValueError(f"method.width={width}: each of {colours} colours needs a feature")
        self.lr = lr
        self.levels = levels
        self.network = Network(colours, levels, width, layers)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"network": adam(self.network, lr=self.lr)}

    # The likelihood (eq. 1).

    def level(self, x: Tensor) -> Tensor:
        """The nearest level of each value of x (B, C, H, W), 0 for -1 and levels - 1 for 1."""
        grey = (wide(x) + 1) / 2
        return (grey * (self.levels - 1)).round().clamp(0, self.levels - 1).long()

    def log_p(self, x: Tensor) -> Tensor:
        """log p(x_i | x_1 ... x_(i-1)) over all levels, (B, C, levels, H, W), in nats."""
        rounded = 2 * self.level(x) / (self.levels - 1) - 1
        return wide(self.network(rounded.to(x.dtype))).log_softmax(2)

    def nats(self, x: Tensor) -> Tensor:
        """Minus the log-likelihood of each value of x (B, C, H, W), the same shape, >= 0."""
        index = self.level(x).unsqueeze(2)
        return -self.log_p(x).gather(2, index).squeeze(2)

    def bits(self, x: Tensor) -> Tensor:
        """Minus the log-likelihood in bits, a mean over pixels and colours, (B,)."""
        return self.nats(x).flatten(1).mean(1) / math.log(2)

    # Training and score.

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step on minus the log-likelihood. Loss `nll` in bits."""
        loss = self.bits(batch.x).mean()
        self.minimise(loss, "network")
        return {"nll": loss.detach()}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("nll",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`nll`: minus the log-likelihood in bits a value, (B,), >= 0."""
        return {"nll": self.bits(x)}

    def validation_loss(self, x: Tensor) -> Tensor:
        """Minus the log-likelihood of held-out inliers, (B,)."""
        return self.bits(x)

    def novelty_map(self, x: Tensor) -> Tensor:
        """The nats of each pixel, its colours together, (B, H, W)."""
        return self.nats(x).sum(1)
