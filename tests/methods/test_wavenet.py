"""WaveNet: the mu-law, causality, the receptive field and the likelihood, by other means."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noveltylab.methods.base import Batch
from noveltylab.methods.wavenet import WaveNet, categories, decoded, on_scale
from tests.methods.conftest import sigmoid, spied_update

Make = Callable[..., Any]
Floats = NDArray[np.float64]
SHAPE = (1, 6, 8)
TINY = {"filters": 3, "skip_filters": 5, "kernel": 2, "layers": 3, "stacks": 1}


def sounds(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator) * 2 - 1


# The mu-law.


def test_categories_are_those_of_the_mu_law() -> None:
    x = np.concatenate([np.linspace(-1, 1, 1001), [1e-5, -1e-5, 1.7, -3.0]])
    clamped = np.clip(x, -1, 1)
    compressed = np.sign(clamped) * np.log(1 + 255 * np.abs(clamped)) / np.log(256)
    position = (compressed + 1) / 2 * 255
    # where rounding cannot decide
    clear = np.abs(position - np.rint(position)) > 1e-4
    clear[[0, 1000]] = True
    found = categories(torch.tensor(x)).numpy()
    np.testing.assert_array_equal(found[clear], np.floor(position[clear]))
    assert (found.min(), found.max()) == (0, 255)


def test_the_scale_of_the_input_and_the_mu_law_undone() -> None:
    category = torch.arange(256)
    np.testing.assert_allclose(on_scale(category).numpy(), np.arange(256) / 128 - 1, atol=1e-7)
    y = np.arange(256) / 128 - 1
    expected = np.sign(y) * (256 ** np.abs(y) - 1) / 255
    np.testing.assert_allclose(decoded(category).numpy(), expected, atol=1e-6)
    # within a step of the sample that was cut off
    x = torch.linspace(-1, 1, 999)
    step = decoded(category).diff().max().item()
    assert (decoded(categories(x)) - x).abs().max().item() < 2 * step


# What a prediction sees.


@pytest.mark.parametrize("place", [0, 1, 20, 47])
def test_a_prediction_sees_no_sample_from_its_own_on(make: Make, place: int) -> None:
    method = make("wavenet", SHAPE, **TINY).eval()
    x = sounds(2).flatten(1)
    other = x.clone()
    other[:, place:] = sounds(2, seed=1).flatten(1)[:, place:]
    with torch.inference_mode():
        before, after = method.network(x), method.network(other)
    assert torch.equal(before[:, :, : place + 1], after[:, :, : place + 1])
    if place < 47:
        assert not torch.equal(before[:, :, place + 1], after[:, :, place + 1])


@pytest.mark.parametrize(
    ("kernel", "layers", "stacks", "field"), [(2, 3, 1, 9), (3, 2, 2, 15), (2, 2, 2, 8)]
)
def test_the_receptive_field(make: Make, kernel: int, layers: int, stacks: int, field: int) -> None:
    """By the gradient of one prediction at all samples."""
    method = make("wavenet", SHAPE, filters=4, kernel=kernel, layers=layers, stacks=stacks)
    x = sounds(1).flatten(1).requires_grad_()
    method.network(x)[0, :, 40].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].nonzero().flatten().tolist()
    assert seen == list(range(40 - field, 40))
    assert method.receptive_field == field


def test_the_default_sees_a_segment_and_the_code_63_samples() -> None:
    shape = (1, 64, 64)
    assert WaveNet(shape, filters=1, skip_filters=1).receptive_field == 4095
    assert WaveNet(shape, filters=1, skip_filters=1, layers=2, stacks=10).receptive_field == 63


# The likelihood.


def weights(convolution: nn.Conv1d) -> tuple[Floats, Floats]:
    assert convolution.bias is not None
    return (
        convolution.weight.detach().double().numpy(),
        convolution.bias.detach().double().numpy(),
    )


def causal(x: Floats, convolution: nn.Conv1d) -> Floats:
    """A causal convolution of x (S, N), sample by sample."""
    w, b = weights(convolution)
    dilation = convolution.dilation[0]
    width = w.shape[2]
    out = np.zeros((len(w), x.shape[1]))
    for t in range(x.shape[1]):
        out[:, t] = b
        for tap in range(width):
            source = t - (width - 1 - tap) * dilation
            if source >= 0:
                out[:, t] += w[:, :, tap] @ x[:, source]
    return out


def log_probabilities(method: Any, category: NDArray[Any]) -> Floats:
    """log p (CATEGORIES, N) of the categories (N,) of one sound."""
    late = np.concatenate([[0.0], category[:-1] / 128 - 1])[None]
    network = method.network
    h = causal(late, network.first)
    total = causal(late, network.first_skip)
    for layer in network.layers:
        both = causal(h, layer.dilated)
        half = len(both) // 2
        z = sigmoid(both[:half]) * np.tanh(both[half:])
        h = h + causal(z, layer.residual)
        total = total + causal(z, layer.skip)
    hidden = causal(np.maximum(total, 0), network.last[1])
    logits = causal(np.maximum(hidden, 0), network.last[3])
    return np.asarray(logits - np.log(np.exp(logits).sum(0)))


def by_hand(method: Any, x: Tensor) -> tuple[Floats, Floats]:
    nll, error = [], []
    for sound in x:
        category = categories(sound.flatten()).numpy()
        log_p = log_probabilities(method, category)
        nll.append(-log_p[category, np.arange(len(category))].mean())
        error.append(((log_p.argmax(0) - category) ** 2).mean())
    return np.array(nll), np.array(error)


def test_scores_equal_numpy(make: Make) -> None:
    method = make("wavenet", SHAPE, **TINY).train()
    for _ in range(5):
        method.update(Batch(sounds(8), torch.arange(8)))
    method.eval()
    x = sounds(3, seed=4)
    with torch.inference_mode():
        scores, loss = method.novelty_score(x), method.validation_loss(x)
    nll, error = by_hand(method, x)
    np.testing.assert_allclose(scores["nll"].numpy(), nll, rtol=1e-5)
    np.testing.assert_allclose(scores["mse"].numpy(), error, rtol=1e-5)
    assert torch.equal(loss, scores["nll"])
    assert tuple(scores) == method.score_names


def test_reported_and_minimised_loss_equal_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("wavenet", SHAPE, **TINY).train()
    minimised, losses = spied_update(method, Batch(sounds(4), torch.arange(4)), monkeypatch)
    nll, error = by_hand(method, sounds(4))
    assert losses == pytest.approx({"nll": nll.mean(), "mse": error.mean()}, rel=1e-5)
    assert minimised == {"network": pytest.approx(nll.mean(), rel=1e-5)}


def test_a_reconstruction_is_the_likeliest_sample(make: Make) -> None:
    method = make("wavenet", SHAPE, **TINY).eval()
    x = sounds(2, seed=3)
    with torch.inference_mode():
        found, embedding = method.reconstruct(x), method.embed(x)
    for sound, row in zip(x, found, strict=True):
        likeliest = log_probabilities(method, categories(sound.flatten()).numpy()).argmax(0)
        expected = decoded(torch.from_numpy(likeliest)).view(SHAPE)
        torch.testing.assert_close(row, expected)
    assert embedding.shape == (2, 5)


def test_a_tone_is_learned(make: Make) -> None:
    """Its likelihood rises above that of noise, whose samples cannot be told in advance."""
    method = make("wavenet", (1, 16, 16), layers=4, stacks=1, lr=1e-2).train()
    phases = torch.rand(16, 1, generator=torch.Generator().manual_seed(0)) * 6.28
    tones = (0.5 * torch.sin(torch.arange(256) * 0.4 + phases)).view(16, 1, 16, 16)
    for _ in range(40):
        losses = method.update(Batch(tones, torch.arange(16)))
    method.eval()
    with torch.inference_mode():
        noise = method.novelty_score(sounds(8, (1, 16, 16)))["nll"]
        tone = method.novelty_score(tones)["nll"]
    assert losses["nll"].item() < 0.8 * np.log(256)
    assert tone.max() < noise.min()


def test_an_update_trains_every_parameter(make: Make) -> None:
    method = make("wavenet", SHAPE, **TINY).train()
    for _ in range(2):
        before = {name: p.clone() for name, p in method.named_parameters()}
        method.update(Batch(sounds(4), torch.arange(4)))
    untouched = [name for name, p in method.named_parameters() if torch.equal(before[name], p)]
    # what goes on from the last layer goes nowhere
    assert untouched == ["network.layers.2.residual.weight", "network.layers.2.residual.bias"]


# Network and options.


def test_the_network_is_the_authors() -> None:
    network = WaveNet((1, 64, 64), filters=4, skip_filters=6).network
    assert [layer.dilated.dilation[0] for layer in network.layers] == [2**i for i in range(10)] * 2  # type: ignore[union-attr]  # layers
    for layer in network.layers:
        dilated = layer.dilated
        assert isinstance(dilated, nn.Conv1d)
        assert (dilated.in_channels, dilated.out_channels, dilated.kernel_size) == (4, 8, (3,))
    outputs = [m.out_channels for m in network.last if isinstance(m, nn.Conv1d)]
    assert outputs == [6, 256]


def test_initial_weights_are_glorots() -> None:
    torch.manual_seed(0)
    network = WaveNet((1, 64, 64), filters=64, skip_filters=64, layers=1, stacks=1).network
    layer = network.layers[0]
    bound = (6 / (3 * 64 + 3 * 128)) ** 0.5
    values = layer.dilated.weight.detach().abs()  # type: ignore[union-attr]  # a layer
    assert 0.99 * bound < values.max().item() <= bound
    assert values.mean().item() == pytest.approx(bound / 2, rel=0.03)
    assert not any(m.bias.any() for m in network.modules() if isinstance(m, nn.Conv1d))  # type: ignore[union-attr]  # has one


def test_impossible_options_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"method\.kernel=1: sees one sample alone"):
        make("wavenet", kernel=1)


def test_optimizer_takes_its_options(make: Make) -> None:
    (group,) = make("wavenet", lr=0.3).build_optimizers()["network"].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0)
