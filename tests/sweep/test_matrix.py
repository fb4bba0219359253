"""Every dataset with the four methods and PCA, from files in their true formats to a result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.formats import (
    write_cifar10,
    write_coil,
    write_dcase,
    write_faces,
    write_mnist,
    write_ucsd,
)
from tests.methods.conftest import SMALL

#: dataset -> (what writes a tiny one under a root, its inlier)
SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "digits": (lambda root: None, "8"),
    "mnist": (write_mnist, "3"),
    "fmnist": (lambda root: write_mnist(root, name="FashionMNIST"), "sneaker"),
    "cifar10": (write_cifar10, "cat"),
    "coil100": (lambda root: write_coil(root, objects=(1, 2)), "obj1"),
    "ucsd": (lambda root: write_ucsd(root, frames=12), "normal"),
    "dcase": (write_dcase, "park"),
    "antispoofing": (write_faces, "genuine"),
}
TINY = (
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "data.batch_size=16",
    "data.limit_train=32",
    "data.verify=false",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for write, _ in SETS.values():
        write(folder)
    return folder


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("method", ["ca_entropy", "nda", "ocgan", "oled", "pca"])
def test_every_method_runs_on_every_dataset(
    run_here: Callable[..., dict[str, Any]], root: Path, method: str, data: str
) -> None:
    small = {**SMALL.get(method, {}), **({"latent_size": 8} if method == "nda" else {})}
    options = [f"method.{key}={str(value).lower()}" for key, value in small.items()]
    if data == "antispoofing":
        options += ["data.source=casia", "data.target=replay"]
    result = run_here(
        f"method={method}",
        f"data={data}",
        f"inlier={SETS[data][1]}",
        f"data.root={root}",
        *TINY,
        *options,
    )
    for metrics in (*result["scores"].values(), *result["floor"].values()):
        assert 0 <= metrics["auroc"] <= 1
    assert 12 < result["n"]["train"] <= 32
    assert result["data"] == data
    apart = {
        "ucsd": {"patches", "patches_by_mask", "clips"},
        "antispoofing": {"images"},
        "dcase": {"files"},
    }
    assert set(result["apart"]) == apart.get(data, set())
