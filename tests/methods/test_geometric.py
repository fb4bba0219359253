"""Geometric: the transformations, the Dirichlet fits and the scores, by other means."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import digamma, gammaln
from torch import Tensor

from noveltylab.methods.base import Batch
from noveltylab.methods.geometric import (
    COUNT,
    Geometric,
    fit_dirichlet,
    inverse_digamma,
    transformations,
)
from noveltylab.nets.wide_resnet import wide_residual_network
from tests.methods.conftest import blobs, layers, spied_update

Make = Callable[..., Any]
Floats = NDArray[np.float64]


def batch(count: int = 16, shape: tuple[int, int, int] = (1, 32, 32)) -> Batch:
    return Batch(blobs(count, shape), torch.arange(count))


def transformed(image: NDArray[Any], mirror: bool, down: int, across: int, turn: int) -> Any:
    """An image (C, H, H): mirrored, moved over its reflection with the edge repeated, turned."""
    if mirror:
        image = image[:, :, ::-1]
    side = image.shape[1]
    wide = np.pad(image, ((0, 0), (side, side), (side, side)), mode="symmetric")
    image = wide[:, side + down : 2 * side + down, side + across : 2 * side + across]
    return np.rot90(image, turn, axes=(1, 2))


def all_transformed(image: NDArray[Any]) -> list[Any]:
    quarter = image.shape[1] // 4
    shifts = (0, -quarter, quarter)
    return [
        transformed(image, *choice) for choice in product((False, True), shifts, shifts, range(4))
    ]


# The transformations.


@pytest.mark.parametrize("side", [8, 32])
def test_transformations_are_mirrorings_shifts_and_turns(side: int) -> None:
    image = np.random.default_rng(0).normal(size=(3, side, side))
    positions = transformations(side)
    assert positions.shape == (72, side * side)
    expected = all_transformed(image)
    for place, want in zip(positions, expected, strict=True):
        values = image.reshape(3, -1)[:, place.numpy()].reshape(3, side, side)
        np.testing.assert_array_equal(values, want)


def test_no_two_transformations_are_alike() -> None:
    assert len({tuple(row.tolist()) for row in transformations(8)}) == COUNT == 72


def kept_targets(method: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The labels that the method's next updates compare logits with; nothing is minimised."""
    targets: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        targets.append(labels)
        return logits.sum()

    monkeypatch.setattr("noveltylab.methods.geometric.F.cross_entropy", loss)
    monkeypatch.setattr(method, "minimise", lambda loss, name: None)
    return targets


def test_an_update_shows_each_image_transformed_as_its_label_says(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("geometric", (2, 8, 8), copies=5).train()
    x = torch.randn(6, 2, 8, 8)
    shown: list[Tensor] = []
    monkeypatch.setattr(
        method.network, "forward", lambda images: [shown.append(images), images.sum() + eyes][1]
    )
    eyes = torch.zeros(30, 72, requires_grad=True)
    targets = kept_targets(method, monkeypatch)
    method.update(Batch(x, torch.arange(6)))
    labels = targets[0].view(5, 6)
    for copy in range(5):
        for image in range(6):
            expected = all_transformed(x[image].numpy())[int(labels[copy, image])]
            np.testing.assert_array_equal(shown[0][6 * copy + image].numpy(), expected)
    for image in range(6):
        assert len(set(labels[:, image].tolist())) == 5  # all different


def test_every_transformation_is_drawn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("geometric", (1, 8, 8), copies=72).train()
    targets = kept_targets(method, monkeypatch)
    method.update(Batch(torch.randn(2, 1, 8, 8), torch.arange(2)))
    for image in range(2):
        assert sorted(targets[0].view(72, 2)[:, image].tolist()) == list(range(72))


# The Dirichlet distribution.


def log_likelihood(alpha: Floats, mean_log_p: Floats) -> float:
    """Of a Dirichlet distribution, per sample."""
    constant = gammaln(alpha.sum()) - gammaln(alpha).sum()
    return float(constant + ((alpha - 1) * mean_log_p).sum())


def test_inverse_digamma_undoes_digamma() -> None:
    x = np.logspace(-4, 4, 60)
    back = inverse_digamma(torch.tensor(digamma(x)))
    np.testing.assert_allclose(back.numpy(), x, rtol=1e-8)


@pytest.mark.parametrize(
    "alpha", [(0.3, 2.0, 5.0), (20.0, 0.5, 0.5), (0.2, 0.4, 3.0), (400.0, 30.0, 9.0)]
)
def test_a_fit_is_the_maximum_of_the_likelihood(alpha: tuple[float, ...]) -> None:
    """Against a search over log alpha that knows the likelihood alone."""
    samples = np.random.default_rng(0).dirichlet(alpha, 400).clip(1e-12)
    mean_p, mean_log_p = samples.mean(0), np.log(samples).mean(0)
    fit = fit_dirichlet(torch.tensor(mean_p)[None], torch.tensor(mean_log_p)[None])[0].numpy()
    search = minimize(
        lambda log_alpha: -log_likelihood(np.exp(log_alpha), mean_log_p),
        np.zeros(3),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 5000},
    )
    np.testing.assert_allclose(fit, np.exp(search.x), rtol=1e-4)
    # the maximum's own equation: E[log p] is the samples' mean
    np.testing.assert_allclose(digamma(fit) - digamma(fit.sum()), mean_log_p, atol=1e-5)
    np.testing.assert_allclose(fit, alpha, rtol=0.3)


def test_distributions_are_fitted_each_by_itself() -> None:
    random = np.random.default_rng(1)
    samples = [random.dirichlet(alpha, 200) for alpha in ((1.0, 2.0), (30.0, 3.0))]
    mean_p = torch.tensor(np.stack([part.mean(0) for part in samples]))
    mean_log_p = torch.tensor(np.stack([np.log(part).mean(0) for part in samples]))
    together = fit_dirichlet(mean_p, mean_log_p)
    for row in range(2):
        alone = fit_dirichlet(mean_p[row : row + 1], mean_log_p[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=0)


def test_samples_that_are_all_alike_give_a_finite_fit() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    alpha = fit_dirichlet(p, p.log())
    assert alpha.isfinite().all()
    torch.testing.assert_close(alpha / alpha.sum(), p, rtol=1e-3, atol=0)


# Training and scores.


def softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def probabilities(method: Any, x: Tensor) -> Floats:
    """p (B, T, K) by one pass for each transformed image."""
    rows = []
    with torch.inference_mode():
        for image in x:
            stack = np.stack(all_transformed(image.numpy())).astype(np.float32)
            rows.append(softmax(method.network(torch.from_numpy(stack)).double().numpy()))
    return np.stack(rows)


@pytest.fixture(scope="module")
def trained() -> Any:
    from tests.methods.conftest import small

    method = small("geometric", (1, 8, 8), copies=8, lr=3e-3, fit_images=None)
    method.train()
    train = blobs(64, (1, 8, 8))
    for _ in range(30):
        method.update(Batch(train, torch.arange(64)))
    method.eval()
    with torch.no_grad():
        method.prepare_score(train)
    return method


def test_reported_and_minimised_loss_equal_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("geometric").train()
    logits: list[Tensor] = []
    method.network.register_forward_hook(lambda m, i, output: logits.append(output.detach()))
    labels: list[Tensor] = []
    original = torch.Tensor.argsort

    def argsort(tensor: Tensor, dim: int) -> Tensor:
        order = original(tensor, dim)
        labels.append(order[:, :4].T.flatten())
        return order

    monkeypatch.setattr(torch.Tensor, "argsort", argsort)
    minimised, losses = spied_update(method, batch(), monkeypatch)
    p = softmax(logits[0].double().numpy())
    right = labels[0].numpy()
    loss = -np.log(p[np.arange(64), right]).mean()
    accuracy = (p.argmax(1) == right).mean()
    assert losses == pytest.approx({"cross_entropy": loss, "accuracy": accuracy}, rel=1e-5)
    assert minimised == {"network": pytest.approx(loss, rel=1e-5)}


def test_log_probabilities_are_those_of_each_transformed_image(trained: Any) -> None:
    x = blobs(3, (1, 8, 8), seed=4)
    with torch.inference_mode():
        log_p = trained.log_probabilities(x).double().numpy()
    np.testing.assert_allclose(np.exp(log_p), probabilities(trained, x), rtol=1e-3, atol=1e-6)


def test_alpha_is_fitted_to_the_softmax_of_the_training_inliers(trained: Any) -> None:
    p = probabilities(trained, blobs(64, (1, 8, 8)))
    alpha = trained.alpha.double().numpy()
    for transformation in (0, 5, 71):
        mean_log_p = np.log(p[:, transformation]).mean(0)
        fit = alpha[transformation]
        np.testing.assert_allclose(digamma(fit) - digamma(fit.sum()), mean_log_p, rtol=1e-2)


def test_scores_equal_numpy(trained: Any) -> None:
    x = torch.cat([blobs(4, (1, 8, 8), seed=4), blobs(3, (1, 8, 8), bars=True)])
    p = probabilities(trained, x)
    alpha = trained.alpha.double().numpy()
    normality = ((alpha - 1) * np.log(p)).sum(2).sum(1)
    right = np.stack([np.diag(image) for image in p])
    with torch.inference_mode():
        scores, loss = trained.novelty_score(x), trained.validation_loss(x)
    np.testing.assert_allclose(scores["dirichlet"].numpy(), -normality / 72, rtol=1e-3)
    np.testing.assert_allclose(scores["nll"].numpy(), -np.log(right).mean(1), rtol=1e-3)
    np.testing.assert_allclose(scores["probability"].numpy(), -right.mean(1), rtol=1e-3)
    assert torch.equal(loss, scores["nll"])
    assert tuple(scores) == trained.score_names


def test_before_a_fit_the_score_is_that_of_the_right_transformations(make: Make) -> None:
    method = make("geometric", (1, 8, 8)).eval()
    with torch.inference_mode():
        scores = method.novelty_score(blobs(3, (1, 8, 8)))
    torch.testing.assert_close(scores["dirichlet"], scores["nll"])


def test_fit_images_bounds_the_images_of_the_fit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("geometric", (1, 8, 8), fit_images=5).eval()
    seen: list[int] = []
    original = method.log_probabilities

    def log_probabilities(x: Tensor) -> Tensor:
        seen.extend(x[:, 0, 0, 0].int().tolist())
        out: Tensor = original(x)
        return out

    monkeypatch.setattr(method, "log_probabilities", log_probabilities)
    train = torch.arange(17.0).view(17, 1, 1, 1).expand(-1, 1, 8, 8)
    with torch.no_grad():
        method.prepare_score(train)
    assert seen == [0, 3, 6, 9, 12]
    method.fit_images = None
    seen.clear()
    with torch.no_grad():
        method.prepare_score(train)
    assert seen == list(range(17))


# Network and options.


def test_the_network_is_the_wide_residual_network_10_4() -> None:
    method = Geometric((3, 32, 32))
    assert layers(method.network) == layers(wide_residual_network(3, 10, 4.0, 72))
    assert method.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 256)


def test_impossible_options_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"data\.size=28: Geometric takes square images"):
        make("geometric", (1, 28, 32))
    with pytest.raises(ValueError, match=r"data\.size=3: has no quarter to shift by"):
        make("geometric", (1, 3, 3))
    with pytest.raises(ValueError, match=r"method\.depth=12: .*6 n \+ 4"):
        make("geometric", depth=12)


def test_optimizer_takes_its_options(make: Make) -> None:
    method = make("geometric", lr=0.3, weight_decay=0.2)
    (group,) = method.build_optimizers()["network"].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    values = []
    for enabled in (False, True):
        method = make("geometric").train()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = method.update(batch())
        assert losses["cross_entropy"].dtype == torch.float32
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in method.parameters())
        values.append(losses["cross_entropy"].item())
    assert values[1] == pytest.approx(values[0], rel=0.03)
