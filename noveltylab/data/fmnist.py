"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28 x 28 pixels.

Lies in ``<root>/FashionMNIST/raw``.
"""

from pathlib import Path

from torchvision import datasets

from noveltylab.data.mnist import read_idx
from noveltylab.data.samples import Samples

# of the extracted files, as in mnist.py
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (70000, 1, 28, 28), official training part first.

    Raises:
        UserError: files are missing or cannot be used.
    """
    return read_idx(datasets.FashionMNIST, SHA256, root, verify=verify, download=download)
