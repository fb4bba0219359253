"""Features of a frozen network, computed once for an image and kept in the cache.

They depend on the image, the network and its weights alone, so that runs of other classes, seeds
and protocols take them from there. They are computed as `score_alike` scores, in batches of one
size by one thread each: an image has the same features to the last bit, whoever asks.
"""

import hashlib
import json
import logging
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.cache import DAMAGED, cache_folder, code_key, read_entry, write_entry
from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.base import Method
from noveltylab.scoring.batches import columns_in_threads

log = logging.getLogger("noveltylab")

#: Code that the features depend on.
CODE = ("scoring.kept_features", "nets.backbone", "data.preprocess")
#: Files of features that stay in memory.
MOST_FILES = 64
#: Hash of an image -> its features (D,).
Known = dict[bytes, NDArray[np.float32]]


def kept_features(method: Method, preprocess: Preprocess, images: Tensor) -> Tensor:
    """The features (N, D) of uint8 images (N, C, H, W) on the method's device, from the cache.

    What is not there is computed and put there.
    """
    key = {
        "code": code_key(CODE, ("torch", "timm")),
        "network": method.features_key,
        "contrast": preprocess.contrast,
        "device": method.device.type,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / f"features-{digest[:24]}"
    hashes = [hash_of(image) for image in images.cpu().numpy()]
    features_of = read_known(folder, digest)
    # one image of each that is not there
    missing: dict[bytes, int] = {}
    for position, name in enumerate(hashes):
        if name not in features_of:
            missing.setdefault(name, position)
    if missing:
        positions = torch.tensor(list(missing.values()), device=images.device)
        computed = compute_features(method, preprocess, images[positions]).numpy()
        features_of |= dict(zip(missing, computed, strict=True))
        keep(folder, digest, list(missing), computed)
    features = np.stack([features_of[name] for name in hashes])
    return torch.from_numpy(features).to(method.device)


def compute_features(method: Method, preprocess: Preprocess, images: Tensor) -> Tensor:
    """The features of uint8 images (N, C, H, W), (N, D) on the CPU."""

    def features(x: Tensor) -> dict[str, Tensor]:
        return {"features": method.features(x)}

    return columns_in_threads(method, preprocess, images, features)["features"]


def hash_of(image: NDArray[np.uint8]) -> bytes:
    """16 bytes that are another image's only by chance."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    digest.update(str(image.shape).encode())
    return digest.digest()


def read_known(folder: Path, digest: str) -> Known:
    """All features of a folder; files that are damaged are left out, with a word."""
    features_of: Known = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            hashes, features = read_file(path, path.stat().st_mtime_ns, digest)
        except DAMAGED as error:
            log.warning(f"{path} is damaged ({error}); its features are computed again")
            continue
        features_of |= zip(hashes, features, strict=True)
    return features_of


@lru_cache(MOST_FILES)
def read_file(path: Path, written: int, digest: str) -> tuple[list[bytes], NDArray[np.float32]]:
    """The hashes and features (n, D) of a file as it was `written`: a sweep reads each once."""
    entry = read_entry(path, digest)
    return [bytes(name) for name in entry["hashes"]], entry["features"]


def keep(folder: Path, digest: str, hashes: list[bytes], features: NDArray[np.float32]) -> None:
    """Writes features (n, D) into a new file of the folder."""
    names = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    arrays: dict[str, NDArray[Any]] = {"hashes": names, "features": features}
    write_entry(folder / f"{secrets.token_hex(8)}.npz", digest, arrays)
