"""Measures a run to the pixel: its method's maps against the masks of one's own images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.masks import Masks, find_masks
from noveltylab.methods.base import Method
from noveltylab.options import Options
from noveltylab.scoring.apply import novelty_maps
from noveltylab.scoring.pixels import measure_pixels

#: Images whose maps are computed at once.
BATCH = 32


def masks_of_run(options: Options, method: Method, data: NoveltyData) -> Masks | None:
    """The masks of the test images, for a method that has maps; None without any.

    Raises:
        UserError: A mask cannot be read or has another size than its image.
    """
    if not method.gives_map or options.data.classes != "folders" or options.data.root is None:
        return None
    root = Path(options.data.root).expanduser()
    masks = find_masks(root, data.test_ids.tolist(), data.test_is_outlier)
    if masks is not None:
        data.warnings += masks.left_out()
    return masks


def measure_maps(method: Method, data: NoveltyData, masks: Masks) -> dict[str, Any]:
    """The section `pixels` of the result: AUROC and AUPRO of the maps at the images' own sizes."""
    rows = torch.tensor([masked.row for masked in masks.images])
    maps = novelty_maps(method, data.preprocess, data.test[rows], BATCH)
    assert maps is not None

    def images() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        for masked, own_map in zip(masks.images, maps, strict=True):
            yield stretched(own_map, masked.height, masked.width), masked.read()

    pixels = sum(masked.height * masked.width for masked in masks.images)
    section = measure_pixels(images, pixels, maps)
    section["images"] = len(masks.images)
    section["without_mask"] = len(masks.missing)
    return section


def stretched(picture: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A map (h, w) at another size, bilinear."""
    tensor = torch.from_numpy(picture)[None, None]
    larger = F.interpolate(tensor, (height, width), mode="bilinear")[0, 0]
    return np.asarray(larger.numpy())
