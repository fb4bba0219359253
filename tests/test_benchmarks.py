"""The references that speed is measured against do what noveltylab does: a faster side must not be
one that does less.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.reference import REFERENCES, Images
from benchmarks.suite import ROWS, count_flops, rows_for
from noveltylab.methods.base import Batch
from tests.methods.conftest import blobs, make

__all__ = ["make"]  # the fixture


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("mines", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_references_train_as_noveltylab_does(
    make: Callable[..., Any], name: str, shared: bool, mines: bool
) -> None:
    if name != "ocgan" and (shared or mines):
        pytest.skip("OCGAN's alone")
    changes = {"dropout": 0.0} if name == "ocgan" else {}
    # in float64, since Adam's first steps make of rounding errors steps of full size
    x, rows = blobs(32).double(), torch.arange(32)
    ours, theirs = make(name, **changes).double().train(), make(name, **changes).double().train()
    for method in (ours, theirs):
        method.prepare(x)
    ours.progress = 0.9 if mines else 0.0
    reference = REFERENCES[name](theirs, shared=shared)
    optimizers = reference.optimizers()

    def minimise(loss: Tensor, number: int) -> None:
        if loss.requires_grad:
            optimizers[number].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizers[number].step()

    for step in range(3):
        losses: list[dict[str, Tensor]] = []
        for side in ("ours", "theirs"):
            torch.manual_seed(step)
            if side == "ours":
                losses.append(ours.update(Batch(x, rows)))
            else:
                losses.append(reference.step([x, rows, x.flip(0)], 9 if mines else 0, 10, minimise))
        # NDA's negatives come from elsewhere
        names = {"recon"} if name == "nda" else losses[1].keys()
        assert names <= losses[0].keys()
        for loss in names:
            assert losses[1][loss].item() == pytest.approx(
                losses[0][loss].item(), rel=1e-6, abs=1e-9
            ), (step, loss)
    ours.eval(), reference.eval()
    with torch.inference_mode():
        scores = ours.novelty_score(x)
        primary = {"ocgan": "mse", "ca_entropy": "novelty", "oled": "s_mask", "nda": "mse"}[name]
        # mining, and forward passes done twice, enter the reference's running batch-norm statistics
        if name != "nda" and (name != "ocgan" or (shared and not mines)):
            torch.testing.assert_close(reference.score(x), scores[primary], rtol=1e-5, atol=1e-8)


def test_images_come_through_pil_as_they_are_scaled_here() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    x, index, negative = Images(images, 32, negatives=True)[1]
    torch.testing.assert_close(x, images[1].float() / 127.5 - 1, rtol=0, atol=1e-5)
    assert index == 1 and negative.shape == x.shape


def test_flops_are_counted_in_backward_too() -> None:
    a, b = torch.ones(4, 5, requires_grad=True), torch.ones(5, 6)

    def product() -> float:
        (a @ b).sum().backward()  # type: ignore[no-untyped-call]
        return 3.0

    assert count_flops(product) == (3.0, 2 * 2 * 4 * 5 * 6)


def test_bf16_is_measured_only_where_the_machine_has_it() -> None:
    assert rows_for({"32-true": 50.0, "bf16-mixed": 200.0}) == ROWS
    rows = rows_for({"32-true": 50.0, "bf16-mixed": 20.0})
    assert rows == [row for row in ROWS if row[1] == "32-true"] and len(rows) == 4
