"""Assembles the result of a run: its numbers, and what they were made of."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.samples import Samples
from noveltylab.methods.base import Method
from noveltylab.results.files import sha256_file
from noveltylab.results.provenance import provenance
from noveltylab.results.scores import Scores
from noveltylab.run.read import Images, images_sha256
from noveltylab.run.recording import Origin
from noveltylab.scoring.folds import Folds
from noveltylab.training.fit import Training


def describe(
    method: Method,
    data: NoveltyData,
    images: Images,
    test: Scores,
    training: Training,
    epochs: int,
    origin: Origin,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What a run's numbers were made of, but for its files.

    Args:
        method: Trained.
        data: Its batches.
        images: All that were read, and which of them train and test.
        test: What the run's number is measured on.
        training: What training has given.
        epochs: How many were planned.
        origin: The split and the code.
        seconds: What each stage after training took.
    """
    section = describe_training(method, training, epochs)
    section |= describe_method(method, data, images.samples)
    section |= describe_seconds(training, seconds)
    section |= describe_images(images, test, origin.split_sha256)
    return section


def describe_training(method: Method, training: Training, epochs: int) -> dict[str, Any]:
    """Which weights were scored, and how many of the planned epochs were trained."""
    selected = training.selected
    section: dict[str, Any] = {
        "selected": {
            "rule": selected.rule,
            "epoch": selected.epoch,
            "value": selected.value,
            "phases": [asdict(phase) for phase in training.phases],
        }
    }
    if method.iterative:
        section["epochs"] = {"planned": epochs, "trained": training.epochs}
    section["weights"] = {
        "file": f"checkpoints/{selected.path.name}",
        "sha256": sha256_file(selected.path),
    }
    return section


def describe_method(method: Method, data: NoveltyData, samples: Samples) -> dict[str, Any]:
    """What the method takes and was trained on, and which scores are made of the whole test set."""
    kind = samples.units.kind if samples.units else "image"
    shape = list(data.image_shape)
    section: dict[str, Any] = {"input": {"shape": shape, "kind": kind, "scale": samples.scale}}
    if isinstance(method, Folds):
        section["folds"] = len(method.members)
    section["trained_on"] = method.trained_on
    if method.pretrained:
        section["pretrained"] = method.pretrained
    section["transductive"] = sorted(method.transductive & set(method.score_names))
    return section


def describe_seconds(training: Training, seconds: dict[str, float]) -> dict[str, Any]:
    """What each stage took and was estimated to take, in seconds."""
    spent = training.seconds | seconds
    spent["total"] = sum(spent.values())
    return {"seconds": _rounded(spent), "estimated": _rounded(training.estimated)}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in seconds.items()}


def describe_images(images: Images, test: Scores, digest: str) -> dict[str, Any]:
    """How many images there are of each part, and which they are.

    Args:
        images: All that were read.
        test: What the run's number is measured on.
        digest: Hash of the split.
    """
    samples, split = images.samples, images.split
    counts = {
        "train": len(split.train),
        "val": len(split.val),
        "test_inliers": int((~test.is_outlier).sum()),
        "test_outliers": int(test.is_outlier.sum()),
    }
    if samples.skipped:
        counts["skipped"] = samples.skipped
    if samples.missing:
        counts["missing"] = samples.missing
    section: dict[str, Any] = {"n": counts, "split_sha256": digest}
    if images.stamp:
        section |= {"images_sha256": images_sha256(images), "data_files": images.stamp}
    section["data_verified"] = samples.verified
    return section


def hash_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files of the run that its numbers follow from."""
    paths = [
        folder / "split.npz",
        *sorted(folder.glob("scores*.csv")),
        folder / "config.yaml",
        folder / "floors.csv",
        *folder.glob("calibration.csv"),
    ]
    return {path.name: sha256_file(path) for path in paths}


def describe_origin(method: Method, origin: Origin) -> dict[str, Any]:
    """Code, versions, machine, command and time; and the code before an interruption."""
    section = provenance(datetime.now(UTC), gpu_name(method), torch.get_num_threads())
    section["versions"] |= origin.code["versions"]
    section |= {"commit": origin.code["commit"], "sources": origin.code["sources"]}
    if origin.earlier_code:
        section["resumed"] = origin.earlier_code
    return section


def gpu_name(method: Method) -> str | None:
    """The accelerator's name, None on a CPU."""
    if method.device.type != "cuda":
        return None
    return torch.cuda.get_device_name(method.device)
