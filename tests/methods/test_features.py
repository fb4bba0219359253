"""Densities on features of a network trained elsewhere, against NumPy and scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.features import Features
from noveltylab.predict.load import load_detector
from noveltylab.scoring import kept_features as kept
from noveltylab.scoring.apply import held_out_scores, novelty_scores
from noveltylab.scoring.folds import Folds
from noveltylab.scoring.kept_features import kept_features

Array = NDArray[np.float64]


def features(count: int, seed: int, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, size, generator=generator) @ mixing + 1


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)


def method_of(**arguments: Any) -> Features:
    return Features((1, 8, 8), stages=[1], input_size=32, **arguments).eval()


def scores_of(train: torch.Tensor, x: torch.Tensor, **arguments: Any) -> Array:
    method = method_of(**arguments)
    method.prepare_features(train)
    (column,) = method.score_features(x).values()
    return column.double().numpy()


def test_mahalanobis_equals_numpys_with_scikit_learns_covariance() -> None:
    train, x = features(60, 0), features(20, 1)
    fitted = LedoitWolf().fit(train.double().numpy())
    difference = x.double().numpy() - train.double().numpy().mean(0)
    precision = np.linalg.inv(fitted.covariance_)
    expected = np.sqrt(np.einsum("nd,de,ne->n", difference, precision, difference))
    np.testing.assert_allclose(scores_of(train, x, score="mahalanobis"), expected, rtol=1e-4)


def test_of_fewer_images_than_features_it_is_finite_and_shrunk() -> None:
    train = features(5, 0)
    assert np.isfinite(scores_of(train, features(9, 1), score="mahalanobis")).all()
    with pytest.raises(ValueError, match="the same features"):
        scores_of(train[:1].repeat(5, 1), train, score="mahalanobis")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_equal_scikit_learns(metric: str) -> None:
    train, x = features(60, 0), features(20, 1)
    points, queries = train.double().numpy(), x.double().numpy()
    if metric == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    distances, _ = NearestNeighbors(n_neighbors=3).fit(points).kneighbors(queries)
    found = scores_of(train, x, score="knn", k=3, metric=metric)
    np.testing.assert_allclose(found, distances.mean(1), rtol=1e-4)


def test_the_kernel_density_is_the_mean_of_normal_densities() -> None:
    train, x = features(60, 0), features(20, 1)
    parts = [
        multivariate_normal(point, 16.0).logpdf(x.double().numpy())
        for point in train.double().numpy()
    ]
    expected = -logsumexp(np.array(parts), axis=0) + np.log(60)
    np.testing.assert_allclose(scores_of(train, x, score="kde", bandwidth=4.0), expected, rtol=1e-4)


def test_pcas_residual_equals_numpys() -> None:
    train, x = features(60, 0), features(20, 1)
    centre = train.double().numpy().mean(0)
    _, _, rows = np.linalg.svd(train.double().numpy() - centre, full_matrices=False)
    difference = x.double().numpy() - centre
    residual = difference - difference @ rows[:5].T @ rows[:5]
    np.testing.assert_allclose(
        scores_of(train, x, score="pca", components=5), (residual**2).mean(1), rtol=1e-3
    )


# Features that are kept.


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the network, call by call."""
    counts: list[int] = []
    compute = kept.compute_features

    def compute_and_count(*arguments: Any) -> torch.Tensor:
        counts.append(len(arguments[2]))
        return compute(*arguments)

    monkeypatch.setattr(kept, "compute_features", compute_and_count)
    return counts


def test_an_image_goes_through_the_network_once(counted: list[int]) -> None:
    method, preprocess = method_of(), Preprocess()
    images = pictures(10)
    first = kept_features(method, preprocess, images)
    assert counted == [10]
    # those and five new ones, two of which are alike, in another order
    more = torch.cat([pictures(4, 1), images.flip(0), pictures(1, 1)])
    second = kept_features(method, preprocess, more)
    assert counted == [10, 4]
    assert torch.equal(second[4:14].flip(0), first) and torch.equal(second[0], second[-1])
    # another network shares nothing
    kept_features(Features((1, 8, 8), stages=[2], input_size=32).eval(), preprocess, images)
    assert counted == [10, 4, 10]


def test_a_damaged_file_of_features_is_computed_again(counted: list[int], tmp_path: Path) -> None:
    method, preprocess = method_of(), Preprocess()
    first = kept_features(method, preprocess, pictures(10))
    (path,) = tmp_path.glob("cache/features-*/*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.equal(kept_features(method, preprocess, pictures(10)), first)
    assert counted == [10, 10]


def test_kept_features_score_as_the_images_do_to_the_last_bit() -> None:
    method, preprocess = method_of(score="knn"), Preprocess()
    method.prepare_features(kept_features(method, preprocess, pictures(40)))
    images = pictures(37, 1)
    kept_scores = held_out_scores(method, preprocess, images)["knn"]
    method_scores = [held_out_scores(method, preprocess, images[i : i + 1]) for i in range(37)]
    np.testing.assert_array_equal(kept_scores, [scores["knn"][0] for scores in method_scores])
    plain = novelty_scores(method, preprocess, images, 16)["knn"]
    np.testing.assert_allclose(plain, kept_scores, rtol=1e-5)


def test_folds_share_one_network_and_score_by_the_copy_that_has_not_seen_an_image() -> None:
    members = [method_of(score="knn", k=1)]
    members[0].take_pretrained()
    for _ in range(3):
        members.append(method_of(score="knn", k=1))
        members[-1].share(members[0])
    folds = Folds([*members])
    folds.take_pretrained()
    assert all(member.backbone is members[0].backbone for member in members)
    images, preprocess = pictures(12), Preprocess()
    folds.prepare_features(kept_features(folds, preprocess, images))
    _, columns = folds.held_out(preprocess, images)
    assert (columns["knn"] > 0).all()
    assert float(folds.novelty_score(preprocess(images))["knn"].max()) < 1e-3


# A run.


def test_a_run_says_what_its_network_is_and_predicts_without_it(
    run_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_here("method=features", "data=digits", "trainer.accelerator=cpu")
    assert result["trained_on"] == "ImageNet"
    assert result["pretrained"]["backbone"] == "tf_efficientnet_lite0"
    assert result["pretrained"]["sha256"].startswith("5793442")
    assert result["scores"]["mahalanobis"]["auroc"] > 0.9

    def absent(*_: Any) -> None:
        raise AssertionError("the weights are those of the run")

    monkeypatch.setattr("noveltylab.nets.backbone.find_weights", absent)
    detector = load_detector(
        tmp_path / "outputs" / "p1" / "features" / "digits" / "inlier8" / "seed0", "cpu"
    )
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    assert np.isfinite(detector.scores(images)["mahalanobis"]).all()
