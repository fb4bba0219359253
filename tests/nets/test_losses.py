"""Each shared loss against NumPy."""

import numpy as np
import torch

from noveltylab.nets.losses import (
    bce,
    context_error,
    discriminator_loss,
    feature_error,
    squared_error,
    wide,
)
from tests.methods.conftest import sigmoid


def test_bce_is_binary_cross_entropy_of_the_sigmoid() -> None:
    z = np.linspace(-8, 8, 33)
    for label, probability in ((1, sigmoid(z)), (0, 1 - sigmoid(z))):
        np.testing.assert_allclose(
            bce(torch.tensor(z), label).numpy(), -np.log(probability), rtol=1e-9
        )


def test_a_discriminator_learns_label_1_for_real_and_0_for_fake() -> None:
    real, fake = np.random.default_rng(0).normal(size=(2, 11))
    expected = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean()
    loss = discriminator_loss(torch.tensor(real), torch.tensor(fake)).item()
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_errors_are_means_over_pixels_and_features() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 3, 4, 4))
    difference, squares = (
        np.abs(x - y).reshape(5, -1).mean(1),
        ((x - y) ** 2).reshape(5, -1).mean(1),
    )
    a, b = torch.tensor(x), torch.tensor(y)
    np.testing.assert_allclose(context_error(a, b), difference, rtol=1e-9)
    np.testing.assert_allclose(context_error(a, b, "l2"), squares, rtol=1e-9)
    np.testing.assert_allclose(squared_error(a, b), squares, rtol=1e-9)
    f, g = rng.normal(size=(2, 5, 7))
    np.testing.assert_allclose(
        feature_error(torch.tensor(f), torch.tensor(g)), ((f - g) ** 2).mean(1), rtol=1e-9
    )
    norms = [np.linalg.norm(row) for row in f - g]
    np.testing.assert_allclose(
        feature_error(torch.tensor(f), torch.tensor(g), "l2"), norms, rtol=1e-9
    )


def test_the_norm_of_equal_features_has_no_gradient() -> None:
    f = torch.ones(2, 3, requires_grad=True)
    feature_error(f, torch.ones(2, 3), "l2").sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert f.grad is not None and not f.grad.any()  # and no NaN of a root's slope at 0


def test_narrow_numbers_are_widened_and_wide_ones_kept() -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert wide(torch.zeros(1, dtype=dtype)).dtype == expected
    x = torch.full((1, 1, 8, 8), 3.0, dtype=torch.bfloat16)
    assert (
        context_error(x, 0 * x).dtype == feature_error(x[0, 0], 0 * x[0, 0]).dtype == torch.float32
    )
    assert feature_error(x[0, 0], 0 * x[0, 0], "l2").dtype == torch.float32
