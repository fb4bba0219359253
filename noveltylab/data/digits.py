"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships.

They need no download and have no official split.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from noveltylab.data.samples import Samples
from noveltylab.errors import UserError

COUNT = 1797


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (1797, 1, 8, 8), grey values 0..16 stretched to 0..255.

    The arguments have no effect here.
    """
    bundled = load_digits()
    if len(bundled.images) != COUNT:
        raise UserError(
            f"Expected {COUNT} digits in scikit-learn, found {len(bundled.images)}. Reinstall it."
        )
    images = np.rint(bundled.images * 255 / 16).astype(np.uint8)
    return Samples(
        images=torch.from_numpy(images).unsqueeze(1),
        labels=bundled.target.astype(np.int64),
        official_test=None,
        ids=np.array([f"digits/{i:04d}" for i in range(COUNT)]),
        verified=True,
    )
