"""Recording and replaying `update`, with a recorder that stands in for CUDA's."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from noveltylab.errors import UserError
from noveltylab.methods.base import Batch
from noveltylab.training.cuda_graph import WARM_UP, Graphed, Losses, graphed, why_not
from tests.methods.conftest import blobs, make

__all__ = ["make"]  # the fixture

CAPTURABLE = ["ocgan", "ca_entropy", "oled", "nda"]


def fake_recorder(method: Any) -> Any:
    """As CUDA's: recording leaves everything as it was, a replay does it all on the recorded inputs
    and fills the outputs.
    """

    def record(function: Callable[[], Losses]) -> tuple[Callable[[], None], Losses]:
        method.recordings = getattr(method, "recordings", 0) + 1
        before = copy.deepcopy(method.state_dict())
        optimizers = [
            copy.deepcopy(one.state_dict()) for one in method._optimizers_by_name.values()
        ]
        random = torch.get_rng_state()
        outputs = function()
        method.load_state_dict(before)
        for one, state in zip(method._optimizers_by_name.values(), optimizers, strict=True):
            one.load_state_dict(state)
        torch.set_rng_state(random)

        def replay() -> None:
            for name, value in function().items():
                outputs[name].copy_(value)

        return replay, outputs

    return record


def trained(make: Callable[..., Any], name: str, graph: bool) -> tuple[Any, list[dict[str, float]]]:
    method, data, history = make(name).train(), blobs(64), []
    method.prepare(data)
    update = Graphed(method, record=fake_recorder(method)) if graph else method.update
    torch.manual_seed(2)
    for step in range(2 * WARM_UP + 4):
        method.progress = 0.0 if step < WARM_UP + 2 else 0.9
        rows = torch.arange(32) + step
        history.append(update(Batch(data[rows], rows)))
    return method, [{name: loss.item() for name, loss in losses.items()} for losses in history]


@pytest.mark.parametrize("name", CAPTURABLE)
def test_replaying_trains_as_running_does(make: Callable[..., Any], name: str) -> None:
    eager, expected_losses = trained(make, name, False)
    replayed, losses = trained(make, name, True)
    assert replayed.recordings == (2 if name == "ocgan" else 1)  # mining is a phase of its own
    for actual, expected in zip(losses, expected_losses, strict=True):
        assert actual == pytest.approx(expected, rel=1e-5)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(replayed.state_dict()[key], value, msg=key)


def test_what_cannot_be_recorded_goes_on_and_says_so(
    make: Callable[..., Any], monkeypatch: Any
) -> None:
    def record(function: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    method = make("ocgan").train()
    update, batch = Graphed(method, record=record), Batch(blobs(16), torch.arange(16))
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("noveltylab"), "warning", warnings.append)
    for _ in range(WARM_UP + 3):
        assert update(batch)
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "no CUDA graph, training goes on without: RuntimeError: operation not permitted"
    )
    must = Graphed(method, must=True, record=record)
    for _ in range(WARM_UP):
        must(batch)
    with pytest.raises(UserError, match=r"trainer\.cuda_graph=on: OCGAN cannot be recorded"):
        must(batch)


def test_only_where_it_can_be(make: Callable[..., Any]) -> None:
    method, gpu = make("ocgan"), torch.device("cuda")
    assert why_not(method, gpu, "bf16-mixed") is None
    assert "16-mixed" in str(why_not(method, gpu, "16-mixed"))
    assert "DeepSVDD" in str(why_not(make("deep_svdd"), gpu, "32-true"))
    assert isinstance(graphed(method, "auto", gpu, "32-true"), Graphed)
    assert graphed(method, "off", gpu, "32-true") is None
    assert graphed(method, "auto", torch.device("cpu"), "32-true") is None
    with pytest.raises(UserError, match="the device is cpu"):
        graphed(method, "on", torch.device("cpu"), "32-true")


@pytest.mark.parametrize("name", CAPTURABLE)
def test_shapes_are_static_and_optimizers_count_on_the_device(
    make: Callable[..., Any], name: str
) -> None:
    method = make(name).train()
    method.prepare(blobs(64))
    optimizers = method.build_optimizers()
    Graphed(method).take(list(optimizers.values()))
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            assert group.get("capturable", True)
            assert group["fused"]
    shapes: list[list[torch.Size]] = []
    for start in (0, 32):
        seen: list[torch.Size] = []
        hooks = [
            m.register_forward_hook(lambda _m, _i, o, s=seen: s.append(getattr(o, "shape", None)))
            for m in method.modules()
        ]
        rows = torch.arange(32) + start
        method.update(Batch(blobs(64)[rows], rows))
        for hook in hooks:
            hook.remove()
        shapes.append(seen)
    assert shapes[0] == shapes[1]
