"""Scores of patches become scores of frames: against loops, for any number of patches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noveltylab.data.samples import ScoredUnits, aggregate
from noveltylab.results.scores import Scores
from noveltylab.scoring.aggregate import measured_scores, scale_groups

SETTINGS = settings(deadline=None, max_examples=60)


@st.composite
def pieces(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    count = draw(st.integers(1, 6))
    whole = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=30))
    scores = draw(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=len(whole), max_size=len(whole))
    )
    return np.array(scores), np.array(whole), count


@pytest.mark.parametrize("how", ["max", "top3mean", "mean"])
@SETTINGS
@given(case=pieces())
def test_aggregates_agree_with_a_loop(how: str, case: tuple[np.ndarray, np.ndarray, int]) -> None:
    scores, whole, count = case
    expected = []
    for index in range(count):
        mine = sorted(scores[whole == index].tolist(), reverse=True)
        taken = {"max": mine[:1], "top3mean": mine[:3], "mean": mine}[how]
        expected.append(sum(taken) / len(taken) if taken else np.nan)
    expected = np.where(np.isnan(expected), np.nanmin(expected), expected)
    np.testing.assert_allclose(aggregate(scores, whole, count, how), expected, rtol=1e-9, atol=1e-6)


def test_a_frame_without_patches_gets_the_lowest_score() -> None:
    np.testing.assert_array_equal(
        aggregate(np.array([3.0, 5.0]), np.array([0, 2]), 4, "max"), [3, 3, 5, 3]
    )


def test_nothing_to_aggregate_and_unknown_ways_are_errors() -> None:
    with pytest.raises(ValueError, match="no scores"):
        aggregate(np.zeros(0), np.zeros(0, np.int64), 2, "max")
    with pytest.raises(ValueError, match="not median"):
        aggregate(np.zeros(1), np.zeros(1, np.int64), 1, "median")


@SETTINGS
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(-100, 100)), min_size=1, max_size=30),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_scaling_clips_keeps_order_within_and_bounds(
    rows: list[tuple[str, float]], start: int, end: int
) -> None:
    groups, scores = np.array([name for name, _ in rows]), np.array([score for _, score in rows])
    scaled, indices = scale_groups(scores, groups, (start, end))
    assert 0 <= scaled.min() <= scaled.max() <= 1
    for name in set(groups.tolist()):
        mine = np.flatnonzero(groups == name)
        expected = mine
        if len(mine) > start + end:
            expected = mine[start : len(mine) - end]
        assert indices[groups[indices] == name].tolist() == expected.tolist()
        order = np.argsort(scores[expected], kind="stable")
        assert (np.diff(scaled[groups[indices] == name][order]) >= 0).all()


def test_the_border_is_that_of_the_common_video_code_or_of_the_stacks() -> None:
    groups, scores = np.repeat(["a", "b"], [6, 7]), np.arange(13.0)
    assert scale_groups(scores, groups)[1].tolist() == [4, 5, 10, 11, 12]
    scaled, rows = scale_groups(scores, groups, (2, 1))
    assert rows.tolist() == [2, 3, 4, 8, 9, 10, 11]
    np.testing.assert_allclose(scaled, [0, 1 / 2, 1, 0, 1 / 3, 2 / 3, 1])


def test_whole_frames_have_no_patches_and_the_border_of_their_stacks() -> None:
    labels = np.array([0, 0, 1, 1])
    ids = ["test/01/000", "test/01/001", "test/01/002", "test/01/003"]
    units = ScoredUnits(
        "frame",
        np.arange(4),
        np.array(ids),
        labels,
        np.full(4, "test/01"),
        is_outlier=labels > 0,
        how="max",
        main=True,
        border=(1, 0),
    )
    frames = Scores(ids, labels, labels > 0, {"s": np.array([0.0, 4, 5, 8])})
    scores, apart = measured_scores(frames, units)
    np.testing.assert_array_equal(scores.columns["s"], [0, 4, 5, 8])
    assert set(apart) == {"clips"}
    assert apart["clips"].ids == ids[1:]
    np.testing.assert_array_equal(apart["clips"].columns["s"], [0, 0.25, 1])


def wholes(frames_are_main: bool) -> ScoredUnits:
    ids = np.array(["test/01/000", "test/01/001", "test/02/000"])
    labels = np.array([0, 1, 1])
    groups = np.array(["test/01", "test/01", "test/02"])
    return ScoredUnits(
        "frame",
        np.array([0, 0, 1, 2]),
        ids,
        labels,
        groups,
        is_outlier=labels > 0,
        how="max",
        main=frames_are_main,
    )


def test_the_protocol_says_what_the_number_is_measured_on() -> None:
    patches = Scores(
        list("abcd"),
        np.array([0, 0, 1, 1]),
        np.array([0, 0, 1, 1]),
        {"s": np.array([1.0, 2, 3, 0])},
    )
    assert measured_scores(patches, None) == (patches, {})
    scores, apart = measured_scores(patches, wholes(frames_are_main=True))
    assert scores.ids == ["test/01/000", "test/01/001", "test/02/000"]
    np.testing.assert_array_equal(scores.columns["s"], [2, 3, 0])
    assert set(apart) == {"patches", "clips"}
    assert apart["patches"] is patches
    np.testing.assert_array_equal(apart["clips"].columns["s"], [0, 1, 0])
    scores, apart = measured_scores(patches, wholes(frames_are_main=False))
    assert scores is patches
    np.testing.assert_array_equal(apart["frames"].columns["s"], [2, 3, 0])
