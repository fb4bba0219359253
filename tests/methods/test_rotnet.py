"""RotNet: the turns, the score and the network by hand; what it cannot learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.methods.base import Batch
from noveltylab.methods.rotnet import RotNet, log_probability, turned
from noveltylab.nets.wide_resnet import wide_residual_network
from tests.methods.conftest import blobs, layers

Make = Callable[..., Any]


def batch(count: int = 16, shape: tuple[int, int, int] = (1, 32, 32)) -> Batch:
    return Batch(blobs(count, shape), torch.arange(count))


def right_probability(logits: np.ndarray, count: int) -> np.ndarray:
    """Softmax of the right turn (4, B), one image at a time."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.array(
        [[p[turn * count + image, turn] for image in range(count)] for turn in range(4)]
    )


def test_turns_are_quarter_turns_of_every_image() -> None:
    x = torch.rand(3, 2, 8, 8)
    images, turns = turned(x)
    assert turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for turn in range(4):
        for image in range(3):
            expected = np.rot90(x[image].numpy(), turn, axes=(1, 2))
            np.testing.assert_array_equal(images[3 * turn + image].numpy(), expected)


def test_log_probability_picks_the_right_turn() -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(4 * 5, 4))
    log_probabilities = log_probability(torch.tensor(logits))
    np.testing.assert_allclose(
        log_probabilities.exp().numpy(), right_probability(logits, 5), rtol=1e-9
    )
    assert log_probability(torch.tensor(logits).bfloat16()).dtype == torch.float32


def test_reported_and_minimised_loss_equal_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("rotnet").train()
    seen: list[Tensor] = []
    method.network.register_forward_hook(lambda m, i, output: seen.append(output.detach()))
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    losses = {name: value.item() for name, value in method.update(batch()).items()}
    (logits,) = (output.double().numpy() for output in seen)  # one pass for all turns
    loss = -np.log(right_probability(logits, 16)).mean()
    accuracy = (logits.argmax(1) == np.repeat(np.arange(4), 16)).mean()
    assert losses == pytest.approx({"cross_entropy": loss, "accuracy": accuracy}, rel=1e-5)
    assert minimised == {"network": pytest.approx(loss, rel=1e-5)}


def test_scores_by_hand_one_turn_at_a_time(make: Make) -> None:
    method = make("rotnet").train()
    for _ in range(3):
        method.update(batch())
    method.eval()
    x = blobs(6, seed=4)
    with torch.inference_mode():
        scores, loss, embedding = (
            method.novelty_score(x),
            method.validation_loss(x),
            method.embed(x),
        )
        p = [
            method.network(torch.rot90(x, turn, (2, 3))).double().softmax(1)[:, turn].numpy()
            for turn in range(4)
        ]
        assert torch.equal(method.network[-1](embedding), method.network(x))
    np.testing.assert_allclose(scores["nll"].numpy(), -np.log(p).mean(0), rtol=1e-4)
    np.testing.assert_allclose(scores["probability"].numpy(), -np.mean(p, 0), rtol=1e-4)
    assert torch.equal(loss, scores["nll"])


def test_inliers_without_an_upper_side_teach_it_nothing(make: Make) -> None:
    """Whole discs at mirrored places: every turn of the training set is the training set."""
    rows = torch.arange(32) - 15.5
    disc = ((rows[:, None] ** 2 + rows**2) < 49).float()[None, None].expand(16, 1, 32, 32) * 2 - 1
    method = make("rotnet").train()
    for _ in range(10):
        losses = method.update(Batch(disc, torch.arange(16)))
    assert losses["accuracy"].item() == 0.25
    assert losses["cross_entropy"].item() > 0.99 * np.log(4)


# Network and options.


def test_the_network_is_the_wide_residual_network_10_4(make: Make) -> None:
    method = RotNet((3, 32, 32))
    torch.manual_seed(0)
    expected = wide_residual_network(3, 10, 4.0, 4)
    assert layers(method.network) == layers(expected)
    assert method.network[-1].in_features == 256 and method.network[-1].out_features == 4
    assert method.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 256)


def test_initial_weights_are_drawn_layer_by_layer_twice() -> None:
    """Kept results begin with them: torch's own for the whole network, then He's in its order."""
    torch.manual_seed(5)
    network = RotNet((1, 32, 32), width=0.25).network
    torch.manual_seed(5)
    expected = wide_residual_network(1, 10, 0.25, 4)
    for module in expected.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for name, weight in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight), name


def test_impossible_options_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"data\.size=28: RotNet takes square images, not 28 x 32"):
        make("rotnet", (1, 28, 32))
    with pytest.raises(ValueError, match=r"method\.depth=12: .*6 n \+ 4"):
        make("rotnet", depth=12)


def test_optimizer_takes_its_options(make: Make) -> None:
    (group,) = make("rotnet", lr=0.3, weight_decay=0.2).build_optimizers()["network"].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    values = []
    for enabled in (False, True):
        method = make("rotnet").train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = method.update(batch())
        assert losses["cross_entropy"].dtype == torch.float32
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in method.parameters())
        values.append(losses["cross_entropy"].item())
    assert values[1] == pytest.approx(values[0], rel=0.03)
