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
from noveltylab.scoring.apply import deployed
from tests.methods.conftest import assert_initialised_as_dcgan, blobs

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


# Video.

VIDEO = {"width": 0.125, "query": "place", "slots": 50}


def video(make: Make, frames: int = 8, size: int = 32, **options: Any) -> MemAE:
    method = make("memae", (frames, size, size), **{**VIDEO, **options})
    assert isinstance(method, MemAE)
    return method


def clips(count: int = 4, frames: int = 8, size: int = 32, seed: int = 0) -> Tensor:
    """Stacks in which a disc moves to the right, (N, T, size, size)."""
    still = blobs(count, (1, size, size), seed=seed)
    return torch.cat([still.roll(frame, dims=3) for frame in range(frames)], 1)


def plain_convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> Any:
    """A 3 x 3 x 3 convolution of (B, C, T, H, W) with padding 1, written as sums of shifted maps."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    frames, height, width = x.shape[2:]
    total: Any = bias[:, None, None, None]
    for t, row, column in np.ndindex(3, 3, 3):
        window = padded[
            :,
            :,
            t : t + frames : stride,
            row : row + height : 2,
            column : column + width : 2,
        ]
        total = total + np.einsum("bcthw,oc->bothw", window, weight[:, :, t, row, column])
    return total


def plain_transposed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> Any:
    """Its transpose: every value stamps its kernel into a map that is twice as large in space."""
    batch, _, frames, height, width = x.shape
    size = stride * frames + 2, 2 * height + 2, 2 * width + 2
    stamped = np.zeros((batch, weight.shape[1], *size))
    for t, row, column in np.ndindex(3, 3, 3):
        value = np.einsum("bcthw,co->bothw", x, weight[:, :, t, row, column])
        stamped[
            :,
            :,
            t : t + stride * frames : stride,
            row : row + 2 * height : 2,
            column : column + 2 * width : 2,
        ] += value
    # padding 1 cuts one value off at the start, and the output padding is already there
    end_t = 1 + stride * frames
    inside = stamped[:, :, 1:end_t, 1 : 1 + 2 * height, 1 : 1 + 2 * width]
    return inside + bias[:, None, None, None]


def leaky_norm(x: np.ndarray, norm: nn.BatchNorm3d) -> np.ndarray:
    """Batch norm in evaluation, then the leaky unit of slope 0.2."""
    mean, variance, scale, shift = (
        values.detach().double().numpy()[:, None, None, None]
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        if values is not None
    )
    normed = (x - mean) / np.sqrt(variance + 1e-5) * scale + shift
    return np.where(normed > 0, normed, 0.2 * normed)


def weights_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def test_video_is_rebuilt_as_numpy_does(make: Make) -> None:
    """Section 4.2 layer by layer: 3 x 3 x 3 kernels, strides in time 1, 2, 2, 2, places of the map."""
    method = video(make, similarity="dot", shrinkage=0.5).train()
    for _ in range(2):
        method.update(Batch(clips(), torch.arange(4)))
    method.eval()
    x = clips(2, seed=7)
    with torch.no_grad():
        codes = method.encoder(x)
        x_hat, weights = method.remember(x)
    # the encoder
    maps = x.double().numpy()[:, None]
    layers = list(method.encoder)[1:]
    for number, stride in enumerate((1, 2, 2, 2)):
        convolution, norm = layers[3 * number : 3 * number + 2]
        maps = leaky_norm(plain_convolution(maps, *weights_of(convolution), stride), norm)
    np.testing.assert_allclose(codes.numpy(), maps, rtol=1e-3, atol=1e-4)
    # every place of the map asks the memory by itself
    maps = codes.double().numpy()
    items = method.memory.items.detach().double().numpy()
    mixed = np.empty_like(maps)
    rows = []
    for sample, t, row, column in np.ndindex(2, 1, 2, 2):
        w = numpy_weights(maps[sample, :, t, row, column][None], items, "dot", 0.5 / 50)
        rows.append(w[0])
        mixed[sample, :, t, row, column] = w[0] @ items
    np.testing.assert_allclose(weights.numpy(), np.array(rows), rtol=1e-3, atol=1e-5)
    # the decoder
    layers = list(method.decoder)
    for number, stride in enumerate((2, 2, 2, 1)):
        mixed = plain_transposed(mixed, *weights_of(layers[3 * number]), stride)
        if number < 3:
            mixed = leaky_norm(mixed, layers[3 * number + 1])
    np.testing.assert_allclose(x_hat.numpy(), mixed[:, 0], rtol=1e-3, atol=1e-4)


def test_sizes_of_video_are_the_papers() -> None:
    method = MemAE((16, 256, 256), architecture="video", slots=2000, query="place")
    convolutions = [
        (type(m).__name__, m.in_channels, m.out_channels, m.kernel_size, m.stride)
        for m in method.modules()
        if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)
    ]
    kernel, halving, first = (3, 3, 3), (2, 2, 2), (1, 2, 2)
    assert convolutions == [
        ("Conv3d", 1, 96, kernel, first),
        ("Conv3d", 96, 128, kernel, halving),
        ("Conv3d", 128, 256, kernel, halving),
        ("Conv3d", 256, 256, kernel, halving),
        ("ConvTranspose3d", 256, 256, kernel, halving),
        ("ConvTranspose3d", 256, 128, kernel, halving),
        ("ConvTranspose3d", 128, 96, kernel, halving),
        ("ConvTranspose3d", 96, 1, kernel, first),
    ]
    units = [type(m).__name__ for m in method.decoder if not isinstance(m, nn.ConvTranspose3d)]
    assert units == ["BatchNorm3d", "LeakyReLU"] * 3 + ["Flatten"]
    assert method.memory.items.shape == (2000, 256)
    assert_initialised_as_dcgan(method)


def test_the_channels_choose_the_architecture() -> None:
    shapes = {1: "mnist", 3: "cifar10", 8: "video", 16: "video"}
    for channels, name in shapes.items():
        assert MemAE((channels, 32, 32), width=0.05).architecture == name


@pytest.mark.parametrize("query", ["image", "place"])
@pytest.mark.parametrize(("frames", "size"), [(8, 16), (16, 32), (24, 48)])
def test_every_stack_comes_back(make: Make, query: str, frames: int, size: int) -> None:
    method = video(make, frames, size, query=query).eval()
    x = clips(2, frames, size)
    assert method.reconstruct(x).shape == x.shape
    code = 32 * (frames // 8) * (size // 16) ** 2
    assert method.embed(x).shape == (2, code)
    assert method.memory.items.shape[1] == (code if query == "image" else 32)


def test_losses_of_video_are_means_over_pixels_and_places(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = video(make, shrinkage=0.5, w_entropy=0.5).train()
    stacks: list[Tensor] = []
    weights: list[Tensor] = []
    method.decoder.register_forward_hook(lambda m, i, output: stacks.append(output.detach()))
    method.memory.register_forward_hook(lambda m, i, output: weights.append(output[1].detach()))
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    x = clips()
    losses = method.update(Batch(x, torch.arange(4)))
    w = weights[0].double().numpy()
    assert w.shape == (4 * 1 * 2 * 2, 50)
    mse = np.square((x - stacks[0]).double().numpy()).mean()
    spread = -(w * np.log(np.where(w > 0, w, 1))).sum(1).mean()
    assert losses["mse"].item() == pytest.approx(mse, rel=1e-4)
    assert losses["entropy"].item() == pytest.approx(spread, rel=1e-3)
    assert minimised == {"networks": pytest.approx(mse + 0.5 * spread, rel=1e-3)}


def test_the_codes_threshold_leaves_most_places_of_a_new_network_without_an_item(
    make: Make,
) -> None:
    """Why video has the paper's cosine and 1/N as well."""
    closed = {}
    for similarity, shrinkage in (("dot", 5.0), ("cosine", 1.0)):
        method = video(
            make, 16, 64, width=0.25, slots=2000, similarity=similarity, shrinkage=shrinkage
        )
        _, weights = method.train().remember(clips(8, 16, 64))
        closed[similarity] = (weights.sum(1) == 0).float().mean().item()
    assert closed["dot"] > 0.5
    assert closed["cosine"] == 0


def test_video_has_the_squared_and_the_absolute_error(make: Make) -> None:
    method = video(make).eval()
    x = 0.5 * clips()  # errors of 1 are their own squares
    with torch.inference_mode():
        scores = method.novelty_score(x)
        difference = (x - method.reconstruct(x)).double().numpy().reshape(4, -1)
        loss = method.validation_loss(x)
    assert tuple(scores) == method.score_names == ("mse", "mae")
    np.testing.assert_allclose(scores["mse"].numpy(), np.square(difference).mean(1), rtol=1e-5)
    np.testing.assert_allclose(scores["mae"].numpy(), np.abs(difference).mean(1), rtol=1e-5)
    assert torch.equal(loss, scores["mse"])
    assert make("memae").score_names == ("mse",)


def test_stacks_that_do_not_halve_are_refused() -> None:
    for shape in ((12, 32, 32), (8, 24, 24), (2, 32, 32)):
        with pytest.raises(ValueError, match=rf"data\.frames={shape[0]} data\.size={shape[1]}: "):
            MemAE(shape)


def test_video_scores_the_same_with_batch_norms_folded_in(make: Make) -> None:
    method = video(make).train()
    for _ in range(3):
        method.update(Batch(clips(), torch.arange(4)))
    method.eval()
    ready = deployed(method)
    assert not [m for m in ready.modules() if isinstance(m, nn.BatchNorm3d)]
    x = clips(3, seed=5)
    with torch.inference_mode():
        expected, actual = method.novelty_score(x)["mse"], ready.novelty_score(x)["mse"]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
