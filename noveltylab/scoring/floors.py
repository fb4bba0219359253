"""Simple scores of the run's own images, which every run is measured beside.

Nothing is trained for them.

PCA residual, nearest neighbours and |x|^2 alone of raw pixels, and the same of the images as the
method sees them where preprocessing changes more than their scale. Contrast normalisation alone can
tell classes apart, so that a method may stand far above the floors of raw pixels and below those of
what it was shown.

Where the extra [features] is installed there is one more, by a network trained on ImageNet: what
one gets today without learning anything from the images.
"""

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from noveltylab.data.cache import cached, code_key
from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.features import Features
from noveltylab.methods.knn import KNN
from noveltylab.methods.pca import PCA
from noveltylab.nets.backbone import is_bundled
from noveltylab.results.record import SEEN
from noveltylab.scoring.aggregate import measured_scores
from noveltylab.scoring.apply import novelty_scores
from noveltylab.scoring.kept_features import kept_features

#: Modules that compute the floors: a change of any makes them anew.
FLOOR_CODE = (
    "scoring.floors",
    "methods.pca",
    "methods.knn",
    "methods.base",
    "scoring.apply",
    "scoring.batches",
    "scoring.kept_features",
    "nets.batch_norm",
    "nets.losses",
    "data.preprocess",
    "data.decode",
    "data.cache",
)

#: Training and test images up to which features are computed: minutes of two CPU cores.
MOST_FEATURES = 40_000

#: Numbers in the training images up to which the floors `pca` and `knn` see every pixel.
MOST_VALUES = 2**29

log = logging.getLogger("noveltylab")

Array = NDArray[np.float64]
Columns = dict[str, Array]


@dataclass(frozen=True)
class Floor:
    """A floor's scores of what the run is measured on, (N,)."""

    name: str
    scores: Array


def floor_scores(data: NoveltyData, batch_size: int, with_features: bool = False) -> list[Floor]:
    """The floors of the test images: `pca`, `knn` and `norm`, and the same of what is seen.

    `pca`, `knn`, `norm`: PCA residual, nearest neighbours and mean square of raw pixels on the
    scale [-1, 1].

    `pca_seen`, `knn_seen`, `norm_seen`: the same of preprocessed images; only where preprocessing
    is more than that scale.

    `features`: Mahalanobis distances of `method=features`, trained on ImageNet; only
    `with_features`, where it is installed, and up to `MOST_FEATURES` images.
    """
    columns = _floors(data, Preprocess(), batch_size)
    if with_features and is_bundled():
        columns |= _feature_floor(data, batch_size)
    if data.preprocess.contrast != "none" or data.preprocess.subtract_mean:
        seen = _floors(data, data.preprocess, batch_size)
        for name, column in seen.items():
            columns[f"{name}{SEEN}"] = column
    scores, _ = measured_scores(data.pieces(columns), data.wholes)
    return [Floor(name, column) for name, column in scores.columns.items()]


def _floors(data: NoveltyData, preprocess: Preprocess, batch_size: int) -> Columns:
    """`pca`, `knn` and `norm` of the test images under one preprocessing, (n_test,) each."""
    preprocess = preprocess.to(data.device)
    columns = _pixel_floors(data, preprocess, batch_size)
    columns["norm"] = squared_norms(preprocess, data.test, batch_size)
    return columns


def _feature_floor(data: NoveltyData, batch_size: int) -> Columns:
    """`features` of the test images, (n_test,); {} where there are too many or all are the same."""
    count = len(data.train) + len(data.test)
    if count > MOST_FEATURES:
        log.info(f"no floor of features: {count:,} images are more than {MOST_FEATURES:,}")
        return {}
    preprocess = Preprocess().to(data.device)
    floor = pretrained(data.image_shape, data.device)
    try:
        floor.prepare_features(kept_features(floor, preprocess, data.train))
    except ValueError as error:
        log.info(f"no floor of features: {error}")
        return {}
    (scores,) = novelty_scores(floor, preprocess, data.test, batch_size).values()
    return {"features": scores}


@lru_cache(maxsize=1)
def pretrained(image_shape: tuple[int, int, int], device: torch.device) -> Features:
    """The network with its trained weights, which the runs of a sweep share.

    A run fits its density to its own training images, whatever was fitted before.
    """
    floor = Features(image_shape)
    floor.take_pretrained()
    return floor.to(device).eval()


def squared_norms(preprocess: Preprocess, images: torch.Tensor, batch_size: int) -> Array:
    """|x|^2 of each preprocessed image, over its number of values, (N,)."""
    device = preprocess.lo.device
    parts = []
    for part in torch.split(images, batch_size):
        x = preprocess(part.to(device))
        parts.append(x.square().flatten(1).mean(1).cpu())
    return torch.cat(parts).numpy().astype(np.float64)


def _pixel_floors(data: NoveltyData, preprocess: Preprocess, batch_size: int) -> Columns:
    """`pca` and `knn` of the test images under one preprocessing, (n_test,) each.

    Of images whose training part is larger than `MOST_VALUES` they see every second pixel of both
    sides, or fewer, as the log says.

    The same for every method on a split, so they are computed once and kept in the cache, by the
    images' checksums and the preprocessing's options; what it fits follows from these.
    """

    step = 1
    while data.train.numel() > MOST_VALUES * step**2:
        step *= 2
    train, test = data.train[..., ::step, ::step], data.test[..., ::step, ::step]
    channels, height, width = train.shape[1:]
    if step > 1:
        log.info(f"floors of {height} x {width} of the pixels: all of them are too many")

    def compute() -> Columns:
        columns = {}
        shape = channels, height, width
        floors = {"pca": PCA(shape), "knn": KNN(shape)}
        for name, floor in floors.items():
            floor.to(data.device).prepare(preprocess(train.to(data.device)))
            scores = novelty_scores(floor, preprocess, test, batch_size)
            (columns[name],) = scores.values()
        return columns

    key = {
        "code": code_key(FLOOR_CODE, ("torch", "numpy")),
        "images": [_checksum(train), _checksum(test)],
        "shape": (channels, height, width),
        "device": data.device.type,
        "contrast": preprocess.contrast,
        "subtract_mean": preprocess.subtract_mean,
    }
    return dict(cached("floors", key, compute))


def _checksum(images: torch.Tensor) -> str:
    pixels = images.cpu().contiguous().numpy()
    return hashlib.sha256(pixels.data).hexdigest()
