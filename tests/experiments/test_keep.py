"""Results that are kept, and the papers' pages written from them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from experiments import keep, studies
from noveltylab.command.recipes import config_names, read_recipe, recipes_of
from noveltylab.job import CONF
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
    names = (*keep.PAPERS, "classical", keep.STUDIES)
    pages = {name: (keep.EXPERIMENTS / name / "RESULTS.md").read_text() for name in names}
    monkeypatch.setattr(keep, "EXPERIMENTS", tmp_path)
    keep.write_pages()
    assert {name: (tmp_path / name / "RESULTS.md").read_text() for name in names} == pages
    assert max(page.count("\n") for page in pages.values()) <= 250  # two screens, with room


#: The studies that were run.
RUN_STUDIES = [
    name
    for name in keep.experiment_files()
    if name.startswith(f"{keep.STUDIES}/") and keep.archive(name).is_file()
]


def runs_by_row(name: str) -> dict[str, Run_]:
    """One kept run of each row of a study; the others differ in class and seed."""
    return {run.result.method: run for run in collect(keep.archive(name), check=False).runs}


@pytest.mark.parametrize("name", RUN_STUDIES)
def test_kept_runs_of_a_study_are_its_rows_and_stand_on_the_page(name: str) -> None:
    """Composing takes half a second a row: here the first and the last, `make test-slow` has all."""
    by_row = runs_by_row(name)
    assert set(by_row) <= set(keep.rows_of(name))
    first, *_, last = [*by_row.values(), *by_row.values()]
    for run in (first, last):
        assert list(keep.departures(run, name)) == []
    study = name.partition("/")[2]
    page = (keep.EXPERIMENTS / keep.STUDIES / "RESULTS.md").read_text()
    assert set(re.findall(rf"^\| {study} \| (\S+) \|", page, re.MULTILINE)) == set(by_row)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_STUDIES)
def test_every_kept_run_of_a_study_has_the_options_of_its_row(name: str) -> None:
    for run in runs_by_row(name).values():
        assert list(keep.departures(run, name)) == []


def test_a_line_of_a_study_averages_seeds_before_classes(tmp_path: Path) -> None:
    def run(inlier: int, seed: int, auroc: float) -> Run_:
        metrics = {"mse": flat_metrics(auroc)}
        floors = {"pca": flat_metrics(0.25), "knn": flat_metrics(0.75)}
        content = result_of("ocgan", "mnist", "p2", inlier, seed, metrics, floors)
        return Run_(tmp_path, "", Result.model_validate(content))

    line = studies.study_line("mnist", "wide", [run(1, 0, 0.5), run(1, 1, 0.6), run(8, 0, 0.95)])
    assert line.startswith("| mnist | wide | mse | 0.7500 | 1, 8 | 0, 1 | 0.2500 | 0.7500 | ")
    assert studies.listed([4, 0, 2, 1, 2]) == "0 to 4"


def test_a_run_of_a_study_is_kept_with_its_losses(
    run_here: Run, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is short: its own file says so. With another option it is a trial."""
    short = {"trainer": {"max_epochs": 1, "val_every": 1, "accelerator": "cpu"}}
    content = {**short, "hydra": {"sweeper": {"params": {"seed": 0, "inlier": 8}}}}
    store = ConfigStore.instance()
    monkeypatch.setitem(store.repo["experiment"], "learn", dict(store.repo["experiment"]["learn"]))
    store.store("tiny", DictConfig(content), "experiment/learn", "_global_")
    rows = {"narrow": ["method=ae", "method.channels=4"]}
    monkeypatch.setattr(keep, "experiment_files", lambda: {"learn/tiny": rows})
    for channels in (4, 2):
        run_here(
            *("experiment=learn/tiny", "method=ae", "method.name=narrow"),
            *(f"method.channels={channels}", f"output={tmp_path / str(channels)}"),
        )
    assert keep.main([str(tmp_path / "4"), "learn/tiny"]) == 0
    row = find_row(keep.archive("learn/tiny") / "p1/narrow/digits/inlier8/seed0")
    assert row is not None and [*row.files] == ["metrics.csv"]
    assert "| tiny | narrow | mse |" in (here / "learn" / "RESULTS.md").read_text()
    trial = collect(tmp_path / "2").runs[0]
    assert keep.why_not(trial, Collected(), "learn/tiny", False) == [
        "a trial: method.channels 2 instead of 4"
    ]


def test_the_study_of_the_recipes_ours_measures_what_they_change() -> None:
    rows = keep.rows_of("learn/ours")
    methods = [name for name in config_names(CONF / "recipe") if "ours" in recipes_of(name)]
    assert set(rows) == {*methods, *(f"{method}_ours" for method in methods)}
    for method in methods:
        assert rows[f"{method}_ours"][0] == method
        changes = OmegaConf.from_dotlist(rows[f"{method}_ours"][1:])
        assert changes == read_recipe(f"{method}/ours")["every"]


def test_the_first_code_of_deep_svdd_is_measured_as_its_recipe_has_it() -> None:
    row = keep.rows_of("learn/deep_svdd")["deep_svdd_first_code"]
    assert row[0] == "deep_svdd"
    assert OmegaConf.from_dotlist(row[1:]) == read_recipe("deep_svdd/first_code")["every"]


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
