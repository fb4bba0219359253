"""The kept support vectors against scikit-learn's decision function; gamma by consistency against
the rule itself.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

from noveltylab.methods import ocsvm
from noveltylab.methods.base import Method
from tests.methods.conftest import blobs

Make = Callable[..., Method]


def noise(count: int, seed: int, pixels: int = 12) -> Tensor:
    return torch.randn(count, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))


def fitted(make: Make, train: Tensor, **options: object) -> Method:
    method = make("ocsvm", shape=tuple(train.shape[1:]), **options)
    method.prepare(train)
    return method


def flat(x: Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()


@pytest.mark.parametrize("gamma", ["scale", 0.01, 0.5])
@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5])
def test_equals_scikit_learn(make: Make, nu: float, gamma: float | str) -> None:
    train, x = noise(200, 0), noise(50, 1)
    machine = OneClassSVM(nu=nu, gamma=gamma).fit(flat(train))
    method = fitted(make, train, nu=nu, gamma=gamma)
    outside = method.novelty_score(x)["outside"].numpy()
    decision = machine.decision_function(flat(x))
    rho = machine.offset_[0]
    # decision = sum - rho and outside = log(rho / sum)
    np.testing.assert_allclose(rho * np.expm1(-outside), decision, rtol=1e-7, atol=1e-9 * rho)
    assert np.array_equal(np.argsort(outside), np.argsort(-decision))
    assert np.array_equal(outside > 0, decision < 0)


def test_scale_is_the_same_for_pixels_from_0_and_from_minus_1(make: Make) -> None:
    x = (blobs(40), blobs(10, seed=1, bars=True))
    centred, positive = (
        fitted(make, scale(x[0])).novelty_score(scale(x[1]))["outside"]
        for scale in (lambda v: v, lambda v: (v + 1) / 2)
    )
    torch.testing.assert_close(centred, positive, rtol=1e-5, atol=1e-6)


def test_far_samples_are_told_apart_where_the_decision_function_is_flat(make: Make) -> None:
    train = noise(100, 0)
    far = torch.ones(1, 1, 1, 12) * torch.tensor([20.0, 30.0, 40.0])[:, None, None, None]
    method = fitted(make, train, gamma=1.0)
    decision = OneClassSVM(nu=0.1, gamma=1.0).fit(flat(train)).decision_function(flat(far))
    assert len(set(decision)) == 1
    outside = method.novelty_score(far)["outside"]
    assert outside.isfinite().all()
    assert (outside.diff() > 0).all()


def rejected(train: np.ndarray, gamma: float, nu: float) -> float:
    """Share of held-out inliers outside, by scikit-learn's own kernel."""
    fold = np.arange(len(train)) % ocsvm.FOLDS
    return float(
        np.mean(
            np.concatenate(
                [
                    OneClassSVM(nu=nu, gamma=gamma)
                    .fit(train[fold != number])
                    .decision_function(train[fold == number])
                    < 0
                    for number in range(ocsvm.FOLDS)
                ]
            )
        )
    )


@pytest.mark.parametrize("nu", [0.05, 0.2])
def test_consistent_gamma_is_the_largest_that_inliers_bear(make: Make, nu: float) -> None:
    train = noise(300, 0, pixels=4)
    bound = nu + 2 * np.sqrt(nu * (1 - nu) / 300)
    scale = 1 / (4 * flat(train).var())
    multiples = [2.0**power for power in range(-6, 9)]
    borne = [rejected(flat(train), multiple * scale, nu) <= bound for multiple in multiples]
    assert any(borne)
    assert not all(borne)
    largest = max(
        multiple for multiple, consistent in zip(multiples, borne, strict=True) if consistent
    )
    method = fitted(make, train, nu=nu, gamma="consistent")
    assert float(method.gamma) == pytest.approx(largest * scale, rel=1e-6)


def test_gamma_uses_inliers_only(make: Make) -> None:
    method = fitted(make, blobs(60), gamma="consistent")
    gamma = method.gamma.clone()
    assert float(gamma) == ocsvm.consistent_gamma(blobs(60).flatten(1), 0.1)
    for seed in range(3):
        method.novelty_score(blobs(30, seed=seed, bars=True))
    assert torch.equal(method.gamma, gamma)


def test_where_nothing_is_consistent_the_smallest_gamma_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ocsvm, "rejected_share", lambda *_: 1.0)
    train = noise(20, 0).flatten(1)
    assert ocsvm.consistent_gamma(train, 0.1) == 2.0**-6 * ocsvm.scale_gamma(train)


def test_images_that_are_all_the_same(make: Make) -> None:
    method = fitted(make, torch.full((20, 1, 2, 2), 0.3))
    scores = method.novelty_score(torch.tensor([0.3, 0.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2))[
        "outside"
    ]
    assert scores[0] < scores[1]
