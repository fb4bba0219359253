"""Networks trained elsewhere: their weights, maps and the files that are refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from noveltylab.errors import UserError
from noveltylab.nets import backbone
from noveltylab.nets.backbone import BUNDLED, Backbone, find_weights, is_bundled, read_weights

STAGES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def trained() -> Backbone:
    network = Backbone(BUNDLED, STAGES, 112, 32)
    network.load(find_weights(BUNDLED, None))
    return network


def test_the_extras_weights_know_a_daisy() -> None:
    """So the tensors, which the package names otherwise, stand where they belong."""
    assert is_bundled()
    whole = timm.create_model(BUNDLED).eval()
    weights = find_weights(BUNDLED, None)
    whole.load_state_dict(backbone.matched(weights, whole.state_dict(), BUNDLED))
    flower = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)[None]
    x = F.interpolate(flower / 127.5 - 1, (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        assert int(whole(x).argmax()) == 985  # ImageNet's daisy
    digest = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert weights.sha256 == digest


def test_pooled_features_are_the_means_of_timms_own_maps(trained: Backbone) -> None:
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    pooled = trained.pooled(x)
    assert pooled.shape == (3, 24 + 40 + 112 + 320)
    whole = timm.create_model(BUNDLED, features_only=True, out_indices=STAGES).eval()
    whole.load_state_dict(trained.network.state_dict())
    large = F.interpolate(x, (112, 112), mode="bilinear")
    with torch.no_grad():
        maps = whole(((large + 1) / 2 - 0.5) / 0.5)
    expected = np.concatenate([part.numpy().mean((2, 3)) for part in maps], 1)
    np.testing.assert_allclose(pooled.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [BUNDLED, "mobilenetv3_small_050", "resnet18"])
def test_folded_batch_norms_give_the_same_maps(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name)
    state = whole.state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        elif key.endswith(("running_var", "bn1.weight", "bn2.weight")):
            value.uniform_(0.5, 2)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    plain, folded = Backbone(name, (1, 2), 64, 32), Backbone(name, (1, 2), 64, 32, frozen=True)
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in plain.modules())
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    for network in (plain, folded):
        network.load(find_weights(name, str(tmp_path / "w.safetensors")))
    for first, second in zip(plain(x), folded(x), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_grey_images_are_shown_in_three_equal_channels(trained: Backbone) -> None:
    grey = torch.rand(2, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(trained.pooled(grey), trained.pooled(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(("side", "size"), [(28, 112), (64, 112), (65, 224), (256, 224)])
def test_small_images_are_shown_at_half_the_networks_own_size(side: int, size: int) -> None:
    assert Backbone(BUNDLED, STAGES, None, side).size == size


def test_a_file_gives_the_same_network_as_the_extra(trained: Backbone, tmp_path: Path) -> None:
    whole = timm.create_model(BUNDLED)
    state = backbone.matched(find_weights(BUNDLED, None), whole.state_dict(), BUNDLED)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(wrapped, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        network = Backbone(BUNDLED, STAGES, 112, 32)
        network.load(find_weights(BUNDLED, str(tmp_path / name)))
        for key, value in trained.network.state_dict().items():
            assert torch.equal(value, network.network.state_dict()[key]), key


def test_another_architecture_takes_its_weights_too(tmp_path: Path) -> None:
    whole = timm.create_model("resnet18")
    headless = {key: value for key, value in whole.state_dict().items() if "fc." not in key}
    save_file(headless, tmp_path / "resnet.safetensors")
    network = Backbone("resnet18", (1, 2), 64, 32)
    network.load(find_weights("resnet18", str(tmp_path / "resnet.safetensors")))
    state = network.network.state_dict()
    assert torch.equal(state["layer1.0.conv1.weight"], headless["layer1.0.conv1.weight"])


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_a_hostile_file_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Hostile()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 64)
    for name in ("a.pth", "b.pth", "c.safetensors"):
        with pytest.raises(UserError, match="not a file of tensors alone"):
            read_weights(tmp_path / name, name)
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "resnet.safetensors")
    network = Backbone(BUNDLED, STAGES, 112, 32)
    with pytest.raises(UserError, match="not those of method.backbone=tf_efficientnet_lite0"):
        network.load(find_weights(BUNDLED, str(tmp_path / "resnet.safetensors")))
    whole = timm.create_model("resnet18")
    broken = {key: value.clone() for key, value in whole.state_dict().items()}
    broken["conv1.weight"][0] = torch.nan
    save_file(broken, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="not finite in conv1.weight"):
        Backbone("resnet18", (1,), 64, 32).load(
            find_weights("resnet18", str(tmp_path / "nan.safetensors"))
        )


def test_without_a_network_the_error_says_how_to_get_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(backbone.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(
        UserError, match=r"no route to host.*method\.weights=.*tf_efficientnet_lite0"
    ):
        find_weights("resnet18", None)
    with pytest.raises(UserError, match="there is no such file"):
        find_weights("resnet18", str(tmp_path / "absent.pth"))


@pytest.mark.parametrize(
    ("name", "stages", "reason"),
    [
        ("tf_efficientnet_lite", (1,), "did you mean 'tf_efficientnet_lite"),
        (BUNDLED, (5,), "has the stages 0 to 4"),
        (BUNDLED, (2, 1), "in rising order"),
        (BUNDLED, (), "in rising order"),
    ],
)
def test_bad_choices_are_told(name: str, stages: tuple[int, ...], reason: str) -> None:
    with pytest.raises((UserError, ValueError), match=reason):
        Backbone(name, stages, None, 32)


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'noveltylab\[features\]'"):
        Backbone(BUNDLED, STAGES, None, 32)
