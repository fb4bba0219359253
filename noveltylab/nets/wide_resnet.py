"""The wide residual network (Zagoruyko and Komodakis, 2016) that tells transformations apart."""

from torch import Tensor, nn


class Residual(nn.Module):
    """Norm, ReLU, convolution, twice, added to the input.

    (B, S, H, W) -> (B, S', H / stride, W / stride).
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.BatchNorm2d(width_in), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
        )
        self.stride = stride
        self.shortcut: nn.Conv2d | None = None
        if width_in != width or stride != 1:
            self.shortcut = nn.Conv2d(width_in, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        shortcut = x
        if self.shortcut is not None:
            # not a strided convolution: of 2 to 7 channels, oneDNN's gradient at its weights writes
            # past them on AVX2 (torch 2.15)
            strided = entered[:, :, :: self.stride, :: self.stride]
            shortcut = self.shortcut(strided)
        total: Tensor = shortcut + self.body(entered)
        return total


def wide_residual_network(channels: int, depth: int, width: float, classes: int) -> nn.Sequential:
    """Images (B, C, H, W) -> logits (B, classes); features before the last layer.

    Args:
        channels: Of the images.
        depth: Layers, 6 n + 4.
        width: Factor on the channels 16, 32, 64 of the three stages.
        classes: To be told apart.

    Raises:
        ValueError: for another depth.
    """
    if (depth - 4) % 6:
        raise ValueError(
            f"method.depth={depth}: a wide residual network has 6 n + 4 layers: 10, 16, 22, 28, ..."
        )
    before = max(1, round(16 * min(width, 1)))  # the first layer is not widened
    layers: list[nn.Module] = [nn.Conv2d(channels, before, 3, 1, 1, bias=False)]
    for stage in range(3):
        after = max(1, round(16 * 2**stage * width))
        for position in range((depth - 4) // 6):
            stride = 2 if stage and not position else 1
            layers.append(Residual(before, after, stride))
            before = after
    layers += [
        nn.BatchNorm2d(before),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(before, classes),
    ]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """For `Module.apply`: He's normal weights, the wide residual network's."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
