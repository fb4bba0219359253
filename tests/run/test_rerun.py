"""Repeating a run from what its folder holds, whoever made the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import noveltylab.run.rerun
from noveltylab.errors import UserError
from noveltylab.results.archive import Row, line_of
from noveltylab.results.files import sha256_file
from noveltylab.results.record import read_result
from noveltylab.run.rerun import check_files, fresh_options, main

Run = Callable[..., dict[str, Any]]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(pca_outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its folder, and an empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(pca_outputs, tmp_path / "outputs")
    return tmp_path / "outputs" / "p1" / "pca" / "digits" / "inlier8" / "seed0"


def changed(folder: Path, change: Change) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def test_a_run_is_repeated_to_the_same_bytes_and_always_anew(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder)]) == 0
    output = capsys.readouterr()
    assert "byte for byte" in output.out and "checked: split.npz, scores.csv" in output.err
    (again,) = (tmp_path / "here" / "reruns").rglob("scores.csv")
    assert again.read_bytes() == (folder / "scores.csv").read_bytes()
    again.write_text("edited")
    assert main([str(folder)]) == 0
    assert "complete already" not in capsys.readouterr().out
    assert len([*(tmp_path / "here" / "reruns").rglob("scores.csv")]) == 2


def test_other_scores_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "method.components=8"]) == 1
    assert "not the same scores" in capsys.readouterr().out


def test_a_kept_result_without_its_scores_is_compared_by_checksum_and_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "scores.csv").unlink()
    assert main([str(folder)]) == 0
    assert "scores.csv is not kept" in capsys.readouterr().err
    changed(folder, lambda result: result["scores"]["residual"].update(auroc=0.999))
    assert main([str(folder)]) == 1
    assert "records other numbers" in capsys.readouterr().out
    assert main([str(folder), "method.components=8"]) == 1
    output = capsys.readouterr().out
    assert "AUROC 0.999000 there" in output and "not the same scores" in output


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("noveltylab.run.pipeline.run", ran)


EDITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "score": (
        lambda folder: (folder / "scores.csv").write_text(
            (folder / "scores.csv").read_text().replace(",0,", ",1,", 1)
        ),
        "scores.csv: is not the file that result.json records",
    ),
    "label with its checksum": (
        lambda folder: edited_with_checksum(folder),
        "other samples outliers than split.npz",
    ),
    "AUROC": (
        lambda folder: changed(
            folder, lambda result: result["scores"]["residual"].update(auroc=0.999)
        ),
        "scores.residual.auroc is 0.999, but scores.csv gives",
    ),
    "false positives": (
        lambda folder: changed(
            folder, lambda result: result["scores"]["residual"].update(fpr95=0.0)
        ),
        "scores.residual.fpr95 is 0, but",
    ),
    "a score more": (
        lambda folder: changed(
            folder, lambda result: result["scores"].update(better=result["scores"]["residual"])
        ),
        "scores: 'better' stands in result.json alone",
    ),
    "link out of the folder": (
        lambda folder: replaced_by_link(folder / "split.npz"),
        "leads out of its folder",
    ),
}


def edited_with_checksum(folder: Path) -> None:
    lines = (folder / "scores.csv").read_text().splitlines(keepends=True)
    (folder / "scores.csv").write_text(
        "".join([lines[0], lines[1].replace(",0,", ",1,"), *lines[2:]])
    )
    digest = sha256_file(folder / "scores.csv")
    changed(folder, lambda result: result["files"].update({"scores.csv": digest}))


def replaced_by_link(path: Path) -> None:
    path.rename(path.parents[5] / "elsewhere.npz")
    path.symlink_to(path.parents[5] / "elsewhere.npz")


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_run_is_not_believed(
    folder: Path, capsys: pytest.CaptureFixture[str], edit: str
) -> None:
    change, message = EDITS[edit]
    change(folder)
    assert main([str(folder)]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="not believed"):
        check_files(folder, read_result(folder))
    assert not [*Path().iterdir()]


def in_config(**parts: dict[str, Any]) -> Change:
    def change(result: dict[str, Any]) -> None:
        for group, values in parts.items():
            result["config"].setdefault(group, {}).update(values)

    return change


@pytest.mark.posix
def test_a_folder_decides_only_what_makes_numbers(folder: Path, tmp_path: Path) -> None:
    def hostile(result: dict[str, Any]) -> None:
        in_config(
            data={"root": "/etc", "download": True, "cache": True},
            trainer={"strategy": "fsdp", "checkpoint_seconds": 1e9},
            resources={"num_cpus": 10_000, "num_gpus": 8},
        )(result)
        result["config"] |= {
            "output": str(tmp_path / "victim"),
            "force": True,
            "logger": {"name": "wandb", "project": "p", "entity": "stranger", "mode": "online"},
            "surprise": {"a": 1},
        }
        result["provenance"]["hardware"]["threads"] = 10_000

    changed(folder, hostile)
    options, config = fresh_options(folder, read_result(folder), [])
    assert options.folder.is_relative_to("reruns") and not options.folder.exists()
    assert not options.logger.wandb and not options.force and options.resources.num_cpus is None
    assert options.data.root is None and not options.data.download and not options.data.cache
    assert options.trainer.strategy == "auto" and options.trainer.checkpoint_seconds == 60
    assert not {"victim", "stranger", "surprise", "/etc"} & set(
        json.dumps(config).replace('"', " ").split()
    )
    first, _ = fresh_options(folder, read_result(folder), ["output=x", "data.root=y", "seed=1"])
    second, _ = fresh_options(folder, read_result(folder), ["output=x"])
    assert first.folder.is_relative_to("x") and first.data.root == "y" and first.seed == 1
    assert first.output != second.output


def test_devices_and_folders_of_images_are_the_callers(folder: Path) -> None:
    changed(folder, in_config(trainer={"devices": 64}))
    with pytest.raises(UserError, match="64 devices"):
        fresh_options(folder, read_result(folder), [])
    changed(folder, in_config(trainer={"devices": 1}, data={"classes": "folders", "root": "/etc"}))
    with pytest.raises(UserError, match="data.root=/etc"):
        fresh_options(folder, read_result(folder), [])


def test_one_of_the_twenty_objects_is_the_same_again(folder: Path) -> None:
    changed(folder, in_config(data={"classes": "seeded20", "protocols": ["p1"]}))
    changed(folder, lambda result: result["config"].update(inlier=97))
    options, _ = fresh_options(folder, read_result(folder), [])
    assert options.inlier_index == 97


NAMES = (
    "../../x",
    "/etc/x",
    "a/b",
    "a\\b",
    "..",
    ".hidden",
    "",
    "a\x1b[2J",
    "a\nb",
    "x" * 300,
    " x",
    "a\u202eb",
)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("group", ["method", "data", "protocol"])
def test_a_name_leads_nowhere(folder: Path, capsys: pytest.CaptureFixture[str], group: str) -> None:
    for name in NAMES:
        changed(folder, lambda result: result.update({group: name}))  # noqa: B023  # called at once
        changed(folder, in_config(**{group: {"name": name}}))
        assert main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"{group}: " in error and "\x1b" not in error and error.count("\n") == 1
    assert not [*Path().iterdir()]


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_config(method={"_target_": "os.system"}), "asks for os.system, which is no method"),
        (in_config(method={"_target_": "antigravity.x"}), "asks for antigravity.x"),
        (in_config(method={"_target_": "noveltylab.methods.pca.torch"}), "not a subclass"),
        (in_config(method={"_target_": "noveltylab.methods.pca.Method"}), "not a subclass"),
        (in_config(method={"_target_": "noveltylab.methods.base.Method"}), "which is no method"),
        (in_config(method={"_target_": "noveltylab.methods.os.system"}), "which is no method"),
        (in_config(method={"_target_": "noveltylab.methods.pca.torch.load"}), "which is no method"),
        (in_config(method={"_target_": "noveltylab.methods.pca.PCA\n"}), "which is no method"),
        (in_config(data={"features": "${oc.env:HOME}"}), "interpolation"),
        (lambda result: result["config"].pop("method"), "config.method: field required"),
        (in_config(method={"zzz": 1}), "no such option"),
        (in_config(data={"name": "nope", "protocols": ["p1"]}), "config: is that of pca nope p1"),
    ],
)
def test_a_hostile_or_broken_record_is_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    message: str,
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(folder.parents[5] / "here")
    (folder / "config.yaml").unlink()  # which would tell that the record was edited
    changed(folder, change)
    assert main([str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not [*Path().iterdir()]


def test_bad_arguments(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder, so no run is there" in capsys.readouterr().err
    assert main([str(folder), "nonsense"]) == 2
    assert main([str(folder), f"output={folder / 'again'}"]) == 2
    assert "would write into" in capsys.readouterr().err
    assert noveltylab.run.rerun.__doc__ and main(["--help"]) == 0


@pytest.mark.parametrize("group", ["method", "data", "protocol"])
def test_no_option_names_a_folder_elsewhere(folder: Path, group: str) -> None:
    from omegaconf import OmegaConf

    from noveltylab.options import check_options, read_options

    config = read_result(folder)["config"]
    for name in NAMES:
        bad = config | {group: config[group] | {"name": name}}
        if group == "protocol":
            bad |= {"data": config["data"] | {"protocols": [name]}}
        with pytest.raises(UserError, match=rf"{group}\.name="):
            check_options(OmegaConf.create(bad))
        with pytest.raises(UserError, match=rf"{group}\.name="):
            read_options(bad)


def test_a_row_of_an_archive_is_repeated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "plan.jsonl"
    name = folder.relative_to(tmp_path / "outputs").as_posix()
    archive.write_bytes(
        line_of(Row(name, json.loads((folder / "result.json").read_text()))) + b"\n"
    )
    assert main([str(archive / name)]) == 0
    output = capsys.readouterr()
    assert "byte for byte" in output.out and "scores.csv is not kept there" in output.err
    assert main([str(archive / name), f"output={archive / name}"]) == 2
    assert main([str(archive / "p1" / "nothing")]) == 2
    assert f"no such run; plan.jsonl keeps 1, such as {archive / name}" in capsys.readouterr().err
