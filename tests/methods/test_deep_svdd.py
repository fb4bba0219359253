"""Deep SVDD against its paper: objectives, centre and radius against NumPy, the two phases, the network's properties."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.methods.base import Batch
from noveltylab.methods.deep_svdd import (
    guarded_mean,
    quantile_radius,
    reconstruction_error,
    soft_boundary,
    squared_distance,
)
from tests.methods.conftest import NoSync, blobs, changed, states

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder")
SOFT = {"objective": "soft-boundary", "pretrain": 0.0, "warm_up": 0.0}


def batch(count: int = 16, start: int = 0) -> Batch:
    return Batch(blobs(64)[start : start + count], torch.arange(start, start + count))


def prepared(make: Make, **changes: Any) -> Any:
    method = make("deep_svdd", **changes)
    method.prepare(blobs(64))
    return method.train()


def codes(method: Any, x: Tensor) -> np.ndarray:
    """In evaluation mode; the method's mode stays."""
    mode = method.training
    with torch.no_grad():
        z = method.eval().encoder(x).double().numpy()
    method.train(mode)
    return z


def expected_centre(z: np.ndarray) -> np.ndarray:
    """One unit at a time."""
    centre = []
    for mean in z.mean(0):
        near = abs(mean) < 0.1
        centre.append(0.1 if near and mean > 0 else -0.1 if near and mean < 0 else mean)
    return np.array(centre)


# Losses, centre and radius.


def test_distances_and_reconstruction_errors_are_sums_of_squares() -> None:
    rng = np.random.default_rng(0)
    z, c = rng.normal(size=(7, 5)), rng.normal(size=5)
    found = squared_distance(torch.tensor(z), torch.tensor(c))
    np.testing.assert_allclose(found, np.linalg.norm(z - c, axis=1) ** 2, rtol=1e-9)
    x, y = rng.normal(size=(2, 4, 3, 5, 5))
    found = reconstruction_error(torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(found, ((x - y) ** 2).reshape(4, -1).sum(1), rtol=1e-9)


def test_soft_boundary_is_eq_3() -> None:
    distance, radius, nu = np.random.default_rng(0).uniform(0, 9, size=50), 1.7, 0.2
    expected = radius**2 + np.maximum(0, distance - radius**2).sum() / (nu * 50)
    found = soft_boundary(torch.tensor(distance), torch.tensor(radius, dtype=torch.float64), nu)
    assert found.shape == (50,)
    assert found.mean().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5, 1.0])
def test_radius_is_the_quantile_that_minimises_eq_3(nu: float) -> None:
    distance = np.random.default_rng(1).gamma(2.0, size=201)
    radius = quantile_radius(torch.tensor(distance), nu).item()
    assert radius == pytest.approx(np.quantile(np.sqrt(distance), 1 - nu), rel=1e-6)
    assert (np.sqrt(distance) > radius + 1e-9).mean() <= nu  # proposition 4: at most a share nu lies outside

    def objective(r: float) -> float:
        return float(r**2 + np.maximum(0, distance - r**2).mean() / nu)

    smallest = min(objective(r) for r in np.linspace(0, 5, 5001))
    assert objective(radius) <= smallest + 1e-3


def test_centre_keeps_its_distance_from_zero() -> None:
    z = torch.tensor([[0.04, -0.3, 0.5, -0.02, 0.0], [0.06, 0.1, 0.7, -0.04, 0.0]])
    assert guarded_mean(z).tolist() == pytest.approx([0.1, -0.1, 0.6, -0.1, 0.0])


def test_centre_is_that_of_an_initial_pass_in_evaluation_mode(make: Make) -> None:
    method = make("deep_svdd")
    with torch.no_grad():
        for module in method.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):  # so that training mode would give other codes
                module.running_var.fill_(4.0)
    method.train()
    method.prepare(blobs(1100))  # more than one block of the pass
    np.testing.assert_allclose(method.centre, expected_centre(codes(method, blobs(1100))), rtol=1e-4, atol=1e-6)
    assert method.encoder.training


# The two phases.


def test_pretraining_changes_both_networks_by_the_reconstruction_alone(make: Make) -> None:
    method = prepared(make)
    outputs: list[np.ndarray] = []
    method.decoder.register_forward_hook(lambda m, i, o: outputs.append(o.detach().double().numpy().copy()))
    before, centre, step = states(method, NETWORKS), method.centre.clone(), batch()
    losses = method.update(step)
    assert changed(before, method) == {"encoder", "decoder"}
    assert torch.equal(method.centre, centre)
    assert set(losses) == {"recon"}
    expected = ((step.x.double().numpy() - outputs[0]) ** 2).sum((1, 2, 3)).mean()
    assert losses["recon"].item() == pytest.approx(expected, rel=1e-5)


def test_afterwards_the_encoder_alone_changes(make: Make) -> None:
    method = prepared(make)
    method.update(batch())
    method.progress = 0.5
    method.update(batch())
    before, centre = states(method, NETWORKS), method.centre.clone()
    losses = method.update(batch())
    assert changed(before, method) == {"encoder"}
    assert torch.equal(method.centre, centre)
    assert set(losses) == {"loss", "distance"}


def test_the_centre_is_placed_again_by_the_pretrained_encoder_and_only_once(make: Make) -> None:
    method = prepared(make)
    for epoch in range(3):
        method.progress = epoch / 10
        method.update(batch())
    initial = method.centre.clone()
    pretrained = codes(method, blobs(64))
    found = []
    for epoch in (5, 6, 7):
        method.progress = epoch / 10
        method.update(batch())
        found.append(method.centre.clone())
    np.testing.assert_allclose(found[0], expected_centre(pretrained), rtol=1e-4, atol=1e-6)
    assert not torch.equal(found[0], initial)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert method.images is None  # no longer needed


def test_without_pretraining_the_first_step_is_deep_svdds_around_the_initial_centre(make: Make) -> None:
    method = prepared(make, pretrain=0.0)
    initial = method.centre.clone()
    before = states(method, NETWORKS)
    assert "distance" in method.update(batch())
    assert changed(before, method) == {"encoder"}
    assert torch.equal(method.centre, initial)


def test_one_class_loss_equals_numpy(make: Make) -> None:
    method = prepared(make, pretrain=0.0)
    outputs: list[np.ndarray] = []
    method.encoder.register_forward_hook(lambda m, i, o: outputs.append(o.detach().double().numpy().copy()))
    losses = method.update(batch())
    expected = ((outputs[0] - method.centre.double().numpy()) ** 2).sum(1).mean()
    assert losses["loss"].item() == losses["distance"].item() == pytest.approx(expected, rel=1e-5)


def test_soft_boundary_loss_equals_numpy(make: Make) -> None:
    method = prepared(make, **SOFT, nu=0.25)
    outputs: list[np.ndarray] = []
    method.encoder.register_forward_hook(lambda m, i, o: outputs.append(o.detach().double().numpy().copy()))
    losses = {name: value.item() for name, value in method.update(batch()).items()}
    distance = ((outputs[0] - method.centre.double().numpy()) ** 2).sum(1)
    squared = losses["radius"] ** 2
    assert losses["radius"] > 0
    assert losses["distance"] == pytest.approx(distance.mean(), rel=1e-5)
    assert losses["loss"] == pytest.approx(squared + np.maximum(0, distance - squared).mean() / 0.25, rel=1e-5)


def test_radius_is_set_before_every_epoch_from_the_distances_last_met(make: Make) -> None:
    method = prepared(make, **SOFT, nu=0.2)
    initial = ((codes(method, blobs(64)) - method.centre.double().numpy()) ** 2).sum(1)
    met = initial.copy()
    outputs: list[np.ndarray] = []
    method.encoder.register_forward_hook(lambda m, i, o: outputs.append(o.detach().double().numpy().copy()))
    for epoch in range(2):
        method.progress = epoch / 2
        expected = np.quantile(np.sqrt(met), 0.8)
        for start in (0, 16, 32):  # the last 16 images are not met
            losses = method.update(batch(16, start))
            assert losses["radius"].item() == pytest.approx(expected, rel=1e-4), (epoch, start)
            met[start : start + 16] = ((outputs[-1] - method.centre.double().numpy()) ** 2).sum(1)
    np.testing.assert_allclose(method.distances, met, rtol=1e-4)
    np.testing.assert_allclose(method.distances[48:], initial[48:], rtol=1e-4)


def test_radius_stays_0_while_warming_up(make: Make) -> None:
    method = prepared(make, objective="soft-boundary", pretrain=0.5, warm_up=0.4)
    radii = []
    for epoch in range(10):
        method.progress = epoch / 10
        radii.append(method.update(batch()).get("radius", torch.tensor(-1.0)).item())
    assert radii[:5] == [-1] * 5  # pretraining
    assert radii[5:7] == [0, 0]  # shares 0 and 0.2 of the second phase
    assert min(radii[7:]) > 0


def test_images_inside_the_radius_give_no_gradient(make: Make) -> None:
    method = prepared(make, **SOFT)
    method.update(batch())
    method.radius = torch.tensor(1e3)
    method.minimise = lambda loss, name: loss.backward()
    method.zero_grad()
    method.update(batch())
    assert all(not p.grad.any() for p in method.encoder.parameters())
    method.radius = torch.tensor(0.0)
    method.update(batch())
    assert all(p.grad.any() for p in method.encoder.parameters())


def test_both_objectives_draw_the_codes_together(make: Make) -> None:
    for changes in ({"pretrain": 0.0}, {**SOFT, "nu": 0.1}):
        method = prepared(make, **changes)
        values = []
        for epoch in range(20):
            method.progress = epoch / 20
            values.append(method.update(batch(32))["distance"].item())
        assert values[-1] < 0.7 * values[0], changes


def test_rates_drop_after_their_share_of_each_phase(make: Make) -> None:
    method = prepared(make, lr=1e-3, ae_lr=1e-2, pretrain=0.5, lr_drop=0.4, ae_lr_drop=0.8)
    found: dict[str, list[float]] = {"autoencoder": [], "encoder": []}
    for epoch in range(10):
        method.progress = epoch / 10
        method.update(batch())
        for name, optimizer in method._optimizers_by_name.items():
            found[name].append(optimizer.param_groups[0]["lr"])
    assert found["autoencoder"][:5] == pytest.approx([1e-2] * 4 + [1e-3])
    assert found["encoder"][5:] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-4])


def test_weight_decay_is_set_for_each_phase(make: Make) -> None:
    optimizers = make("deep_svdd", weight_decay=1e-3, ae_weight_decay=1e-2).build_optimizers()
    assert {name: o.param_groups[0]["weight_decay"] for name, o in optimizers.items()} == {
        "autoencoder": 1e-2,
        "encoder": 1e-3,
    }
    moved = []
    for decay in (0.0, 100.0):
        method = prepared(make, pretrain=0.0, weight_decay=decay)
        before = method.encoder[0].weight.norm().item()
        for _ in range(3):
            method.update(batch())
        moved.append(method.encoder[0].weight.norm().item() - before)
    assert moved[1] < min(moved[0], 0)


@pytest.mark.parametrize("objective", ["one-class", "soft-boundary"])
def test_no_phase_and_no_transition_waits_for_the_device(make: Make, objective: str) -> None:
    method = prepared(make, objective=objective, warm_up=0.0)
    for progress in (0.0, 0.5, 0.9):
        method.progress = progress
        if progress != 0.5:
            method.update(batch())  # the optimizer makes its state
        with NoSync():
            method.update(batch())


# Scores and selection.


@pytest.mark.parametrize("objective", ["one-class", "soft-boundary"])
def test_score_and_validation_loss_are_eq_5_and_the_objective(make: Make, objective: str) -> None:
    method = prepared(make, objective=objective, pretrain=0.0, warm_up=0.0, nu=0.3)
    for _ in range(3):
        method.update(batch())
    method.eval()
    x = blobs(9, seed=4)
    with torch.inference_mode():
        score, validation = method.novelty_score(x)["distance"], method.validation_loss(x)
    distance = ((codes(method, x) - method.centre.double().numpy()) ** 2).sum(1)
    squared = method.radius.item() ** 2
    assert (squared > 0) == (objective == "soft-boundary")
    np.testing.assert_allclose(score, distance - squared, rtol=1e-4, atol=1e-5)
    soft = squared + np.maximum(0, distance - squared) / 0.3
    np.testing.assert_allclose(validation, soft if objective == "soft-boundary" else distance, rtol=1e-4)
    np.testing.assert_allclose(method.embed(x).detach(), codes(method, x), rtol=1e-5, atol=1e-6)


def test_no_epoch_of_pretraining_can_be_selected(make: Make) -> None:
    method = prepared(make)
    method.update(batch())
    assert method.validation_loss(blobs(3)).tolist() == [float("inf")] * 3
    method.progress = 0.5
    method.update(batch())
    assert method.validation_loss(blobs(3)).isfinite().all()


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(make: Make) -> None:
    """What the checkpoint holds is enough in either phase; `prepare` runs again before it is loaded."""

    def epochs(method: Any, numbers: range) -> None:
        for epoch in numbers:
            method.progress = epoch / 6
            torch.manual_seed(epoch)
            for start in (0, 32):
                method.update(batch(32, start))

    for cut in (2, 3, 5):  # in pretraining, at its end, after it
        whole, first, second = (prepared(make, objective="soft-boundary", warm_up=0.0) for _ in range(3))
        epochs(whole, range(6))
        epochs(first, range(cut))
        checkpoint: dict[str, Any] = {}
        first.on_save_checkpoint(checkpoint)
        second.on_load_checkpoint(checkpoint)
        second.load_state_dict(first.state_dict())
        second._optimizers_by_name = second.build_optimizers()
        for name, optimizer in second._optimizers_by_name.items():
            optimizer.load_state_dict(first._optimizers_by_name[name].state_dict())
        epochs(second, range(cut, 6))
        for key, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[key]), (cut, key)


# The network (section 3.3 and 4.1).


@pytest.mark.parametrize("architecture", ["mnist", "cifar10"])
def test_no_bias_and_no_bounded_activation_between_image_and_code(make: Make, architecture: str) -> None:
    method = make("deep_svdd", (3, 32, 32), architecture=architecture)
    allowed = (nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.MaxPool2d, nn.Flatten, nn.Linear)
    assert all(isinstance(module, allowed) for module in method.encoder)
    assert all(getattr(module, "bias", None) is None for module in method.modules())
    assert all(module.weight is None for module in method.modules() if isinstance(module, nn.BatchNorm2d))
    x = torch.rand(2, 3, 32, 32)
    small, large = (method.eval().embed(scale * x) for scale in (1.0, 1000.0))
    torch.testing.assert_close(large, 1000 * small, rtol=1e-4, atol=1e-3)  # neither shift nor bound


@pytest.mark.parametrize(
    ("shape", "architecture", "maps", "latent"),
    [
        ((1, 28, 28), "auto", [(8, 28, 28), (4, 14, 14)], 32),
        ((1, 32, 32), "auto", [(8, 32, 32), (4, 16, 16)], 32),
        ((3, 32, 32), "auto", [(32, 32, 32), (64, 16, 16), (128, 8, 8)], 128),
        ((3, 28, 36), "mnist", [(8, 28, 36), (4, 14, 18)], 32),
        ((1, 24, 24), "cifar10", [(32, 24, 24), (64, 12, 12), (128, 6, 6)], 128),
    ],
)
def test_layers_are_section_4_1(make: Make, shape: Any, architecture: str, maps: Any, latent: int) -> None:
    method = make("deep_svdd", shape, architecture=architecture).eval()
    found: list[tuple[int, ...]] = []
    for module in method.encoder:
        if isinstance(module, nn.Conv2d):
            assert module.kernel_size == (5, 5)
            module.register_forward_hook(lambda m, i, o: found.append(tuple(o.shape[1:])))
    x = torch.rand(2, *shape)
    z = method.embed(x)
    assert found == maps and z.shape == (2, latent)
    assert method.decoder(z).shape == x.shape
    assert method.centre.shape == (latent,)


def test_sizes_that_do_not_halve_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"data\.size=30: method\.architecture=mnist takes a multiple of 4"):
        make("deep_svdd", (1, 30, 30))
    with pytest.raises(ValueError, match=r"data\.size=28: method\.architecture=cifar10 takes a multiple of 8"):
        make("deep_svdd", (3, 28, 28))
