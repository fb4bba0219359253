"""PatchCore's equations against NumPy and SciPy, and its bank against a brute-force search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional as F

from noveltylab.errors import UserError
from noveltylab.methods import patchcore
from noveltylab.methods.patchcore import PatchCore, draw_patches, gaussian, greedy_coreset
from noveltylab.scoring.folds import in_folds
from tests.methods.conftest import blobs, small

Array = NDArray[np.float64]


def fitted(**changes: object) -> PatchCore:
    method = small("patchcore", (3, 32, 32), input_size=64, **changes)
    assert isinstance(method, PatchCore)
    method.eval()
    method.prepare(blobs(12, (3, 32, 32)))
    return method


def drawn(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


# Patches.


def test_a_patch_is_the_mean_over_its_neighbours_in_both_stages() -> None:
    """Zeros lie beyond the border; the coarser map is stretched between the centres of its cells."""
    method = fitted()
    x = blobs(2, (3, 32, 32), seed=3)
    with torch.no_grad():
        fine, coarse = [part.double().numpy() for part in method.backbone(x)]
        patches = method.features(x).double().numpy()
    rows, columns = fine.shape[2:]
    assert coarse.shape[2] == rows // 2
    expected = np.concatenate([mean_of_nine(fine), doubled(mean_of_nine(coarse))], 1)
    assert patches.shape == (2, rows * columns, 40 + 112)
    for row, column in [(0, 0), (3, 2), (rows - 1, columns - 2)]:
        np.testing.assert_allclose(
            patches[:, row * columns + column], expected[:, :, row, column], rtol=1e-4, atol=1e-5
        )


def mean_of_nine(maps: Array) -> Array:
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = maps.shape[2:]
    total = np.zeros_like(maps)
    for down in range(3):
        for right in range(3):
            total += padded[:, :, down : down + height, right : right + width]
    return total / 9


def doubled(maps: Array) -> Array:
    """Twice the size, by lines between the middles of the cells."""
    for axis in (2, 3):
        before = np.concatenate([maps.take([0], axis), maps], axis).take(
            range(maps.shape[axis]), axis
        )
        after = np.concatenate([maps, maps.take([-1], axis)], axis).take(
            range(1, maps.shape[axis] + 1), axis
        )
        halves = np.stack([0.75 * maps + 0.25 * before, 0.75 * maps + 0.25 * after], axis + 1)
        shape = list(maps.shape)
        shape[axis] *= 2
        maps = halves.reshape(shape)
    return maps


def test_a_neighbourhood_has_a_middle() -> None:
    with pytest.raises(ValueError, match=r"method\.neighbourhood=2"):
        small("patchcore", neighbourhood=2)


# The bank.


def assert_farthest_first(points: Array, chosen: list[int], wanted: int) -> None:
    """Algorithm 1: each is as far from those before as any other, the first from the mean.

    Fewer than are wanted only where the others coincide with them.
    """
    gaps = np.linalg.norm(points - points.mean(0), axis=1)
    one_place = 2e-3 * gaps.max()
    for number, index in enumerate(chosen):
        assert gaps[index] ** 2 >= gaps.max() ** 2 - 1e-4
        gaps = np.linalg.norm(points[:, None] - points[None, chosen[: number + 1]], axis=2).min(1)
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) == wanted or gaps.max() < one_place


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 60),
    size=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    share=st.floats(0.05, 1),
    farthest=st.sampled_from([2, 5, 4096]),
    centres=st.sampled_from([1, 3, 64]),
)
def test_the_bank_is_chosen_as_by_brute_force(
    count: int, size: int, seed: int, share: float, farthest: int, centres: int
) -> None:
    points = drawn(count, size, seed)
    wanted = max(1, int(share * count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patchcore, "FARTHEST", farthest)
        patch.setattr(patchcore, "CENTRES", centres)
        chosen = greedy_coreset(points, wanted).tolist()
    if wanted == count:
        assert chosen == list(range(count))
    else:
        assert_farthest_first(points.double().numpy(), chosen, wanted)


def test_points_that_coincide_are_chosen_once() -> None:
    points = drawn(5, 3, 0).repeat(20, 1) + 100
    assert sorted(index % 5 for index in greedy_coreset(points, 40).tolist()) == [0, 1, 2, 3, 4]
    assert len(greedy_coreset(torch.ones(30, 3), 10)) == 1


def test_the_bank_is_the_share_of_the_patches_and_has_a_bound() -> None:
    patches = 12 * 8 * 8
    assert len(fitted().bank) == int(0.1 * patches)
    assert len(fitted(coreset=1.0).bank) == patches
    assert len(fitted(coreset=1.0, largest_bank=50).bank) == 50


def test_the_bank_covers_the_patches_better_than_chance() -> None:
    method = fitted(coreset=0.05, projection=64)
    with torch.no_grad():
        patches = method.features(blobs(12, (3, 32, 32))).flatten(0, 1)
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    by_chance = torch.cdist(patches, patches[order[: len(method.bank)]]).amin(1).max()
    assert method.nearest(patches)[0].max() < 0.8 * by_chance


def test_of_many_patches_as_many_of_each_image_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = torch.arange(4 * 10).view(4, 10, 1).float()
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(draw_patches(patches, 4, generator), patches.view(40, 1))
    monkeypatch.setattr(patchcore, "CANDIDATES", 24)
    places = draw_patches(patches, 4, generator)[:, 0].tolist()
    assert len(set(places)) == 24
    assert [
        sum(10 * image <= place < 10 * image + 10 for place in places) for image in range(4)
    ] == [6] * 4
    monkeypatch.setattr(patchcore, "CANDIDATES", 100)
    assert len(fitted(coreset=1.0).bank) == 12 * (100 // 12)


def test_features_and_images_give_the_same_bank() -> None:
    method, other = fitted(), fitted()
    with torch.no_grad():
        other.prepare_features(other.features(blobs(12, (3, 32, 32))))
    assert torch.equal(method.bank, other.bank)


# Scores.


def test_the_score_is_that_of_equations_6_and_7() -> None:
    method = fitted(b=4)
    x = torch.cat([blobs(3, (3, 32, 32), seed=4), blobs(3, (3, 32, 32), seed=5, bars=True)])
    with torch.no_grad():
        scores = method.novelty_score(x)["distance"].numpy()
        images = method.features(x).double().numpy()
    bank = method.bank.double().numpy()
    for patches, score in zip(images, scores, strict=True):
        gaps = np.linalg.norm(patches[:, None] - bank[None], axis=2)
        place = gaps.min(1).argmax()
        star = gaps[place].argmin()
        around = np.linalg.norm(bank - bank[star], axis=1).argsort()[:4]
        assert star in around
        weight = 1 - softmax(gaps[place][around])[list(around).index(star)]
        assert score == pytest.approx(weight * gaps[place, star], rel=1e-4)


def test_a_bank_of_one_patch_and_b_of_1_weight_nothing() -> None:
    x = blobs(4, (3, 32, 32), seed=5, bars=True)
    for method in (fitted(b=1), fitted(largest_bank=1)):
        with torch.no_grad():
            largest = [method.nearest(patches)[0].max() for patches in method.features(x)]
            scores = method.novelty_score(x)["distance"]
        assert torch.equal(scores, torch.stack(largest))


def test_distances_of_patches_in_the_bank_are_zero() -> None:
    method = fitted()
    distances, positions = method.nearest(method.bank)
    assert torch.equal(distances, torch.zeros(len(method.bank)))
    assert torch.equal(positions, torch.arange(len(method.bank)))


def test_the_map_is_the_distances_stretched_and_smoothed_as_by_scipy() -> None:
    method = fitted()
    x = blobs(2, (3, 32, 32), seed=5, bars=True)
    with torch.no_grad():
        maps = method.novelty_map(x)
        patches = method.features(x)
    distances = torch.cdist(patches, method.bank[None].expand(2, -1, -1)).amin(2)
    stretched = F.interpolate(distances.view(2, 1, 8, 8), (32, 32), mode="bilinear")[:, 0]
    assert maps.shape == (2, 32, 32) and float(maps.min()) >= 0
    for image, expected in zip(maps.numpy(), stretched.double().numpy(), strict=True):
        smooth = gaussian_filter(expected, sigma=4 / 224 * 32)
        np.testing.assert_allclose(image, smooth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "sigma"), [(8, 0.14), (32, 0.57), (224, 4.0), (5, 3.0)])
def test_the_gaussian_is_scipys(size: int, sigma: float) -> None:
    picture = np.random.default_rng(0).normal(size=(size, size + 3))
    down, across = gaussian(size, sigma).numpy(), gaussian(size + 3, sigma).numpy()
    np.testing.assert_allclose(
        down @ picture @ across.T, gaussian_filter(picture, sigma), atol=1e-9
    )
    np.testing.assert_allclose(down.sum(1), 1)


def test_the_map_is_highest_where_the_defect_is() -> None:
    method = small("patchcore", (3, 64, 64), input_size=128)
    assert isinstance(method, PatchCore)
    method.eval()
    noise = torch.Generator().manual_seed(0)
    train = 0.1 * torch.randn(20, 3, 64, 64, generator=noise)
    method.prepare(train)
    x = 0.1 * torch.randn(1, 3, 64, 64, generator=noise)
    x[:, :, 8:20, 40:52] = 1
    with torch.no_grad():
        highest = int(method.novelty_map(x)[0].argmax())
    assert 4 <= highest // 64 < 24 and 36 <= highest % 64 < 56


# Folds.


def test_copies_in_folds_share_the_backbone_and_see_each_image_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folds = in_folds(PatchCore, (3, 32, 32), {"input_size": 64}, 4, 8)
    folds.eval()
    assert len({id(member.backbone) for member in folds.members}) == 1
    seen = []
    forward = folds.first.backbone.forward  # type: ignore[union-attr]  # a module
    monkeypatch.setattr(
        folds.first.backbone, "forward", lambda x: (seen.append(len(x)), forward(x))[1]
    )
    train = blobs(8, (3, 32, 32))
    folds.prepare(train)
    x = blobs(2, (3, 32, 32), seed=5)
    with torch.no_grad():
        scores = folds.novelty_score(x)["distance"]
        members = [member.novelty_score(x)["distance"] for member in folds.members]  # type: ignore[operator]  # a method
        map_of_first = folds.first.novelty_map(x)
        assert map_of_first is not None and torch.equal(folds.novelty_map(x), map_of_first)
    assert seen[:2] == [8, 2]
    assert torch.equal(scores, torch.stack(members).amin(0))


def test_too_many_copies_are_refused() -> None:
    with pytest.raises(UserError, match=r"protocol\.folds=6: so many copies"):
        in_folds(PatchCore, (3, 32, 32), {"largest_bank": 1_000_000}, 6, 8)
