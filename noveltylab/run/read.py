"""The images of a run: read, split, and whether they are those that it was begun with.

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

from noveltylab.command.validate import check_arguments
from noveltylab.data.load import load
from noveltylab.data.protocols import PROTOCOLS, VAL_LABELLED, split
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split, draw_val_outliers, split_sha256
from noveltylab.errors import UserError, nearest
from noveltylab.options import Options
from noveltylab.results.files import open_regular
from noveltylab.run.folder import files_changed, files_stamp

#: Images of each kind that a refusal names.
NAMED = 3
REMEDY = "put them back, choose another output=..., or force=true to begin again (the old run is kept beside it)"


@dataclass(frozen=True)
class Images:
    """What a run is made of.

    Attributes:
        samples: All images that were read.
        split: Which of them train and test.
        hashes: A hash of each image.
        stamp: Changes with any file of one's own images; None for published data.
    """

    samples: Samples
    split: Split
    hashes: NDArray[np.uint64]
    stamp: str | None


def read_images(options: Options) -> Images:
    """Reads and splits the images, and takes what tells them from others."""
    stamp = files_stamp(options.data)  # before they are read
    samples, split = read_and_split(options)
    return Images(samples, split, hash_images(samples.images), stamp)


def read_and_split(options: Options) -> tuple[Samples, Split]:
    """The samples and their split; all options of both are checked."""
    # options
    protocol = dict(options.protocol)
    name = protocol.pop("name")
    if name not in PROTOCOLS:
        raise UserError(f"protocol.name={name}: no such protocol; {nearest(name, PROTOCOLS)}")
    arguments = check_arguments(PROTOCOLS[name], {**protocol, "seed": options.seed}, "protocol")
    inlier = options.inlier_index

    # samples
    settings = options.data
    samples = load(
        settings.name,
        settings.root,
        settings.verify,
        settings.download,
        features=settings.features,
        cache=settings.cache,
        inlier=inlier,
        size=settings.size,
        on_error=settings.on_error,
        bits=settings.bits,
        source=settings.source,
        target=settings.target,
        frames=settings.frames,
        difference=settings.difference,
    )

    # split
    labels, official_test = samples.labels, samples.official_test
    parts = split(name, labels, official_test, inlier, facts=samples.facts, **arguments)
    parts = parts.limit(settings.limit_train)
    if options.labelled_rule and not parts.is_outlier.any():
        raise UserError(
            f"select={options.select} needs labelled outliers and the test part has none; "
            "use select=val_loss"
        )
    if options.select == "outlier_val":
        parts = draw_val_outliers(parts, labels, official_test, inlier, VAL_LABELLED, options.seed)
    return samples, parts


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


def images_sha256(images: Images) -> str:
    """One hash of all images with their names and classes, the same for every split of them."""
    samples = images.samples
    rows = zip(samples.ids.tolist(), samples.labels.tolist(), images.hashes.tolist(), strict=True)
    digest = hashlib.sha256()
    for name, label, image in rows:
        digest.update(f"{name},{label},{image}\n".encode())
    return digest.hexdigest()


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
            return Recorded(
                digest=str(file["sha256"]),
                index=file["index"],
                pool_ids=file.get("pool_id"),
                pool_labels=file.get("pool_label"),
                pool_hashes=file.get("pool_image"),
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def describe_change(recorded: Recorded, images: Images) -> str:
    """How the images and the split differ from the recorded ones, "" where they do not."""
    samples, parts, hashes = images.samples, images.split, images.hashes
    same_split = recorded.digest == split_sha256(parts, samples.ids, samples.labels)
    if recorded.pool_ids is None or recorded.pool_labels is None or recorded.pool_hashes is None:
        return "" if same_split else "the split is another one"
    if same_split and np.array_equal(recorded.pool_hashes[recorded.index], hashes[parts.index]):
        return ""
    # name -> class and hash
    old = _by_name(recorded.pool_ids, recorded.pool_labels, recorded.pool_hashes)
    new = _by_name(samples.ids, samples.labels, hashes)
    common = [name for name in new if name in old]
    kinds = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in common if old[name][1] != new[name][1]],
        "of another class": [name for name in common if old[name][0] != new[name][0]],
    }
    differences = []
    for kind, names in kinds.items():
        if names:
            plural = "s" if len(names) > 1 else ""
            differences.append(f"{len(names)} image{plural} {kind} ({_name(names)})")
    if not differences:
        return "the same images are split otherwise (by other code or another NumPy)"
    return "; ".join(differences)


def _by_name(
    ids: NDArray[Any], labels: NDArray[Any], hashes: NDArray[Any]
) -> dict[str, tuple[int, int]]:
    values = zip(labels.tolist(), hashes.tolist(), strict=True)
    return dict(zip(ids.tolist(), values, strict=True))


def _name(names: list[str]) -> str:
    remainder = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + remainder


def check_same(folder: Path, images: Images) -> bool:
    """Checks that the run in `folder` was begun with these images and this split.

    Returns:
        Whether the folder says what it was begun with.

    Raises:
        UserError: They are others.
    """
    recorded = read_recorded(folder / "split.npz")
    if recorded is None:
        return False
    difference = describe_change(recorded, images)
    if difference:
        raise UserError(
            f"{folder} holds a run that was begun with other images: {difference}; {REMEDY}"
        )
    return True


def check_complete(result: dict[str, Any], options: Options, folder: Path) -> None:
    """Raises UserError where the images of a complete run are others now.

    They are read only if a file changed.
    """
    if files_changed(result, options.data):
        check_same(folder, read_images(options))
