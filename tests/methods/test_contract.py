"""One suite over every method in conf/method/: a new method is tested by existing."""

import copy
import inspect
from collections.abc import Callable
from functools import cache

import pytest
import torch

from noveltylab.command.validate import check_arguments
from noveltylab.data.preprocess import Preprocess
from noveltylab.errors import UserError
from noveltylab.methods.base import Batch, Method, find_method
from noveltylab.scoring.apply import explanations, image_rows
from noveltylab.scoring.diagnosis import batch_statistics
from noveltylab.scoring.metrics import evaluate
from tests.methods.conftest import METHODS, NoSync, blobs, method_config

Make = Callable[..., Method]
pytestmark = pytest.mark.parametrize("name", METHODS)


#: Updates until a method tells discs from bars, where 60 are not enough on every processor, or are
#: slow and more than it takes.
STEPS = {"alocc": 120, "ca_entropy": 90, "geometric": 30, "msad": 20, "panda": 20, "wavenet": 20}

#: Parameters that a whole update leaves alone: Deep SVDD's decoder is trained before, and what goes on
#: from WaveNet's last layer goes nowhere.
UNTRAINED = {"deep_svdd": "decoder.", "wavenet": "network.layers.5.residual."}


def trained(make: Make, name: str, steps: int = 3) -> Method:
    """A method after so many updates; each call gives a copy of its own."""
    return copy.deepcopy(train_once(make, name, steps))


def train(make: Make, name: str, steps: int) -> Method:
    method = make(name)
    train = blobs(64)
    method.prepare(train)
    method.train()
    if method.iterative:
        for step in range(steps):
            method.progress = step / steps
            index = torch.randperm(64)[:16]
            method.update(Batch(train[index], index))
    method.eval()
    with torch.no_grad():
        method.prepare_score(train)
    return method


train_once = cache(train)


def test_config_holds_every_keyword_with_its_default(name: str) -> None:
    config = method_config(name)
    parameters = inspect.signature(find_method(config["_target_"])).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {
        key: value for key, value in config.items() if key not in ("name", "_target_", "primary")
    } == defaults
    assert config["name"] == name
    assert config["_target_"].startswith(f"noveltylab.methods.{name}.")


def test_every_keyword_has_a_checked_type(name: str) -> None:
    config = method_config(name)
    method = find_method(config["_target_"])
    for key in inspect.signature(method).parameters:
        if key != "image_shape":
            with pytest.raises(UserError, match=rf"method\.{key}="):
                check_arguments(method, {key: ["not", "a", "value"]}, "method")
    with pytest.raises(UserError, match=r"method\.zzz: no such option"):
        check_arguments(method, {"zzz": 1}, "method")


def test_scores_are_named_finite_and_one_per_sample(make: Make, name: str) -> None:
    method = trained(make, name)
    x = blobs(7, seed=1)
    with torch.inference_mode():
        scores = method.novelty_score(x)
    combined = method.combine_scores(scores, scores)
    assert (*scores, *combined) == method.score_names
    assert method_config(name)["primary"] in method.score_names
    assert method.transductive <= set(method.score_names)
    scores |= combined
    for column in scores.values():
        assert column.shape == (7,)
        assert column.isfinite().all()


def test_a_score_asked_for_alone_has_the_same_bits(make: Make, name: str) -> None:
    method = trained(make, name)
    x = blobs(7, seed=1)
    with torch.no_grad():
        scores = method.novelty_score(x)
        for key, column in scores.items():
            assert torch.equal(method.single_score(x, key), column), key


def test_a_score_depends_on_its_sample_alone(make: Make, name: str) -> None:
    method = trained(make, name)
    x = blobs(9, seed=1)
    with torch.inference_mode():
        together = method.novelty_score(x)
        alone = method.novelty_score(x[4:5])
    for key, column in together.items():
        torch.testing.assert_close(column[4:5], alone[key], rtol=1e-3, atol=1e-4)


def test_validation_loss_is_per_sample(make: Make, name: str) -> None:
    method = trained(make, name)
    with torch.inference_mode():
        loss = method.validation_loss(blobs(5))
    assert loss.shape == (5,)
    assert loss.isfinite().all()


def test_update_never_waits_for_the_device(make: Make, name: str) -> None:
    method = make(name)
    if not method.iterative:
        assert method.build_optimizers() == {}
        return
    train = blobs(32)
    method.prepare(train)
    method.train()
    for progress in (0.0, 0.99):
        method.progress = progress
        method.update(Batch(train[:16], torch.arange(16)))  # optimizers make their state
        with NoSync():
            losses = method.update(Batch(train[16:], torch.arange(16, 32)))
        assert losses
        for loss in losses.values():
            assert loss.shape == ()
            assert not loss.requires_grad


def test_a_whole_update_trains_every_parameter(make: Make, name: str) -> None:
    method = make(name)
    if not method.iterative:
        return
    train = blobs(32)
    method.prepare(train)
    method.train()
    method.progress = 0.99
    parameters = {key: p for key, p in method.named_parameters() if p.requires_grad}
    before = {key: parameter.clone() for key, parameter in parameters.items()}
    method.update(Batch(train[:16], torch.arange(16)))
    untouched = {key for key, p in parameters.items() if torch.equal(before[key], p)}
    assert untouched == {key for key in parameters if key.startswith(UNTRAINED.get(name, ()))}


def test_weights_survive_a_file(make: Make, name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    method = trained(make, name)
    torch.save(method.state_dict(), tmp_path / "weights.pt")
    copy = make(name)
    copy.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = blobs(6, seed=2)
    with torch.inference_mode():
        expected, scores = method.novelty_score(x), copy.eval().novelty_score(x)
    for key in expected:
        torch.testing.assert_close(scores[key], expected[key], rtol=0, atol=0)


def test_same_seed_same_weights(make: Make, name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(train(make, name, steps=3).state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_it_learns_to_tell_discs_from_bars(make: Make, name: str) -> None:
    method = trained(make, name, steps=STEPS.get(name, 60))
    x = torch.cat([blobs(60, seed=5), blobs(60, seed=6, bars=True)])
    with torch.inference_mode():
        scores = method.novelty_score(x)[method_config(name)["primary"]]
    assert evaluate(scores.numpy(), [0] * 60 + [1] * 60)["auroc"] > 0.9


def test_a_diagnosis_leaves_the_method_as_it_was(make: Make, name: str) -> None:
    method = trained(make, name)
    x = blobs(6, seed=2)
    with torch.inference_mode():
        expected = method.novelty_score(x)
        state = {key: value.clone() for key, value in method.state_dict().items()}
        modes = [module.training for module in method.modules()]
        with batch_statistics(method):
            method.novelty_score(x)
        scores = method.novelty_score(x)
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert all(torch.equal(scores[key], column) for key, column in expected.items())


def test_rows_of_pictures_have_images_of_one_size(make: Make, name: str) -> None:
    """Repeatable, and whatever is random in them leaves no trace."""
    method = trained(make, name)
    images = [
        ((part + 1) * 127.5).to(torch.uint8)
        for part in (blobs(64)[:6], blobs(6, seed=1), blobs(6, bars=True))
    ]
    preprocess = Preprocess().fit(images[0])
    for title, stack in explanations(method, preprocess, images[1]).items():
        assert len(stack) == 6, title
        assert stack.shape[2:] == (32, 32)
    weights = {key: value.clone() for key, value in method.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (image_rows(method, preprocess, *images) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[key], value) for key, value in method.state_dict().items())
    for picture, rows in first.items():
        for (title, stack), (_, again) in zip(rows, second[picture], strict=True):
            assert stack.shape[1] in (1, 3) and stack.shape[2:] == (32, 32), (picture, title)
            assert 0 <= stack.min() <= stack.max() <= 1
            assert (stack == again).all()
    without = image_rows(method, preprocess, *images[:2], images[2][:0])
    assert without.keys() == first.keys()
