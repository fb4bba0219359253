"""MemAE against its paper: addressing, shrinkage and losses by hand, who learns, switches, the loss
of precision.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.methods.base import Batch
from noveltylab.methods.memae import MemAE, Memory, address, entropy, shrink
from noveltylab.nets.losses import squared_error
from tests.methods.conftest import blobs

Make = Callable[..., Any]
NETWORKS = ("encoder", "memory", "decoder")


def batch(count: int = 16, shape: tuple[int, int, int] = (1, 32, 32)) -> Batch:
    return Batch(blobs(count, shape), torch.arange(count))


def numpy_weights(
    z: np.ndarray, items: np.ndarray, similarity: str, threshold: float
) -> np.ndarray:
    """Eqs. 4 to 7 and the normalisation, one query and one item at a time."""
    rows = []
    for query in z:
        near = np.array([query @ item for item in items])
        if similarity == "cosine":
            near = near / np.linalg.norm(query) / np.linalg.norm(items, axis=1)
        w = np.exp(near) / np.exp(near).sum()
        w = np.array([value if value > threshold else 0.0 for value in w])
        rows.append(w / max(w.sum(), 1e-12))
    return np.array(rows)


# The memory.


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("shrinkage", [0.0, 1.0, 1.5])
def test_memory_by_hand(similarity: str, shrinkage: float) -> None:
    torch.manual_seed(0)
    memory = Memory(7, 5, shrinkage, similarity).double()
    z = 3 * torch.randn(11, 5, dtype=torch.float64)
    mixed, weights = memory(z)
    items = memory.items.detach().numpy()
    expected = numpy_weights(z.numpy(), items, similarity, shrinkage / 7)
    # The paper's 1e-12 moves weights near the threshold by a little.
    np.testing.assert_allclose(weights.detach().numpy(), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(mixed.detach().numpy(), expected @ items, rtol=1e-6, atol=1e-9)
    assert (shrinkage == 0) == bool((expected > 0).all())


def test_shrinkage_of_known_weights() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33]], dtype=torch.float64)
    np.testing.assert_allclose(
        shrink(weights, 0.25).numpy(), [[0.625, 0.375, 0], [0.34, 0.33, 0.33]], rtol=1e-9
    )
    np.testing.assert_allclose(shrink(weights, 0.335).numpy(), [[1, 0, 0], [1, 0, 0]], rtol=1e-9)
    assert not shrink(weights, 0.6).any()  # not NaN


def test_cosine_is_blind_to_the_length_of_query_and_items() -> None:
    torch.manual_seed(0)
    z, items = torch.randn(4, 6), torch.randn(9, 6)
    torch.testing.assert_close(address(5 * z, 0.1 * items, "cosine"), address(z, items, "cosine"))
    assert not torch.allclose(address(5 * z, items, "dot"), address(z, items, "dot"))


def test_entropy_is_that_of_the_weights_and_has_a_gradient_at_zero() -> None:
    weights = torch.tensor(
        [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64, requires_grad=True
    )
    values = entropy(weights)
    expected = [np.log(2), 0, -(0.2 * np.log(0.2) + 0.3 * np.log(0.3) + 0.5 * np.log(0.5))]
    np.testing.assert_allclose(values.detach().numpy(), expected, atol=1e-9)
    values.sum().backward()
    assert weights.grad is not None and weights.grad.isfinite().all()


def test_items_that_no_query_uses_keep_their_place() -> None:
    torch.manual_seed(0)
    memory = Memory(4, 3, 1.0, "cosine")
    memory.items.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    mixed, weights = memory(torch.tensor([[2.0, 0.1, 0.0]]))
    assert weights[0, 0] > 0 and (weights[0, 1:] == 0).all()
    (mixed**2).sum().backward()
    assert memory.items.grad is not None
    assert memory.items.grad[0].any() and not memory.items.grad[1:].any()


def test_error_is_the_mean_over_pixels() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 5, 3, 4, 4))
    expected = ((x - y) ** 2).reshape(5, -1).mean(1)
    np.testing.assert_allclose(
        squared_error(torch.tensor(x), torch.tensor(y)).numpy(), expected, rtol=1e-9
    )


# Training.


@pytest.mark.parametrize("query", ["image", "place"])
def test_reported_and_minimised_losses_equal_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    method = make("memae", query=query, w_entropy=0.5).train()
    step = batch()
    codes: list[Tensor] = []
    images: list[Tensor] = []
    method.encoder.register_forward_hook(lambda m, i, output: codes.append(output.detach()))
    method.decoder.register_forward_hook(lambda m, i, output: images.append(output.detach()))
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    losses = {name: value.item() for name, value in method.update(step).items()}
    z = codes[0].double().numpy()  # (B, S, h, w)
    queries = (
        z.reshape(16, -1) if query == "image" else z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1])
    )
    assert method.memory.items.shape == (100, queries.shape[1])
    w = numpy_weights(queries, method.memory.items.detach().double().numpy(), "cosine", 0.01)
    expected = {
        "mse": ((step.x - images[0]).double().numpy() ** 2).mean(),
        "entropy": -(w * np.log(np.where(w > 0, w, 1))).sum(1).mean(),
        "used": (w > 0).sum(1).mean(),
    }
    for name, value in expected.items():
        # a weight at the threshold may fall either way
        assert losses[name] == pytest.approx(value, rel=2e-3), name
    assert minimised == {
        "networks": pytest.approx(expected["mse"] + 0.5 * expected["entropy"], rel=1e-3)
    }


def test_an_update_trains_every_parameter_of_all_three(make: Make) -> None:
    method = make("memae").train()
    before = {name: p.clone() for name, p in method.named_parameters()}
    method.update(batch())
    still = [name for name, p in method.named_parameters() if torch.equal(before[name], p)]
    # Before a batch norm a bias has no effect, and so no gradient but rounding.
    assert [
        name for name in still if not (name.startswith("encoder") and name.endswith("bias"))
    ] == []
    assert {name.split(".")[0] for name in before} == set(NETWORKS)


def test_the_decoder_sees_the_memory_alone(make: Make) -> None:
    """With one item every image is rebuilt the same."""
    method = make("memae", slots=1, shrinkage=0.0).eval()
    x_hat = method.reconstruct(blobs(5))
    torch.testing.assert_close(x_hat, x_hat[:1].expand_as(x_hat))


@pytest.mark.parametrize("query", ["image", "place"])
def test_reconstruction_mixes_items_by_place_or_whole(make: Make, query: str) -> None:
    method = make("memae", query=query).eval()
    x = blobs(3)
    seen: list[Tensor] = []
    method.decoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        method.reconstruct(x)
        z = method.encoder(x)
        if query == "image":
            expected = method.memory(z.flatten(1))[0].view_as(z)
        else:
            expected = torch.empty_like(z)
            for row in range(z.shape[2]):
                for column in range(z.shape[3]):
                    expected[:, :, row, column] = method.memory(z[:, :, row, column])[0]
    torch.testing.assert_close(seen[0], expected)


def test_a_threshold_above_the_papers_can_close_the_memory_for_ever(make: Make) -> None:
    """Why shrinkage is 1: new items all have weights near 1/N."""
    for shrinkage, closed in ((1.0, False), (3.0, True)):
        method = make("memae", shrinkage=shrinkage).train()
        before = method.memory.items.clone()
        used = method.update(batch())["used"]
        assert (used == 0) == closed
        assert torch.equal(before, method.memory.items) == closed


# Networks, options, scores.


def test_paper_sizes_are_the_defaults() -> None:
    def convolutions(network: nn.Module) -> list[tuple[int, int, int]]:
        return [
            (m.kernel_size[0], m.stride[0], m.out_channels)
            for m in network.modules()
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        ]

    grey, colour = MemAE((1, 28, 28)), MemAE((3, 32, 32), slots=500)
    assert convolutions(grey.encoder) == [(1, 2, 16), (3, 2, 32), (3, 2, 64)]
    assert convolutions(grey.decoder) == [(3, 2, 64), (3, 2, 32), (3, 2, 1)]
    assert convolutions(colour.encoder) == [(3, 2, 64), (3, 2, 128), (3, 2, 128), (3, 2, 256)]
    assert convolutions(colour.decoder) == [(3, 2, 256), (3, 2, 128), (3, 2, 128), (3, 2, 3)]
    assert grey.memory.items.shape == (100, 64 * 4 * 4)
    assert colour.memory.items.shape == (500, 256 * 2 * 2)
    assert (grey.lr, grey.w_entropy, grey.memory.threshold) == (1e-4, 2e-4, 0.01)
    assert MemAE((1, 28, 28), slots=7, query="place").memory.items.shape == (7, 64)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 27, 27), (1, 28, 28), (3, 30, 30), (3, 33, 33)])
def test_every_size_comes_back(make: Make, shape: tuple[int, int, int]) -> None:
    method = make("memae", shape).eval()
    x = blobs(2, shape)
    assert method.reconstruct(x).shape == x.shape
    assert method.embed(x).shape == (2, method.memory.items.shape[1])


def test_impossible_options_are_refused(make: Make) -> None:
    for shape in ((1, 28, 32), (1, 6, 6)):
        with pytest.raises(ValueError, match=r"data\.size=\d+: MemAE takes square images"):
            make("memae", shape)
    with pytest.raises(ValueError, match=r"method\.shrinkage=4: at 4 items"):
        make("memae", slots=4, shrinkage=4.0)


def test_score_and_validation_are_the_error_of_the_reconstruction(make: Make) -> None:
    method = make("memae").train()
    for _ in range(3):
        method.update(batch())
    method.eval()
    x = blobs(6, seed=4)
    with torch.inference_mode():
        score, loss, x_hat = (
            method.novelty_score(x)["mse"],
            method.validation_loss(x),
            method.reconstruct(x),
        )
    np.testing.assert_allclose(
        score.numpy(), ((x - x_hat).numpy() ** 2).reshape(6, -1).mean(1), rtol=1e-5
    )
    assert torch.equal(score, loss)


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    """Weights near the threshold are told apart in float32."""
    losses_by_precision = []
    for enabled in (False, True):
        method = make("memae", lr=1e-3).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = [method.update(batch()) for _ in range(4)]
        assert all(loss.dtype == torch.float32 for loss in losses[-1].values())
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in method.parameters())
        losses_by_precision.append({name: loss.item() for name, loss in losses[0].items()})
    assert losses_by_precision[1] == pytest.approx(losses_by_precision[0], rel=0.03)
