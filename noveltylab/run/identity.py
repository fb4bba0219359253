"""Whether the images of a run are still those that it was begun with.

The split's file keeps a hash of every image that was read. A run that goes on, or is complete
already, compares: images that came, went or changed since would be mixed with those trained on.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.samples import Samples
from noveltylab.data.split import Split, split_sha256
from noveltylab.errors import UserError
from noveltylab.options import Options
from noveltylab.results.files import open_regular
from noveltylab.run.read import read_and_split
from noveltylab.run.stamp import files_changed

#: Images of each kind that a refusal names.
NAMED = 3
REMEDY = "put them back, choose another output=..., or force=true to begin again (the old run is kept beside it)"


def hash_images(images: Tensor) -> NDArray[np.uint64]:
    """A hash of each image (N, C, H, W): of its pixels, its shape and its type, (N,)."""
    rows = images.cpu().contiguous().numpy().reshape(len(images), -1)
    start = hashlib.blake2b(f"{tuple(images.shape[1:])} {images.dtype}".encode(), digest_size=8)
    digests = bytearray()
    for row in rows:
        digest = start.copy()
        digest.update(row.data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), dtype=np.uint64)


def images_sha256(samples: Samples, hashes: NDArray[np.uint64]) -> str:
    """One hash of all images that were read, with their names and classes: the same for every split
    of them.
    """
    rows = zip(samples.ids.tolist(), samples.labels.tolist(), hashes.tolist(), strict=True)
    return hashlib.sha256(
        "".join(f"{name},{label},{image}\n" for name, label, image in rows).encode()
    ).hexdigest()


@dataclass(frozen=True)
class Recorded:
    """What a split's file says. `pool_*`: of all images that were read, None in a file of before."""

    digest: str
    index: NDArray[np.int64]
    pool_ids: NDArray[np.str_] | None
    pool_labels: NDArray[np.int64] | None
    pool_hashes: NDArray[np.uint64] | None


def read_recorded(path: Path) -> Recorded | None:
    """The record in a split's file; None where there is none or it is damaged."""
    try:
        with open_regular(path) as raw, np.load(raw, allow_pickle=False) as file:
            pool = [
                file[name] if name in file.files else None
                for name in ("pool_id", "pool_label", "pool_image")
            ]
            return Recorded(str(file["sha256"]), file["index"], *pool)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def what_changed(
    recorded: Recorded, samples: Samples, parts: Split, hashes: NDArray[np.uint64]
) -> str:
    """How the images and the split differ from the recorded ones, "" where they do not."""
    same_split = recorded.digest == split_sha256(parts, samples.ids, samples.labels)
    if recorded.pool_ids is None or recorded.pool_labels is None or recorded.pool_hashes is None:
        return "" if same_split else "the split is another one"
    if same_split and np.array_equal(recorded.pool_hashes[recorded.index], hashes[parts.index]):
        return ""
    old = _by_id(recorded.pool_ids, recorded.pool_labels, recorded.pool_hashes)
    new = _by_id(samples.ids, samples.labels, hashes)
    common = [name for name in new if name in old]
    kinds = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in common if old[name][1] != new[name][1]],
        "of another class": [name for name in common if old[name][0] != new[name][0]],
    }
    differences = [
        f"{_count(names)} {kind} ({_name(names)})" for kind, names in kinds.items() if names
    ]
    return (
        "; ".join(differences)
        or "the same images are split otherwise (by other code or another NumPy)"
    )


def _by_id(
    ids: NDArray[Any], labels: NDArray[Any], hashes: NDArray[Any]
) -> dict[str, tuple[int, int]]:
    values = zip(labels.tolist(), hashes.tolist(), strict=True)
    return dict(zip(ids.tolist(), values, strict=True))


def _count(names: list[str]) -> str:
    return f"{len(names)} image{'s' if len(names) > 1 else ''}"


def _name(names: list[str]) -> str:
    remainder = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + remainder


def check_same(folder: Path, samples: Samples, parts: Split, hashes: NDArray[np.uint64]) -> bool:
    """Raises UserError where the run in `folder` was begun with other images or another split.

    Returns whether the folder says what it was begun with.
    """
    recorded = read_recorded(folder / "split.npz")
    if recorded is None:
        return False
    if difference := what_changed(recorded, samples, parts, hashes):
        raise UserError(
            f"{folder} holds a run that was begun with other images: {difference}; {REMEDY}"
        )
    return True


def check_complete(result: dict[str, Any], options: Options, folder: Path) -> None:
    """Raises UserError where the images of a complete run are others now. They are read only if a
    file changed.
    """
    if files_changed(result, options):
        samples, parts = read_and_split(options)
        check_same(folder, samples, parts, hash_images(samples.images))
