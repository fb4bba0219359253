"""scores.csv gives back every bit, and says so when it cannot."""

import csv
import os
import re
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noveltylab.errors import UserError
from noveltylab.results.files import sha256_file
from noveltylab.results.scores import Scores, read_scores, write_scores

NAMES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(
    st.tuples(NAMES, INT64, st.booleans(), st.floats(), st.floats(width=32)), min_size=1
)


def some() -> Scores:
    columns = {"mse": np.array([0.1, 1e-300, 3.0]), "energy": np.array([1.5, -0.0, 1e12])}
    return Scores(["a", "b", "c"], np.array([8, 8, 1]), np.array([False, False, True]), columns)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(ROWS)
def test_round_trip_is_bit_identical(
    tmp_path: Path, rows: list[tuple[str, int, bool, float, float]]
) -> None:
    ids, labels, flags, first, second = zip(*rows, strict=True)
    columns = {"a, \"b\"": np.array(first), "float32": np.array(second, np.float32)}  # fmt: skip
    write_scores(tmp_path / "s.csv", Scores(list(ids), np.array(labels), np.array(flags), columns))
    back = read_scores(tmp_path / "s.csv")
    assert back.ids == list(ids)
    assert back.labels.dtype == np.int64 and back.labels.tolist() == list(labels)
    assert back.is_outlier.dtype == np.bool_ and back.is_outlier.tolist() == list(flags)
    assert list(back.columns) == list(columns)
    for name, column in columns.items():
        assert back.columns[name].dtype == np.float64
        np.testing.assert_array_equal(back.columns[name], column.astype(np.float64))
        finite = ~np.isnan(column)  # a NaN has many bit patterns and only one name
        np.testing.assert_array_equal(
            np.signbit(back.columns[name][finite]), np.signbit(column[finite])
        )


def test_layout_is_plain_csv(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.csv", some())
    assert (tmp_path / "s.csv").read_text().splitlines() == [
        "id,label,is_outlier,mse,energy",
        "a,8,0,0.1,1.5",
        "b,8,0,1e-300,-0.0",
        "c,1,1,3.0,1000000000000.0",
    ]


def test_ids_may_be_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_scores(
        tmp_path / "s.csv", Scores([name], np.array([0]), np.array([False]), {"s": np.array([1.0])})
    )
    assert read_scores(tmp_path / "s.csv").ids == [name]


def test_every_cut_within_a_line_is_noticed_and_the_digest_notices_all(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    write_scores(whole, some())
    data, digest = whole.read_bytes(), sha256_file(whole)
    assert len(read_scores(whole, digest)) == 3
    for end in range(len(data)):
        cut.write_bytes(data[:end])
        with pytest.raises(UserError, match="SHA-256"):
            read_scores(cut, digest)
        if data[end - 1 : end] != b"\n":
            with pytest.raises(UserError, match="cut short"):
                read_scores(cut)


HEADER = "id,label,is_outlier,mse\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        (HEADER, "no samples"),
        ("\n", "starts with ''"),
        ("id,score\na,1\n", "starts with 'id,score'"),
        ("id,label,is_outlier,m,m\na,1,0,1,1\n", "starts with"),
        (HEADER + "a,1,0,0.5\nb,1,0\n", "line 3 has 3 values instead of 4"),
        (HEADER + "a,1,yes,0.5\n", "is_outlier holds 'yes'"),
        (HEADER + "a,1,0,much\n", "no number.*much"),
        (HEADER + "a,1.5,0,1\n", "no number.*1.5"),
        (HEADER + f"a,{2**63},0,1\n", "no number"),
        (HEADER + 'a,1,0,"1\n', "no CSV"),
    ],
)
def test_damage_is_named_with_the_file_and_the_remedy(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "s.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: .*{message}.*force=true"):
        read_scores(path)


def test_failed_write_keeps_the_old_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.csv"
    write_scores(path, some())
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_scores(path, Scores(["x"], np.array([0]), np.array([True]), {}))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": [1, 2]}, ValueError, r"3 ids, but shapes .*labels.*\(2,\)"),
        ({"columns": {"mse": np.zeros((3, 1))}}, ValueError, r"mse.*\(3, 1\)"),
        ({"columns": {"label": np.zeros(3)}}, ValueError, "may not be named .*label"),
        ({"ids": ["a", "b\rc", "d"]}, UserError, "line break"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    parts = {"ids": ["a", "b", "c"], "labels": [1, 2, 3], "is_outlier": [0, 0, 1], "columns": {}}
    with pytest.raises(error, match=message):
        Scores(**(parts | changes))  # type: ignore[arg-type]


def test_a_hundred_thousand_rows_take_seconds_at_most(tmp_path: Path) -> None:
    n, rng = 100_000, np.random.default_rng(0)
    columns = {name: rng.normal(size=n) for name in ("a", "b")}
    scores = Scores([f"test/{i}" for i in range(n)], np.zeros(n), np.zeros(n), columns)  # type: ignore[arg-type]
    started = perf_counter()
    write_scores(tmp_path / "s.csv", scores)
    back = read_scores(tmp_path / "s.csv")
    assert perf_counter() - started < 10  # about 0.6 s on an idle core
    np.testing.assert_array_equal(back.columns["b"], columns["b"])
    with open(tmp_path / "s.csv", newline="") as file:
        assert sum(1 for _ in csv.reader(file)) == n + 1


def test_class_names_are_a_column_of_their_own(tmp_path: Path) -> None:
    columns = {"mse": np.array([0.5, 1.5])}
    labels, flags = np.array([0, 1]), np.array([False, True])
    plain = Scores(["a", "b"], labels, flags, columns)
    classed = replace(plain, classes=["good", 'a "dent", deep'])
    for name, scores in (("plain", plain), ("named", classed)):
        write_scores(tmp_path / f"{name}.csv", scores)
        again = read_scores(tmp_path / f"{name}.csv")
        assert again.classes == scores.classes and list(again.columns) == ["mse"]
        np.testing.assert_array_equal(again.columns["mse"], columns["mse"])
    # as it always was
    assert (tmp_path / "plain.csv").read_text().startswith("id,label,is_outlier,mse\n")
    assert (
        (tmp_path / "named.csv")
        .read_text()
        .startswith("id,label,is_outlier,class,mse\na,0,0,good,0.5\n")
    )
    with pytest.raises(ValueError, match="class"):
        replace(plain, columns={"class": columns["mse"]})
    with pytest.raises(ValueError, match="2 ids"):
        replace(plain, classes=["good"])
