"""Archives: many kept results in one file of JSON lines."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from noveltylab.errors import UserError
from noveltylab.results.archive import (
    Row,
    archive_of,
    find_row,
    is_archive,
    line_of,
    read_archive,
    read_kept_file,
    without_suffix,
    write_rows,
)
from noveltylab.results.record import read_result
from tests.report.conftest import flat_metrics, result_of

FOLDER = "p2/pca/mnist/inlier3/seed0"
RESULT = result_of("pca", "mnist", "p2", 3, 0, {"residual": flat_metrics(0.9)}, {})


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of one run with a log."""
    path = tmp_path / "plan.jsonl"
    path.write_bytes(
        line_of(Row(FOLDER, RESULT, {"metrics.csv": "name,value\nä\u2028,1\n"})) + b"\n"
    )
    return path


def test_a_row_is_read_as_the_folder_that_it_was(archive: Path) -> None:
    (archive.parent / "plan" / FOLDER).mkdir(parents=True)
    (archive.parent / "plan" / FOLDER / "result.json").write_text(json.dumps(RESULT))
    row = archive / FOLDER
    assert read_result(row) == read_result(without_suffix(row))
    assert read_kept_file(row, "metrics.csv").decode() == "name,value\nä\u2028,1\n"
    assert archive_of(row) == archive == archive_of(archive)
    assert archive_of(without_suffix(row)) is None


def test_what_an_archive_does_not_hold_is_said(archive: Path) -> None:
    absent = archive / FOLDER.replace("seed0", "seed1")
    assert find_row(absent) is None and find_row(archive.parent / FOLDER) is None
    with pytest.raises(UserError, match="seed1.*no such row in the archive"):
        read_result(absent)
    with pytest.raises(FileNotFoundError, match="scores.csv is not kept"):
        read_kept_file(archive / FOLDER, "scores.csv")


def test_a_changed_archive_is_read_again(archive: Path) -> None:
    assert read_archive(archive).lines.keys() == {FOLDER}
    name = FOLDER.replace("seed0", "seed1")
    archive.write_bytes(line_of(Row(name, RESULT)) + b"\n")
    assert read_archive(archive).lines.keys() == {name}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"folder":', "damaged"),
        (b"[]", "holds no result"),
        (b'{"folder":"p2/pca/mnist/inlier3/seed1"}', "holds no result"),
        (b'{"folder":"../../x/inlier3/seed1","result":{}}', "names no run folder"),
        (b'{"folder":"/p2/pca/inlier3/seed1","result":{}}', "names no run folder"),
        (b'{"folder":"p2/pca","result":{}}', "names no run folder"),
        (b'{"folder":"p2/pca/mnist/inlier3/seed1","result":{"a":NaN}}', "no number"),
        (b'{"folder":"p2/pca/mnist/inlier3/seed1","result":{},"files":{"a":1}}', "than texts"),
        (b"[" * 100_000, "nested too deeply"),
        (line_of(Row(FOLDER, RESULT)), "stands in an earlier line as well"),
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(
    archive: Path, line: bytes, reason: str
) -> None:
    with open(archive, "ab") as file:
        file.write(line + b"\n")
    index = read_archive(archive)
    (fault,) = index.faults
    assert fault.startswith("line 2: ") and reason in fault
    assert read_result(archive / FOLDER)["inlier"] == 3


def test_other_files_of_json_lines_are_no_archives(archive: Path, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text('{"step": 1}\n')
    assert is_archive(archive) and not is_archive(history)
    assert not is_archive(tmp_path) and not is_archive(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("folder", ["p2/pca", "../pca/mnist/inlier3/seed0"])
def test_a_row_that_could_not_be_read_back_is_not_written(folder: str) -> None:
    with pytest.raises(ValueError, match="names no run folder"):
        line_of(Row(folder, RESULT))
    with pytest.raises(ValueError, match="JSON"):
        line_of(Row(FOLDER, {"value": float("nan")}))


def test_a_row_of_the_same_folder_is_replaced_and_rows_stand_in_order(archive: Path) -> None:
    folders = [FOLDER.replace("seed0", f"seed{seed}") for seed in (2, 1)]
    write_rows(archive, [Row(folder, RESULT) for folder in folders])
    first = archive.read_bytes().splitlines()[0]
    write_rows(archive, [Row(FOLDER.replace("seed0", "seed1"), RESULT | {"seed": 1})])
    index = read_archive(archive)
    assert not index.faults
    assert [*index.lines] == [FOLDER, *sorted(folders)]
    assert index.lines[FOLDER] == first
    assert [
        row.result["seed"] for folder in index.lines if (row := find_row(archive / folder))
    ] == [
        0,
        1,
        0,
    ]
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_threads_that_keep_runs_in_one_archive_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.jsonl"
    rows = [Row(FOLDER.replace("seed0", f"seed{seed}"), RESULT) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: write_rows(path, [row]), rows))
    assert len(read_archive(path).lines) == 8


def test_a_damaged_archive_is_not_written_over(archive: Path) -> None:
    with open(archive, "ab") as file:
        file.write(b"{}\n")
    before = archive.read_bytes()
    with pytest.raises(UserError, match="line 2: damaged .* restore it"):
        write_rows(archive, [Row(FOLDER, RESULT)])
    assert archive.read_bytes() == before
