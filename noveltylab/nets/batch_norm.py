"""Batch norms of a network: found, folded into the layer before, their statistics put back."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norm(module: nn.Module) -> None:
    """Puts each batch norm into the convolution or matrix product right before it.

    The same scores but for the last bits.

    In sequences of an evaluated module; nothing else changes place.
    """
    for child in module.children():
        fold_batch_norm(child)
    if not isinstance(module, nn.Sequential):
        return
    for index, (layer, norm) in enumerate(pairwise(list(module))):
        if not isinstance(norm, BATCH_NORMS) or is_parametrized(layer):
            continue
        # timm's, which have an activation inside
        if type(norm) not in BATCH_NORMS:
            continue
        if norm.running_mean is None or not norm.affine:  # torch cannot fuse it
            continue
        if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            module[index] = fuse_linear_bn_eval(layer, norm)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d):
            transpose = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
            module[index] = fuse_conv_bn_eval(layer, norm, transpose)
        else:
            continue
        module[index + 1] = nn.Identity()


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics, which evaluation uses."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


def statistics_of(layer: _BatchNorm) -> dict[str, Tensor]:
    """A copy of what a batch norm keeps."""
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def put_statistics(layer: _BatchNorm, statistics: dict[str, Tensor]) -> None:
    """Puts back what `statistics_of` gave, in place."""
    for name, buffer in layer.named_buffers():
        buffer.copy_(statistics[name])
