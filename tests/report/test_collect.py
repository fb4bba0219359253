import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.errors import UserError
from noveltylab.report.collect import collect
from noveltylab.results.archive import Row, line_of
from tests.conftest import TINY, forbid
from tests.report.conftest import WriteRun, edit


def only_damage(outputs: Path, check: bool = False) -> str:
    runs = collect(outputs, check)
    assert not runs.runs and len(runs.damaged) == 1
    return runs.damaged[0][1]


def test_reads_a_real_run(
    run_here: Callable[..., dict[str, Any]], small_data: Path, outputs: Path
) -> None:
    written = run_here("data=mnist", "data.verify=false", "inlier=3", "select=oracle", *TINY)
    runs = collect(outputs, check=True)
    assert not runs.damaged and not runs.unfinished
    (run,) = runs.runs
    assert run.cell == (3, 0) and run.family == "ocgan" and run.source == ""
    assert run.result.scores["mse"].auroc == written["scores"]["mse"]["auroc"]
    assert set(run.result.labelled) == {"oracle"}
    assert run.options["trainer.max_epochs"] == "4"


def test_finds_runs_at_any_depth_and_passes_over_moved_and_hidden_ones(
    outputs: Path, write_run: WriteRun
) -> None:
    write_run(auroc=0.9)
    write_run(auroc=0.9, output=outputs / "ocgan" / "table2_mnist")
    shutil.copytree(
        write_run(seed=1, auroc=0.9), outputs / "p2/ocgan/mnist/inlier0/seed1.20260101-120000"
    )
    shutil.copytree(outputs / "p2", outputs / ".trash" / "p2")
    runs = collect(outputs)
    assert sorted((run.source, run.cell) for run in runs.runs) == [
        ("", (0, 0)),
        ("", (0, 1)),
        ("ocgan/table2_mnist", (0, 0)),
    ]
    assert not runs.damaged and not runs.unfinished


def test_folders_that_cannot_be_looked_into_are_named(
    outputs: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run("ocgan")
    closed = write_run("nda").parents[1]
    forbid(monkeypatch, closed)
    runs = collect(outputs)
    assert len(runs.runs) == 1 and runs.damaged == [
        (closed, "cannot be looked into (Permission denied)")
    ]


def test_a_single_run_folder_is_a_folder_of_runs(write_run: WriteRun) -> None:
    (run,) = collect(write_run(auroc=0.9)).runs
    assert run.source == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"method": "ocg', "damaged"),
        ("", "damaged"),
        ("[1]", "holds a list"),
        ("{}", "method: field required"),
        ("[" * 100_000, "nested too deeply"),
        ("\x00\xff", "damaged"),
    ],
)
def test_damaged_json_is_named(outputs: Path, write_run: WriteRun, text: str, reason: str) -> None:
    (write_run(auroc=0.9) / "result.json").write_text(text, encoding="latin-1")
    assert reason in only_damage(outputs)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"seed": "0"}, "seed: input should be a valid integer"),
        ({"primary": "dv"}, "primary is 'dv'"),
        ({"scores": {"mse": {"auroc": 0.5}}}, "scores.mse.auroc_ci: field required"),
        ({"floor": []}, "floor: input should be a valid dictionary"),
        ({"seed": 1}, "lies elsewhere"),
        ({"method": "oled"}, "config: is that of ocgan mnist p2"),
        ({"warnings": None}, "warnings: input should be a valid list"),
    ],
)
def test_wrong_contents_are_named(
    outputs: Path, write_run: WriteRun, values: dict[str, Any], reason: str
) -> None:
    edit(write_run(auroc=0.9), **values)
    assert reason in only_damage(outputs)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1.5", "-0.1", '"0.9"', "null", "true"])
def test_an_auroc_that_is_none_is_damage(outputs: Path, write_run: WriteRun, value: str) -> None:
    path = write_run(auroc=0.9) / "result.json"
    path.write_text(path.read_text().replace('"auroc": 0.9', f'"auroc": {value}'))
    assert "scores.mse.auroc" in only_damage(outputs)


def test_check_compares_the_files_with_their_checksums(outputs: Path, write_run: WriteRun) -> None:
    folder = write_run()
    assert len(collect(outputs, check=True).runs) == 1
    with open(folder / "scores.csv", "a") as file:
        file.write("test/100,1,1,0.5,0.5\n")
    assert len(collect(outputs).runs) == 1
    assert "scores.csv: is not the file that result.json records" in only_damage(
        outputs, check=True
    )
    (folder / "scores.csv").unlink()
    assert "scores.csv: cannot be read" in only_damage(outputs, check=True)


def test_check_reads_nothing_outside_the_run(outputs: Path, write_run: WriteRun) -> None:
    edit(write_run(auroc=0.9), files={"../../../../../../secret": "0" * 64})
    assert "files." in only_damage(outputs, check=True)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (None, "no run.log"),
        (
            "10:00:00 run folder x\n10:00:01 epoch 1 of 4\n",
            "running or killed: 10:00:01 epoch 1 of 4",
        ),
        (
            "10:00:00 run folder x\n10:00:01 Traceback (most recent call last):\n  File\n10:00:01 ValueError: no\n\n",
            "failed: 10:00:01 ValueError: no",
        ),
        (
            "10:00:00 run folder x\n10:00:01 Traceback (most recent call last):\n10:00:01 ValueError: no\n"
            "11:00:00 run folder x\n11:00:09 epoch 2 of 4\n",
            "running or killed: 11:00:09 epoch 2 of 4",
        ),
        (
            "10:00:00 run folder x\n10:00:01 epoch 1 of 4\n10:00:02 interrupted\n",
            "10:00:02 interrupted",
        ),
    ],
)
def test_unfinished_runs_say_how_far_they_got(
    outputs: Path, write_run: WriteRun, log: str | None, reason: str
) -> None:
    folder = write_run(auroc=0.9)
    (folder / "result.json").unlink()
    if log is not None:
        (folder / "run.log").write_text(log)
    runs = collect(outputs)
    assert not runs.runs and runs.unfinished[0][0] == folder.resolve()
    assert reason in runs.unfinished[0][1]


def test_nothing_of_a_run_is_executed(outputs: Path, write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(auroc=0.9)
    (folder / "config.yaml").write_text(
        f"x: !!python/object/apply:os.mkdir ['{tmp_path / 'pwned'}']\n"
    )
    assert len(collect(outputs, check=False).runs) == 1
    assert not (tmp_path / "pwned").exists()


def test_refuses_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        collect(tmp_path / "none")
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no runs"):
        collect(tmp_path)


def test_the_family_of_a_renamed_method_is_its_class(outputs: Path, write_run: WriteRun) -> None:
    folder = write_run("ocgan_full", auroc=0.9)
    config = json.loads((folder / "result.json").read_text())["config"]
    edit(
        folder,
        config=config
        | {"method": config["method"] | {"_target_": "noveltylab.methods.ocgan.OCGAN"}},
    )
    (run,) = collect(outputs).runs
    assert (run.result.method, run.family) == ("ocgan_full", "ocgan")


def into_archive(output: Path) -> Path:
    """Moves the runs of an output folder into an archive beside it."""
    archive = output.with_name(f"{output.name}.jsonl")
    with open(archive, "wb") as file:
        for path in sorted(output.rglob("result.json")):
            folder = path.parent.relative_to(output).as_posix()
            files = {"metrics.csv": (path.parent / "metrics.csv").read_text()}
            file.write(line_of(Row(folder, json.loads(path.read_text()), files)) + b"\n")
    shutil.rmtree(output)
    return archive


def test_an_archive_is_read_as_the_folder_that_it_stands_for(
    outputs: Path, write_run: WriteRun
) -> None:
    for seed in (0, 1, 2, 10):
        write_run("pca", seed=seed, auroc=0.9, output=outputs / "learn" / "mnist")
    write_run(auroc=0.9, output=outputs / "learn" / "mnist_full")
    write_run(auroc=0.9, output=outputs / "learn" / "cifar10")
    before = collect(outputs)
    archive = into_archive(outputs / "learn" / "mnist")
    (outputs / "learn" / "history.jsonl").write_text('{"step": 1}\n')
    after = collect(outputs)
    assert not after.damaged and len(collect(archive, check=True).unchecked) == 4
    assert [run.source for run in after.runs] == [run.source for run in before.runs]
    assert [run.result for run in after.runs] == [run.result for run in before.runs]
    assert [run.place for run in after.runs if run.source == "learn/mnist"] == [archive] * 4
    assert {run.source for run in collect(archive).runs} == {""}
    one = collect(archive / "p2" / "pca" / "mnist" / "inlier0" / "seed10")
    assert [run.cell for run in one.runs] == [(0, 10)]
    with pytest.raises(UserError, match="holds no runs"):
        collect(archive / "p1")


def test_a_run_from_windows_lies_where_its_names_are_written_otherwise(
    outputs: Path, write_run: WriteRun
) -> None:
    def named(result: dict[str, Any]) -> None:
        result["data"] = result["config"]["data"]["name"] = "left:camera."

    write_run(data="left%3acamera%2e", auroc=0.9, change=named)
    runs = collect(outputs)
    assert not runs.damaged and [run.result.data for run in runs.runs] == ["left:camera."]


def test_faults_of_an_archive_are_named(outputs: Path, write_run: WriteRun) -> None:
    write_run(auroc=0.9, output=outputs / "plan")
    write_run(seed=1, auroc=0.9, output=outputs / "plan")
    archive = into_archive(outputs / "plan")
    text = archive.read_text()
    archive.write_text(text.replace('"seed":1', '"seed":2', 1) + "{}\n")
    again = write_run(auroc=0.9, output=outputs / "plan")
    runs = collect(outputs)
    assert [run.folder for run in runs.runs] == [again]
    (twice, elsewhere, line) = runs.damaged
    assert twice[0] == archive / again.relative_to(outputs / "plan") and "as well" in twice[1]
    assert elsewhere[0].name == "seed1" and "lies elsewhere" in elsewhere[1]
    assert line == (archive, "line 3: damaged (holds no result)")
