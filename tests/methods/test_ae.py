"""The auto-encoder under its four names: error and corruptions against NumPy, geometry, what
reaches what.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from noveltylab.methods.ae import random_squares
from noveltylab.methods.base import Batch
from noveltylab.nets.autoencoder import halvings
from tests.methods.conftest import NoSync, blobs, changed, states

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder")
CORRUPTIONS: dict[str, dict[str, Any]] = {
    "AE": {},
    "DAE": {"noise_std": 0.3},
    "masking DAE": {"masking": 0.4},
    "CAE": {"context": True, "crop": 12},
}


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def seen_by(method: Any) -> list[Tensor]:
    """Fills with what the encoder is given."""
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    return seen


# The error.


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_loss_is_the_error_against_the_clean_image(make: Make, corruption: str) -> None:
    method = make("ae", **CORRUPTIONS[corruption]).train()
    outputs: list[np.ndarray] = []
    method.decoder.register_forward_hook(
        lambda m, i, o: outputs.append(o.detach().double().numpy().copy())
    )
    step = batch()
    losses = method.update(step)
    assert losses["mse"].item() == pytest.approx(
        ((step.x.double().numpy() - outputs[0]) ** 2).mean(), rel=1e-5
    )
    assert set(losses) == {"mse"}


def test_score_and_validation_loss_are_the_error_of_the_clean_image(make: Make) -> None:
    method = make("ae", noise_std=5.0, masking=0.5, context=True).train()
    method.update(batch())
    method.eval()
    seen, x = seen_by(method), blobs(6, seed=3)
    with torch.inference_mode():
        score, validation, x_hat = (
            method.novelty_score(x)["mse"],
            method.validation_loss(x),
            method.reconstruct(x),
        )
    assert all(torch.equal(image, x) for image in seen)
    expected = ((x - x_hat).double().numpy() ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(score, expected, rtol=1e-5)
    np.testing.assert_allclose(validation, expected, rtol=1e-5)


# Corruptions.


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_switch_reaches_the_encoder_in_training(make: Make, corruption: str) -> None:
    method = make("ae", **CORRUPTIONS[corruption]).train()
    seen, step = seen_by(method), batch()
    for _ in range(2):
        method.update(step)
    assert torch.equal(seen[0], step.x) == (corruption == "AE")
    assert torch.equal(seen[0], seen[1]) == (corruption == "AE")  # drawn anew at every step


def test_noise_has_the_configured_deviation(make: Make) -> None:
    method = make("ae", (3, 32, 32), noise_std=0.3)
    noise = method.corrupt(torch.zeros(64, 3, 32, 32))
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)


def test_masking_hides_its_share_of_the_pixels_in_all_channels_and_keeps_the_rest(
    make: Make,
) -> None:
    x = torch.rand(64, 3, 32, 32) + 0.5  # no pixel is 0
    corrupted = make("ae", (3, 32, 32), masking=0.4).corrupt(x)
    hidden = corrupted == 0
    assert hidden.float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert torch.equal(hidden.all(1), hidden.any(1))
    assert torch.equal(corrupted[~hidden], x[~hidden])
    assert hidden[0, 0].sum() != hidden[1, 0].sum()  # a mask of its own for each image


def test_context_hides_one_square_and_keeps_the_rest(make: Make) -> None:
    x = torch.rand(64, 3, 32, 32) + 0.5
    corrupted = make("ae", (3, 32, 32), context=True, crop=12).corrupt(x)
    hidden = corrupted == 0
    assert (hidden.sum((2, 3)) == 144).all()
    assert torch.equal(corrupted[~hidden], x[~hidden])


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_squares_are_whole_and_inside(height: int, width: int, data: st.DataObject) -> None:
    crop = data.draw(st.integers(1, min(height, width)))
    for mask in random_squares(4, height, width, crop, torch.device("cpu"))[:, 0].numpy():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert len(rows) == len(columns) == crop
        expected = np.zeros_like(mask)
        expected[rows[0] : rows[0] + crop, columns[0] : columns[0] + crop] = True
        np.testing.assert_array_equal(mask, expected)


def test_squares_fall_on_every_place_alike() -> None:
    masks = random_squares(8000, 5, 6, 4, torch.device("cpu"))[:, 0].numpy()
    corners = [tuple(np.argwhere(mask)[0]) for mask in masks]
    places, counts = np.unique(corners, axis=0, return_counts=True)
    assert places.tolist() == [[row, column] for row in range(2) for column in range(3)]
    assert np.abs(counts / 8000 - 1 / 6).max() < 0.02


def test_corruptions_add_up(make: Make) -> None:
    corrupted = make("ae", noise_std=0.1, masking=0.5, context=True, crop=16).corrupt(
        torch.ones(64, 1, 32, 32)
    )
    visible = corrupted[corrupted != 0]
    assert visible.std().item() == pytest.approx(0.1, rel=0.05)  # the noise is hidden too
    assert (corrupted == 0).float().mean().item() == pytest.approx(0.5 + 0.5 * 0.25, abs=0.01)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_no_corruption_waits_for_the_device(make: Make, corruption: str) -> None:
    method = make("ae", **CORRUPTIONS[corruption]).train()
    method.update(batch())
    with NoSync():
        method.update(batch())


def test_a_square_larger_than_the_image_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"method\.crop=33: .* 32 x 32"):
        make("ae", context=True, crop=33)
    make("ae", context=False, crop=33)  # not used


# Networks and training.


@pytest.mark.parametrize("side", [8, 9, 11, 28, 30, 32, 33])
def test_every_size_comes_back(make: Make, side: int) -> None:
    method = make("ae", (3, side, side + 3), latent_size=5).eval()
    x = torch.rand(2, 3, side, side + 3)
    x_hat = method.reconstruct(x)
    assert x_hat.shape == x.shape and x_hat.abs().max() < 1
    assert method.embed(x).shape == (2, 5)


def test_maps_halve_rounding_up(make: Make) -> None:
    assert halvings(28, 33) == [(28, 33), (14, 17), (7, 9), (4, 5)]
    shapes: list[tuple[int, ...]] = []
    method = make("ae", (1, 28, 33), channels=4)
    for layer in method.encoder:
        if isinstance(layer, torch.nn.LeakyReLU):
            layer.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    method.embed(torch.zeros(2, 1, 28, 33))
    assert shapes == [(4, 14, 17), (8, 7, 9), (16, 4, 5)]


def test_an_update_changes_both_networks_and_every_parameter(make: Make) -> None:
    method = make("ae").train()
    before = states(method, NETWORKS)
    parameters = {name: p.clone() for name, p in method.named_parameters()}
    method.update(batch())
    assert changed(before, method) == set(NETWORKS)
    assert [name for name, p in method.named_parameters() if torch.equal(parameters[name], p)] == []


def test_only_what_the_encoder_sees_can_be_rebuilt(make: Make) -> None:
    """The gradient with respect to hidden pixels is 0: they reach the loss as target alone."""
    method = make("ae", context=True, crop=16).train()
    x = (blobs(8) + 2).requires_grad_()
    torch.manual_seed(1)
    given_to = method.corrupt(x)
    method.reconstruct(given_to).sum().backward()
    assert x.grad is not None
    hidden = given_to == 0
    assert not x.grad[hidden].any()
    assert x.grad[~hidden].any()


def test_a_context_auto_encoder_learns_to_fill_the_square(make: Make) -> None:
    method = make("ae", context=True, crop=16).train()
    values = [method.update(batch(32))["mse"].item() for _ in range(30)]
    assert values[-1] < 0.5 * values[0]
