"""Run folders in the true format, from generated scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noveltylab.results.files import sha256_file
from noveltylab.results.scores import Scores, write_scores
from noveltylab.scoring.auroc import METHOD
from noveltylab.scoring.metrics import evaluate

CLASSES = {
    "mnist": [str(i) for i in range(10)],
    "cifar10": ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "coil100": "seeded20",
}


def run_folder(output: Path, protocol: str, method: str, data: str, inlier: int, seed: int) -> Path:
    return output / protocol / method / data / f"inlier{inlier}" / f"seed{seed}"


def result_of(
    method: str,
    data: str,
    protocol: str,
    inlier: int,
    seed: int,
    scores: dict[str, Any],
    floor: dict[str, Any],
) -> dict[str, Any]:
    """A result.json as a run writes it; `scores` and `floor` are name -> metrics."""
    names = CLASSES.get(data, [str(label) for label in range(10)])
    return {
        "method": method,
        "data": data,
        "protocol": protocol,
        "inlier": inlier,
        "inlier_name": names[inlier] if isinstance(names, list) else f"obj{inlier + 1}",
        "seed": seed,
        "select": "val_loss",
        "primary": next(iter(scores)),
        "scores": scores,
        "auroc_ci_method": METHOD,
        "floor": floor,
        "warnings": [],
        "extra": {},
        "labelled": {},
        "selected": {"rule": "val_loss", "epoch": 4, "value": 0.1},
        "transductive": [],
        "seconds": {"train": 50.0, "score": 10.0, "total": 60.0},
        "n": {"train": 90, "val": 10, "test_inliers": 40, "test_outliers": 60},
        "split_sha256": "0" * 64,
        "data_verified": True,
        "files": {},
        "provenance": {
            "versions": {"noveltylab": "0.1.0", "torch": "2.15.0"},
            "commit": "0" * 40,
            "hardware": {"cpu": "a CPU", "gpu": None},
            "command": "noveltylab",
            "time": "2026-01-01T00:00:00+00:00",
        },
        "config": {
            "inlier": inlier,
            "seed": seed,
            "output": "outputs",
            "method": {
                "name": method,
                "_target_": f"noveltylab.methods.{method}.X",
                "primary": next(iter(scores)),
            },
            "protocol": {"name": protocol},
            "data": {"name": data, "classes": names, "limit_train": None},
            "trainer": {"max_epochs": 700},  # as many as any method has: a whole run
            "logger": {"name": "csv"},
        },
    }


def flat_metrics(auroc: float, half: float = 0.01) -> dict[str, Any]:
    """Metrics with a given AUROC and half width of its interval."""
    interval = [max(auroc - half, 0.0), min(auroc + half, 1.0)]
    return {
        "auroc": auroc,
        "auroc_ci": interval,
        "average_precision": 0.9,
        "eer": 0.1,
        "fpr95": 0.2,
    }


Change = Callable[[dict[str, Any]], None]
WriteRun = Callable[..., Path]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def write_run(outputs: Path) -> WriteRun:
    """write_run("ocgan", "mnist", "p2", 3, 0): a complete run with scores.csv, metrics.csv and a
    picture.

    With auroc=0.9 (or {"mse": 0.9, ...}) its numbers are these, and there is no scores.csv;
    `change` edits the result.
    """

    def write(
        method: str = "ocgan",
        data: str = "mnist",
        protocol: str = "p2",
        inlier: int = 0,
        seed: int = 0,
        auroc: float | dict[str, float] | None = None,
        floor: float = 0.8,
        output: Path | None = None,
        change: Change = lambda result: None,
    ) -> Path:
        folder = run_folder(output or outputs, protocol, method, data, inlier, seed)
        folder.mkdir(parents=True)
        files: dict[str, str] = {}
        if auroc is None:
            scores, floors = _scored(folder, inlier, seed)
            files["scores.csv"] = sha256_file(folder / "scores.csv")
        else:
            values = auroc if isinstance(auroc, dict) else {"mse": auroc}
            scores = {name: flat_metrics(value) for name, value in values.items()}
            floors = {"pca": flat_metrics(floor), "knn": flat_metrics(floor)}
        (folder / "config.yaml").write_text("inlier: 0\n")
        (folder / "metrics.csv").write_text(
            "iteration,name,value\n" + "".join(f"{i},train/mse,{1 / i}\n" for i in range(1, 9))
        )
        (folder / "figures").mkdir()
        (folder / "figures" / "roc.png").write_bytes(b"\x89PNG")
        result = result_of(method, data, protocol, inlier, seed, scores, floors) | {"files": files}
        change(result)
        # as write_result, but does not wait for the disk
        (folder / "result.json").write_text(json.dumps(result, indent=1))
        return folder

    return write


def _scored(folder: Path, inlier: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng([inlier, seed])
    is_outlier = np.arange(100) >= 40
    columns = {
        name: rng.normal(size=100) + gap * is_outlier for name, gap in (("mse", 1.5), ("dv_x", 0.5))
    }
    write_scores(
        folder / "scores.csv",
        Scores([f"test/{i}" for i in range(100)], np.where(is_outlier, 1, 0), is_outlier, columns),
    )
    floors = {name: rng.normal(size=100) + is_outlier for name in ("pca", "knn")}
    metrics = [
        {name: evaluate(values, is_outlier) for name, values in group.items()}
        for group in (columns, floors)
    ]
    return metrics[0], metrics[1]


def edit(folder: Path, **values: Any) -> None:
    """Sets top-level keys of a result.json."""
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
