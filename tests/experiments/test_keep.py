"""Results that are kept, and the papers' pages written from them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import keep
from noveltylab.report.collect import Collected, collect
from noveltylab.report.collect import Run as Run_
from noveltylab.results.archive import find_row, read_archive
from noveltylab.results.schema import Result
from tests.report.conftest import flat_metrics, result_of

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another experiments/."""
    monkeypatch.setattr(keep, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(keep, "KEPT", tmp_path / "experiments" / "results")
    return tmp_path / "experiments"


def test_the_pages_here_are_those_of_the_kept_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing on them is typed by hand, and no kept result is damaged."""
    found = collect(keep.KEPT)
    assert not (found.damaged or found.unfinished or found.unmeasured)
    names = (*keep.PAPERS, "classical")
    pages = {name: (keep.EXPERIMENTS / name / "RESULTS.md").read_text() for name in names}
    monkeypatch.setattr(keep, "EXPERIMENTS", tmp_path)
    keep.write_pages()
    assert {name: (tmp_path / name / "RESULTS.md").read_text() for name in names} == pages
    assert max(page.count("\n") for page in pages.values()) <= 250  # two screens, with room


def test_results_are_kept_under_a_name(
    run_here: Run, here: Path, tmp_path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("method=pca", "data=mnist", "data.verify=false", "inlier=3")
    assert keep.main([str(tmp_path / "outputs"), "studies/raw"]) == 0
    page = (here / "ocgan" / "RESULTS.md").read_text()
    assert "ocgan/table2" in page and "pca" not in page  # pca is no row of the paper's tables
    archive = here / "results" / "studies" / "raw.jsonl"
    assert str(tmp_path) not in archive.read_text()  # no folder of this machine
    assert [*read_archive(archive).lines] == ["p2/pca/mnist/inlier3/seed0"]
    row = find_row(archive / "p2" / "pca" / "mnist" / "inlier3" / "seed0")
    assert row is not None and not row.files
    whole = json.loads(next((tmp_path / "outputs").rglob("result.json")).read_text())
    assert {
        key: value for key, value in row.result.items() if key not in ("config", "provenance")
    } == {key: value for key, value in whole.items() if key not in ("config", "provenance")}
    assert keep.main([]) == 0
    next((tmp_path / "outputs").rglob("scores.csv")).write_text("edited")
    capsys.readouterr()
    assert keep.main([str(tmp_path / "outputs"), "ocgan/again"]) == 0
    assert (
        "not kept: " in (said := capsys.readouterr().err) and "scores.csv: is not the file" in said
    )
    assert not (here / "results" / "ocgan").exists()


def test_a_command_is_kept_without_its_folders() -> None:
    here = {
        "config": {"output": "/x/y", "seed": 1, "data": {"root": "/d", "size": 8}},
        "provenance": {
            "command": "/a/noveltylab/__main__.py method=pyod output=/x/y data.root=/d seed=1",
            "commit": "c",
        },
    }
    assert keep.portable(here, "learn/pyod") == {
        "config": {"output": "outputs/learn/pyod", "seed": 1, "data": {"root": None, "size": 8}},
        "provenance": {
            "command": "python -m noveltylab method=pyod output=outputs/learn/pyod seed=1",
            "commit": "c",
        },
    }


def test_no_kept_result_names_a_folder_of_a_machine() -> None:
    archives = list(keep.KEPT.rglob("*.jsonl"))
    assert archives
    for path in archives:
        name = path.relative_to(keep.KEPT).with_suffix("").as_posix()
        for folder in read_archive(path).lines:
            row = find_row(path / folder)
            assert row is not None and row.result == keep.portable(row.result, name), path


def test_a_run_whose_files_changed_is_not_kept(run_here: Run, here: Path, tmp_path: Path) -> None:
    run_here("method=pca")
    with open(next((tmp_path / "outputs").rglob("scores.csv")), "a") as file:
        file.write("\n")
    keep.main([str(tmp_path / "outputs"), "x"])
    assert not list(here.rglob("*.jsonl"))


def test_bad_input_exits_2(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keep.main([str(tmp_path / "nowhere"), "x"]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        keep.main([str(tmp_path)])
    assert exit.value.code == 2
    assert "a folder goes with a name" in capsys.readouterr().err


def as_planned(table: str, swept: tuple[str, ...], folder: Path, **options: Any) -> Run_:
    """A run of a table as the report reads it; options are set by `group__key`."""
    config = json.loads(json.dumps(keep.planned(table, swept))) | {"inlier": 3, "seed": 1}
    for name, value in options.items():
        group, _, key = name.partition("__")
        config[group][key] = value
    method, protocol = config["method"]["name"], config["protocol"]["name"]
    scores = {config["method"]["primary"]: flat_metrics(0.9)}
    content = result_of(method, config["data"]["name"], protocol, 3, 1, scores, {})
    return Run_(folder, "", Result.model_validate(content | {"config": config}))


@pytest.mark.parametrize(
    ("table", "swept"),
    [
        ("ocgan/table2_mnist", ()),
        ("ocgan/table4_mnist", ("row=ocgan_autoencoder",)),
        ("ca_entropy/table4_cifar10", ("row=ca_entropy_entropy",)),
        ("ocgan/table2_mnist", ("recipe=paper",)),
        ("oled/table4_mnist", ("method.mask=random10",)),
    ],
)
def test_runs_of_a_table_are_kept_and_trials_are_not(
    tmp_path: Path, table: str, swept: tuple[str, ...]
) -> None:
    def why_not(**options: Any) -> str:
        return "; ".join(
            keep.why_not(as_planned(table, swept, tmp_path, **options), Collected(), table, False)
        )

    assert why_not() == ""
    assert why_not(trainer__accelerator="gpu", data__root="/elsewhere", data__verify=False) == ""
    assert "a trial: data.limit_train 50 instead of None" in why_not(data__limit_train=50)
    assert "trainer.max_epochs 1 instead of" in why_not(trainer__max_epochs=1)
    assert "data.size 8 instead of" in why_not(data__size=8)
    assert "a trial: " in why_not(method__name="pca")


def test_a_trial_is_shown_where_it_was_made(
    run_here: Run, here: Path, tmp_path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("method=pca", "data=mnist", "data.verify=false", "data.limit_train=20", "inlier=3")
    for name in ("ocgan/table2_mnist", "studies/raw"):
        capsys.readouterr()
        assert keep.main([str(tmp_path / "outputs"), name]) == 0
        said = capsys.readouterr().err
        assert (
            "not kept: " in said
            and f"page: {tmp_path / 'outputs' / 'report' / 'report.html'}" in said
        )
        assert "shortened: the first 20 training images" in said
    assert not here.exists()
    assert keep.main([str(tmp_path / "outputs"), "studies/raw", "--shortened"]) == 0
    assert len(list(here.rglob("*.jsonl"))) == 1


def test_a_table_writes_one_page(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is kept of it stands on no other paper's page."""
    whole = as_planned(
        "ocgan/table2_mnist", (), tmp_path / "p2" / "ocgan" / "mnist" / "inlier3" / "seed1"
    )
    monkeypatch.setattr(keep, "collect", lambda folder, check: Collected([whole], 1))
    content = whole.result.model_dump(exclude_unset=True) | {"files": {}}
    whole.folder.mkdir(parents=True)
    (whole.folder / "result.json").write_text(json.dumps(content))
    (page,) = keep.keep_runs(tmp_path, "ocgan/table2_mnist")
    assert page == here / "ocgan" / "RESULTS.md" and "ocgan/table2" in page.read_text()
    assert sorted(path.name for path in here.iterdir()) == ["ocgan", "results"]


def test_a_papers_page_shows_its_own_rows_and_no_other_methods() -> None:
    page = (keep.EXPERIMENTS / "ca_entropy" / "RESULTS.md").read_text()
    rows = re.findall(r"^\| \**ours: (\w+)", page, re.MULTILINE)
    assert rows and {row.partition("_entropy")[0] for row in rows} == {"ca"}
    runs = keep.own_runs(collect(keep.KEPT).runs, "ocgan")
    assert {run.result.method for run in runs} == {"ocgan"}
    whole = {keep.place_of(run) for run in runs if not run.shortened}
    assert whole and not [run for run in runs if run.shortened and keep.place_of(run) in whole]
