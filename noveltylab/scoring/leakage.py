"""How far the classes of a test set overlap in raw pixels, without any training.

Neighbourhood class leakage of arXiv 2606.02601 (2026): the share of an image's nearest neighbours
that are of another class. Where it is high, outliers may lie deeper among the inliers than inliers
do, so that AUROC turns over: below 0.5, for one class and not for another.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.cache import cached, code_key
from noveltylab.data.datamodule import NoveltyData

#: Neighbours of an image. Fashion-MNIST's test images of 28 pixels have 0.2428 with 10, as printed.
NEIGHBOURS = 10
#: Images whose distances to all others are in memory at once.
BLOCK = 512


def measure_leakage(data: NoveltyData) -> dict[str, float] | None:
    """The class leakage of the test images, as the result has it; None where they have no classes.

    `inliers`: mean over the test's inliers; `all`: over all its images, the paper's L_k.

    A frame's or a sound's nearest neighbour is the one before it, which says nothing of classes.
    """
    is_outlier = data.test_is_outlier
    if data.wholes is not None or not 0 < is_outlier.sum() < len(is_outlier):
        return None
    pixels = data.test.cpu().contiguous().numpy()
    key = {
        "code": code_key(("scoring.leakage",), ("torch", "numpy")),
        "images": hashlib.sha256(pixels.data).hexdigest(),
        "shape": data.image_shape,
        "labels": hashlib.sha256(np.ascontiguousarray(data.test_labels).data).hexdigest(),
    }

    def compute() -> dict[str, NDArray[np.float64]]:
        return {"leakage": class_leakage(data.test, data.test_labels, NEIGHBOURS)}

    leakage = cached("leakage", key, compute)["leakage"]
    return {
        "neighbours": min(NEIGHBOURS, len(leakage) - 1),
        "inliers": float(leakage[~is_outlier].mean()),
        "all": float(leakage.mean()),
    }


def class_leakage(
    images: Tensor, labels: NDArray[np.integer], neighbours: int
) -> NDArray[np.float64]:
    """The share of each image's nearest neighbours that are of another class, (N,) in [0, 1].

    Euclidean distances of raw pixels; an image is no neighbour of its own.

    Args:
        images: (N, C, H, W), N at least 2.
        labels: (N,), the class of each.
        neighbours: k; all others where there are fewer.
    """
    points = images.flatten(1).float().cpu()
    classes = torch.from_numpy(np.asarray(labels, np.int64))
    count = min(neighbours, len(points) - 1)
    squares = points.square().sum(1)
    shares = []
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        # |x - y|^2 without |x|^2, which is the same for all neighbours of x
        distances = squares - 2 * block @ points.T
        positions = torch.arange(len(block))
        distances[positions, start + positions] = torch.inf
        nearest = distances.topk(count, dim=1, largest=False).indices
        differs = classes[nearest] != classes[start : start + BLOCK, None]
        shares.append(differs.double().mean(1))
    return torch.cat(shares).numpy()
