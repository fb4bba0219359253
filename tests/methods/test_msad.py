"""MSAD against its paper: the mean-shifted loss and the score against NumPy, views, what trains."""

import math
from collections.abc import Callable
from colorsys import rgb_to_hsv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.nn import functional as F

from noveltylab.methods import msad as module
from noveltylab.methods.base import Batch
from noveltylab.methods.msad import (
    MSAD,
    angular_loss,
    contrastive_loss,
    mean_shifted,
    random_blur,
    random_colour,
    random_window,
    view,
)
from tests.methods.conftest import blobs, settings, spied_update

pytest.importorskip("timm")
Make = Callable[..., Any]
NAME = "test_resnet"
Array = np.ndarray[Any, Any]


def batch(count: int = 16) -> Batch:
    return Batch(blobs(64)[:count], torch.arange(count))


def prepared(make: Make, **changes: Any) -> Any:
    method = make("msad", backbone=NAME, **changes)
    method.prepare(blobs(64))
    return method.train()


def unit(rows: Array) -> Array:
    lengths: Array = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def loss_by_numpy(theta: Array, other: Array, temperature: float) -> Array:
    """Image by image, view by view."""
    both = np.concatenate([theta, other])
    count = len(theta)
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        share = np.exp(both[i] @ both[partner] / temperature)
        others = [np.exp(both[i] @ both[j] / temperature) for j in range(2 * count) if j != i]
        losses.append(-np.log(share / sum(others)))
    return np.array(losses)


# The losses.


def test_the_contrastive_loss_by_numpy() -> None:
    rng = np.random.default_rng(0)
    theta, other = unit(rng.normal(size=(5, 8))), unit(rng.normal(size=(5, 8)))
    losses = contrastive_loss(torch.tensor(theta), torch.tensor(other), 0.25)
    np.testing.assert_allclose(losses.numpy(), loss_by_numpy(theta, other, 0.25), rtol=1e-9)


def test_features_are_shifted_by_the_centre_and_of_unit_length() -> None:
    rng = np.random.default_rng(1)
    phi, centre = unit(rng.normal(size=(4, 6))), rng.normal(size=6)
    theta = mean_shifted(torch.tensor(phi), torch.tensor(centre)).numpy()
    np.testing.assert_allclose(theta, unit(phi - centre), rtol=1e-9)
    angle = angular_loss(torch.tensor(phi), torch.tensor(centre)).numpy()
    np.testing.assert_allclose(angle, -phi @ centre / np.linalg.norm(centre), rtol=1e-9)


@pytest.mark.parametrize("angular", [False, True])
def test_an_update_minimises_these_of_two_views(
    make: Make, monkeypatch: pytest.MonkeyPatch, angular: bool
) -> None:
    method = prepared(make, angular=angular)
    views = iter([batch().x, batch().x.flip(3)])
    monkeypatch.setattr(module, "view", lambda x: next(views))
    with torch.no_grad():
        phi = method.embed(torch.cat([batch().x, batch().x.flip(3)])).double().numpy()
    np.testing.assert_allclose(np.linalg.norm(phi, axis=1), 1, rtol=1e-5)
    centre = method.centre.double().numpy()
    theta = unit(phi - centre)
    loss = loss_by_numpy(theta[:16], theta[16:], 0.25).mean()
    expected = {"contrastive": pytest.approx(loss, rel=1e-3)}
    angle = -2 * (phi @ centre / np.linalg.norm(centre)).mean()
    if angular:
        expected["angle"] = pytest.approx(angle, rel=1e-4)
        loss += angle
    minimised, losses = spied_update(method, batch(), monkeypatch)
    assert losses == expected
    assert minimised == {"backbone": pytest.approx(loss, rel=1e-3)}


def test_the_centre_is_the_mean_of_the_first_unit_features_and_stays(make: Make) -> None:
    method = prepared(make)
    with torch.no_grad():
        features = method.backbone.pooled(blobs(64)).double().numpy()
    np.testing.assert_allclose(method.centre.numpy(), unit(features).mean(0), atol=1e-5)
    before = method.centre.clone()
    for _ in range(3):
        method.update(batch())
    method.prepare_score(blobs(64))
    assert torch.equal(method.centre, before)


@pytest.mark.parametrize("angular", [False, True])
def test_the_loss_of_held_out_inliers_by_numpy(make: Make, angular: bool) -> None:
    method = prepared(make, angular=angular).eval()
    x = blobs(5, seed=3)
    with torch.no_grad():
        losses = method.validation_loss(x).numpy()
        phi, mirrored = (method.embed(part).double().numpy() for part in (x, x.flip(3)))
    centre = method.centre.double().numpy()
    theta, partner, bank = (
        unit(part - centre) for part in (phi, mirrored, method.bank.double().numpy())
    )
    for i in range(5):
        share = math.exp(theta[i] @ partner[i] / 0.25)
        loss = -math.log(share / (share + np.exp(bank @ theta[i] / 0.25).sum()))
        if angular:
            loss -= (phi[i] + mirrored[i]) @ centre / np.linalg.norm(centre)
        assert losses[i] == pytest.approx(loss, rel=1e-2)


# Views.


def test_windows_have_the_papers_areas_and_stay_inside() -> None:
    torch.manual_seed(0)
    windows = random_window(20_000, torch.zeros(1)).numpy()
    width, height = np.abs(windows[:, 0, 0]), windows[:, 1, 1]
    area = width * height
    assert area.min() > 0.15 and area.max() <= 1
    assert area.mean() == pytest.approx(0.6, abs=0.02)
    assert (windows[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (windows[:, 0, 1] == 0).all() and (windows[:, 1, 0] == 0).all()
    for side, shift in ((width, windows[:, 0, 2]), (height, windows[:, 1, 2])):
        assert (np.abs(shift) + side <= 1 + 1e-6).all()


def test_colours_change_as_often_as_the_paper_says() -> None:
    torch.manual_seed(0)
    y = 0.2 + 0.6 * torch.rand(1, 3, 4, 4).expand(4000, -1, -1, -1)
    changed = random_colour(y)
    assert changed.min() >= 0 and changed.max() <= 1
    same = (changed == y).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(0.2 * 0.8, abs=0.02)
    spread = (changed.amax(1) - changed.amin(1)).amax((1, 2))
    assert (spread < 1e-5).float().mean().item() == pytest.approx(0.2, abs=0.02)
    grey = random_colour(torch.rand(8, 1, 4, 4))
    assert grey.shape == (8, 1, 4, 4)


def test_the_blur_is_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images of 224 pixels at most two pixels wide, and of half of them."""
    y = torch.rand(1, 1, 224, 224)
    draws = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    blurred = random_blur(y)[0, 0].numpy()
    steps = np.arange(-6, 7)
    weights = np.exp(-0.5 * (steps / 2) ** 2)
    weights /= weights.sum()
    expected = y[0, 0].double().numpy()
    for axis in (0, 1):
        expected = correlate1d(expected, weights, axis, mode="nearest")
    np.testing.assert_allclose(blurred, expected, atol=1e-5)
    draws[1] = 0.5
    assert torch.equal(random_blur(y), y)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_drawn_anew_for_each_image(channels: int) -> None:
    torch.manual_seed(0)
    x = blobs(1, (channels, 32, 32)).expand(6, -1, -1, -1)
    first, second = view(x), view(x)
    assert first.shape == x.shape and first.min() >= -1 and first.max() <= 1
    assert not torch.equal(first, second)
    assert len({image.numpy().tobytes() for image in first}) == 6
    torch.manual_seed(0)
    assert torch.equal(view(x), first)


# What trains, and the score.


def test_an_update_moves_only_the_last_stages(make: Make) -> None:
    method = prepared(make, lr=1.0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.update(batch())
    moved = {n for n, value in method.state_dict().items() if not torch.equal(before[n], value)}
    parameters = {name for name, _ in method.named_parameters()}
    last = {name for name in parameters if "layer3" in name or "layer4" in name}
    assert {name for name in last if "conv" in name} <= moved <= last
    assert not any(part.training for part in method.backbone.modules())


def test_the_optimizer_is_that_of_the_code() -> None:
    (optimizer,) = MSAD((1, 32, 32), backbone=NAME).build_optimizers().values()
    assert settings(optimizer) == {"kind": "SGD", "lr": 1e-5, "weight_decay": 5e-5}


@pytest.mark.parametrize("k", [1, 2, 100])
def test_the_score_is_the_cosine_distance_to_the_nearest(make: Make, k: int) -> None:
    method = prepared(make, k=k).eval()
    x = blobs(7, seed=3)
    with torch.no_grad():
        method.prepare_score(blobs(64))
        scores = method.novelty_score(x)["knn"].numpy()
        cosine = F.cosine_similarity(
            method.backbone.pooled(x)[:, None].double(),
            method.backbone.pooled(blobs(64))[None].double(),
            dim=2,
        ).numpy()
    nearest = np.sort(1 - cosine, axis=1)[:, : min(k, 64)]
    np.testing.assert_allclose(scores, nearest.sum(1), rtol=1e-2, atol=1e-5)


# Whole runs.

RUN = (
    "method=msad",
    f"method.backbone={NAME}",
    "method.input_size=32",
    "method.lr=1e-2",
    "data=digits",
    "data.batch_size=16",
    "trainer.max_epochs=3",
    "trainer.val_every=1",
    "trainer.checkpoint_seconds=0",
    "trainer.accelerator=cpu",
)


def test_a_resumed_run_has_the_scores_of_one_that_was_not_interrupted(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    torch.manual_seed(5)
    torch.save(timm.create_model(NAME).state_dict(), tmp_path / "network.pth")
    options = (*RUN, f"method.weights={tmp_path / 'network.pth'}")
    whole = run_here(*options, f"output={tmp_path / 'whole'}")
    assert whole["trained_on"] == "ImageNet"
    update = MSAD.update

    def interrupted(self: MSAD, step: Batch) -> dict[str, Tensor]:
        if self.progress > 0.5:
            raise KeyboardInterrupt
        return update(self, step)

    monkeypatch.setattr(MSAD, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_here(*options, f"output={tmp_path / 'again'}")
    monkeypatch.setattr(MSAD, "update", update)
    run_here(*options, f"output={tmp_path / 'again'}")
    run = "p1/msad/digits/inlier8/seed0/scores.csv"
    assert (tmp_path / "again" / run).read_text() == (tmp_path / "whole" / run).read_text()


# What a view may be (code).


def test_windows_have_every_shape_and_place_that_they_may_have() -> None:
    torch.manual_seed(0)
    maps = random_window(4000, torch.zeros(1))
    width, height = maps[:, 0, 0].abs(), maps[:, 1, 1]
    # of windows that the image's border does not cut
    whole = (width < 0.999) & (height < 0.999)
    aspect = (width / height)[whole]
    assert 0.75 - 1e-4 <= aspect.min() < 0.8 and 1.25 < aspect.max() <= 4 / 3 + 1e-4
    for place, side in ((maps[:, 0, 2], width), (maps[:, 1, 2], height)):
        share = (place / (1 - side))[whole]
        assert -1 - 1e-4 <= share.min() < -0.95 and 0.95 < share.max() <= 1 + 1e-4


def test_brightness_changes_by_two_fifths_at_most() -> None:
    """A flat grey image has no contrast: what is left is the factor of its brightness."""
    torch.manual_seed(0)
    values = random_colour(torch.full((4000, 1, 2, 2), 0.5))[:, 0, 0, 0] / 0.5
    assert 0.6 - 1e-4 <= values.min() < 0.62 and 1.38 < values.max() <= 1.4 + 1e-4


def test_hue_turns_by_a_tenth_of_the_circle_at_most() -> None:
    torch.manual_seed(0)
    red = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1).expand(4000, 3, 2, 2)
    colours = random_colour(red.clone())[:, :, 0, 0].double().numpy()
    coloured = colours[colours.max(1) - colours.min(1) > 0.02]
    hues = np.array([rgb_to_hsv(*colour)[0] for colour in coloured])
    turns = (hues + 0.5) % 1 - 0.5
    assert -0.1 - 1e-3 <= turns.min() < -0.09 and 0.09 < turns.max() <= 0.1 + 1e-3
