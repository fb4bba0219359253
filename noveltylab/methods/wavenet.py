"""WaveNet: a sound predicted sample by sample (Rushe and Mac Namee, ICASSP 2019).

Anomaly Detection in Raw Audio Using Deep Autoregressive Networks: WaveNet (van den Oord et al., 2016)
is trained on the recordings of a scene to predict each sample from those before it, as one of 256
categories. A segment that it predicts badly is novel. data=dcase_waveform has their segments.

PAPER
- Samples are compressed by the mu-law and cut into 256 categories, whose softmax is predicted.
- Causal convolutions, dilated by 1, 2, 4, ..., 512, and again; each is gated, a sigmoid times a
  hyperbolic tangent, and has a residual and a skip connection. ReLU, a convolution of width 1, ReLU
  and another one make logits of the sum of the skips.

CODE (EllenRushe/AudioAnomalyDetectionWaveNet, which released the numbers that NDA's table 5 prints)
- Segments of 4,096 samples, not overlapping. mu = 255; categories are cut off, not rounded.
- The input is the category itself on a scale from -1 to 1, one sample late and 0 before the first;
  the skips begin with a convolution of the input.
- 20 layers of width 3, 256 channels, 512 of the skips, Glorot's uniform weights, biases 0; Adam at
  1e-5, batches of 16, 10 epochs.
- The dilation of layer i is 2^(i mod 2), by the number of stacks instead of their layers: 1 and 2 in
  turn. The network sees 63 samples, where two stacks of ten see 4,095. `layers=2 stacks=10` is that.
- The score is the mean squared difference between a sample's category and the likeliest one: `mse`.
- The test parts hold whole recordings: a segment is an outlier if any sample of it has an event.

CHOICE
- Two stacks of ten, as 4,095 is a segment's length less one.
- Main score: the mean negative log-likelihood `nll`, which the network is trained by, and which knows
  how sure it was. `mse` depends on the likeliest category alone.
- Samples beyond full scale count as full scale.
- The weights of the epoch with the lowest loss on held-out recordings; the code takes the last.
- An image is read as a sound, row by row and channel by channel; its rows mean nothing to it.
Published AUROC, DCASE 2017: a mean of 0.777 over 15 scenes.
"""

import math

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.losses import wide

#: Categories of a sample, and the mu of the mu-law.
CATEGORIES, MU = 256, 255


# Samples and categories.


def categories(x: Tensor) -> Tensor:
    """The categories 0 to 255 of samples x, clamped to [-1, 1], as whole numbers.

    F(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu), and (F + 1) / 2 mu without its fraction.
    """
    x = x.clamp(-1, 1)
    compressed = x.sign() * torch.log1p(MU * x.abs()) / math.log1p(MU)
    return ((compressed + 1) / 2 * MU).long()


def on_scale(category: Tensor) -> Tensor:
    """Categories on a scale from -1 to 1, as float: what the network is given."""
    return category.float() / (CATEGORIES / 2) - 1


def decoded(category: Tensor) -> Tensor:
    """The samples in (-1, 1) that categories stand for, the mu-law undone."""
    y = on_scale(category)
    return y.sign() * torch.expm1(y.abs() * math.log1p(MU)) / MU


# The network.


class Causal(nn.Conv1d):
    """A dilated convolution (B, S, N) -> (B, S', N) whose output sees no later input."""

    def forward(self, x: Tensor) -> Tensor:
        before = (self.kernel_size[0] - 1) * self.dilation[0]
        return super().forward(F.pad(x, (before, 0)))


class Layer(nn.Module):
    """A gated convolution: sigmoid times tanh.

    (B, S, N) -> what goes on (B, S, N), the input added, and a skip (B, S', N).
    """

    def __init__(self, filters: int, skip_filters: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.dilated = Causal(filters, 2 * filters, kernel, dilation=dilation)
        self.residual = nn.Conv1d(filters, filters, 1)
        self.skip = nn.Conv1d(filters, skip_filters, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = self.dilated(x).chunk(2, 1)
        z = torch.sigmoid(gate) * torch.tanh(value)
        return x + self.residual(z), self.skip(z)


class Network(nn.Module):
    """Categories on their scale (B, N) -> logits (B, CATEGORIES, N) of each by those before it."""

    def __init__(self, filters: int, skip_filters: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.first = Causal(1, filters, kernel)
        self.first_skip = nn.Conv1d(1, skip_filters, 1)
        self.layers = nn.ModuleList(
            Layer(filters, skip_filters, kernel, dilation) for dilation in dilations
        )
        self.last = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(skip_filters, skip_filters, 1),
            nn.ReLU(),
            nn.Conv1d(skip_filters, CATEGORIES, 1),
        )

    def skips(self, x: Tensor) -> Tensor:
        """The sum of the skip connections (B, S', N)."""
        late = F.pad(x, (1, 0))[:, None, :-1]
        h = self.first(late)
        total: Tensor = self.first_skip(late)
        for layer in self.layers:
            h, skip = layer(h)
            total = total + skip
        return total

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.skips(x))
        return logits


def initialise(module: nn.Module) -> None:
    """For `Module.apply`: Glorot's uniform weights, biases 0."""
    if isinstance(module, nn.Conv1d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


class WaveNet(Method):
    """One network that predicts the next sample.

    `filters`, `skip_filters`: channels of the layers and of the skips; `kernel`: width of the dilated
    convolutions; `layers`: of a stack, dilated by 1, 2, 4, ...; `stacks`: one after the other.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: PositiveInt = 256,
        skip_filters: PositiveInt = 512,
        kernel: PositiveInt = 3,
        layers: PositiveInt = 10,
        stacks: PositiveInt = 2,
        lr: PositiveFloat = 1e-5,
    ) -> None:
        super().__init__(image_shape)
        if kernel < 2:
            raise ValueError(f"method.kernel={kernel}: sees one sample alone; take 2 at least")
        self.lr = lr
        dilations = [2**layer for _ in range(stacks) for layer in range(layers)]
        #: how many samples before one its prediction depends on
        self.receptive_field = 1 + (kernel - 1) * (1 + sum(dilations))
        self.network = Network(filters, skip_filters, kernel, dilations).apply(initialise)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"network": torch.optim.Adam(self.parameters(), self.lr, fused=True)}

    def surprise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean -log p of the samples of x (B, C, H, W), and mean squared error of the likeliest, (B,)."""
        target = categories(x.flatten(1))
        logits = wide(self.network(on_scale(target).to(x.dtype)))
        nll = F.cross_entropy(logits, target, reduction="none").mean(1)
        error = (logits.argmax(1) - target).float().square().mean(1)
        return nll, error

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step.

        Losses `nll`, and `mse`, which is not minimised.
        """
        nll, error = self.surprise(batch.x)
        loss = nll.mean()
        self.minimise(loss, "network")
        return {"nll": loss.detach(), "mse": error.mean()}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("nll", "mse")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`nll`: mean negative log-likelihood of a sample, in nats.

        `mse`: mean squared difference of its category and the likeliest one; (B,) each.
        """
        nll, error = self.surprise(x)
        return {"nll": nll, "mse": error}

    def validation_loss(self, x: Tensor) -> Tensor:
        """The mean negative log-likelihood, (B,)."""
        return self.surprise(x)[0]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The likeliest value of each sample by those before it, in the shape of x."""
        logits = self.network(on_scale(categories(x.flatten(1))))
        return decoded(logits.argmax(1)).view_as(x)

    def embed(self, x: Tensor) -> Tensor:
        """The sum of the skip connections, its mean over the samples, (B, skip_filters)."""
        target = categories(x.flatten(1))
        return self.network.skips(on_scale(target)).mean(2)
