"""Preprocessing against independent NumPy arithmetic.

On the real MNIST also against Deep SVDD's published constants.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noveltylab.data.load import load
from noveltylab.data.preprocess import Preprocess, resize
from noveltylab.data.stored import resolve_root
from noveltylab.errors import UserError
from tests.formats import blobs

LO = [
    -0.882657,
    -0.666146,
    -0.782045,
    -0.764577,
    -0.725392,
    -0.769850,
    -0.778418,
    -0.712978,
    -0.828040,
    -0.736996,
]
HI = [
    9.001545,
    20.108062,
    11.665101,
    12.895051,
    12.683236,
    13.103278,
    10.457837,
    12.057778,
    10.581538,
    10.697040,
]


def images(n: int = 40, channels: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(blobs(n, channels, side, seed)[0])


def gcn(x: np.ndarray) -> np.ndarray:
    """Independent, in float64: one image at a time."""
    out = np.empty(x.shape, dtype=np.float64)
    for i, image in enumerate(x.astype(np.float64) / 255):
        image = image - image.mean()
        out[i] = image / max(np.abs(image).mean(), 1e-8)
    return out


def test_plain_maps_bytes_to_minus_one_to_one_and_back() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    y = Preprocess()(x)
    assert y.dtype == torch.float32
    assert y.min() == -1
    assert y.max() == 1
    assert torch.allclose(y, x.float() / 127.5 - 1, atol=1e-6)
    assert torch.equal((Preprocess().to_unit(y) * 255).round().to(torch.uint8), x)
    assert x.max() == 255, "the input is left alone"


def test_gcn_equals_numpy_per_image_and_does_not_clip() -> None:
    train, test = images(), images(seed=9)
    test[0] = 77
    preprocess = Preprocess("gcn").fit(train)
    reference = gcn(train.numpy())
    lo, hi = reference.min(), reference.max()
    assert np.allclose(preprocess(train).numpy(), (reference - lo) / (hi - lo), atol=1e-5)
    outside = preprocess(test).numpy()
    assert np.allclose(outside, (gcn(test.numpy()) - lo) / (hi - lo), atol=1e-5)
    assert np.isfinite(outside).all()
    assert outside.min() < 0 or outside.max() > 1
    assert torch.allclose(preprocess(test[3:4]), preprocess(test)[3:4]), (
        "an image does not depend on its batch"
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_gcn_image_is_gcn_stretched_to_one_range_image_by_image(channels: int) -> None:
    x = images(channels=channels, seed=9)
    x[0] = 77
    x[1] = 200
    x[1, 0, 5, 6] = 201
    y = Preprocess("gcn_image")(x)
    assert y.dtype == torch.float32
    for image, normalised in zip(y[1:].numpy(), gcn(x[1:].numpy()), strict=True):
        middle, half = (
            (normalised.max() + normalised.min()) / 2,
            (normalised.max() - normalised.min()) / 2,
        )
        np.testing.assert_allclose(image, (normalised - middle) / half, atol=1e-6)
        assert (image.min(), image.max()) == (-1, 1)
    assert not y[0].any(), "a constant image has no contrast to stretch"
    assert torch.equal(Preprocess("gcn_image")(x[3:4]), y[3:4]), (
        "an image does not depend on its batch"
    )
    assert torch.equal(Preprocess("gcn_image").fit(images(seed=2, channels=channels))(x), y), (
        "nor on the others"
    )
    assert torch.equal(Preprocess().to_unit(y), Preprocess("gcn_image").to_unit(y))


@pytest.mark.parametrize("contrast", ["none", "gcn", "gcn_image"])
def test_subtract_mean_is_of_the_preprocessed_training_images(contrast: str) -> None:
    train, test = images(), images(seed=9)
    plain, centred = Preprocess(contrast).fit(train), Preprocess(contrast, True).fit(train)
    mean = plain(train).mean(0)
    assert torch.allclose(centred(test), plain(test) - mean, atol=1e-5)
    assert centred(train).mean(0).abs().max() < 1e-5
    assert torch.allclose(centred.to_unit(centred(train)), plain.to_unit(plain(train)), atol=1e-5)
    assert centred.to_unit(centred(test)).min() >= 0
    assert centred.to_unit(centred(test)).max() <= 1


def test_blocks_do_not_change_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    train = images()
    whole = Preprocess("gcn", True).fit(train)
    monkeypatch.setattr("noveltylab.data.preprocess._BLOCK", 7)
    blocks = Preprocess("gcn", True).fit(train)
    assert torch.equal(whole.lo, blocks.lo)
    assert torch.equal(whole.hi, blocks.hi)
    assert torch.allclose(whole.mean, blocks.mean)


@pytest.mark.parametrize("contrast", ["none", "gcn", "gcn_image"])
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_state_survives_a_checkpoint(tmp_path: Path, contrast: str, subtract_mean: bool) -> None:
    fitted = torch.nn.ModuleDict({"p": Preprocess(contrast, subtract_mean).fit(images())})
    torch.save(fitted.state_dict(), tmp_path / "state.pt")
    fresh = torch.nn.ModuleDict({"p": Preprocess(contrast, subtract_mean)})
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh["p"](images(seed=9)), fitted["p"](images(seed=9)))


def test_unfitted_or_wrong_use_is_an_error() -> None:
    for preprocess in (Preprocess("gcn"), Preprocess("none", True)):
        with pytest.raises(RuntimeError, match="fit"):
            preprocess(images())
    with pytest.raises(UserError, match="cannot be 'gnc': did you mean 'gcn'"):
        Preprocess("gnc")
    with pytest.raises(UserError, match="there are none"):
        Preprocess().fit(images(0))


def test_a_constant_class_stays_finite() -> None:
    constant = torch.full((4, 1, 8, 8), 9, dtype=torch.uint8)
    assert Preprocess("gcn", True).fit(constant)(constant).isfinite().all()


def test_enlarging_is_bilinear_without_antialiasing_at_half_pixel_centres() -> None:
    x = images(3, 1, 28)
    grid = (np.arange(32) + 0.5) * 28 / 32 - 0.5
    low = np.clip(np.floor(grid).astype(int), 0, 27)
    high, weight = np.clip(low + 1, 0, 27), np.clip(grid - low, 0, 1)
    rows = x.numpy()[:, 0].astype(float)
    rows = rows[:, low] * (1 - weight)[:, None] + rows[:, high] * weight[:, None]
    expected = rows[:, :, low] * (1 - weight) + rows[:, :, high] * weight
    y = resize(x, 32)
    assert y.dtype == torch.uint8
    assert y.shape == (3, 1, 32, 32)
    assert np.abs(y.numpy()[:, 0] - expected).max() <= 1.01


def test_shrinking_is_antialiased_like_pillow() -> None:
    x = images(2, 3, 128)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in x]
    pillow = np.stack(
        [np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) for picture in pictures]
    )
    assert np.abs(resize(x, 32).permute(0, 2, 3, 1).numpy().astype(int) - pillow).max() <= 1


def test_resize_leaves_the_right_size_alone_and_works_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = images(5, 3, 32)
    assert resize(x, 32) is x
    whole = resize(x, 40)
    monkeypatch.setattr("noveltylab.data.preprocess._BLOCK", 2)
    assert torch.equal(resize(x, 40), whole)


def waves(n: int = 20) -> torch.Tensor:
    values = np.random.default_rng(0).integers(-32768, 32768, (n, 1, 8, 8))
    values[0, 0, 0, :3] = -32768, 0, 32767
    return torch.from_numpy(values.astype(np.int16))


def test_sound_waves_are_divided_by_full_scale_and_shown_about_grey() -> None:
    x = waves()
    y = Preprocess()(x)
    assert y.dtype == torch.float32
    assert np.array_equal(y.numpy(), x.numpy().astype(np.float64) / 32768)
    assert y[0, 0, 0, :2].tolist() == [-1, 0]
    assert Preprocess().to_unit(y)[0, 0, 0, 1] == 0.5
    centred = Preprocess("none", True).fit(x)
    assert np.allclose(
        centred(x).numpy(), (x.numpy() - x.numpy().mean(0, keepdims=True)) / 32768, atol=1e-6
    )


def test_sound_waves_refuse_what_is_for_pictures() -> None:
    with pytest.raises(UserError, match="data.contrast=gcn is for pictures"):
        Preprocess("gcn").fit(waves())
    with pytest.raises(
        UserError, match="data.size=32: sound waves are not resized. Use data.size=8"
    ):
        resize(waves(), 32)
    assert torch.equal(resize(waves(), 8), waves())


@pytest.mark.skipif(
    "NOVELTYLAB_DATA" not in os.environ, reason="NOVELTYLAB_DATA names no folder with real data"
)
def test_deep_svdd_constants_of_mnist() -> None:
    if not (resolve_root(None) / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST in NOVELTYLAB_DATA")
    samples = load("mnist", None, True, False)
    assert samples.official_test is not None
    for label in range(10):
        train = samples.images[
            torch.from_numpy(np.flatnonzero((samples.labels == label) & ~samples.official_test))
        ]
        preprocess = Preprocess("gcn").fit(train)
        assert preprocess.lo.item() == pytest.approx(LO[label], abs=1e-3)
        assert preprocess.hi.item() == pytest.approx(HI[label], abs=1e-3)
