"""What may share a row, what may be paired, and what a shortened run must not touch."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.report.collect import collect
from noveltylab.report.grouping import group
from noveltylab.report.page import to_html
from noveltylab.report.published import read_tables
from noveltylab.report.recipe import compare_to_recipe
from noveltylab.report.records import to_csv
from noveltylab.report.rows import Row, floor_cells, paired_cells
from noveltylab.report.tables import build
from noveltylab.report.text import to_markdown
from tests.report.conftest import WriteRun

TABLES = read_tables()
Change = Callable[[dict[str, Any]], None]


def rows_in(outputs: Path) -> list[Row]:
    return [row for rows in group(collect(outputs).runs).values() for row in rows]


def having(**options: Any) -> Change:
    """Sets options by `group__key`, and other parts of a result by their name."""

    def change(result: dict[str, Any]) -> None:
        for name, value in options.items():
            folder, _, key = name.partition("__")
            if key:
                result["config"][folder] = {**result["config"].get(folder, {}), key: value}
            else:
                result[name] = value

    return change


def fitted_once(**options: Any) -> Change:
    return having(selected={"rule": "last", "epoch": 0, "value": None}, **options)


def as_formats(outputs: Path, folder: Path) -> dict[str, str]:
    document, records = build(collect(outputs), TABLES, "outputs")
    return {"md": to_markdown(document), "html": to_html(document, folder), "csv": to_csv(records)}


@pytest.mark.parametrize(
    "change",
    [
        having(trainer__max_epochs=800),
        having(trainer__precision="bf16-mixed"),
        having(data__size=28),
        having(data__limit_train=50),
        having(protocol__val_fraction=0.3),
        having(method__lr=0.5),
        having(select="last", data_verified=False),
        having(data__classes="folders", data__root="/somewhere/else"),
    ],
)
def test_runs_with_other_options_or_images_share_no_row(
    outputs: Path, write_run: WriteRun, change: Change
) -> None:
    write_run(seed=0, auroc=0.9)
    write_run(seed=1, auroc=0.5, change=change)
    rows = rows_in(outputs)
    assert [len(row.runs) for row in rows] == [1, 1]
    assert len({row.name for row in rows}) == 2
    assert {row.cells()[cell][0] for row in rows for cell in row.cells()} == {0.9, 0.5}


def test_another_primary_score_is_another_row(outputs: Path, write_run: WriteRun) -> None:
    write_run(seed=0, auroc={"mse": 0.9, "dv_x": 0.7})
    write_run(seed=1, auroc={"mse": 0.9, "dv_x": 0.7}, change=having(primary="dv_x"))
    assert [row.primary for row in rows_in(outputs)] == ["mse", "dv_x"]


@pytest.mark.parametrize(
    "change",
    [
        having(trainer__accelerator="gpu"),
        having(trainer__winograd=True),
        having(data__root="/elsewhere", data__download=True),
        having(select="oracle"),
        having(data__limit_train=100_000),  # more than there are: nothing was left out
        having(
            provenance={
                "commit": "1" * 40,
                "versions": {"torch": "2.16.0"},
                "hardware": {"gpu": "H100"},
            }
        ),
    ],
)
def test_what_makes_no_number_tears_no_row_apart(
    outputs: Path, write_run: WriteRun, change: Change
) -> None:
    write_run(seed=0, auroc=0.9)
    write_run(seed=1, auroc=0.5, change=change)
    (row,) = rows_in(outputs)
    assert len(row.runs) == 2 and not row.shortened


def test_epochs_are_no_option_of_a_method_without_them(outputs: Path, write_run: WriteRun) -> None:
    write_run("pca", seed=0, auroc=0.9, change=fitted_once(trainer__max_epochs=2))
    write_run("pca", seed=1, auroc=0.9, change=fitted_once(trainer__max_epochs=20))
    (row,) = rows_in(outputs)
    assert not row.shortened


def test_two_folders_of_ones_own_images_are_told_apart_by_name(
    outputs: Path, write_run: WriteRun
) -> None:
    for seed, folder in enumerate(("/a/bolts", "/b/nuts", "/c/nuts")):
        write_run(seed=seed, auroc=0.9, change=having(data__classes="folders", data__root=folder))
    assert [row.name for row in rows_in(outputs)] == [
        "ocgan (images bolts)",
        "ocgan (images nuts)",
        "ocgan (images nuts no. 3)",
    ]


@pytest.mark.parametrize(("images", "rows"), [("1" * 64, 1), ("2" * 64, 2)])
def test_ones_own_images_are_known_by_their_content(
    outputs: Path, write_run: WriteRun, images: str, rows: int
) -> None:
    """Copied elsewhere they are the same; other images under the same names are not."""
    for seed, content in enumerate(("1" * 64, images)):
        options = {
            "data__classes": "folders",
            "data__root": f"/{seed}/parts",
            "data_verified": None,
        }
        write_run(seed=seed, auroc=0.9, change=having(images_sha256=content, **options))
    assert len(rows_in(outputs)) == rows


def test_every_format_says_what_differs(outputs: Path, write_run: WriteRun, tmp_path: Path) -> None:
    write_run("ocgan", seed=0, auroc=0.9)
    provenance = {
        "commit": "abcdef0123456-dirty",
        "versions": {"torch": "9.9.9"},
        "hardware": {"gpu": "a GPU"},
    }
    write_run("ocgan", seed=1, auroc=0.9, change=having(provenance=provenance))
    write_run("oled", seed=0, auroc=0.9, change=having(data_verified=False))
    for name, text in as_formats(outputs, tmp_path).items():
        for difference in ("abcdef0123-dirty", "9.9.9", "a GPU", "not verified"):
            assert difference in text, (name, difference)


def test_cells_are_paired_on_the_same_split_alone(outputs: Path, write_run: WriteRun) -> None:
    for seed in range(3):
        write_run("ocgan", seed=seed, auroc=0.9)
    write_run("oled", seed=0, auroc=0.8)
    write_run("oled", seed=1, auroc=0.8, change=having(split_sha256="1" * 64))
    ocgan, oled = rows_in(outputs)
    first, second = paired_cells(ocgan, oled)
    assert list(first) == list(second) == [(0, 0)]


def test_ones_own_images_are_paired_where_they_are_the_same(
    outputs: Path, write_run: WriteRun
) -> None:
    for method, images in (("ocgan", "1"), ("oled", "1"), ("nda", "2")):
        write_run(
            method, auroc=0.9, change=having(data__classes="folders", images_sha256=images * 64)
        )
    nda, ocgan, oled = rows_in(outputs)
    assert paired_cells(ocgan, oled) == (ocgan.cells(), oled.cells())
    assert paired_cells(ocgan, nda) == ({}, {})


@pytest.mark.parametrize(
    ("method", "change", "reason"),
    [
        ("ocgan", having(data__limit_train=90), "the first 90 training images"),
        ("pca", fitted_once(data__limit_train=37), "the first 37 training images"),
        ("ocgan", having(trainer__max_epochs=9), "9 of 10 epochs"),
        ("deep_svdd", having(trainer__max_epochs=299), "299 of 300 epochs"),
        ("anogan", having(method__search_steps=3), "3 of 50 search steps"),
        ("pca", fitted_once(protocol__val_fraction=0.9), "val_fraction 0.9 instead of 0.1"),
    ],
)
def test_every_way_to_shorten_is_marked_in_every_format(
    outputs: Path, write_run: WriteRun, tmp_path: Path, method: str, change: Change, reason: str
) -> None:
    write_run(method, seed=0, auroc=0.9)
    write_run(method, seed=1, auroc=0.99, change=change)
    rows = rows_in(outputs)
    assert [row.shortened for row in rows] == [(), (reason,)]
    formats = as_formats(outputs, tmp_path)
    for name, text in formats.items():
        assert reason in text and "†" in text, name
    assert "0.9900" in formats["md"] and "0.9450" not in formats["md"]  # no mean of both
    assert f"**{method}**" in formats["md"]
    # never bold
    assert not [line for line in formats["md"].splitlines() if "†" in line and "**" in line]
    records = list(csv.DictReader(io.StringIO(formats["csv"])))
    marked = [record for record in records if record["shortened"]]
    assert {record["kind"] for record in marked} == {"ours", "run"}
    assert {record["value"] for record in marked} == {"0.99"}


def test_whole_is_what_the_runs_own_recipe_has() -> None:
    options = {"trainer.max_epochs": 25, "data.size": 32, "protocol.val_fraction": 0.1}
    literal = compare_to_recipe(
        "ocgan", "mnist", "p2", "", options | {"recipe": "paper"}, 5000, False
    )
    assert literal.shorter == ("25 of 201 epochs",)
    unknown = compare_to_recipe(
        "ocgan", "mnist", "p2", "", options | {"recipe": "../paper"}, 5000, False
    )
    assert unknown.shorter == ("25 of 200 epochs",)
    labelled = {"trainer.max_epochs": 99, "data.name": "images", "data.classes": "folders"}
    labelled_run = compare_to_recipe("ca_entropy", "bottle", "folders", "", labelled, 60, False)
    assert labelled_run.shorter == ("99 of 100 epochs",)
    whole = compare_to_recipe("ocgan", "mnist", "p2", "", options, 5000, False)
    assert not whole.shorter and not whole.fewer_images and whole.other_input == 0
    hostile = compare_to_recipe(
        "../ocgan", "../mnist", "/etc/passwd", "../..", options, 5000, False
    )
    # conf/trainer's own; nothing outside conf/ is read
    assert hostile.shorter == ("25 of 200 epochs",)


def trial(**options: Any) -> Change:
    def change(result: dict[str, Any]) -> None:
        having(split_sha256="f" * 64, **options)(result)
        for metrics in result["floor"].values():
            metrics |= {"auroc": 0.3, "auroc_ci": [0.3, 0.3]}

    return change


@pytest.mark.parametrize(
    "change",
    [
        trial(data__limit_train=10),
        trial(protocol__val_fraction=0.8),
        trial(data__size=8),
        trial(trainer__max_epochs=1),
    ],
)
def test_a_trial_changes_no_floor(outputs: Path, write_run: WriteRun, change: Change) -> None:
    write_run("ocgan", auroc=0.9, floor=0.8)
    before = floor_cells(rows_in(outputs), "pca")
    for method in ("oled", "nda", "pca"):
        write_run(method, auroc=0.9, change=change)
    assert floor_cells(rows_in(outputs), "pca") == before


def test_a_floor_counts_once_for_each_split(outputs: Path, write_run: WriteRun) -> None:
    for method in ("ocgan", "oled", "nda"):
        write_run(method, auroc=0.9, floor=0.8)
    write_run("knn", auroc=0.9, floor=0.6, change=having(split_sha256="1" * 64))
    assert floor_cells(rows_in(outputs), "pca")[0, 0][0] == pytest.approx(0.7)


def test_floors_of_trials_alone_are_marked(
    outputs: Path, write_run: WriteRun, tmp_path: Path
) -> None:
    write_run(auroc=0.9, change=having(data__limit_train=10))
    formats = as_formats(outputs, tmp_path)
    assert "floor: pca †" in formats["md"] and "only shortened runs" in formats["csv"]


def test_shortened_runs_are_not_ranked_against_whole_ones(
    outputs: Path, write_run: WriteRun, tmp_path: Path
) -> None:
    for label in range(3):
        write_run("ocgan", inlier=label, auroc=0.9)
        write_run("oled", inlier=label, auroc=0.95, change=having(data__limit_train=10))
    text = as_formats(outputs, tmp_path)["md"]
    (ranks,) = [line for line in text.splitlines() if line.startswith("Average ranks")]
    assert "ocgan" in ranks and "oled" not in ranks
