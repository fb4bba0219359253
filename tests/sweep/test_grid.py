"""The grid of a sweep: choices, rows and what is typed become the options of each cell."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from noveltylab.errors import UserError
from noveltylab.sweep.grid import cells_of_grid

PARAMS = {"seed": "0,1", "inlier": 8}
ROWS = {
    "full": ["method=nda"],
    "short": ["full", "trainer.max_epochs=3"],
    "shorter": ["short", "trainer.max_epochs=1", "method.from=${output}/${seed}"],
}


def grid(*typed: str, params: object = None, rows: object = None) -> list[list[str]]:
    return cells_of_grid(params or {}, rows or {}, typed, OverridesParser.create())  # type: ignore[arg-type]


def test_choices_are_multiplied_and_typed_ones_have_the_last_word() -> None:
    assert grid("inlier=range(1,3)", "method=pca", params=PARAMS) == [
        ["seed=0", "inlier=1", "method=pca"],
        ["seed=0", "inlier=2", "method=pca"],
        ["seed=1", "inlier=1", "method=pca"],
        ["seed=1", "inlier=2", "method=pca"],
    ]


def test_a_row_adds_to_the_row_that_it_starts_from_and_names_the_method() -> None:
    assert grid("seed=5", params=PARAMS, rows=ROWS) == [
        ["seed=5", "inlier=8", "method=nda", "method.name=full"],
        ["seed=5", "inlier=8", "method=nda", "trainer.max_epochs=3", "method.name=short"],
        [
            *("seed=5", "inlier=8", "method=nda", "trainer.max_epochs=1"),
            *("method.from=${output}/${seed}", "method.name=shorter"),
        ],
    ]


def test_rows_are_picked_in_the_order_that_is_typed() -> None:
    cells = grid("row=short,full", rows=ROWS)
    assert [cell[-1] for cell in cells] == ["method.name=short", "method.name=full"]


def test_rows_over_several_methods_leave_them_their_names() -> None:
    """A row may hold choices itself."""
    rows = {"coil": ["data=coil20", "inlier=range(0,2)"]}
    assert grid(params={"method": "pca,knn"}, rows=rows) == [
        ["method=pca", "data=coil20", "inlier=0"],
        ["method=pca", "data=coil20", "inlier=1"],
        ["method=knn", "data=coil20", "inlier=0"],
        ["method=knn", "data=coil20", "inlier=1"],
    ]
    assert grid("method.name=mine", rows={"a": []}) == [["method.name=mine"]]


@pytest.mark.parametrize(
    ("typed", "rows", "message"),
    [
        (["row=ful"], ROWS, "row=ful: no such row of this experiment; did you mean 'full'?"),
        (["row=full"], {}, "row=full: rows are run by the sweep of their experiment=..."),
        (["row=a"], {"a": ["b"], "b": []}, "row=a: starts from 'b', which is no row above it"),
        (["row=a"], {"a": ["a"]}, "row=a: starts from 'a', which is no row above it"),
        (["seed=interval(0,1)"], {}, "seed=interval(0,1): an interval has no values to list"),
    ],
)
def test_bad_rows_are_one_line(typed: list[str], rows: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError) as error:
        grid(*typed, rows=rows)
    assert str(error.value).startswith(message)
