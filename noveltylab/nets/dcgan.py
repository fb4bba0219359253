"""DCGAN's initial weights and discriminator (Radford et al., 2016).

The adversarial methods' codes start from them.
"""

from torch import Tensor, nn

from noveltylab.nets.cpu.layers import Conv2d

#: layers with weights N(0, 0.02)
WEIGHTED = nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear


def initialise(module: nn.Module) -> None:
    """For `Module.apply`: weights N(0, 0.02), batch-norm scales N(1, 0.02), biases 0."""
    if isinstance(module, WEIGHTED):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)


def whole_map(channels: int, width: int, side: tuple[int, int]) -> tuple[nn.Module, nn.Module]:
    """The convolution whose kernel is the whole map, written as a matrix product.

    (B, channels, *side) -> (B, width).
    """
    height, columns = side
    return nn.Flatten(), nn.Linear(channels * height * columns, width, bias=False)


class Discriminator(nn.Module):
    """Images (B, C, 8 h, 8 w), side = (h, w) -> logits (B,) and features f (B, D).

    Logits are large for real; f is the layer before.
    """

    def __init__(self, channels: int, base: int, features: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv2d(channels, base, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            Conv2d(base, 2 * base, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * base),
            nn.LeakyReLU(0.2, inplace=True),
            Conv2d(2 * base, 4 * base, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * base),
            nn.LeakyReLU(0.2, inplace=True),
            *whole_map(4 * base, features, side),
        )
        self.logit = nn.Linear(features, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.features(x)
        return self.logit(f).flatten(), f
