"""DCGAN's initial weights (Radford et al., 2016), which all the adversarial methods' codes start from."""

from torch import Tensor, nn


def initialise(module: nn.Module) -> None:
    """For `Module.apply`: weights N(0, 0.02), batch-norm scales N(1, 0.02), biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if isinstance(getattr(module, "bias", None), Tensor):
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # a tensor, as just asked
