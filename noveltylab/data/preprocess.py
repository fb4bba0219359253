"""From stored images to what a network sees.

They are resized once, then scaled on the device, a whole batch at a time. Pictures are uint8; sound
waves, laid out as images, are int16.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize as torchvision_resize

from noveltylab.errors import UserError, nearest

CONTRASTS = ("none", "gcn", "gcn_image")
_BLOCK = 4096


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear resize, uint8 (N, C, H, W), N >= 1 -> uint8 (N, C, size, size).

    It is antialiased only where it shrinks: enlarging 28 -> 32 goes without, as in the papers' own
    code.

    Raises:
        UserError: for sound waves (int16) of another size: their neighbouring rows are not
            neighbours.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if images.dtype == torch.int16:
        raise UserError(
            f"data.size={size}: sound waves are not resized. Use data.size={height} "
            "(data=dcase_waveform sets it)."
        )
    shrinks = size < max(height, width)
    blocks = []
    for block in torch.split(images, _BLOCK):
        resized = torchvision_resize(block, [size, size], antialias=shrinks)
        blocks.append(resized)
    return torch.cat(blocks)


def global_contrast(x: Tensor) -> Tensor:
    """Deep SVDD's contrast normalisation of each image; x in [0, 1], (B, C, H, W).

    All channels and pixels together: subtract the image's own mean, divide by the MEAN absolute
    value of the result.
    """
    x = x - x.mean(dim=(1, 2, 3), keepdim=True)
    return x / x.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8)


def image_contrast(x: Tensor) -> Tensor:
    """global_contrast, then each image stretched so that its extremes are -1 and 1.

    x: (B, C, H, W), on any scale above 0. The mean that is subtracted and the value that is divided
    by cancel: only the image's own extremes over all channels and pixels count. A constant image
    becomes 0.
    """
    low = x.amin(dim=(1, 2, 3), keepdim=True)
    span = x.amax(dim=(1, 2, 3), keepdim=True) - low
    stretched = (x - low) / torch.where(span > 0, span, torch.ones_like(span)) * 2 - 1
    return torch.where(span > 0, stretched, torch.zeros_like(x))


class Preprocess(nn.Module):
    """uint8 (pictures) or int16 (sound waves), (B, C, H, W) -> float32 (B, C, H, W).

    contrast "none": x / 127.5 - 1, or of a wave x / 32768, in [-1, 1]. "gcn", for pictures:
    global_contrast, then (x - lo) / (hi - lo) with the extreme feature values lo, hi of the
    training inliers; other images may leave [0, 1], nothing is clipped. "gcn_image", for pictures:
    image_contrast, every image in [-1, 1]. subtract_mean: minus the mean image of the preprocessed
    training inliers. What is fitted lies in buffers, for the checkpoint.
    """

    lo: Tensor
    hi: Tensor
    mean: Tensor

    def __init__(self, contrast: str = "none", subtract_mean: bool = False) -> None:
        super().__init__()
        if contrast not in CONTRASTS:
            raise UserError(f"data.contrast cannot be '{contrast}': {nearest(contrast, CONTRASTS)}")
        self.contrast = contrast
        self.subtract_mean = subtract_mean
        self.fitted = contrast != "gcn" and not subtract_mean
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.ones(()))
        self.register_buffer("mean", torch.zeros(1, 1, 1))
        self.register_load_state_dict_pre_hook(_accept_fitted)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def fit(self, images: Tensor) -> "Preprocess":
        """Compute lo, hi and the mean image from the training inliers, N >= 1, as for `forward`."""
        if len(images) == 0:
            raise UserError("Preprocessing is fitted on the training inliers, and there are none.")
        if self.contrast != "none" and images.dtype == torch.int16:
            raise UserError(
                f"data.contrast={self.contrast} is for pictures; "
                "sound waves take data.contrast=none."
            )
        self.mean = torch.zeros(1, 1, 1, device=images.device)
        self.fitted = True
        if self.contrast == "gcn":
            lows, highs = [], []
            for block in torch.split(images, _BLOCK):
                low, high = global_contrast(block.float() / 255).aminmax()
                lows.append(low)
                highs.append(high)
            self.lo = torch.stack(lows).min()
            self.hi = torch.stack(highs).max()
        if self.subtract_mean:
            sums = [self._scale(block).double().sum(0) for block in torch.split(images, _BLOCK)]
            self.mean = (torch.stack(sums).sum(0) / len(images)).float()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Preprocess a batch (B, C, H, W) -> float32 (B, C, H, W)."""
        if not self.fitted:
            raise RuntimeError("Preprocess.fit has to see the training inliers first")
        x = self._scale(images)
        return x - self.mean if self.subtract_mean else x

    def _scale(self, images: Tensor) -> Tensor:
        if images.dtype == torch.int16:
            return images.float().div_(32768)
        if self.contrast == "none":
            return images.float().div_(127.5).sub_(1)
        if self.contrast == "gcn_image":
            return image_contrast(images.float())
        span = (self.hi - self.lo).clamp_min(1e-8)
        return (global_contrast(images.float().div_(255)) - self.lo) / span

    def to_unit(self, x: Tensor) -> Tensor:
        """Back to [0, 1] for display, (B, C, H, W).

        Exact for contrast "none"; the others keep their stretched contrast.
        """
        x = x + self.mean
        if self.contrast != "gcn":
            x = (x + 1) / 2
        return x.clamp(0, 1)


def _accept_fitted(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Take the shape of the mean image from the checkpoint; a fresh module does not know it."""
    mean = state.get(f"{prefix}mean")
    if mean is not None:
        preprocess = cast(Preprocess, module)
        preprocess.mean = torch.empty_like(mean, device=preprocess.mean.device)
        preprocess.fitted = True
