"""Deep SVDD against its paper: objectives, centre and radius against NumPy, the two phases, the
network's properties.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.command.recipes import recipe_options
from noveltylab.methods import deep_svdd
from noveltylab.methods.base import Batch
from noveltylab.methods.deep_svdd import (
    dictionary_filters,
    guarded_mean,
    quantile_radius,
    reconstruction_error,
    soft_boundary,
    squared_distance,
)
from tests.methods.conftest import NoSync, blobs, changed, layers, owners, settings, states

#: Patches that the dictionary of first filters is learned from here, where 10,000 would take a
#: second.
PATCHES = 400

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder")
FIRST_CODE = {
    "batch_norm": "learned",
    "first_filters": "dictionary",
    "glorot_gain": "convolutions",
    "decoder": "squeezed",
}
SOFT = {"objective": "soft-boundary", "pretrain": 0.0, "warm_up": 0.0}


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_svdd, "DICTIONARY_PATCHES", PATCHES)


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
    distances = squared_distance(torch.tensor(z), torch.tensor(c))
    np.testing.assert_allclose(distances, np.linalg.norm(z - c, axis=1) ** 2, rtol=1e-9)
    x, y = rng.normal(size=(2, 4, 3, 5, 5))
    errors = reconstruction_error(torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(errors, ((x - y) ** 2).reshape(4, -1).sum(1), rtol=1e-9)


def test_soft_boundary_is_eq_3() -> None:
    distance, radius, nu = np.random.default_rng(0).uniform(0, 9, size=50), 1.7, 0.2
    expected = radius**2 + np.maximum(0, distance - radius**2).sum() / (nu * 50)
    losses = soft_boundary(torch.tensor(distance), torch.tensor(radius, dtype=torch.float64), nu)
    assert losses.shape == (50,)
    assert losses.mean().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5, 1.0])
def test_radius_is_the_quantile_that_minimises_eq_3(nu: float) -> None:
    distance = np.random.default_rng(1).gamma(2.0, size=201)
    radius = quantile_radius(torch.tensor(distance), nu).item()
    assert radius == pytest.approx(np.quantile(np.sqrt(distance), 1 - nu), rel=1e-6)
    # proposition 4: at most a share nu lies outside
    assert (np.sqrt(distance) > radius + 1e-9).mean() <= nu

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
    np.testing.assert_allclose(
        method.centre, expected_centre(codes(method, blobs(1100))), rtol=1e-4, atol=1e-6
    )
    assert method.encoder.training


# The two phases.


def test_pretraining_changes_both_networks_by_the_reconstruction_alone(make: Make) -> None:
    method = prepared(make)
    outputs: list[np.ndarray] = []
    method.decoder.register_forward_hook(
        lambda m, i, o: outputs.append(o.detach().double().numpy().copy())
    )
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
    centres = []
    for epoch in (5, 6, 7):
        method.progress = epoch / 10
        method.update(batch())
        centres.append(method.centre.clone())
    np.testing.assert_allclose(centres[0], expected_centre(pretrained), rtol=1e-4, atol=1e-6)
    assert not torch.equal(centres[0], initial)
    assert torch.equal(centres[0], centres[1]) and torch.equal(centres[0], centres[2])
    assert method.images is None  # no longer needed


def test_without_pretraining_the_first_step_is_deep_svdds_around_the_initial_centre(
    make: Make,
) -> None:
    method = prepared(make, pretrain=0.0)
    initial = method.centre.clone()
    before = states(method, NETWORKS)
    assert "distance" in method.update(batch())
    assert changed(before, method) == {"encoder"}
    assert torch.equal(method.centre, initial)


def test_one_class_loss_equals_numpy(make: Make) -> None:
    method = prepared(make, pretrain=0.0)
    outputs: list[np.ndarray] = []
    method.encoder.register_forward_hook(
        lambda m, i, o: outputs.append(o.detach().double().numpy().copy())
    )
    losses = method.update(batch())
    expected = ((outputs[0] - method.centre.double().numpy()) ** 2).sum(1).mean()
    assert losses["loss"].item() == losses["distance"].item() == pytest.approx(expected, rel=1e-5)


def test_soft_boundary_loss_equals_numpy(make: Make) -> None:
    method = prepared(make, **SOFT, nu=0.25)
    outputs: list[np.ndarray] = []
    method.encoder.register_forward_hook(
        lambda m, i, o: outputs.append(o.detach().double().numpy().copy())
    )
    losses = {name: value.item() for name, value in method.update(batch()).items()}
    distance = ((outputs[0] - method.centre.double().numpy()) ** 2).sum(1)
    squared = losses["radius"] ** 2
    assert losses["radius"] > 0
    assert losses["distance"] == pytest.approx(distance.mean(), rel=1e-5)
    assert losses["loss"] == pytest.approx(
        squared + np.maximum(0, distance - squared).mean() / 0.25, rel=1e-5
    )


def test_radius_is_set_before_every_epoch_from_the_distances_last_met(make: Make) -> None:
    method = prepared(make, **SOFT, nu=0.2)
    initial = ((codes(method, blobs(64)) - method.centre.double().numpy()) ** 2).sum(1)
    met = initial.copy()
    outputs: list[np.ndarray] = []
    method.encoder.register_forward_hook(
        lambda m, i, o: outputs.append(o.detach().double().numpy().copy())
    )
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
    rates: dict[str, list[float]] = {"autoencoder": [], "encoder": []}
    for epoch in range(10):
        method.progress = epoch / 10
        method.update(batch())
        for name, optimizer in method._optimizers_by_name.items():
            rates[name].append(optimizer.param_groups[0]["lr"])
    assert rates["autoencoder"][:5] == pytest.approx([1e-2] * 4 + [1e-3])
    assert rates["encoder"][5:] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-4])


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
    np.testing.assert_allclose(
        validation, soft if objective == "soft-boundary" else distance, rtol=1e-4
    )
    np.testing.assert_allclose(method.embed(x).detach(), codes(method, x), rtol=1e-5, atol=1e-6)


def test_no_epoch_of_pretraining_can_be_selected(make: Make) -> None:
    method = prepared(make)
    method.update(batch())
    assert method.validation_loss(blobs(3)).tolist() == [float("inf")] * 3
    method.progress = 0.5
    method.update(batch())
    assert method.validation_loss(blobs(3)).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"batch_norm": "learned", "first_filters": "dictionary"}])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    make: Make, options: dict[str, Any]
) -> None:
    """What the checkpoint holds is enough in either phase.

    `prepare` runs again before it is loaded.
    """

    def epochs(method: Any, numbers: range) -> None:
        for epoch in numbers:
            method.progress = epoch / 6
            torch.manual_seed(epoch)
            for start in (0, 32):
                method.update(batch(32, start))

    for cut in (2, 3, 5):  # in pretraining, at its end, after it
        whole, first, second = (
            prepared(make, objective="soft-boundary", warm_up=0.0, **options) for _ in range(3)
        )
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
def test_no_bias_and_no_bounded_activation_between_image_and_code(
    make: Make, architecture: str
) -> None:
    method = make("deep_svdd", (3, 32, 32), architecture=architecture)
    allowed = (nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.MaxPool2d, nn.Flatten, nn.Linear)
    assert all(isinstance(module, allowed) for module in method.encoder)
    assert all(getattr(module, "bias", None) is None for module in method.modules())
    assert all(
        module.weight is None for module in method.modules() if isinstance(module, nn.BatchNorm2d)
    )
    x = torch.rand(2, 3, 32, 32)
    small, large = (method.eval().embed(scale * x) for scale in (1.0, 1000.0))
    torch.testing.assert_close(large, 1000 * small, rtol=1e-4, atol=1e-3)  # neither shift nor bound


#: Every layer for grey images of 28 pixels.
LAYERS = {
    "encoder": [
        *["down 1>8 k5 s1 p2 bias=False", "norm 8 eps0.0001 fixed", "leaky 0.01", "maxpool2d"],
        *["down 8>4 k5 s1 p2 bias=False", "norm 4 eps0.0001 fixed", "leaky 0.01", "maxpool2d"],
        *["flatten", "linear 196>32 bias=False"],
    ],
    "decoder": [
        *[
            "norm 32 eps0.0001 fixed",
            "linear 32>196 bias=False",
            "unflatten",
            "leaky 0.01",
            "upsample",
        ],
        *["up 4>8 k5 s1 p2 bias=False", "norm 8 eps0.0001 fixed", "leaky 0.01", "upsample"],
        *["up 8>1 k5 s1 p2 bias=False"],
    ],
}


@pytest.mark.parametrize("network", LAYERS)
def test_layers_one_by_one(make: Make, network: str) -> None:
    assert layers(getattr(make("deep_svdd", (1, 28, 28)), network)) == LAYERS[network]


def test_both_optimizers_are_plain_adam(make: Make) -> None:
    method = make("deep_svdd", weight_decay=1e-3, ae_weight_decay=1e-2, lr=1e-3, ae_lr=1e-2)
    optimizers = method.build_optimizers()
    assert owners(method, optimizers["autoencoder"]) == {"encoder", "decoder"}
    assert owners(method, optimizers["encoder"]) == {"encoder"}
    assert settings(optimizers["autoencoder"]) == {"kind": "Adam", "lr": 1e-2, "weight_decay": 1e-2}
    assert settings(optimizers["encoder"]) == {"kind": "Adam", "lr": 1e-3, "weight_decay": 1e-3}


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
def test_layers_are_section_4_1(
    make: Make, shape: Any, architecture: str, maps: Any, latent: int
) -> None:
    method = make("deep_svdd", shape, architecture=architecture).eval()
    sizes: list[tuple[int, ...]] = []
    for module in method.encoder:
        if isinstance(module, nn.Conv2d):
            assert module.kernel_size == (5, 5)
            module.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[1:])))
    x = torch.rand(2, *shape)
    z = method.embed(x)
    assert sizes == maps and z.shape == (2, latent)
    assert method.decoder(z).shape == x.shape
    assert method.centre.shape == (latent,)


def test_sizes_that_do_not_halve_are_refused(make: Make) -> None:
    with pytest.raises(
        ValueError, match=r"data\.size=30: method\.architecture=mnist takes a multiple of 4"
    ):
        make("deep_svdd", (1, 30, 30))
    with pytest.raises(
        ValueError, match=r"data\.size=28: method\.architecture=cifar10 takes a multiple of 8"
    ):
        make("deep_svdd", (3, 28, 28))


# What the authors' first code has and the later one has not.


def textures(count: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Images (count, channels, 28, 28) with structure of a few pixels, in [0, 1]."""
    noise = torch.rand(count, channels, 28, 28, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


def shuffle_norms(method: Any) -> None:
    """Gives every batch norm its own scale, shift and statistics."""
    random = torch.Generator().manual_seed(5)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 2, generator=random)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-1, 1, generator=random)


def normalised(x: np.ndarray, norm: Any, training: bool) -> np.ndarray:
    """Batch norm of maps (B, C, H, W) with its learned scale and shift."""
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    scale, shift = norm.weight.detach().double().numpy(), norm.bias.detach().double().numpy()
    shaped = [values[None, :, None, None] for values in (mean, variance, scale, shift)]
    return np.asarray((x - shaped[0]) / np.sqrt(shaped[1] + 1e-4) * shaped[2] + shaped[3])


def correlated(x: np.ndarray, weight: Tensor, padding: int) -> np.ndarray:
    return F.conv2d(torch.from_numpy(x), weight.detach().double(), padding=padding).numpy()


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


@pytest.mark.parametrize("training", [False, True])
def test_learned_batch_norm_scales_and_shifts(make: Make, training: bool) -> None:
    method = make("deep_svdd", (1, 28, 28), batch_norm="learned")
    shuffle_norms(method)
    x = textures(6)
    expected = x.double().numpy()
    for convolution, norm in (
        (method.encoder[0], method.encoder[1]),
        (method.encoder[4], method.encoder[5]),
    ):
        maps = leaky(normalised(correlated(expected, convolution.weight, 2), norm, training))
        count, channels, height, width = maps.shape
        expected = maps.reshape(count, channels, height // 2, 2, width // 2, 2).max((3, 5))
    expected = expected.reshape(6, -1) @ method.encoder[9].weight.detach().double().numpy().T
    with torch.no_grad():
        z = method.train(training).encoder(x)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)


def test_scales_decay_while_pretraining_and_shifts_never(make: Make) -> None:
    """The first code's penalties: all that Lasagne calls regularizable, then the layers' weights
    alone.
    """
    method = make("deep_svdd", batch_norm="learned", weight_decay=1e-6, ae_weight_decay=1e-3)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    norms = {
        name
        for name, module in method.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    }
    for optimizer, decay in (("autoencoder", 1e-3), ("encoder", 1e-6)):
        met = {}
        for group in method.build_optimizers()[optimizer].param_groups:
            met.update(
                {names[id(parameter)]: group["weight_decay"] for parameter in group["params"]}
            )
        assert len(met) == len(dict(method.named_parameters())) or optimizer == "encoder"
        for name, value in met.items():
            module, _, kind = name.rpartition(".")
            exempt = kind == "bias" or (module in norms and optimizer == "encoder")
            assert value == (0.0 if exempt else decay), (optimizer, name)


@pytest.mark.parametrize("channels", [1, 3])
def test_first_filters_are_atoms_of_standardised_patches_turned_by_180_degrees(
    channels: int,
) -> None:
    images = textures(40, channels)
    filters = dictionary_filters(images, 8, 5, seed=3)
    # the same draws, taken one patch at a time
    random = np.random.default_rng(3)
    drawn = images.numpy()[random.choice(40, 40, replace=False)]
    places = [random.integers(limit, size=PATCHES) for limit in (40, 24, 24)]
    patches = np.stack(
        [drawn[n, :, i : i + 5, j : j + 5].ravel() for n, i, j in zip(*places, strict=True)]
    ).astype(float)
    patches = (patches - patches.mean(0)) / patches.std(0)
    learner = MiniBatchDictionaryLearning(
        8, alpha=1, max_iter=1, batch_size=10, tol=0, max_no_improvement=None, random_state=3
    )
    atoms = learner.fit(patches).components_.reshape(8, channels, 5, 5)
    assert learner.n_steps_ == PATCHES / 10
    # correlating with the filters is convolving with the atoms
    x = images[:1].double()
    responses = F.conv2d(x, filters.double(), padding=2)[0].numpy()
    for atom, maps in zip(atoms, responses, strict=True):
        expected = sum(convolve2d(x[0, c].numpy(), atom[c], mode="same") for c in range(channels))
        np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert np.linalg.norm(filters.reshape(8, -1), axis=1).max() <= 1 + 1e-5


def test_the_dictionary_is_the_seeds_and_images_without_contrast_give_finite_filters() -> None:
    first, again, different = (dictionary_filters(textures(30), 4, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, different)
    assert dictionary_filters(torch.zeros(30, 1, 28, 28), 4, 5, 0).isfinite().all()


def test_first_filters_are_set_before_the_centre_and_default_ones_draw_nothing(make: Make) -> None:
    method = make("deep_svdd", (1, 28, 28), first_filters="dictionary")
    torch.manual_seed(7)
    seed = int(torch.randint(2**31, ()))
    torch.manual_seed(7)
    method.prepare(textures(64))
    assert torch.equal(method.encoder[0].weight, dictionary_filters(textures(64), 8, 5, seed))
    np.testing.assert_allclose(
        method.centre, expected_centre(codes(method, textures(64))), rtol=1e-4, atol=1e-6
    )
    before = torch.get_rng_state()
    make("deep_svdd", (1, 28, 28)).prepare(textures(64))
    torch.manual_seed(0)
    fresh = make("deep_svdd", (1, 28, 28))
    assert fresh.encoder[0].weight.std() > 0
    torch.set_rng_state(before)
    fresh.prepare(textures(64))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("option", "gain"), [("all", math.sqrt(2 / 1.0001)), ("convolutions", 1.0)]
)
def test_glorot_weights_and_their_gain(make: Make, option: str, gain: float) -> None:
    method = make("deep_svdd", (3, 32, 32), glorot_gain=option)
    for module in method.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        window = 1 if isinstance(module, nn.Linear) else 25
        bound = math.sqrt(6 / (sum(module.weight.shape[:2]) * window))
        bound *= gain if isinstance(module, nn.Linear) else math.sqrt(2 / 1.0001)
        assert 0.99 * bound < module.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("shape", "architecture"), [((1, 28, 28), "mnist"), ((3, 32, 32), "cifar10")]
)
def test_the_squeezed_decoder_is_the_authors(make: Make, shape: Any, architecture: str) -> None:
    method = make("deep_svdd", shape, decoder="squeezed", batch_norm="learned").eval()
    shuffle_norms(method)
    z = torch.randn(3, method.centre.shape[0], generator=torch.Generator().manual_seed(1))
    convolutions = [module for module in method.decoder if isinstance(module, nn.Conv2d)]
    norms = [module for module in method.decoder if isinstance(module, nn.BatchNorm2d)]
    double = np.ones((2, 2))
    maps = leaky(z.double().numpy().reshape(3, -1, 4, 4))
    if architecture == "mnist":
        maps = np.kron(maps, double)
    paddings = (2, 1) if architecture == "mnist" else (2, 2, 2)
    for convolution, norm, padding in zip(convolutions[:-1], norms, paddings, strict=True):
        maps = leaky(normalised(correlated(maps, convolution.weight, padding), norm, False))
        maps = np.kron(maps, double)
    expected = 1 / (1 + np.exp(-correlated(maps, convolutions[-1].weight, 2)))
    assert expected.shape == (3, *shape)
    with torch.no_grad():
        np.testing.assert_allclose(method.decoder(z), expected, rtol=1e-4, atol=1e-6)


def test_the_squeezed_decoder_refuses_other_sizes(make: Make) -> None:
    with pytest.raises(
        ValueError, match=r"data\.size=32: method\.decoder=squeezed .*=mnist takes 28"
    ):
        make("deep_svdd", (1, 32, 32), decoder="squeezed")
    with pytest.raises(
        ValueError, match=r"data\.size=40: method\.decoder=squeezed .*=cifar10 takes 32"
    ):
        make("deep_svdd", (3, 40, 40), decoder="squeezed")


def test_the_recipe_first_code_has_every_one_of_these_and_learns(make: Make) -> None:
    recipe = recipe_options("deep_svdd", "first_code", "mnist")["method"]
    assert FIRST_CODE.items() <= recipe.items()
    options = {key: value for key, value in recipe.items() if key != "name"}
    method = make("deep_svdd", (1, 28, 28), **options)
    method.prepare(textures(64))
    method.train()
    losses = []
    for epoch in range(10):
        method.progress = epoch / 10
        losses.append(method.update(Batch(textures(64), torch.arange(64))))
    assert losses[4]["recon"] < losses[0]["recon"]
    assert losses[9]["distance"] < losses[5]["distance"]
