"""Splits: what every protocol promises, for any labels."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noveltylab.data.protocols import split
from noveltylab.data.split import Split, load_split, save_split, split_sha256
from noveltylab.errors import UserError

SETTINGS = settings(deadline=None, max_examples=40)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int, float]:
    """Labels of 3 classes, official_test flags, inlier, seed, val_fraction; 12 to 30 samples each."""
    counts = draw(st.lists(st.integers(12, 30), min_size=3, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = np.concatenate([np.full(n, label) for label, n in enumerate(counts)])
    official = np.concatenate([np.arange(n) % 4 == 0 for n in counts])
    order = rng.permutation(len(labels))
    return (
        labels[order],
        official[order],
        draw(st.integers(0, 2)),
        draw(st.integers(0, 2**31)),
        draw(st.floats(0, 0.9)),
    )


def make(
    protocol: str, case: tuple[np.ndarray, np.ndarray, int, int, float], **options: Any
) -> Split:
    labels, official, inlier, seed, val_fraction = case
    return split(
        protocol, labels, official, inlier, seed=seed, val_fraction=val_fraction, **options
    )


def names(labels: np.ndarray) -> np.ndarray:
    return np.array([f"id/{i}" for i in range(len(labels))])


@pytest.mark.parametrize("protocol", ["p1", "p2", "two_thirds"])
@SETTINGS
@given(case=cases())
def test_parts_are_disjoint_and_only_the_test_holds_outliers(protocol: str, case: Any) -> None:
    labels, inlier = case[0], case[2]
    result = make(protocol, case)
    parts = np.concatenate([result.train, result.val, result.test])
    assert len(set(parts.tolist())) == len(parts)
    assert (labels[result.train] == inlier).all()
    assert (labels[result.val] == inlier).all()
    assert np.array_equal(result.is_outlier, labels[result.test] != inlier)
    assert all(index.dtype == np.int64 for index in (result.train, result.val, result.test))
    assert len(result.val) == int(case[4] * (len(result.train) + len(result.val)))


@pytest.mark.parametrize("protocol", ["p1", "p2", "two_thirds"])
@SETTINGS
@given(case=cases())
def test_same_seed_same_split_and_train_order_differs_with_the_seed(
    protocol: str, case: Any
) -> None:
    labels = case[0]
    ids = names(labels)
    digest = split_sha256(make(protocol, case), ids, labels)
    assert digest == split_sha256(make(protocol, case), ids, labels)
    digests = {
        split_sha256(make(protocol, (*case[:3], case[3] + step, case[4])), ids, labels)
        for step in range(1, 6)
    }
    assert digests != {digest}


@SETTINGS
@given(case=cases())
def test_p1_is_80_20_and_balanced(case: Any) -> None:
    labels, _, inlier, _, _ = case
    result = make("p1", case)
    n = int((labels == inlier).sum())
    assert len(result.train) + len(result.val) == int(0.8 * n)
    assert (~result.is_outlier).sum() == result.is_outlier.sum() == n - int(0.8 * n)


@SETTINGS
@given(case=cases())
def test_p2_is_complete(case: Any) -> None:
    labels, official, inlier, _, _ = case
    result = make("p2", case)
    assert np.array_equal(result.test, np.flatnonzero(official))
    assert set(result.train) | set(result.val) == set(
        np.flatnonzero((labels == inlier) & ~official)
    )


def test_two_thirds_has_the_published_sizes_for_digit_8() -> None:
    labels = np.concatenate([np.full(6825, 8), np.zeros(5000, dtype=np.int64)])
    result = split("two_thirds", labels, None, 8, seed=0, val_fraction=0)
    assert (len(result.train), (~result.is_outlier).sum(), result.is_outlier.sum()) == (
        4550,
        2275,
        682,
    )
    total = split("two_thirds", labels, None, 8, seed=0, val_fraction=0, anomaly_ratio_of="total")
    assert total.is_outlier.sum() == 975
    assert abs(total.is_outlier.mean() - 0.3) < 1e-3


def test_outliers_are_drawn_from_all_other_classes() -> None:
    labels = np.arange(2000) % 10
    drawn = labels[split("p1", labels, None, 3, seed=0, val_fraction=0).test]
    assert set(drawn) == set(range(10))


@SETTINGS
@given(case=cases(), data=st.data())
def test_hash_changes_with_any_index(case: Any, data: st.DataObject) -> None:
    labels = case[0]
    result = make("p2", case)
    part = data.draw(
        st.sampled_from([part for part in ("train", "val", "test") if len(getattr(result, part))])
    )
    index = getattr(result, part).copy()
    position = data.draw(st.integers(0, len(index) - 1))
    index[position] = (index[position] + data.draw(st.integers(1, len(labels) - 1))) % len(labels)
    changed = dataclasses.replace(result, **{part: index})
    assert split_sha256(changed, names(labels), labels) != split_sha256(
        result, names(labels), labels
    )


def test_hash_knows_ids_parts_and_flags() -> None:
    labels = np.array([0, 0, 0, 1])
    base = Split(np.array([0]), np.array([1]), np.array([2, 3]), np.array([False, True]))
    digest = split_sha256(base, names(labels), labels)
    assert digest != split_sha256(base, np.array(["a", "b", "c", "d"]), labels)
    moved = dataclasses.replace(base, train=np.array([0, 1]), val=np.array([], dtype=np.int64))
    assert digest != split_sha256(moved, names(labels), labels)
    assert digest != split_sha256(
        dataclasses.replace(base, is_outlier=np.array([True, True])), names(labels), labels
    )


@SETTINGS
@given(case=cases())
def test_save_and_load_is_lossless(case: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    labels = case[0]
    result = make("p1", case)
    path = tmp_path_factory.mktemp("split") / "split.npz"
    digest = save_split(path, result, names(labels), labels)
    loaded = load_split(path)
    for part in ("train", "val", "test", "is_outlier"):
        assert np.array_equal(getattr(loaded, part), getattr(result, part))
    assert digest == split_sha256(loaded, names(labels), labels)
    assert [file.name for file in path.parent.iterdir()] == ["split.npz"]


def test_load_refuses_damage(tmp_path: Path) -> None:
    labels = np.arange(100) % 4
    path = tmp_path / "split.npz"
    with pytest.raises(UserError, match=r"Cannot read the split .*split\.npz"):
        load_split(path)
    result = split("p1", labels, None, 1, seed=0, val_fraction=0.2)
    save_split(path, result, names(labels), labels)
    content = dict(np.load(path))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="Cannot read the split"):
        load_split(path)
    np.savez(path, **{**content, "id": content["id"][::-1]})
    with pytest.raises(UserError, match="does not match the hash"):
        load_split(path)
    np.savez(path, **{**content, "index": np.array([{}], dtype=object)})
    with pytest.raises(UserError, match="Cannot read the split"):
        load_split(path)


def test_limit_keeps_the_first() -> None:
    result = split("p1", np.arange(100) % 4, None, 1, seed=0, val_fraction=0.2)
    assert np.array_equal(result.limit(5).train, result.train[:5])
    assert np.array_equal(result.limit(None).train, result.train)
    assert len(result.limit(10_000).train) == len(result.train)
    assert np.array_equal(result.limit(5).test, result.test)
    with pytest.raises(UserError, match="limit_train"):
        result.limit(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": np.array([0])}, "twice"),
        ({"train": np.array([0, 3])}, "train part holds 1 outliers"),
        ({"val": np.array([3])}, "val part holds 1 outliers"),
        ({"is_outlier": np.array([True, True])}, "does not agree"),
        ({"train": np.array([99])}, "outside"),
        ({"train": np.array([], dtype=np.int64)}, "Too few samples"),
    ],
)
def test_check_refuses(change: dict[str, Any], message: str) -> None:
    labels = np.array([0, 0, 0, 1, 1])
    good = Split(np.array([0]), np.array([1]), np.array([2, 4]), np.array([False, True]))
    good.check(labels, 0)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(good, **change).check(labels, 0)


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        (
            "p3",
            {},
            "no protocol 'p3'.*Choose from: cross, folders, frames, p1, p2, scenes, two_thirds",
        ),
        ("p2", {}, "use protocol=p1"),
        ("p2", {"train_share": 0.5}, "no option 'train_share'"),
        ("p1", {"train_shar": 0.5}, "did you mean 'train_share'"),
        ("p1", {"train_share": 1.0}, "strictly between 0 and 1, got 1.0"),
        ("p1", {"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\), got 1.0"),
        ("p1", {"inlier": 7}, "label inlier=7; labels found: 0, 1"),
        ("p1", {"inlier": 0}, "needs 20 test outliers for inlier=0, but only 5"),
        ("p1", {"inlier": 1, "train_share": 0.1}, "Too few samples"),
        ("two_thirds", {"anomaly_ratio_of": "totl"}, "did you mean 'total'"),
        ("p1", {"seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_input_is_one_clear_error(protocol: str, options: dict[str, Any], message: str) -> None:
    labels = np.array([0] * 100 + [1] * 5)
    arguments: dict[str, Any] = {"inlier": 1, "seed": 0, "val_fraction": 0.1} | options
    with pytest.raises(UserError, match=message):
        split(protocol, labels, None, arguments.pop("inlier"), **arguments)


@pytest.mark.parametrize(
    ("protocol", "digest"),
    [("p1", "e3b9307b8b54fa1b"), ("p2", "2fc1903161df37bb"), ("two_thirds", "5d874be2092defce")],
)
def test_splits_are_the_same_on_every_machine(protocol: str, digest: str) -> None:
    labels = np.arange(200) % 5
    result = split(protocol, labels, np.arange(200) >= 150, 2, seed=7, val_fraction=0.1)
    assert split_sha256(result, names(labels), labels)[:16] == digest
