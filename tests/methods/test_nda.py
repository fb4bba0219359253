"""NDA against its paper: losses against NumPy, the flow of gradients, negatives, the pyramid,
switches.
"""

import colorsys
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kornia.geometry.transform import build_laplacian_pyramid
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.command.recipes import recipe_options
from noveltylab.methods import nda as module
from noveltylab.methods.base import Batch
from noveltylab.methods.nda import (
    NDA,
    LaplacianPyramid,
    Strength,
    alike,
    jsd_loss,
    kl_moment,
    latent_loss,
    negative,
    onto_ball,
    pca_codes,
    pyramid_error,
)
from tests.methods.conftest import assert_normal, blobs, train_until_images_differ

Make = Callable[..., Any]
NETWORKS = ("generator", "encoder", "global_estimator", "local_estimator", "prior_estimator")
EVERY = {"generator", "encoder", "global_estimator", "local_estimator"}


def prepared(make: Make, shape: tuple[int, int, int] = (1, 32, 32), **changes: Any) -> Any:
    method = make("nda", shape, **changes)
    method.prepare(
        blobs(32, shape)
        + 0.05 * torch.randn(32, *shape, generator=torch.Generator().manual_seed(1))
    )
    return method.train()


def batch(count: int = 16, shape: tuple[int, int, int] = (1, 32, 32)) -> Batch:
    return Batch(blobs(count, shape), torch.arange(count))


def states(method: Any) -> dict[str, dict[str, Tensor]]:
    """Parameters and buffers of every network the method has."""
    present = [name for name in NETWORKS if getattr(method, name) is not None]
    return {
        name: {k: v.clone() for k, v in getattr(method, name).state_dict().items()}
        for name in present
    }


def changed(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]]) -> set[str]:
    return {n for n in before if any(not torch.equal(before[n][k], after[n][k]) for k in before[n])}


def log_sigmoid(z: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-z))


# The pyramid.


def numpy_pyramid(x: np.ndarray) -> list[np.ndarray]:
    """Levels of one image (H, W), pixel by pixel."""

    def blur(image: np.ndarray) -> np.ndarray:
        kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
        padded = np.pad(image, 2, mode="edge")
        height, width = image.shape
        blurred = np.zeros((height, width))
        for i in range(height):
            for j in range(width):
                blurred[i, j] = (padded[i : i + 5, j : j + 5] * kernel).sum()
        return blurred

    def double(rows: np.ndarray) -> np.ndarray:
        """Bilinear doubling along the first axis: places -1/4 and 1/4 around each old one."""
        before, after = np.concatenate([rows[:1], rows[:-1]]), np.concatenate([rows[1:], rows[-1:]])
        return np.stack([0.75 * rows + 0.25 * before, 0.75 * rows + 0.25 * after], 1).reshape(
            -1, rows.shape[1]
        )

    levels = []
    for _ in range(3):
        height, width = x.shape
        coarse = blur(x).reshape(height // 2, 2, width // 2, 2).mean((1, 3))
        levels.append(x - blur(double(double(coarse).T).T))
        x = coarse
    return [*levels, x]


def test_pyramid_levels_equal_numpy_and_kornia() -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = LaplacianPyramid(32)(x)
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4]
    for images, expected in zip(levels, numpy_pyramid(x[1, 2].double().numpy()), strict=True):
        np.testing.assert_allclose(images[1, 2].numpy(), expected, atol=1e-6)
    for images, reference in zip(
        levels, build_laplacian_pyramid(x, 4, border_type="replicate"), strict=True
    ):
        torch.testing.assert_close(images, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_pyramid_gives_its_input_back(size: int) -> None:
    pyramid = LaplacianPyramid(size).double()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    *levels, image = pyramid(x)
    for level in (2, 1, 0):
        up = getattr(pyramid, f"up{level}")
        image = levels[level] + up @ image @ up.T
    torch.testing.assert_close(image, x, rtol=0, atol=1e-14)


def test_pyramid_error_is_equation_1_per_pixel() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 3, 2, 32, 32))
    expected = np.zeros(3)
    for i in range(3):
        for channel in range(2):
            levels = zip(numpy_pyramid(x[i, channel]), numpy_pyramid(y[i, channel]), strict=True)
            for j, (a, b) in enumerate(levels):
                expected[i] += 4**j * np.abs(a - b).sum() / (2 * 32 * 32)
    errors = pyramid_error(torch.tensor(x), torch.tensor(y), LaplacianPyramid(32).double())
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-6)


# The other losses.


def test_jsd_loss_is_equation_3() -> None:
    rng = np.random.default_rng(0)
    positive, negative_ = rng.normal(size=(2, 5, 7)) * 3
    sigmoid = 1 / (1 + np.exp(-positive)), 1 / (1 + np.exp(-negative_))
    expected = -(np.log(sigmoid[0]).mean() + np.log(1 - sigmoid[1]).mean())
    np.testing.assert_allclose(
        jsd_loss(torch.tensor(positive), torch.tensor(negative_)).item(), expected, rtol=1e-9
    )
    assert torch.isfinite(jsd_loss(torch.tensor([-1e4]), torch.tensor([1e4])))


def test_latent_loss_sums_or_averages_the_values() -> None:
    rng = np.random.default_rng(0)
    codes, z = rng.normal(size=(2, 5, 7))
    squares = (codes - z) ** 2
    for reduction, expected in (("mean", squares.mean()), ("sum", squares.sum(1).mean())):
        loss = latent_loss(torch.tensor(codes), torch.tensor(z), reduction).item()
        np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_kl_moment_is_the_divergence_of_the_fitted_gaussian() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0.7, 1.8, size=(50, 6))
    mean, variance = z.mean(0), z.var(0)
    expected = sum(
        np.log(1 / np.sqrt(v)) + (v + m**2) / 2 - 0.5 for m, v in zip(mean, variance, strict=True)
    )
    np.testing.assert_allclose(kl_moment(torch.tensor(z)).item(), expected, rtol=1e-9)
    fitted = torch.distributions.Normal(torch.tensor(mean), torch.tensor(variance).sqrt())
    reference = torch.distributions.kl_divergence(
        fitted, torch.distributions.Normal(0.0, 1.0)
    ).sum()
    np.testing.assert_allclose(kl_moment(torch.tensor(z)).item(), reference.item(), rtol=1e-9)
    standard = (z - mean) / np.sqrt(variance)
    assert kl_moment(torch.tensor(standard)).item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(kl_moment(torch.zeros(4, 3)))


@pytest.mark.parametrize("switches", [{}, {"prior": "coop"}, {"prior": "adv"}, {"recon": "mse"}])
def test_reported_losses_and_their_sum_equal_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any]
) -> None:
    """One whole iteration: each reported loss from recorded network outputs, and the weighted sum
    that is minimised.
    """
    method = prepared(make, w_recon=3.0, w_lat=5.0, w_mie=7.0, beta=0.4, gamma=0.3, **switches)
    inputs: dict[str, list[np.ndarray]] = {}
    outputs: dict[str, list[np.ndarray]] = {}

    def record(name: str, network: nn.Module) -> None:
        network.register_forward_hook(
            lambda m, i, o: outputs.setdefault(name, []).append(o.detach().double().numpy().copy())
        )
        network.register_forward_pre_hook(
            lambda m, i: inputs.setdefault(name, []).append(i[0].detach().double().numpy().copy())
        )

    for name in ("generator", "global_estimator", "local_estimator", "prior_estimator"):
        if getattr(method, name) is not None:
            record(name, getattr(method, name))
    record("head", method.encoder.head)
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    data = batch()
    losses = {name: value.item() for name, value in method.update(data).items()}

    x, x_hat, z, codes = (
        data.x.double().numpy(),
        outputs["generator"][0],
        outputs["head"][0],
        method.latents[:16].numpy(),
    )

    maps = inputs["global_estimator"][0]
    assert np.array_equal(maps[:16], inputs["head"][0])
    assert not np.isclose(maps[16:], maps[:16]).all((1, 2, 3)).any()

    # the first half are images, the second their negatives
    def contrast(logits: np.ndarray) -> float:
        return -0.4 * (log_sigmoid(logits[:16]).mean() + log_sigmoid(-logits[16:]).mean())

    pyramid_errors = []
    for difference in x[:, 0] - x_hat[:, 0]:
        levels = numpy_pyramid(difference)
        pyramid_errors.append(sum(np.abs(level).mean() for level in levels))
    expected = {
        "recon": np.mean(pyramid_errors),
        "lat": ((codes - z) ** 2).mean(),
        "global": contrast(outputs["global_estimator"][0]),
        "local": contrast(outputs["local_estimator"][0]),
        "prior": 0.3 * (0.5 * (z.mean(0) ** 2 + z.var(0) - np.log(z.var(0)) - 1)).sum(),
    }
    if "prior" in switches:
        # of the prior's noise, of z, and in the encoder's part of z
        logits = outputs["prior_estimator"]
        assert [np.array_equal(code, z) for code in inputs["prior_estimator"]] == [
            False,
            True,
            True,
        ][: len(logits)]
        told_apart = -(log_sigmoid(logits[0]).mean() + log_sigmoid(-logits[1]).mean())
        if switches["prior"] == "coop":
            expected["prior"] = 0.3 * told_apart
        else:
            expected |= {
                "prior": -0.3 * log_sigmoid(logits[2]).mean(),
                "prior_estimator": told_apart,
            }
    if "recon" in switches:
        expected["recon"] = ((x - x_hat) ** 2).mean()
    assert losses.keys() == {*expected, "alike"}
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-4), name
    mutual = sum(expected[name] for name in ("global", "local", "prior"))
    total = 3 * expected["recon"] + 5 * expected["lat"] + 7 * mutual
    assert minimised["networks"] == pytest.approx(total, rel=1e-4)
    if switches.get("prior") == "adv":
        assert minimised["prior_estimator"] == pytest.approx(expected["prior_estimator"], rel=1e-4)


# Latents.


@pytest.mark.parametrize("count", [40, 300])  # fewer and more images than values
def test_pca_codes_equal_numpy(count: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 1, 12, 12)) * np.linspace(0.1, 2, 144).reshape(12, 12) + 0.3
    flat = images.reshape(count, -1) - images.reshape(count, -1).mean(0)
    u, singular, _ = np.linalg.svd(flat, full_matrices=False)
    raw = u[:, :5] * singular[:5]
    unit_ball = raw / np.maximum(np.linalg.norm(raw, axis=1), 1)[:, None]
    for norm, expected in (("raw", raw), ("whiten", raw / raw.std(0)), ("unit_ball", unit_ball)):
        codes = pca_codes(torch.tensor(images), 5, norm).numpy()
        signs = np.sign((codes * expected).sum(0))  # of an eigenvector are free
        np.testing.assert_allclose(codes * signs, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count", [40, 300])
def test_codes_are_found_where_single_precision_does_not_converge(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    images *= torch.linspace(0.1, 2, 144).view(12, 12)
    expected, eigh = pca_codes(images, 4, "whiten"), torch.linalg.eigh

    def unstable(product: Tensor) -> Any:
        if product.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigh(product)

    monkeypatch.setattr(module.torch.linalg, "eigh", unstable)
    codes = pca_codes(images, 4, "whiten")
    assert codes.dtype == torch.float32
    torch.testing.assert_close(
        codes * (codes * expected).sum(0).sign(), expected, rtol=1e-3, atol=1e-3
    )


def test_codes_of_few_distinct_images_stay_finite_and_small() -> None:
    codes = pca_codes(blobs(4).repeat(10, 1, 1, 1), 16, "whiten")
    assert codes.isfinite().all()
    assert codes.abs().max() < 10


def test_unit_ball_keeps_what_lies_inside() -> None:
    codes = torch.tensor([[0.3, 0.4], [3.0, 4.0]])
    torch.testing.assert_close(onto_ball(codes), torch.tensor([[0.3, 0.4], [0.6, 0.8]]))


def test_latent_init_is_what_it_says(make: Make, tmp_path: Path) -> None:
    train = blobs(40)
    normal = make("nda", latent_init="normal", latent_size=64)
    normal.prepare(train)
    assert normal.latents.shape == (40, 64)
    assert_normal(normal.latents, 0.0, 1.0)
    finished = prepared(make)
    for _ in range(3):
        finished.update(batch())
    torch.save({"method": finished.state_dict(), "rule": "last"}, tmp_path / "last.pt")
    contrastive = make("nda", latent_init="contrastive", contrastive_from=str(tmp_path / "last.pt"))
    fresh = states(contrastive)
    contrastive.prepare(train)
    with torch.no_grad():
        torch.testing.assert_close(
            contrastive.latents, finished.eval().encoder(train), rtol=0, atol=0
        )
    assert changed(fresh, states(contrastive)) == set()  # the new run starts afresh
    assert not contrastive.latents.requires_grad
    pca = make("nda", pca_norm="raw")
    pca.prepare(train)
    torch.testing.assert_close(pca.latents, pca_codes(train, 16, "raw"))


@pytest.mark.parametrize(
    "content", [None, b"junk", {"other": 1}, {"method": {"encoder.head.0.weight": torch.zeros(1)}}]
)
def test_unusable_contrastive_weights_are_refused(make: Make, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    method = make("nda", latent_init="contrastive", contrastive_from=str(path))
    with pytest.raises(
        ValueError, match=r"method\.contrastive_from=.*weights\.pt: not such weights"
    ):
        method.prepare(blobs(20))


def test_the_batch_gets_the_codes_of_its_own_images(make: Make) -> None:
    method = prepared(make)
    seen: list[Tensor] = []
    method.generator.register_forward_pre_hook(
        lambda m, inputs: seen.append(inputs[0].detach().clone())
    )
    index = torch.tensor([5, 0, 31, 7])
    method.update(Batch(blobs(4), index))
    assert torch.equal(seen[0], method.latents[index])


# Who changes.


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, EVERY),
        ({"recon": "none"}, EVERY - {"generator"}),
        ({"use_global": False}, EVERY - {"global_estimator"}),
        ({"use_local": False, "use_prior": False}, EVERY - {"local_estimator"}),
        ({"prior": "coop"}, {*EVERY, "prior_estimator"}),
        ({"prior": "adv"}, {*EVERY, "prior_estimator"}),
        ({"train_z": True}, EVERY),
        ({"w_mie": 0.0, "prior": "coop"}, {"generator", "encoder"}),
    ],
)
def test_an_update_changes_these_networks_and_no_other(
    make: Make, switches: dict[str, Any], expected: set[str]
) -> None:
    method = prepared(make, **switches)
    before, codes = states(method), method.latents.clone()
    method.update(batch())
    assert changed(before, states(method)) == expected
    rows = (method.latents != codes).any(1)
    assert rows[:16].all() if switches.get("train_z") else not rows[:16].any()
    assert not rows[16:].any()  # the images that are not in the batch


def test_adversarial_step_changes_the_prior_estimator_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = prepared(make, prior="adv")
    before = states(method)
    z = method.encoder(batch().x)
    running = states(method)["encoder"]  # batch norm has seen the batch
    notes: dict[str, Tensor] = {}
    method._prior_loss(z, notes).backward()
    assert changed({**before, "encoder": running}, states(method)) == {"prior_estimator"}
    assert notes["prior_estimator"].shape == ()
    assert all(p.grad is not None for p in method.encoder.parameters())
    method.zero_grad()
    monkeypatch.setattr(method, "minimise", lambda loss, name: None)
    method._prior_loss(method.encoder(batch().x), {}).backward()
    # frozen in the encoder's part
    assert all(p.grad is None for p in method.prior_estimator.parameters())
    assert all(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize(("prior", "direction"), [("adv", 1), ("coop", -1)])
def test_prior_moves_codes_towards_the_prior_or_away(
    make: Make, prior: str, direction: int
) -> None:
    """The estimator's logit is large for the prior's samples: `adv` raises that of z, `coop` lowers
    it.
    """
    method = prepared(make, prior=prior, gamma=1.0)
    z = torch.randn(64, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(method._prior_loss(z, {}), z)
    with torch.no_grad():
        logits = method.prior_estimator(z), method.prior_estimator(z - 0.1 * 64 * gradient)
    assert direction * (logits[1] - logits[0]).mean() > 0


def test_estimators_learn_to_prefer_images_over_their_negatives(make: Make) -> None:
    method = prepared(make, w_recon=0.0, w_lat=0.0, use_prior=False)
    for _ in range(30):
        losses = method.update(batch())
    assert losses["global"] < 0.5 * 2 * np.log(2)
    assert losses["local"] < 0.5 * 2 * np.log(2)
    with torch.no_grad():
        x = batch().x
        maps, far = method.encoder.local(x), method.encoder.local(negative(x, "image", Strength()))
        z = method.encoder.head(maps)
        for estimator in (method.global_estimator, method.local_estimator):
            assert estimator(maps, z).mean() > estimator(far, z).mean()


# The flow of gradients.


def after_one_update(make: Make, **changes: Any) -> dict[str, dict[str, Tensor]]:
    # Adam's first step would hide a loss's weight
    method = prepared(make, optimizer="sgd", **changes)
    torch.manual_seed(7)
    method.update(batch())
    return states(method)


def test_fixed_codes_part_generator_and_encoder(make: Make) -> None:
    """The reconstruction trains G alone, everything else C alone.

    `recon_through_C` and nothing else joins them.
    """
    plain = after_one_update(make)
    assert changed(plain, after_one_update(make, w_recon=2.0)) == {"generator"}
    assert changed(plain, after_one_update(make, recon="mse")) == {"generator"}
    assert "generator" not in changed(plain, after_one_update(make, w_lat=2.0, w_mie=2.0))
    joined = after_one_update(make, recon_through_C=True)
    assert {"generator", "encoder"} <= changed(plain, joined)
    assert {"generator", "encoder"} <= changed(
        joined, after_one_update(make, recon_through_C=True, w_recon=2.0)
    )


def test_latent_and_prior_terms_reach_the_encoder_and_no_estimator(make: Make) -> None:
    plain = after_one_update(make)
    assert changed(plain, after_one_update(make, w_lat=2.0)) == {"encoder"}
    assert changed(plain, after_one_update(make, gamma=0.2)) == {"encoder"}
    assert changed(plain, after_one_update(make, beta=1.0)) == {
        "encoder",
        "global_estimator",
        "local_estimator",
    }


def test_both_pairs_hold_the_code_of_the_image_itself(make: Make) -> None:
    method = prepared(make)
    seen: list[Tensor] = []
    for estimator in (method.global_estimator, method.local_estimator):
        estimator.register_forward_pre_hook(
            lambda m, inputs: seen.append(inputs[1].detach().clone())
        )
    codes: list[Tensor] = []
    method.encoder.head.register_forward_hook(lambda m, i, o: codes.append(o.detach().clone()))
    method.update(batch())
    assert len(codes) == 1  # the negatives have no code
    assert len(seen) == 2
    assert all(torch.equal(z, torch.cat([codes[0], codes[0]])) for z in seen)


@pytest.mark.parametrize("term", ["global", "local"])
def test_each_contrast_reaches_the_encoder_through_both_maps_and_z(make: Make, term: str) -> None:
    method = prepared(make)
    z = torch.randn(8, 16, requires_grad=True)
    maps = method.encoder.local(blobs(8)).detach().requires_grad_()
    method.encoder.zero_grad()
    method._contrast(maps, negative(blobs(8), "image", Strength()), z)[term].backward()
    assert z.grad.abs().sum() > 0
    assert maps.grad.abs().sum() > 0
    assert method.encoder.local[0].weight.grad.abs().sum() > 0  # through the negatives alone, here


def equation_8(method: Any, data: Batch, negatives: Tensor) -> Tensor:
    """The whole loss written plainly, images and negatives one after the other."""
    maps = method.encoder.local(data.x)
    z = method.encoder.head(maps)
    norms = [layer for layer in method.encoder.local.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.0  # negatives leave the running statistics as they are
    far = method.encoder.local(negatives)
    for norm in norms:
        norm.momentum = 0.1
    codes = method.latents[data.index]
    loss = pyramid_error(data.x, method.generator(codes), method.pyramid).mean() + F.mse_loss(
        z, codes
    )
    for estimator in (method.global_estimator, method.local_estimator):
        loss = loss - 0.5 * (
            F.logsigmoid(estimator(maps, z)).mean() + F.logsigmoid(-estimator(far, z)).mean()
        )
    fitted = torch.distributions.Normal(z.mean(0), z.std(0, correction=0))
    return (
        loss
        + 0.1
        * torch.distributions.kl_divergence(fitted, torch.distributions.Normal(0.0, 1.0)).sum()
    )


def test_two_iterations_minimise_equation_8(make: Make) -> None:
    """Weights and running statistics of all networks, from the same draws.

    SGD shows the size of a gradient.
    """
    method = prepared(make)
    plain = copy.deepcopy(method)
    method.build_optimizers = lambda: {"networks": torch.optim.SGD(method.parameters(), 0.05)}
    optimizer = torch.optim.SGD(plain.parameters(), 0.05)
    for seed in range(2):
        data = Batch(blobs(16, seed=seed), torch.arange(16))
        torch.manual_seed(seed)
        optimizer.zero_grad()
        equation_8(plain, data, negative(data.x, "image", Strength())).backward()
        optimizer.step()
        torch.manual_seed(seed)
        method.update(data)
    expected = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, value in (*method.named_parameters(), *method.named_buffers()):
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_trained_codes_follow_their_own_gradient(make: Make) -> None:
    method = prepared(make, train_z=True, latent_lr=0.5)
    codes = method.latents.clone()
    data = batch(8)
    leaf = codes[:8].clone().requires_grad_()
    torch.manual_seed(7)
    twin = prepared(make)  # the same weights
    lat = latent_loss(leaf, twin.encoder(data.x), "mean")
    (gradient,) = torch.autograd.grad(twin._reconstruction_loss(data.x, leaf) + lat, leaf)
    method.update(data)
    torch.testing.assert_close(
        method.latents[:8].detach(), codes[:8] - 0.5 * gradient, rtol=1e-4, atol=1e-6
    )
    second = method.latents.detach().clone()
    method.update(Batch(blobs(8), torch.arange(8, 16)))
    assert torch.equal(method.latents[:8], second[:8])  # no gradient or momentum is left over


def test_trained_codes_stay_on_the_unit_ball(make: Make) -> None:
    free = prepared(make, train_z=True, latent_lr=1e3)
    free.update(batch())
    assert free.latents[:16].norm(dim=1).max() > 1
    bounded = prepared(make, train_z=True, latent_lr=1e3, pca_norm="unit_ball")
    bounded.update(batch())
    assert bounded.latents.norm(dim=1).max() <= 1 + 1e-5


def test_trained_codes_survive_a_file(make: Make, tmp_path: Path) -> None:
    method = prepared(make, train_z=True)
    for _ in range(3):
        method.update(batch())
    torch.save(method.state_dict(), tmp_path / "weights.pt")
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)
    unprepared, resumed = make("nda", train_z=True), prepared(make, train_z=True)
    x = blobs(6, seed=2)
    for restored in (unprepared, resumed):
        restored.load_state_dict(saved)
        assert torch.equal(restored.latents, method.latents)
        with torch.inference_mode():
            expected, scores = method.eval().novelty_score(x), restored.eval().novelty_score(x)
        assert all(torch.equal(scores[name], expected[name]) for name in expected)
        before = restored.latents.detach().clone()
        restored.train().update(batch())
        assert (restored.latents[:16] != before[:16]).any(1).all()  # and they can still be trained


# Negatives.


def with_draws(monkeypatch: pytest.MonkeyPatch, **draws: float) -> None:
    """The geometry's and the colour's draws, by name; those not named leave the image as it is."""
    affine = {
        "area": 1.0,
        "shape": 0.5,
        "left": 0.5,
        "top": 0.5,
        "mirror": 0.9,
        "turn": 0.9,
        "quarter": 0.0,
    }
    colour = {
        "brightness": 0.5,
        "contrast": 0.5,
        "saturation": 0.5,
        "hue": 0.5,
        "jitter": 0.9,
        "grey": 0.9,
    }
    gain = {"offset": 0.5, "chance": 0.9}
    groups = {7: affine, 6: colour, 2: gain}
    for name, value in draws.items():
        (next(group for group in groups.values() if name in group))[name] = value

    def rand(count: int, *shape: int, **options: Any) -> Tensor:
        values = torch.tensor([*groups[count].values()]).view(count, *[1] * len(shape))
        return values.expand(count, *shape).clone()

    monkeypatch.setattr(module.torch, "rand", rand)


def picture(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(3)) * 1.6 - 0.8


def test_draws_that_do_nothing_give_the_image_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with_draws(monkeypatch)
    x = picture()
    for kind in ("image", "spec"):
        if kind == "spec":
            with_draws(monkeypatch, shape=1.0)
        torch.testing.assert_close(negative(x, kind, Strength()), x, rtol=0, atol=1e-5)
        assert alike(x, negative(x, kind, Strength())) == 1


def test_mirror_and_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture()
    with_draws(monkeypatch, mirror=0.4)
    torch.testing.assert_close(negative(x, "image", Strength()), x.flip(-1), rtol=0, atol=1e-5)
    for quarter, turns in ((0.1, 1), (0.5, 2), (0.9, 3)):
        with_draws(monkeypatch, turn=0.4, quarter=quarter)
        torch.testing.assert_close(
            negative(x, "image", Strength()), torch.rot90(x, turns, (-2, -1)), rtol=0, atol=1e-5
        )
    with_draws(monkeypatch, turn=0.4, quarter=0.1, mirror=0.4)  # mirrored first, then turned
    torch.testing.assert_close(
        negative(x, "image", Strength()), torch.rot90(x.flip(-1), 1, (-2, -1)), rtol=0, atol=1e-5
    )


def test_window_is_enlarged_to_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture()
    # at the window's rim the neighbours outside are seen as well
    inside = (..., slice(2, -2), slice(2, -2))
    with_draws(monkeypatch, area=(0.25 - 0.08) / 0.92, left=0.0, top=1.0)
    quarter = F.interpolate(x[..., 16:, :16], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(
        negative(x, "image", Strength())[inside], quarter[inside], rtol=0, atol=1e-5
    )
    # a window of whole width, half height
    with_draws(monkeypatch, area=1.0, shape=(0.25 - 0.08) / 0.92, top=0.0)
    half = F.interpolate(x[..., :16, :], size=(32, 32), mode="bilinear")
    torch.testing.assert_close(
        negative(x, "spec", Strength())[inside], half[inside], rtol=0, atol=1e-5
    )


def test_colour_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture()
    unit = (x + 1) / 2
    luma = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * unit).sum(1, keepdim=True)
    for draws, expected in (
        ({"brightness": 0.0}, 0.6 * unit),
        ({"contrast": 0.0}, 0.6 * unit + 0.4 * luma.mean((1, 2, 3), keepdim=True)),
        ({"saturation": 0.0}, 0.6 * unit + 0.4 * luma),
    ):
        with_draws(monkeypatch, jitter=0.7, **draws)
        torch.testing.assert_close(
            negative(x, "image", Strength()), 2 * expected - 1, rtol=0, atol=1e-5
        )
    with_draws(monkeypatch, grey=0.1)
    torch.testing.assert_close(
        negative(x, "image", Strength()), (2 * luma - 1).expand_as(x), rtol=0, atol=1e-5
    )
    with_draws(monkeypatch, jitter=0.7, hue=1.0)
    turned = (negative(x, "image", Strength()) + 1) / 2
    by_hand = [colorsys.rgb_to_hsv(*pixel) for pixel in unit[0, :, :4, 0].T.tolist()]
    expected = torch.tensor([colorsys.hsv_to_rgb((h + 0.1) % 1, s, v) for h, s, v in by_hand])
    torch.testing.assert_close(turned[0, :, :4, 0].T, expected, rtol=0, atol=1e-4)
    # value and chroma stay
    torch.testing.assert_close(turned.amax(1), unit.amax(1), rtol=0, atol=1e-5)
    assert not torch.allclose(turned, unit, atol=1e-2)


def test_gain_is_an_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture(1)
    with_draws(monkeypatch, shape=1.0, chance=0.5, offset=1.0)
    torch.testing.assert_close(
        negative(x, "spec", Strength()), (x + 0.8).clamp(-1, 1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["image", "spec"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_has_its_own_draw_that_a_seed_repeats(kind: str, channels: int) -> None:
    x = picture(channels)[:1].repeat(64, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(5)
    first, second = negative(x, kind, Strength()), negative(x, kind, Strength())
    torch.manual_seed(5)
    assert torch.equal(first, negative(x, kind, Strength()))
    assert not torch.equal(first, second)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 64
    assert first.shape == x.shape
    assert first.abs().max() <= 1
    assert alike(x, first) < 0.2
    # data with contrast normalisation leaves [-1, 1]
    assert negative(4 * x, kind, Strength()).abs().max() <= 1


def test_a_spectrogram_is_never_mirrored_or_turned() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(64, 1, 32, 32)
    turned = negative(ramp, "spec", Strength()).mean((1, 2))  # over frequency: still rising in time
    assert (turned.diff(dim=1) >= -1e-6).all()
    assert (negative(ramp, "image", Strength()).mean((1, 2)).diff(dim=1) < -1e-3).any()


def test_the_rate_of_every_switch_of_the_draw() -> None:
    torch.manual_seed(0)
    theta = module.random_affine(torch.zeros(4000, 1), "image", Strength())
    width, height = theta[:, 0, :2].norm(dim=1), theta[:, 1, :2].norm(dim=1)
    area, aspect = width * height, width / height
    assert 0.08 <= area.min() < 0.09 and 0.97 < area.max() <= 1
    assert 0.749 <= aspect.min() < 0.77 and 1.3 < aspect.max() <= 1.334
    mirrored = (torch.linalg.det(theta[:, :, :2]) < 0).float().mean()
    assert mirrored.item() == pytest.approx(0.5, abs=0.03)
    angles = (
        torch.atan2(theta[:, 1, 0] / height, theta[:, 1, 1] / height)
        .div(torch.pi / 2)
        .round()
        .long()
        % 4
    )
    shares = torch.bincount(angles, minlength=4) / 4000
    np.testing.assert_allclose(shares.numpy(), [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=0.03)
    corners = theta @ torch.tensor([[-1.0, -1, 1, 1], [-1, 1, -1, 1], [1, 1, 1, 1]])
    assert corners.abs().max() <= 1 + 1e-5  # the window lies in the image
    y = torch.full((4000, 3, 2, 2), 0.5) + torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    out = module.random_colour(y, Strength())
    untouched = (out - y).abs().amax((1, 2, 3)) < 1e-6
    grey = (out.amax(1) - out.amin(1)).amax((1, 2)) < 1e-6
    assert untouched.float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.03)
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_each_strength_changes_its_own_part_of_the_draw() -> None:
    torch.manual_seed(0)
    strength = Strength(crop_min=0.7, crop_max=0.9, mirror=0.2, turn=0.1)
    theta = module.random_affine(torch.zeros(4000, 1), "image", strength)
    width, height = theta[:, 0, :2].norm(dim=1), theta[:, 1, :2].norm(dim=1)
    area = width * height
    assert 0.69 < area.min() < 0.71 and 0.89 < area.max() < 0.901
    mirrored = (torch.linalg.det(theta[:, :, :2]) < 0).float().mean()
    assert mirrored.item() == pytest.approx(0.2, abs=0.02)
    angles = torch.atan2(theta[:, 1, 0] / height, theta[:, 1, 1] / height).div(torch.pi / 2).round()
    assert (angles != 0).float().mean().item() == pytest.approx(0.1, abs=0.02)
    windows = module.random_affine(
        torch.zeros(4000, 1), "spec", Strength(crop_min=0.5, crop_max=0.6)
    )
    sides = torch.cat([windows[:, 0, 0], windows[:, 1, 1]]).square()
    assert 0.5 <= sides.min() < 0.501 and 0.599 < sides.max() <= 0.6001

    flat = torch.full((4000, 3, 2, 2), 0.5)  # only brightness changes it
    factors = module.random_colour(flat, Strength(jitter=0.1)) / 0.5
    assert 0.9 <= factors.min() < 0.905 and 1.095 < factors.max() <= 1.1001
    assert torch.equal(module.random_colour(flat, Strength(jitter=0)), flat)
    offsets = module.random_gain(flat, Strength(jitter=0.1)) - 0.5
    assert -0.1001 <= offsets.min() < -0.095 and 0.095 < offsets.max() <= 0.1001

    coloured = flat + torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    for share in (0.0, 0.6):
        out = module.random_colour(coloured, Strength(jitter=0, grey=share))
        grey = (out.amax(1) - out.amin(1)).amax((1, 2)) < 1e-6
        assert grey.float().mean().item() == pytest.approx(share, abs=0.03)


def test_the_strengths_are_those_of_the_options(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Strength] = []
    monkeypatch.setattr(
        module, "negative", lambda x, kind, strength: (seen.append(strength), -x)[1]
    )
    strengths = {
        "crop_min": 0.5,
        "crop_max": 0.9,
        "mirror": 0.1,
        "turn": 0.2,
        "jitter": 0.3,
        "grey": 0.4,
    }
    prepared(make).update(batch())
    prepared(make, **strengths).update(batch())
    assert seen == [Strength(0.08, 1.0, 0.5, 0.5, 0.4, 0.2), Strength(**strengths)]
    with pytest.raises(ValueError, match=r"method\.crop_min=0.9 is above method\.crop_max=0.5"):
        make("nda", crop_min=0.9, crop_max=0.5)


def test_hard_negatives_are_nearly_their_images() -> None:
    x = picture().repeat(32, 1, 1, 1)
    torch.manual_seed(0)
    hard = Strength(crop_min=0.7, mirror=0, turn=0, jitter=0.1, grey=0)
    gaps = [(negative(x, "image", strength) - x).abs().mean() for strength in (hard, Strength())]
    assert gaps[0] < 0.9 * gaps[1]


def test_alike_counts_copies_and_mirror_images() -> None:
    x = picture()
    assert alike(x, x) == 1
    assert alike(x, x.flip(-1)) == 1
    assert alike(x, torch.stack([x[0], -x[1]])) == 0.5
    assert alike(x, x.flip(-2)) == 0
    assert [alike(x, x.flip(-1) + gap) for gap in (0.049, 0.051)] == [1, 0]


def test_negatives_leave_the_running_statistics_alone(make: Make) -> None:
    method, twin = prepared(make), prepared(make)
    data = batch()
    twin.encoder(data.x)
    method.update(data)
    for name, value in twin.encoder.named_buffers():
        assert torch.equal(value, dict(method.encoder.named_buffers())[name]), name
    assert all(m.track_running_stats for m in method.modules() if isinstance(m, nn.BatchNorm2d))


def test_negatives_are_of_the_kind_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    monkeypatch.setattr(module, "negative", lambda x, kind, strength: (kinds.append(kind), -x)[1])
    for kind in ("image", "spec"):
        prepared(make, augmentation=kind).update(batch())
    prepared(make, use_global=False, use_local=False).update(batch())  # none are needed
    assert kinds == ["image", "spec"]
    for factor, share in ((1, 1.0), (-1, 0.0)):
        monkeypatch.setattr(module, "negative", lambda x, kind, strength, factor=factor: factor * x)
        assert prepared(make).update(batch())["alike"] == share


# Networks, switches, the optimizer.


def test_paper_sizes_are_the_defaults() -> None:
    method = NDA((3, 32, 32), latent_size=64, prior="adv")
    sizes: list[tuple[int, ...]] = []
    for layer in (*method.generator, *method.encoder.local, *method.encoder.head):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[1:])))
    x = torch.rand(2, 3, 32, 32)
    assert method.generator(method.encoder(x)).shape == x.shape
    encoder = [(64, 16, 16), (128, 8, 8), (256, 4, 4), (1024,), (64,)]
    assert sizes == [*encoder, (256, 4, 4), (128, 8, 8), (64, 16, 16), (3, 32, 32)]

    def widths(network: nn.Module) -> list[tuple[int, int]]:
        return [
            (m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)
        ]

    assert widths(method.global_estimator) == [(512, 64), (128, 512), (512, 512), (512, 1)]
    assert widths(method.local_estimator) == [(128, 512), (64, 512), (512, 512), (512, 1)]
    assert widths(method.prior_estimator) == [(64, 1000), (1000, 200), (200, 1)]
    assert [m.out_channels for m in method.global_estimator.down if isinstance(m, nn.Conv2d)] == [
        64,
        32,
    ]
    assert (method.w_recon, method.w_lat, method.w_mie, method.beta, method.gamma) == (
        1,
        1,
        1,
        0.5,
        0.1,
    )
    paper = recipe_options("nda", "paper", "cifar10")["method"]
    assert [paper[name] for name in ("optimizer", "lr", "momentum", "weight_decay")] == [
        "sgd",
        0.002,
        0.9,
        0.005,
    ]
    assert [paper[name] for name in ("encoder", "recon", "lat_reduction", "w_recon")] == [
        "dcgan",
        "lap",
        "sum",
        3 * 32 * 32,
    ]
    assert [paper[name] for name in ("w_lat", "w_mie", "beta", "gamma")] == [1, 1, 0.5, 0.1]
    assert recipe_options("nda", "paper", "mnist")["method"]["w_recon"] == 32 * 32


def table(network: nn.Module) -> list[str]:
    """One line for each layer: its type, and what of it decides a number."""
    lines = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            kind = "up" if isinstance(layer, nn.ConvTranspose2d) else "conv"
            size = f"{layer.in_channels}>{layer.out_channels}"
            geometry = f"k{layer.kernel_size[0]} s{layer.stride[0]} p{layer.padding[0]}"
            lines.append(f"{kind} {size} {geometry}{'' if layer.bias is None else ' bias'}")
        elif isinstance(layer, nn.Linear):
            bias = "" if layer.bias is None else " bias"
            lines.append(f"linear {layer.in_features}>{layer.out_features}{bias}")
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert layer.affine and layer.track_running_stats
            assert (layer.eps, layer.momentum) == (1e-5, 0.1)
            lines.append(f"norm {layer.num_features}")
        elif isinstance(layer, nn.LeakyReLU):
            lines.append(f"leaky {layer.negative_slope}")
        elif not list(layer.children()):
            lines.append(type(layer).__name__.lower())
    return lines


GENERATOR = [
    "unflatten", "up 5>16 k4 s1 p0", "norm 16", "relu", "up 16>8 k4 s2 p1", "norm 8", "relu",
    "up 8>4 k4 s2 p1", "norm 4", "relu", "up 4>1 k4 s2 p1 bias", "tanh",
]  # fmt: skip
ENCODERS = {
    "dim": [
        "conv 1>4 k4 s2 p1", "norm 4", "relu", "conv 4>8 k4 s2 p1", "norm 8", "relu",
        "conv 8>16 k4 s2 p1", "norm 16", "relu", "flatten", "linear 256>64", "norm 64", "relu",
        "linear 64>5 bias",
    ],
    "dcgan": [
        "conv 1>4 k4 s2 p1", "leaky 0.2", "conv 4>8 k4 s2 p1", "norm 8", "leaky 0.2",
        "conv 8>16 k4 s2 p1", "norm 16", "leaky 0.2", "conv 16>5 k4 s1 p0", "flatten",
    ],
}  # fmt: skip
ESTIMATORS = {
    "global_estimator": [
        "conv 8>4 k3 s1 p0 bias", "relu", "conv 4>2 k3 s1 p0 bias", "flatten", "linear 32>5 bias",
        "linear 10>6 bias", "relu", "linear 6>6 bias", "relu", "linear 6>1 bias", "flatten",
    ],
    "local_estimator": [
        "linear 8>6 bias", "linear 5>6", "relu", "linear 6>6 bias", "relu", "linear 6>1 bias",
        "flatten",
    ],
    "prior_estimator": [
        "linear 5>1000 bias", "relu", "linear 1000>200 bias", "relu", "linear 200>1 bias", "flatten",
    ],
}  # fmt: skip


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_layer_is_the_one_that_the_docstring_names(encoder: str) -> None:
    sizes = {"channels": 4, "latent_size": 5, "estimator_channels": 6}
    method = NDA((1, 32, 32), encoder=encoder, prior="adv", **sizes)
    assert table(method.generator) == GENERATOR
    assert table(method.encoder) == ENCODERS[encoder]
    for name, lines in ESTIMATORS.items():
        assert table(getattr(method, name)) == lines, name
    by_default = NDA((1, 32, 32), **sizes)
    assert table(by_default.encoder) == ENCODERS["dim"]
    assert by_default.prior_estimator is None


@pytest.mark.parametrize("encoder", ENCODERS)
def test_networks_start_from_dcgans_weights_and_estimators_from_torchs(encoder: str) -> None:
    torch.manual_seed(0)
    method = NDA((3, 32, 32), encoder=encoder, prior="adv")
    for network in (method.generator, method.encoder):
        convolutions = [
            m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        ]
        weights = torch.cat([m.weight.detach().flatten() for m in convolutions])
        assert weights.mean().item() == pytest.approx(0, abs=1e-4)
        assert weights.std().item() == pytest.approx(0.02, rel=0.01)
        assert (weights / 0.02).pow(4).mean().item() == pytest.approx(3, abs=0.1)  # normal
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        scales = torch.cat([norm.weight.detach() for norm in norms])
        assert scales.mean().item() == pytest.approx(1, abs=0.005)
        assert scales.std().item() == pytest.approx(0.02, rel=0.15)
        assert all(not norm.bias.any() for norm in norms)
    for layer in (
        m for m in method.encoder.head if isinstance(m, nn.Linear) and m.weight.numel() > 100_000
    ):
        assert layer.weight.abs().max().item() == pytest.approx(layer.in_features**-0.5, rel=0.01)
    for name in ("global_estimator", "local_estimator", "prior_estimator"):
        for layer in getattr(method, name).modules():
            if isinstance(layer, nn.Linear) and layer.weight.numel() > 10_000:
                bound = layer.in_features**-0.5
                assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01), name
                assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02), name


def prior_noise(method: Any) -> Tensor:
    """What the prior's estimator first sees beside 4000 codes."""
    seen: list[Tensor] = []
    method.prior_estimator.register_forward_pre_hook(
        lambda m, inputs: seen.append(inputs[0].detach())
    )
    method._prior_loss(torch.zeros(4000, 16), {})
    return seen[0]


def test_the_prior_is_the_standard_normal(make: Make) -> None:
    for prior in ("adv", "coop"):
        method = prepared(make, prior=prior)
        noise = prior_noise(method)
        assert noise.mean().item() == pytest.approx(0, abs=0.02)
        assert noise.std().item() == pytest.approx(1, abs=0.02)
        assert noise.pow(4).mean().item() == pytest.approx(3, abs=0.15)  # 1.8 for uniform noise


@pytest.mark.parametrize("term", ["global", "local"])
def test_each_contrast_reaches_z_and_both_maps_by_itself(make: Make, term: str) -> None:
    method = prepared(make, use_global=term == "global", use_local=term == "local")
    z = torch.randn(8, 16, requires_grad=True)
    maps = method.encoder.local(blobs(8)).detach().requires_grad_()
    losses = method._contrast(maps, negative(blobs(8), "image", Strength()), z)
    assert losses.keys() == {term}
    losses[term].backward()
    assert z.grad.abs().sum() > 0
    assert maps.grad.abs().sum() > 0
    assert method.encoder.local[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 32, 32), (1, 64, 64)])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_geometry(make: Make, shape: tuple[int, int, int], encoder: str) -> None:
    method = prepared(make, shape, encoder=encoder)
    method.update(batch(8, shape))
    method.eval()
    x = blobs(4, shape)
    assert method.embed(x).shape == (4, 16)
    assert method.reconstruct(x).shape == x.shape
    assert torch.equal(method.embed(x), method.encoder(x))


@pytest.mark.parametrize(
    ("switches", "missing"),
    [
        ({"use_global": False}, {"global"}),
        ({"use_local": False}, {"local"}),
        ({"use_prior": False}, {"prior"}),
        ({"use_global": False, "use_local": False}, {"global", "local", "alike"}),
        (
            {"use_global": False, "use_local": False, "use_prior": False},
            {"global", "local", "prior", "alike"},
        ),
        ({"recon": "none"}, {"recon"}),
    ],
)
def test_ablation_switches_remove_losses(
    make: Make, switches: dict[str, Any], missing: set[str]
) -> None:
    method = prepared(make, **switches)
    assert (
        set(method.update(batch()))
        == {"recon", "lat", "global", "local", "prior", "alike"} - missing
    )
    assert set(prepared(make, recon_through_C=True).update(batch())) >= {"recon_through_C"}


@pytest.mark.parametrize(
    ("switch", "name"), [("use_z", "global_estimator"), ("use_zA", "local_estimator")]
)
def test_an_estimator_sees_z_where_it_should(make: Make, switch: str, name: str) -> None:
    maps = torch.rand(4, 32, 8, 8)
    for on in (True, False):
        estimator = getattr(make("nda", **{switch: on}), name)
        same = torch.equal(estimator(maps, torch.zeros(4, 16)), estimator(maps, torch.ones(4, 16)))
        assert same is not on
        assert not torch.equal(
            estimator(maps, torch.ones(4, 16)), estimator(-maps, torch.ones(4, 16))
        )


def test_local_estimator_is_the_same_network_at_every_place(make: Make) -> None:
    """Logits of a map equal those of 1 x 1 convolutions over [A_ij, z]."""
    estimator = make("nda").local_estimator
    maps, z = torch.randn(4, 32, 8, 8), torch.randn(4, 16)
    weights = [estimator.from_map, *(m for m in estimator.score if isinstance(m, nn.Linear))]
    first = torch.cat([estimator.from_map.weight, estimator.from_z.weight], 1)
    hidden = torch.cat([maps, z[:, :, None, None].expand(-1, -1, 8, 8)], 1)
    for number, layer in enumerate(weights):
        weight = first if number == 0 else layer.weight
        hidden = F.conv2d(
            hidden if number == 0 else hidden.relu(), weight[:, :, None, None], layer.bias
        )
    torch.testing.assert_close(estimator(maps, z), hidden.flatten(1), rtol=1e-4, atol=1e-5)


def test_options_that_do_not_go_together_are_refused(make: Make) -> None:
    for size in (16, 30):
        with pytest.raises(ValueError, match=rf"data\.size={size}.*multiple of 8"):
            make("nda", (1, size, size))
    with pytest.raises(ValueError, match="square"):
        make("nda", (1, 32, 40))
    with pytest.raises(ValueError, match=r"method\.recon_through_C=true needs method\.recon"):
        make("nda", recon="none", recon_through_C=True)
    with pytest.raises(ValueError, match=r"method\.contrastive_from"):
        make("nda", latent_init="contrastive")
    with pytest.raises(ValueError, match=r"method\.latent_init=pca"):
        make("nda", contrastive_from="weights.pt")
    with pytest.raises(
        ValueError, match=r"method\.latent_size=16: 16 training images.* take method.latent_size=15"
    ):
        make("nda").prepare(blobs(16))
    make("nda").prepare(blobs(17))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_optimizer_has_its_numbers(make: Make, name: str) -> None:
    numbers = {"lr": 0.3, "momentum": 0.1, "weight_decay": 0.2}
    optimizer = make("nda", optimizer=name, **numbers).build_optimizers()["networks"]
    assert isinstance(optimizer, {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name])
    group = optimizer.param_groups[0]
    momentum = group["momentum"] if name == "sgd" else group["betas"][0]
    assert {
        "lr": group["lr"],
        "momentum": momentum,
        "weight_decay": group["weight_decay"],
    } == numbers


def test_the_optimizers_have_nothing_beside_their_numbers(make: Make) -> None:
    for name in ("sgd", "adam"):
        group = make("nda", optimizer=name).build_optimizers()["networks"].param_groups[0]
        assert not group["maximize"]
        if name == "sgd":
            assert (group["dampening"], group["nesterov"]) == (0, False)
        else:
            assert (group["betas"][1], group["eps"]) == (0.999, 1e-8)
            assert (group["amsgrad"], group["decoupled_weight_decay"]) == (False, False)
    latents = prepared(make, train_z=True, latent_lr=3.0).build_optimizers()["latents"]
    group = latents.param_groups[0]
    assert isinstance(latents, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (
        3.0,
        0,
        0,
        False,
    )


def test_every_parameter_has_one_optimizer(make: Make) -> None:
    for switches in (
        {},
        {"prior": "adv"},
        {"prior": "coop"},
        {"train_z": True},
        {"use_global": False},
    ):
        method = prepared(make, **switches)
        groups = [g["params"] for o in method.build_optimizers().values() for g in o.param_groups]
        optimised = [id(p) for group in groups for p in group]
        owned = [id(p) for p in method.parameters()] + (
            [id(method.latents)] if method.train_z else []
        )
        assert sorted(optimised) == sorted(owned)


def test_scores_by_hand(make: Make) -> None:
    method = prepared(make)
    train_until_images_differ(method, batch())
    method.eval()
    x = blobs(6, seed=4)
    with torch.inference_mode():
        scores, x_hat, loss = (
            method.novelty_score(x),
            method.generator(method.encoder(x)),
            method.validation_loss(x),
        )
        assert torch.equal(method.reconstruct(x), x_hat)
    difference = (x - x_hat).double().numpy()[:, 0]
    np.testing.assert_allclose(scores["mse"].numpy(), (difference**2).mean((1, 2)), rtol=1e-5)
    lap = [sum(np.abs(level).mean() for level in numpy_pyramid(image)) for image in difference]
    np.testing.assert_allclose(scores["lap"].numpy(), lap, rtol=1e-4)
    assert torch.equal(loss, scores["mse"])


@pytest.mark.parametrize(
    "switches", [{}, {"train_z": True, "prior": "adv", "recon_through_C": True}]
)
def test_bf16_stays_close(make: Make, switches: dict[str, Any]) -> None:
    plain, mixed = prepared(make, **switches), prepared(make, **switches)
    data = batch()
    torch.manual_seed(3)
    expected = plain.update(data)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = mixed.update(data)
    for name, value in expected.items():
        assert losses[name].dtype == torch.float32, name
        assert losses[name].item() == pytest.approx(value.item(), rel=0.03, abs=0.01), name
    assert all(p.isfinite().all() for p in mixed.parameters())


# Pictures.


def test_pictures_show_negatives_and_what_the_codes_generate(make: Make) -> None:
    method = make("nda", latent_size=4)
    train = blobs(20)
    method.prepare(train)
    method.eval()
    with torch.no_grad():
        pictures = method.image_rows(train[:6], blobs(2), blobs(2))
        expected = method.generator(method.latents[:6])
    assert [row.title for row in pictures["negatives"]] == ["training images", *["negatives"] * 3]
    assert all(torch.equal(rows[0].images, train[:6]) for rows in pictures.values())
    negatives = [row.images for row in pictures["negatives"][1:]]
    assert not torch.equal(negatives[0], negatives[1])
    assert all(not torch.equal(images, train[:6]) for images in negatives)
    assert torch.equal(pictures["generated"][1].images, expected)
