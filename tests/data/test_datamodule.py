"""The DataModule: what batches hold, that their order is reproducible, and that Lightning's Trainer
works with it.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from noveltylab.data import datamodule
from noveltylab.data.datamodule import Chunk, EpochSampler, NoveltyData
from noveltylab.data.load import load
from noveltylab.data.preprocess import resize
from noveltylab.data.protocols import split
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split
from noveltylab.errors import UserError
from tests.formats import write_mnist


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, n_train=400, n_test=200)
    return load("mnist", root, False, False)


def make(samples: Samples, val_fraction: float = 0.25, **options: Any) -> NoveltyData:
    parts = split("p1", samples.labels, samples.official_test, 3, seed=0, val_fraction=val_fraction)
    defaults: dict[str, Any] = {
        "size": 32,
        "contrast": "none",
        "subtract_mean": False,
        "batch_size": 4,
        "seed": 0,
        "chunk": 2,
    }
    return NoveltyData(samples, parts, 3, **(defaults | options))


class Recorder(L.LightningModule):
    """Notes which positions came in each epoch, and checks each batch against the resident images."""

    def __init__(self, data: NoveltyData) -> None:
        super().__init__()
        self.data = data
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[list[int]]] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, chunk: Chunk) -> None:
        data = self.data
        assert isinstance(chunk, Chunk)
        assert chunk.rows.shape[1] == data.batch_size
        assert chunk.x.shape[:2] == chunk.rows.shape
        assert torch.equal(chunk.x.flatten(0, 1), data.preprocess(data.train[chunk.rows.flatten()]))
        self.seen.setdefault(self.current_epoch, []).append(chunk.rows.flatten().tolist())
        self.log("weight", self.weight)


def fit(
    data: NoveltyData, path: Path, epochs: int, checkpoint: Path | None = None
) -> tuple[Recorder, L.Trainer]:
    module = Recorder(data)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1, default_root_dir=path,
    )  # fmt: skip
    trainer.fit(
        module,
        datamodule=data,
        ckpt_path=checkpoint,
        weights_only=None if checkpoint is None else False,
    )
    return module, trainer


def test_parts_are_resident_and_aligned(samples: Samples) -> None:
    data = make(samples, size=None)
    parts = split("p1", samples.labels, samples.official_test, 3, seed=0, val_fraction=0.25)
    for name in ("train", "val", "test"):
        resident = getattr(data, name)
        assert resident.dtype == torch.uint8
        assert resident.is_contiguous()
        assert torch.equal(resident, samples.images[torch.from_numpy(getattr(parts, name))])
    assert data.test_ids.tolist() == samples.ids[parts.test].tolist()
    assert np.array_equal(data.test_labels, samples.labels[parts.test])
    assert np.array_equal(data.test_is_outlier, data.test_labels != 3)
    assert make(samples).train.shape == (36, 1, 32, 32)


def test_every_epoch_is_another_whole_permutation(samples: Samples, tmp_path: Path) -> None:
    data = make(samples, batch_size=5, chunk=3)
    module, _ = fit(data, tmp_path, 3)
    orders = []
    for epoch in range(3):
        assert [len(batch) for batch in module.seen[epoch]] == [15, 15, 5], (
            "36 positions: 7 x 5, in threes"
        )
        order = list(chain(*module.seen[epoch]))
        assert len(set(order)) == 35
        assert set(order) <= set(range(36))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_a_resumed_run_sees_the_same_order(samples: Samples, tmp_path: Path) -> None:
    whole, _ = fit(make(samples), tmp_path, 4)
    first, trainer = fit(make(samples), tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.rand(17)
    second, _ = fit(make(samples), tmp_path, 4, tmp_path / "half.ckpt")
    assert first.seen | second.seen == whole.seen
    assert set(second.seen) == {2, 3}


def test_order_depends_on_seed_and_epoch_only(samples: Samples) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = make(samples, seed=seed).train_dataloader()
        cast(EpochSampler, loader.sampler).set_epoch(epoch)
        return torch.cat(list(loader)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_batches_leave_the_global_random_state_alone(samples: Samples) -> None:
    data = make(samples)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_validation_part(samples: Samples, tmp_path: Path) -> None:
    data = make(samples, val_fraction=0.0)
    assert data.val.shape[0] == 0
    module, _ = fit(data, tmp_path, 1)
    assert len(module.seen[0]) == 6


def test_fewer_images_than_a_batch(samples: Samples, tmp_path: Path) -> None:
    data = make(samples, batch_size=64, chunk=10)
    assert data.batch_size == 36
    assert data.warnings[0] == "only 36 training samples: batch size 64 became 36"
    module, _ = fit(data, tmp_path, 1)
    assert [len(batch) for batch in module.seen[0]] == [36]


def test_training_images_that_are_all_alike_are_a_warning(samples: Samples) -> None:
    alike = replace(samples, images=torch.full_like(samples.images, 7))
    assert "36 training images are one and the same" in make(alike).warnings[0]


def test_unverified_files_are_a_warning_of_the_run(samples: Samples) -> None:
    assert make(samples).warnings == ["data.verify=false: the data files were not checked"]


def test_preprocessing_knows_the_training_inliers_only(samples: Samples) -> None:
    data = make(samples, contrast="gcn", subtract_mean=True)
    chunk = data.gather(torch.arange(36)[None])
    assert chunk.x[0].mean(0).abs().max() < 1e-5
    changed = Samples(
        samples.images.clone(), samples.labels, samples.official_test, samples.ids, False
    )
    changed.images[torch.from_numpy(samples.labels != 3)] = 0
    changed_data = make(changed, contrast="gcn", subtract_mean=True)
    assert torch.equal(changed_data.preprocess.mean, data.preprocess.mean)
    assert torch.equal(changed_data.preprocess.hi, data.preprocess.hi)


def test_several_processes_share_one_permutation() -> None:
    orders = [list(EpochSampler(50, 4, seed=0, rank=rank, replicas=3)) for rank in range(3)]
    assert [len(order) for order in orders] == [16, 16, 16]
    assert len(set(chain(*orders))) == 48
    with pytest.raises(
        UserError, match=r"10 training samples over 3 devices are fewer than data.batch_size=4"
    ):
        EpochSampler(10, 4, seed=0, rank=0, replicas=3)


def test_loader_is_torchs_own_without_workers(samples: Samples) -> None:
    loader = make(samples).train_dataloader()
    assert type(loader) is DataLoader
    assert loader.num_workers == 0
    assert len(loader) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"size": -1}, "data.size must be at least 1"),
        ({"contrast": "gnc"}, "did you mean 'gcn'"),
    ],
)
def test_bad_options_are_one_clear_error(
    samples: Samples, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(samples, **options)


def test_a_leaking_split_is_refused(samples: Samples) -> None:
    labels = samples.labels
    train, outlier = np.flatnonzero(labels == 3), np.flatnonzero(labels != 3)
    leaking = Split(
        train[:5], outlier[:1], np.array([train[6], outlier[2]]), np.array([False, True])
    )
    with pytest.raises(UserError, match="val part holds 1 outliers"):
        NoveltyData(
            samples,
            leaking,
            3,
            size=None,
            contrast="none",
            subtract_mean=False,
            batch_size=2,
            seed=0,
            chunk=1,
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("on_device", [True, False])
def test_images_move_to_the_device_once(samples: Samples, on_device: bool) -> None:
    data = make(samples, contrast="gcn", subtract_mean=True, on_device=on_device)
    expected = data.gather(torch.arange(8).view(2, 4)).x
    positions = data.transfer_batch_to_device(torch.arange(8), torch.device("cuda", 0), 0)
    batch = data.on_after_batch_transfer(positions, 0)
    assert batch.x.is_cuda
    assert batch.rows.is_cuda
    assert data.train.is_cuda == on_device
    assert torch.allclose(batch.x.cpu(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [None, 4, 6])
@pytest.mark.parametrize("index", [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [7, 2, 5], [9], []])
def test_taken_images_are_those_at_the_index(
    monkeypatch: pytest.MonkeyPatch, size: int | None, index: list[int]
) -> None:
    """In blocks, or as a view of one large piece, never another image."""
    monkeypatch.setattr(datamodule, "_BLOCK", 2)
    images = torch.arange(10 * 2 * 4 * 4, dtype=torch.uint8).view(10, 2, 4, 4)
    taken = datamodule._take(images, np.array(index, np.int64), size)
    plain = images[torch.tensor(index, dtype=torch.int64)]
    assert torch.equal(taken, resize(plain, size) if size == 6 and index else plain)
    shares = taken.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    assert shares == (size != 6 and len(index) >= 4)
