"""GPND against its paper: the Jacobian against finite differences, both densities against SciPy and by
integration, the losses of each step, and the score.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from noveltylab.methods.base import Batch
from noveltylab.methods.gpnd import (
    FLOOR,
    GPND,
    fit_gennorm,
    fit_histogram,
    gennorm_log_p,
    histogram_log_p,
    log_volume,
    sphere_log_area,
)
from tests.methods.conftest import (
    assert_normal,
    blobs,
    changed,
    layers,
    owners,
    settings,
    spied_update,
    states,
)

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder", "discriminator", "latent_discriminator")


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def trained(make: Make, **options: Any) -> Any:
    """A few steps, and the statistics of 80 inliers; in evaluation mode, in double precision."""
    method = make("gpnd", **options).train()
    for _ in range(10):
        method.update(batch(32))
    method.double().eval()
    with torch.no_grad():
        method.prepare_score(blobs(80).double())
    return method


# The Jacobian.


def test_the_jacobian_is_that_of_finite_differences(make: Make) -> None:
    method = trained(make)
    z = torch.randn(3, 8, dtype=torch.float64)
    jacobians = method.jacobians(z)
    assert jacobians.shape == (3, 1024, 8)
    step = 1e-5
    with torch.no_grad():
        for value in range(8):
            moved = torch.zeros(8, dtype=torch.float64)
            moved[value] = step
            slope = (method.decode(z + moved) - method.decode(z - moved)) / (2 * step)
            torch.testing.assert_close(
                jacobians[..., value], slope.flatten(1), rtol=1e-4, atol=1e-7
            )


def test_the_jacobian_works_where_gradients_are_switched_off_and_leaves_no_trace(
    make: Make,
) -> None:
    method = trained(make)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.inference_mode():
        z = method.embed(blobs(4).double())
        together, alone = method.jacobians(z), method.jacobians(z[2:3])
    torch.testing.assert_close(together[2:3], alone)
    assert not together.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_the_volume_is_the_product_of_the_singular_values() -> None:
    jacobian = np.random.default_rng(0).normal(size=(4, 9, 3))
    expected = [np.log(np.linalg.svd(part, compute_uv=False)).sum() for part in jacobian]
    np.testing.assert_allclose(log_volume(torch.tensor(jacobian)), expected, rtol=1e-9)
    # half the log determinant of J^T J
    gram = [np.linalg.slogdet(part.T @ part)[1] / 2 for part in jacobian]
    np.testing.assert_allclose(log_volume(torch.tensor(jacobian)), gram, rtol=1e-9)


def test_the_density_on_a_linear_surface_is_that_of_the_codes_over_its_volume() -> None:
    """x = A z with z ~ N(0, I): the density of x within the plane is N(0, A A^T)'s there."""
    rng = np.random.default_rng(0)
    a, z = rng.normal(size=(5, 2)), rng.normal(size=(6, 2))
    standard = torch.tensor([[0.0, 0.0], [2**0.5, 2**0.5], [2.0, 2.0]], dtype=torch.float64)
    log_p = gennorm_log_p(torch.tensor(z), standard) - log_volume(torch.tensor(a)[None])
    basis, _ = np.linalg.qr(a)
    covariance = basis.T @ a @ a.T @ basis
    expected = scipy.stats.multivariate_normal(np.zeros(2), covariance).logpdf(z @ a.T @ basis)
    np.testing.assert_allclose(log_p, expected, rtol=1e-9)


# The density of codes.


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 5.0])
def test_a_generalised_gaussian_is_found_again(shape: float) -> None:
    rng = np.random.default_rng(0)
    draws = scipy.stats.gennorm.rvs(shape, 0.3, 1.7, size=(40_000, 1), random_state=rng)
    place, scale, found = fit_gennorm(torch.tensor(draws))[:, 0].tolist()
    assert place == pytest.approx(0.3, abs=0.03)
    assert scale == pytest.approx(1.7, rel=0.08)
    assert found == pytest.approx(shape, rel=0.05)


def test_the_fit_is_as_likely_as_scipys() -> None:
    draws = np.random.default_rng(1).laplace(size=2000)
    parameters = fit_gennorm(torch.tensor(draws)[:, None])
    likelihood = gennorm_log_p(torch.tensor(draws)[:, None], parameters).mean().item()
    best = scipy.stats.gennorm.logpdf(draws, *scipy.stats.gennorm.fit(draws)).mean()
    assert likelihood == pytest.approx(best, abs=2e-3)


def test_the_density_of_codes_is_scipys() -> None:
    rng = np.random.default_rng(0)
    z, place = rng.normal(size=(5, 3)), rng.normal(size=3)
    scale, shape = rng.uniform(0.5, 2, size=3), rng.uniform(0.5, 4, size=3)
    parameters = torch.tensor(np.stack([place, scale, shape]))
    expected = scipy.stats.gennorm.logpdf(z, shape, place, scale).sum(1)
    np.testing.assert_allclose(gennorm_log_p(torch.tensor(z), parameters), expected, rtol=1e-9)


def test_codes_that_do_not_vary_give_finite_numbers() -> None:
    parameters = fit_gennorm(torch.ones(7, 2))
    assert parameters.isfinite().all()
    assert gennorm_log_p(torch.ones(1, 2), parameters).isfinite().all()


# The density of the distance.


def test_the_histogram_is_numpys() -> None:
    lengths = np.random.default_rng(0).gamma(4, size=500)
    counts, edges = np.histogram(lengths, bins=30, density=True)
    found_edges, density = fit_histogram(torch.tensor(lengths))
    np.testing.assert_allclose(found_edges, edges, rtol=1e-9)
    np.testing.assert_allclose(density, counts, rtol=1e-9)


def test_a_length_has_the_density_of_its_bin_and_goes_to_0_below_the_first() -> None:
    edges = torch.linspace(2, 5, 31, dtype=torch.float64)
    density = torch.linspace(0.1, 0.9, 30, dtype=torch.float64)
    density[7] = 0
    lengths = torch.tensor([1.0, 2.05, 4.95, 5.0, 5.1, 2.75], dtype=torch.float64)
    log_p = histogram_log_p(lengths, edges, density).tolist()
    expected = np.log([0.1 * 1.0 / 2, 0.1, 0.9, 0.9])
    np.testing.assert_allclose(log_p[:4], expected, rtol=1e-9)
    assert log_p[4:] == [FLOOR, FLOOR]
    assert pytest.approx(np.log(1e-308)) == FLOOR


@pytest.mark.parametrize("dimensions", [2, 3, 7])
def test_the_area_of_a_sphere_makes_a_density_in_space(dimensions: int) -> None:
    """Of a standard normal: the density of its length over the sphere's area is its own."""
    radius = np.array([0.3, 1.0, 2.5])
    log_area = sphere_log_area(torch.tensor(radius), dimensions).numpy()
    expected = -(radius**2) / 2 - dimensions / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(
        scipy.stats.chi(dimensions).logpdf(radius) - log_area, expected, rtol=1e-9
    )
    half = dimensions / 2
    area = 2 * np.pi**half / scipy.special.gamma(half) * radius ** (dimensions - 1)
    np.testing.assert_allclose(np.exp(log_area), area, rtol=1e-9)


def test_the_authors_formula_on_their_scale_differs_by_one_constant() -> None:
    """Theirs has lengths on [0, 1], half as long, and another constant of the sphere's surface."""
    rng = np.random.default_rng(0)
    train, lengths = rng.gamma(20, size=2000), rng.gamma(20, size=40)
    dimensions = 96.0
    counts, edges = np.histogram(train / 2, bins=30, density=True)
    constant = scipy.special.loggamma(dimensions / 2) - dimensions / 2 * np.log(2 * np.pi)
    inside = lengths[(lengths > train.min()) & (lengths < np.quantile(train, 0.99))]
    inside = np.append(inside, train.min() / 3)
    theirs = []
    for r in inside / 2:
        place = np.digitize(r, edges) - 1
        p = counts[place] if place >= 0 else counts[0] * r / edges[0]
        theirs.append(constant - (dimensions - 1) * np.log(r) + np.log(p))
    log_p = histogram_log_p(torch.tensor(inside), *fit_histogram(torch.tensor(train)))
    ours = (log_p - sphere_log_area(torch.tensor(inside), dimensions)).numpy()
    np.testing.assert_allclose(np.array(theirs) - ours, theirs[0] - ours[0], rtol=1e-9)
    assert np.ptp(ours) > 10


# The score.


@pytest.mark.parametrize("options", [{}, {"jacobian": False}, {"share": 0.1}])
def test_the_score_is_minus_the_log_of_both_densities(make: Make, options: dict[str, Any]) -> None:
    method = trained(make, **options)
    train, x = blobs(80).double(), blobs(5, seed=3).double()
    with torch.no_grad():
        scores = {name: column.numpy() for name, column in method.novelty_score(x).items()}
        codes, z = method.encoder(train), method.encoder(x)
        jacobians = method.jacobians(z).numpy()
        lengths = np.linalg.norm((train - method.decode(codes)).flatten(1).numpy(), axis=1)
        length = np.linalg.norm((x - method.decode(z)).flatten(1).numpy(), axis=1)
    place, scale, shape = fit_gennorm(codes).numpy()
    log_p = scipy.stats.gennorm.logpdf(z.numpy(), shape, place, scale).sum(1)
    if options.get("jacobian", True):
        log_p -= [np.log(np.linalg.svd(part, compute_uv=False)).sum() for part in jacobians]
    np.testing.assert_allclose(scores["parallel"], -log_p, rtol=1e-6)
    counts, edges = np.histogram(lengths, bins=30, density=True)
    across = options.get("share", 1.0) * (1024 - 8)
    log_area = sphere_log_area(torch.tensor(length), across).numpy()
    for image, r in enumerate(length):
        p = 0.0
        if r < edges[0]:
            p = counts[0] * r / edges[0]
        elif r <= edges[-1]:
            p = counts[min(np.searchsorted(edges, r, "right") - 1, 29)]
        expected = log_area[image] - (np.log(p) if p else np.log(1e-308))
        assert scores["perpendicular"][image] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(scores["distance"], length, rtol=1e-9)
    np.testing.assert_allclose(scores["novelty"], scores["parallel"] + scores["perpendicular"])


# Networks (code).


def test_the_layers_are_those_of_the_code() -> None:
    method = GPND((1, 32, 32))

    def downward() -> list[str]:
        return [
            "down 1>64 k4 s2 p1 bias=True",
            "leaky 0.2",
            "down 64>256 k4 s2 p1 bias=True",
            "norm 256",
            "leaky 0.2",
            "down 256>512 k4 s2 p1 bias=True",
            "norm 512",
            "leaky 0.2",
            "flatten",
        ]

    # the last convolution's kernel is the whole map
    assert layers(method.encoder) == [*downward(), "linear 8192>16 bias=True"]
    assert layers(method.discriminator) == [*downward(), "linear 8192>1 bias=True", "flatten"]
    assert layers(method.decoder) == [
        "linear 16>4096 bias=True",
        "unflatten",
        "norm 256",
        "relu",
        "up 256>256 k4 s2 p1 bias=True",
        "norm 256",
        "relu",
        "up 256>128 k4 s2 p1 bias=True",
        "norm 128",
        "relu",
        "up 128>1 k4 s2 p1 bias=True",
    ]
    assert layers(method.latent_discriminator) == [
        "linear 16>128 bias=True",
        "leaky 0.2",
        "linear 128>128 bias=True",
        "leaky 0.2",
        "linear 128>1 bias=True",
        "flatten",
    ]
    for module in method.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 3000:
            assert_normal(module.weight.detach().flatten(), 0.0, 0.02)
            assert module.bias is not None and not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()


def test_an_image_is_the_tanh_of_the_decoder(make: Make) -> None:
    method = make("gpnd").eval()
    z = torch.randn(3, 8)
    with torch.no_grad():
        expected = np.tanh(method.decoder(z).double().numpy())
        np.testing.assert_allclose(method.decode(z), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 28, 28), r"data\.size=28: GPND halves"),
        ({"latent_size": 64}, (1, 8, 8), r"method\.latent_size=64: an image has 64 values"),
    ],
)
def test_impossible_sizes_are_refused(
    make: Make, options: dict[str, Any], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make("gpnd", shape, **options)


def test_optimizers_are_adam_each_over_its_networks(make: Make) -> None:
    method = make("gpnd")
    held = {
        name: owners(method, optimizer) for name, optimizer in method.build_optimizers().items()
    }
    assert held == {
        "discriminator": {"discriminator"},
        "generator": {"decoder"},
        "latent_discriminator": {"latent_discriminator"},
        "autoencoder": {"encoder", "decoder"},
    }
    for optimizer in method.build_optimizers().values():
        assert settings(optimizer) == {"kind": "Adam", "lr": 2e-3, "betas": (0.5, 0.999)}


# One iteration.


def softplus(a: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(a))


def test_losses_equal_numpy(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("gpnd", w_recon=0.4, w_lat=1.5).train()
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in NETWORKS}
    for name in NETWORKS:
        getattr(method, name).register_forward_hook(
            lambda m, i, o, n=name: outputs[n].append(o.detach().double().numpy().copy())
        )
    step = batch()
    minimised, losses = spied_update(method, step, monkeypatch)
    real, fake, fooling = outputs["discriminator"]
    drawn, coded, hiding = outputs["latent_discriminator"]
    _, before_tanh = outputs["decoder"]
    grey = (step.x.double().numpy() + 1) / 2
    p = (np.tanh(before_tanh) + 1) / 2
    expected = {
        "discriminator": (softplus(-real) + softplus(fake)).mean(),
        "generator": softplus(-fooling).mean(),
        "latent_discriminator": (softplus(-drawn) + softplus(coded)).mean(),
        "latent": softplus(-hiding).mean(),
        "recon": -(grey * np.log(p) + (1 - grey) * np.log(1 - p)).mean(),
    }
    assert losses == pytest.approx(expected, rel=1e-5)
    total = 0.4 * expected["recon"] + 1.5 * expected["latent"]
    alone = {
        name: expected[name] for name in ("discriminator", "generator", "latent_discriminator")
    }
    assert minimised == pytest.approx({**alone, "autoencoder": total}, rel=1e-5)


def test_each_step_changes_its_networks_alone(make: Make) -> None:
    method = make("gpnd").train()
    step = batch()
    real_minimise = method.minimise
    steps: dict[str, set[str]] = {}

    def watched(loss: Tensor, name: str) -> None:
        before = states(method, NETWORKS)
        real_minimise(loss, name)
        steps[name] = changed(before, method)

    method.minimise = watched
    method.update(step)
    assert steps == {
        "discriminator": {"discriminator"},
        "generator": {"decoder"},
        "latent_discriminator": {"latent_discriminator"},
        "autoencoder": {"encoder", "decoder"},
    }


def test_codes_and_draws_are_those_that_the_discriminators_see(make: Make) -> None:
    method = make("gpnd").train()
    seen: dict[str, list[Tensor]] = {"images": [], "codes": []}
    method.discriminator.register_forward_pre_hook(
        lambda m, i: seen["images"].append(i[0].detach())
    )
    method.latent_discriminator.register_forward_pre_hook(
        lambda m, i: seen["codes"].append(i[0].detach())
    )
    step = batch(512)
    method.update(step)
    assert torch.equal(seen["images"][0], step.x)
    assert seen["images"][1].abs().max() < 1
    drawn, coded, hiding = seen["codes"]
    assert drawn.mean().item() == pytest.approx(0, abs=0.05)
    assert drawn.std().item() == pytest.approx(1, rel=0.05)
    assert torch.equal(coded, hiding)


def test_held_out_inliers_have_the_cross_entropy_of_their_reconstruction(make: Make) -> None:
    method = trained(make)
    x = blobs(4).double()
    with torch.no_grad():
        grey = (x.numpy() + 1) / 2
        p = (method.reconstruct(x).numpy() + 1) / 2
        loss = method.validation_loss(x)
    expected = -(grey * np.log(p) + (1 - grey) * np.log(1 - p)).mean((1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_cross_entropy_falls(make: Make) -> None:
    method = make("gpnd").train()
    values = [method.update(batch(32))["recon"].item() for _ in range(40)]
    assert values[-1] < 0.7 * values[0]
