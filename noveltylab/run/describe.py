"""Assembles the result of a run: its numbers, and what they were made of."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split
from noveltylab.methods.base import Method
from noveltylab.results.files import sha256_file
from noveltylab.results.provenance import provenance
from noveltylab.results.scores import Scores
from noveltylab.run.identity import images_sha256
from noveltylab.run.recording import Origin
from noveltylab.run.train import Training
from noveltylab.scoring.folds import Folds


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
    """What the method takes, and which of its scores are made of the whole test set."""
    section: dict[str, Any] = {
        "input": {
            "shape": list(data.image_shape),
            "kind": samples.units.kind if samples.units else "image",
            "scale": samples.scale,
        }
    }
    if isinstance(method, Folds):
        section["folds"] = len(method.members)
    section["transductive"] = sorted(method.transductive & set(method.score_names))
    return section


def describe_seconds(training: Training, seconds: dict[str, float]) -> dict[str, Any]:
    """What each stage took and was estimated to take, in seconds."""
    spent = training.seconds | seconds
    spent["total"] = sum(spent.values())
    return {
        "seconds": {name: round(value, 2) for name, value in spent.items()},
        "estimated": {name: round(value, 2) for name, value in training.estimated.items()},
    }


def describe_images(
    samples: Samples,
    split: Split,
    test: Scores,
    hashes: NDArray[np.uint64],
    digest: str,
    stamp: str | None,
) -> dict[str, Any]:
    """How many images there are of each part, and which they are.

    Args:
        samples: All images that were read.
        split: Which of them train and test.
        test: What the run's number is measured on.
        hashes: A hash of each image.
        digest: Hash of the split.
        stamp: Changes with any file of one's own images; None for published data.
    """
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
    if stamp:
        section |= {"images_sha256": images_sha256(samples, hashes), "data_files": stamp}
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
    section |= {"commit": origin.code["commit"], "sources": origin.code["sources"]}
    if origin.earlier_code:
        section["resumed"] = origin.earlier_code
    return section


def gpu_name(method: Method) -> str | None:
    """The accelerator's name, None on a CPU."""
    return torch.cuda.get_device_name(method.device) if method.device.type == "cuda" else None
