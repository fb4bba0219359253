"""Grey letters of 16 x 16 pixels: letters.npz with images uint8 (N, 16, 16) and labels (N,).

python -m noveltylab_example.letters FOLDER draws them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from noveltylab.data.samples import Samples, unchecked
from noveltylab.data.stored import missing
from noveltylab.errors import UserError

LETTERS = "abc"
COUNT = 300


def read(root: Path, *, verify: bool, download: bool) -> Samples:
    """Samples with images (N, 1, 16, 16); no official split."""
    path = root / "letters.npz"
    if not path.is_file():
        remedy = f"Draw them: python -m noveltylab_example.letters {root}"
        raise missing(path.name, path.parent, remedy)
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    if verify and len(images) != COUNT:
        raise UserError(f"{path}: expected {COUNT} images, found {len(images)}. Replace the copy.")
    return Samples(
        images=torch.from_numpy(images).unsqueeze(1),
        labels=labels.astype(np.int64),
        official_test=None,
        ids=np.array([f"letters/{i:04d}" for i in range(len(images))]),
        verified=unchecked(verify),
    )


def draw(folder: Path) -> Path:
    """Draws letters.npz, each letter in places that a fixed seed chooses."""
    random = np.random.default_rng(0)
    labels = np.arange(COUNT) % len(LETTERS)
    images = np.zeros((COUNT, 16, 16), np.uint8)
    for position, label in enumerate(labels):
        picture = Image.new("L", (16, 16))
        place = (random.uniform(2, 7), random.uniform(-2, 2))
        ImageDraw.Draw(picture).text(place, LETTERS[label], fill=255)
        images[position] = np.asarray(picture)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "letters.npz"
    np.savez_compressed(path, images=images, labels=labels)
    return path


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
