"""PANDA against its paper: loss, elastic weights and score against NumPy, and what trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from noveltylab.errors import UserError
from noveltylab.methods.base import Batch
from noveltylab.methods.panda import PANDA, Elastic, compactness, fisher_diagonal, flat
from noveltylab.nets.backbone import BUNDLED, Backbone
from noveltylab.nets.classifier import classifier_of, same_parameters
from tests.methods.conftest import blobs, settings, spied_update

timm = pytest.importorskip("timm")
Make = Callable[..., Any]
NAME = "test_resnet"


def batch(count: int = 16) -> Batch:
    return Batch(blobs(64)[:count], torch.arange(count))


def prepared(make: Make, **changes: Any) -> Any:
    method = make("panda", backbone=NAME, **changes)
    method.prepare(blobs(64))
    return method.train()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the weights of a whole network that was "trained elsewhere": drawn here."""
    torch.manual_seed(5)
    network = timm.create_model(NAME)
    for name, value in network.state_dict().items():
        if "running_mean" in name:
            value.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("weights") / "network.pth"
    torch.save(network.state_dict(), path)
    return path


def with_ewc(make: Make, weights: Path, **changes: Any) -> Any:
    method = make(
        "panda", backbone=NAME, weights=str(weights), ewc=True, fisher_images=4, **changes
    )
    method.take_pretrained()
    return method


# Loss and centre.


def test_the_centre_is_the_mean_of_the_first_features_and_stays(make: Make) -> None:
    method = prepared(make)
    with torch.no_grad():
        features = method.embed(blobs(64)).double().numpy()
    np.testing.assert_allclose(method.centre.numpy(), features.mean(0), rtol=1e-4, atol=1e-6)
    before = method.centre.clone()
    for _ in range(3):
        method.update(batch())
    method.prepare_score(blobs(64))
    assert torch.equal(method.centre, before)


def test_the_loss_is_the_squared_distance_by_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = prepared(make)
    method.centre = method.centre + 0.5
    with torch.no_grad():
        features = method.embed(batch().x).double().numpy()
    squares = (features - method.centre.double().numpy()) ** 2
    expected = squares.sum(1) / features.shape[1]
    minimised, losses = spied_update(method, batch(), monkeypatch)
    assert losses == {"compactness": pytest.approx(expected.mean(), rel=1e-5)}
    assert minimised == {"backbone": losses["compactness"]}
    with torch.no_grad():
        np.testing.assert_allclose(method.validation_loss(batch().x), expected, rtol=1e-4)
    by_hand = compactness(torch.tensor([[1.0, 3.0]]), torch.tensor([0.0, 1.0]))
    assert by_hand.tolist() == [2.5]


# Elastic weight consolidation.


def test_the_penalty_by_hand() -> None:
    elastic = Elastic()
    elastic.anchor = torch.tensor([1.0, 0.0, 2.0])
    elastic.fisher = torch.tensor([2.0, 5.0, 1.0])
    parameters = [nn.Parameter(torch.tensor([[2.0, 1.0]])), nn.Parameter(torch.tensor([5.0]))]
    # (2 * 1 + 5 * 1 + 1 * 9) / 2
    assert elastic(parameters).item() == 8.0
    elastic(parameters).backward()
    gradients = flat([parameter.grad for parameter in parameters])
    assert gradients.tolist() == [2.0, 5.0, 3.0]
    assert elastic.state_dict() == {}


def test_the_fisher_information_of_a_linear_classifier_by_hand() -> None:
    """d log p(y) / dW = (1[y] - p) x^T, for labels drawn by the same generator."""
    torch.manual_seed(1)
    layer = nn.Linear(3, 4, bias=False)
    images = torch.randn(50, 3)
    fisher = fisher_diagonal(layer, [layer.weight], images, seed=7)
    generator = torch.Generator().manual_seed(7)
    total = np.zeros((4, 3))
    for x in images:
        logits = layer(x).detach().double().numpy()
        p = np.exp(logits - logits.max())
        p /= p.sum()
        label = int(torch.multinomial(torch.tensor(p).float(), 1, generator=generator))
        total += np.outer(np.eye(4)[label] - p, x.numpy()) ** 2
    np.testing.assert_allclose(fisher.view(4, 3).numpy(), total / 50, rtol=1e-4)


def test_the_fisher_information_is_that_of_the_trained_parts_under_the_whole_network(
    make: Make, weights: Path
) -> None:
    method = with_ewc(make, weights)
    method.prepare(blobs(64))
    whole = classifier_of(method.backbone, str(weights))
    images = method.backbone.stretched(blobs(64)[:4])
    generator = torch.Generator().manual_seed(0)
    for image in images:
        log_p = whole(image[None]).log_softmax(1)[0]
        label = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        (-log_p[label]).sum().backward()
        for parameter in whole.parameters():
            total = getattr(parameter, "total", torch.zeros_like(parameter))
            parameter.total = total + parameter.grad.square() / len(images)  # type: ignore[attr-defined]  # of this test
            parameter.grad = None
    named = dict(whole.named_parameters())
    trained = [name for name in named if name.startswith(("layer3", "layer4"))]
    expected = flat([named[name].total for name in trained])  # type: ignore[attr-defined]  # the same
    torch.testing.assert_close(method.elastic.fisher, expected, rtol=1e-3, atol=1e-9)
    assert method.elastic.fisher.max() > 0
    anchor = flat([named[name].detach() for name in trained])
    assert torch.equal(method.elastic.anchor, anchor)
    assert method.classifier == []


def test_the_penalty_stands_in_the_loss_with_its_weight(
    make: Make, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = with_ewc(make, weights, ewc_weight=10.0)
    method.prepare(blobs(64))
    minimised, losses = spied_update(method, batch(), monkeypatch)
    assert losses["ewc"] == 0.0
    with torch.no_grad():
        for parameter in method.backbone.trained():
            parameter.add_(0.1)
    minimised, losses = spied_update(method, batch(), monkeypatch)
    expected = 10 * (method.elastic.fisher.double().numpy() * 0.01).sum() / 2
    assert losses["ewc"] == pytest.approx(expected, rel=1e-3)
    assert minimised["backbone"] == pytest.approx(losses["compactness"] + losses["ewc"], rel=1e-5)
    with torch.no_grad():
        distance = compactness(method.embed(batch().x), method.centre)
        loss = method.validation_loss(batch().x)
    torch.testing.assert_close(loss, distance + losses["ewc"])


def test_weights_are_held_by_ewc(make: Make, weights: Path) -> None:
    """With a large weight the penalty outweighs the loss, and weights come back to the old ones."""
    drift = {}
    for weight in (1e-8, 1e6):
        method = with_ewc(make, weights, ewc_weight=weight, lr=1e-3, clip=1e-1)
        method.prepare(blobs(64))
        for _ in range(20):
            method.update(batch())
        moved = flat(method.backbone.trained()).detach() - method.elastic.anchor
        drift[weight] = float((method.elastic.fisher * moved.square()).sum())
    assert drift[1e6] < 0.5 * drift[1e-8]


def test_ewc_without_a_head_is_refused(make: Make, weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(headless, tmp_path / "headless.pth")
    method = make("panda", backbone=NAME, weights=str(tmp_path / "headless.pth"), ewc=True)
    with pytest.raises(UserError, match=r"method\.ewc=true: .* lack the classifying head"):
        method.take_pretrained()
    with pytest.raises(ValueError, match=r"method\.ewc=true: needs weights"):
        make("panda", backbone=NAME, ewc=True).prepare(blobs(4))


# What trains.


def test_an_update_moves_only_the_last_stages(make: Make) -> None:
    method = prepared(make, clip=1e3, lr=100.0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.update(batch())
    moved = {n for n, value in method.state_dict().items() if not torch.equal(before[n], value)}
    parameters = {name for name, _ in method.named_parameters()}
    last = {name for name in parameters if "layer3" in name or "layer4" in name}
    # a channel that is never above 0 has no gradient at its shift
    assert {name for name in last if "conv" in name} <= moved <= last
    assert not any(module.training for module in method.backbone.modules())


@pytest.mark.parametrize(
    ("name", "stages", "count", "first"),
    [
        (BUNDLED, (4,), 2, "blocks.3.0.conv_pw.weight"),
        (BUNDLED, (4,), 1, "blocks.5.0.conv_pw.weight"),
        (BUNDLED, (3,), 1, "blocks.3.0.conv_pw.weight"),
        (BUNDLED, (4,), 5, "conv_stem.weight"),
        (NAME, (4,), 2, "layer3.0.conv1.weight"),
        (NAME, (4,), 4, "layer1.0.conv1.weight"),
        ("test_convnext", (3,), 2, "stages_2.downsample.0.weight"),
    ],
)
def test_the_last_stages_begin_with_this_layer(
    name: str, stages: tuple[int, ...], count: int, first: str
) -> None:
    network = Backbone(name, stages, 32, 32)
    network.let_train(count)
    names = [n for n, parameter in network.network.named_parameters() if parameter.requires_grad]
    everything = [n for n, _ in network.network.named_parameters()]
    assert names[0] == first
    assert names == everything[everything.index(first) :]


def test_gradients_are_cut_to_their_norm(make: Make) -> None:
    """Without momentum and decay a step is as long as the rate times the norm."""
    method = prepared(make, lr=0.5, clip=1e-4, momentum=0.0, weight_decay=0.0)
    before = flat(method.backbone.trained()).detach().clone()
    method.update(batch())
    step = flat(method.backbone.trained()).detach() - before
    assert step.norm().item() == pytest.approx(0.5 * 1e-4, rel=1e-2)


def test_the_optimizer_is_that_of_the_code(make: Make) -> None:
    assert settings(PANDA((1, 32, 32), backbone=NAME).build_optimizers()["backbone"]) == {
        "kind": "SGD",
        "lr": 1e-2,
        "momentum": 0.9,
        "weight_decay": 5e-5,
    }


# The score.


@pytest.mark.parametrize("k", [1, 2, 100])
def test_the_score_is_the_sum_of_the_nearest_squares(make: Make, k: int) -> None:
    method = prepared(make, k=k).eval()
    x = blobs(7, seed=3)
    with torch.no_grad():
        scores = method.novelty_score(x)["knn"].numpy()
        bank = method.embed(blobs(64)).double().numpy()
        features = method.embed(x).double().numpy()
    neighbours = NearestNeighbors(n_neighbors=min(k, 64), algorithm="brute").fit(bank)
    distances, _ = neighbours.kneighbors(features)
    np.testing.assert_allclose(scores, (distances**2).sum(1), rtol=1e-2, atol=1e-5)


def test_the_bank_follows_the_weights(make: Make) -> None:
    method = prepared(make, clip=1e3, lr=10.0)
    for _ in range(3):
        method.update(batch())
    stale = method.bank.clone()
    method.eval()
    with torch.no_grad():
        method.prepare_score(blobs(64))
        expected = method.embed(blobs(64))
    torch.testing.assert_close(method.bank, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(stale, expected, rtol=1e-3, atol=1e-4)


def test_parts_in_another_order_are_refused(weights: Path) -> None:
    network = Backbone(NAME, (4,), 32, 32)  # other weights than the file's
    whole = classifier_of(network, str(weights))
    with pytest.raises(UserError, match=r"method\.ewc=true: timm orders"):
        same_parameters(whole, network)


# Whole runs.

RUN = (
    "method=panda",
    f"method.backbone={NAME}",
    "method.input_size=32",
    "method.clip=1",
    "data=digits",
    "data.batch_size=16",
    "trainer.max_epochs=3",
    "trainer.val_every=1",
    "trainer.checkpoint_seconds=0",
    "trainer.accelerator=cpu",
)


def scores_of(folder: Path) -> str:
    return (folder / "p1/panda/digits/inlier8/seed0/scores.csv").read_text()


def bank_of(folder: Path, name: str) -> Tensor:
    path = folder / "p1/panda/digits/inlier8/seed0/checkpoints" / name
    bank: Tensor = torch.load(path, weights_only=True)["method"]["bank"]
    return bank


@pytest.mark.parametrize("select", ["val_loss", "last"])
def test_a_resumed_run_has_the_scores_of_one_that_was_not_interrupted(
    run_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    weights: Path,
    select: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = (*RUN, f"method.weights={weights}", f"select={select}", "method.ewc=true")
    whole = run_here(*options, f"output={tmp_path / 'whole'}")
    assert whole["trained_on"] == "ImageNet"
    update = PANDA.update

    def interrupted(self: PANDA, step: Batch) -> dict[str, Tensor]:
        if self.progress > 0.5:
            raise KeyboardInterrupt
        return update(self, step)

    monkeypatch.setattr(PANDA, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_here(*options, f"output={tmp_path / 'again'}")
    monkeypatch.setattr(PANDA, "update", update)
    run_here(*options, f"output={tmp_path / 'again'}")
    assert scores_of(tmp_path / "again") == scores_of(tmp_path / "whole")
    name = f"{select}.pt"
    assert torch.equal(bank_of(tmp_path / "again", name), bank_of(tmp_path / "whole", name))


def test_a_detector_scores_as_its_run_did(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, weights: Path
) -> None:
    """Without the file of weights: all are in the checkpoint, the bank too."""
    from noveltylab.predict.load import load_detector
    from noveltylab.results.scores import read_scores

    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights.read_bytes())
    run_here(*RUN, f"method.weights={copy}", f"output={tmp_path / 'out'}")
    copy.unlink()
    folder = tmp_path / "out/p1/panda/digits/inlier8/seed0"
    detector = load_detector(folder, accelerator="cpu")
    from sklearn.datasets import load_digits

    scores = read_scores(folder / "scores.csv")
    assert detector.held_out["knn"].size
    images = (load_digits().images * 255 / 16).round().astype(np.uint8)[:4, None]
    assert np.isfinite(detector.novelty(detector.fit(images))).all()
    assert np.isfinite(scores.columns["knn"]).all()
