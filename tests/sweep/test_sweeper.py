"""Sweeps run what is missing and nothing else, and every launcher gives the same.

A failure stays a cell's own. Every data set is run with the four methods and PCA, from files in
their true formats to a result.
"""

import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from rich.console import Console

from noveltylab.errors import UserError
from noveltylab.options import Options
from noveltylab.results.files import sha256_file
from noveltylab.results.record import write_result
from noveltylab.run.lock import holder, locked
from noveltylab.run.read import read_and_split
from noveltylab.sweep import launchers
from noveltylab.sweep.cells import Cell
from noveltylab.sweep.launchers import fit_launcher
from noveltylab.sweep.view import (
    LOOK_SECONDS,
    Watch,
    mean_rows,
    newest_epoch,
    next_commands,
)
from tests.conftest import TINY, assert_refused
from tests.formats import (
    write_cifar10,
    write_coil,
    write_dcase,
    write_faces,
    write_mnist,
    write_ucsd,
)
from tests.methods.conftest import SMALL
from tests.report.conftest import flat_metrics, result_of
from tests.run.test_folder import held_by_another

Cli = Callable[..., subprocess.CompletedProcess[str]]
PCA = ("-m", "method=pca", "trainer.accelerator=cpu")


def results(root: Path) -> dict[str, Path]:
    """`pca/digits/inlier3/seed0` -> its result.json."""
    return {"/".join(path.parts[-5:-1]): path for path in sorted(root.rglob("result.json"))}


def stamps(root: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and bytes of every file of the runs."""
    files = (path for path in root.rglob("*") if path.is_file() and ".sweep" not in path.parts)
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def states(table: str) -> list[str]:
    """The last column of the printed table, in the order of the cells."""
    table, _, _ = table.partition("mean AUROC")
    return [
        line.split()[-1]
        for line in table.splitlines()
        if re.match(r" (\w+ +)+(digits|mnist) ", line)
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that read and split their data and then have a result at once: AUROC 0.5, 0.55, 0.6, ...
    by inlier.
    """

    def result_only(options: Options, config: dict[str, Any], folder: Path) -> dict[str, Any]:
        read_and_split(options)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        result = result_of(
            options.method["name"],
            options.data.name,
            options.protocol["name"],
            options.inlier_index,
            options.seed,
            {"residual": flat_metrics(0.5 + options.inlier_index / 20)},
            {},
        )
        files = {"config.yaml": sha256_file(folder / "config.yaml")}
        result |= {
            "config": config,
            "files": files,
            "seconds": {"train": 10.0, "score": 2.34, "total": 12.34},
        }
        write_result(folder, result)
        return result

    monkeypatch.setattr("noveltylab.run.pipeline.run_stages", result_only)


# In one process.


@pytest.mark.usefixtures("quick")
def test_a_failed_cell_leaves_the_others_and_its_reason(
    command: Cli, tmp_path: Path, small_data: Path
) -> None:
    """Missing data fails the cells of one data set, in the worker.

    With the data there the same command mends them.
    """
    grid = (*PCA, "data=digits,mnist", "data.verify=false", "inlier=3,4")
    process = command(*grid, f"data.root={tmp_path / 'nowhere'}")
    assert process.returncode == 1
    outputs = tmp_path / "elsewhere" / "outputs"
    assert list(results(outputs)) == ["pca/digits/inlier3/seed0", "pca/digits/inlier4/seed0"]
    assert "4 cells: 2 done, 2 failed" in process.stdout
    assert "2 of 4 cells failed; the same command tries them again" in process.stderr
    assert re.search(
        r"^  pca mnist inlier 3 seed 0  .*not found in .*nowhere.*data\.download=true\.$",
        process.stderr,
        re.M,
    )
    assert "\n  pca mnist inlier 4 seed 0  the same\n" in process.stderr
    failures = sorted((outputs / ".sweep" / "failed").iterdir())
    assert [path.name for path in failures] == [
        f"p2-pca-mnist-inlier{inlier}-seed0.json" for inlier in (3, 4)
    ]
    assert "UserError" in json.loads(failures[0].read_text())["traceback"]

    before = stamps(outputs)
    process = command(*grid, f"data.root={small_data}")
    assert process.returncode == 0
    assert "4 cells: 2 done, 2 complete" in process.stdout
    assert list((outputs / ".sweep" / "failed").iterdir()) == []
    assert {path: stamp for path, stamp in stamps(outputs).items() if path in before} == before


@pytest.mark.usefixtures("quick")
def test_repeating_a_complete_sweep_touches_nothing_and_loads_no_torch(
    cli: Cli, command: Cli, tmp_path: Path
) -> None:
    grid = (*PCA, "inlier=3,4", "seed=0,1")
    assert command(*grid).returncode == 0
    before = stamps(tmp_path)
    probe = "import sys; from noveltylab.__main__ import main; main(); assert 'torch' not in sys.modules"
    again = subprocess.run(
        [sys.executable, "-c", probe, *grid],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert states(again.stdout) == ["complete"] * 4
    assert stamps(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_only_what_is_missing_is_run(command: Cli, tmp_path: Path) -> None:
    command(*PCA, "inlier=3")
    before = stamps(tmp_path)
    process = command(*PCA, "inlier=4,3,5")
    assert states(process.stdout) == ["done", "complete", "done"]
    assert {path: stamp for path, stamp in stamps(tmp_path).items() if path in before} == before
    results(tmp_path)["pca/digits/inlier4/seed0"].unlink()
    process = command(*PCA, "inlier=4,3,5")
    assert states(process.stdout) == ["done", "complete", "complete"]


@pytest.mark.usefixtures("quick")
def test_force_runs_complete_cells_again(command: Cli, tmp_path: Path) -> None:
    command(*PCA, "inlier=3")
    process = command(*PCA, "inlier=3", "force=true")
    assert states(process.stdout) == ["done"]


REFUSED = {
    "unknown option": (
        ["inlier=1,2", "method.component=3"],
        "method.component: no such option of method=pca; did you mean",
    ),
    "wrong type": (["inlier=1,2", "method.components=x"], "method.components=x: "),
    "value that the method refuses": (
        ["inlier=1,2", "method.components=0"],
        "method.components=0: ",
    ),
    "value that the protocol refuses": (
        ["inlier=1,2", "protocol.train_share=x"],
        "protocol.train_share=x: ",
    ),
    "no cell has a class": (["inlier=11,12"], "inlier=11: digits has classes 0 to 9"),
    "one unknown method": (["method=pca,knnn"], "method=knnn: no such choice; did you mean 'knn'?"),
    "cells in one folder": (
        ["method.components=4,5"],
        "would share the folder outputs/p1/pca/digits/inlier8/seed0",
    ),
    "unknown launcher": (
        ["hydra/launcher=rey"],
        "hydra/launcher=rey: no such choice; did you mean 'ray'?",
    ),
    "SLURM without SLURM": (["hydra/launcher=submitit_slurm"], "no sbatch and srun here"),
    "shares of several GPUs": (
        ["resources.num_gpus=1.5"],
        "one GPU can be shared (0.25), several are whole (2)",
    ),
    "no core": (["resources.num_cpus=0"], "resources.num_cpus=0: "),
    "resources per cell": (
        ["resources.num_cpus=1,2"],
        "all cells of a sweep get the same resources",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_option_is_refused_once_before_anything(
    command: Cli, tmp_path: Path, case: str
) -> None:
    arguments, message = REFUSED[case]
    process = command(*PCA, *arguments)
    assert_refused(process, message, tmp_path)


@pytest.mark.usefixtures("quick")
def test_other_options_in_all_folders_are_refused(command: Cli, tmp_path: Path) -> None:
    command(*PCA, "inlier=3,4")
    before = stamps(tmp_path)
    process = command(*PCA, "inlier=3,4", "method.components=8")
    assert process.returncode == 2
    assert (
        "inlier3/seed0 holds a run with other options (method.components: 32 there, 8 here)"
        in process.stderr
    )
    assert stamps(tmp_path) == before


@pytest.mark.parametrize(("launcher", "extra"), [("ray", "ray"), ("submitit_local", "slurm")])
def test_a_launcher_that_is_not_installed_names_the_extra(
    command: Cli, monkeypatch: pytest.MonkeyPatch, launcher: str, extra: str
) -> None:
    plugins = Plugins.instance().class_name_to_class
    monkeypatch.setattr(
        Plugins.instance(),
        "class_name_to_class",
        {name: plugin for name, plugin in plugins.items() if "launcher." not in name},
    )
    process = command(*PCA, f"hydra/launcher={launcher}")
    assert process.returncode == 2
    assert f"pip install 'noveltylab[{extra}]'" in process.stderr


@pytest.mark.usefixtures("quick")
def test_a_cell_that_runs_elsewhere_is_no_failure_and_not_done(
    command: Cli, tmp_path: Path
) -> None:
    busy = tmp_path / "elsewhere" / "outputs" / "p1" / "pca" / "digits" / "inlier3" / "seed0"
    with held_by_another(busy):
        process = command(*PCA, "inlier=3,4")
    assert process.returncode == 3, process.stderr
    assert states(process.stdout) == ["elsewhere", "done"]
    assert "another process is running it" in process.stdout
    assert not busy.exists()


class Full(io.FileIO):
    """A file on a disk without space."""

    def write(self, content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("where", ["lock", "config"])
def test_a_full_disk_fails_the_cells_of_a_sweep_and_says_so(
    command: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    """Nothing can be written, not even why: no cell is elsewhere, none is done."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.fdopen
    if where == "lock":
        monkeypatch.setattr(
            os,
            "fdopen",
            lambda descriptor, mode, *a, **k: (
                Full(descriptor, mode) if mode == "r+b" else real(descriptor, mode, *a, **k)
            ),
        )
    else:
        monkeypatch.setattr("noveltylab.run.pipeline.run_stages", full)
    monkeypatch.setattr("noveltylab.run.folder.write_atomic", full)
    process = command(*PCA, "inlier=3,4")
    assert process.returncode == 1
    assert "2 cells: 2 failed" in process.stdout
    assert re.search(
        r"^  pca digits inlier 3 seed 0  .*No space left on device", process.stderr, re.M
    )
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.rglob(".seed0.lock")) and not list(tmp_path.rglob("inlier3"))
    assert command(*PCA[1:], "inlier=3").returncode == 1


@pytest.mark.usefixtures("quick")
def test_choices_may_come_from_a_file_and_the_command_line_narrows_them(
    command: Cli, tmp_path: Path
) -> None:
    """As the files of experiments do it: no -m, hydra.mode and hydra.sweeper.params instead."""
    (tmp_path / "conf" / "mine").mkdir(parents=True)
    (tmp_path / "conf" / "mine" / "table.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /method: pca\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      inlier: range(0,3)\n      seed: 0,1\n"
    )
    process = command("--config-dir", str(tmp_path / "conf"), "+mine=table", "seed=1")
    assert process.returncode == 0, process.stderr
    assert list(results(tmp_path)) == [f"pca/digits/inlier{inlier}/seed1" for inlier in range(3)]


@pytest.mark.usefixtures("quick")
def test_the_table_fits_80_columns(command: Cli) -> None:
    process = command("-m", "method=pca", "inlier=3", "protocol=p1,two_thirds", "seed=0,4294967295")
    lines = process.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    header = next(line for line in lines if "AUROC" in line)
    assert header.split() == [
        "protocol",
        "method",
        "data",
        "inlier",
        "seed",
        "AUROC",
        "seconds",
        "state",
    ]
    rows = [line.split() for line in lines if " digits " in line][:4]
    assert [row[5:] for row in rows] == [["0.6500", "12.3", "done"]] * 4
    assert {(row[0], row[4]) for row in rows} == {
        (name, seed) for name in ("p1", "two_thirds") for seed in ("0", "4294967295")
    }


@pytest.mark.usefixtures("quick")
def test_every_swept_option_is_seen(command: Cli) -> None:
    """In the table, in the lines while it runs and in the list of failures.

    Means are of cells with the same options.
    """
    grid = (*PCA, "inlier=3,4", "protocol.val_fraction=0.2,0.3", "method.components=8,x")
    process = command(*grid, "output='o/v${protocol.val_fraction}, k${method.components}'")
    lines = process.stdout.splitlines()
    header = [
        "method",
        "data",
        "inlier",
        "seed",
        "val_fraction",
        "components",
        "AUROC",
        "seconds",
        "state",
    ]
    assert next(line.split() for line in lines if "seconds" in line) == header
    assert [line.split()[4:6] for line in lines if line.rstrip().endswith(" done")] == [
        ["0.2", "8"],
        ["0.3", "8"],
    ] * 2
    assert re.search(
        r"^done    pca digits inlier 3 seed 0 val_fraction 0.3 components 8: AUROC",
        process.stderr,
        re.M,
    )
    assert re.search(
        r"^  pca digits inlier 3 seed 0 val_fraction 0.2 components x  method.comp",
        process.stderr,
        re.M,
    )
    means = [
        line.split()
        for line in lines[lines.index(next(line for line in lines if "mean" in line)) :]
    ]
    assert [row[2:] for row in means if row[:1] == ["pca"]] == [
        [v, "8", "0.6750", "2", "1", "2"] for v in ("0.2", "0.3")
    ]
    assert lines[-1] == "tables and comparisons: python -m noveltylab report o"


@pytest.mark.usefixtures("quick")
def test_plain_lines_without_a_terminal(command: Cli) -> None:
    process = command(*PCA, "inlier=3,4,11")
    beginning = "sweep: 2 of 3 cells to run, 1 at a time; how long is not known"
    assert process.stderr.startswith(beginning)
    assert re.search(
        r"^done    pca digits inlier 4 seed 0: AUROC 0\.7000, 12 s \(2 of 3 done",
        process.stderr,
        re.M,
    )
    assert "epoch" not in process.stderr
    assert "average" not in process.stdout, "the tables of single runs are left out"


def test_the_view_follows_the_folders(tmp_path: Path) -> None:
    """Cells that others run, finish or fail show up as such.

    A running cell has the newest line of its log.
    """
    cells = [
        Cell(
            [],
            {"method": "pca", "data": "digits", "inlier": str(i), "seed": "0"},
            tmp_path / f"c{i}",
            tmp_path / f"f{i}.json",
        )
        for i in range(4)
    ]
    screen = io.StringIO()
    result = result_of("pca", "digits", "p1", 0, 0, {"mse": flat_metrics(0.9)}, {})
    result["seconds"] = {"train": 6.0, "score": 1.0, "total": 7.0}
    with Watch(
        cells, Console(file=screen, force_terminal=True, width=100, height=20, highlight=False)
    ):
        (tmp_path / "c0").mkdir()
        (tmp_path / "c0" / "result.json").write_text(json.dumps(result))
        (tmp_path / "f1.json").write_text('{"reason": "the disk is full"}')
        (tmp_path / "c2").mkdir()
        (tmp_path / "c2" / "run.log").write_text(
            "12:00:00 run folder c2\n12:00:10 epoch 3 of 9: mse 0.1\n12:00:11 1 threads, visible GPUs: all\n"
        )
        with locked(tmp_path / "c2"):
            time.sleep(2.5 * LOOK_SECONDS)
            assert [cell.state for cell in cells] == ["done", "failed", "running", "waiting"]
    output = screen.getvalue()
    assert "1 of 4 done, 1 running, 1 failed, about 0:00:0" in output
    assert "pca digits inlier 2 seed 0  epoch 3 of 9: mse 0.1" in output
    assert "1 threads" not in output
    assert cells[0].result == {"auroc": 0.9, "seconds": 7.0}
    assert (cells[1].reason, cells[2].state) == ("the disk is full", "failed")
    assert "ended without a result" in cells[2].reason


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (None, "starting"),
        ("12:00:00 run folder c\n12:00:01 1 threads, visible GPUs: all\n", "no epoch yet"),
        (
            "12:00:00 run folder c\n12:00:01 epoch 1 of 9: begun\n12:00:02 resuming\n",
            "epoch 1 of 9: begun",
        ),
        ("12:00:01 epoch 7 of 9: mse 1\n12:00:02 run folder c\n", "no epoch yet"),
        ("x" * 20_000 + "\n12:00:01 epoch 7 of 9: mse 1\n", "epoch 7 of 9: mse 1"),
    ],
)
def test_the_newest_epoch_of_a_log(tmp_path: Path, log: str | None, message: str) -> None:
    if log:
        (tmp_path / "run.log").write_text(log)
    assert newest_epoch(tmp_path) == message


def cell_of(
    method: str,
    inlier: int,
    seed: int,
    auroc: float | None,
    folder: Path | None = None,
    **options: str,
) -> Cell:
    names = {
        "protocol": "p1",
        "method": method,
        "data": "digits",
        "inlier": str(inlier),
        "seed": str(seed),
        **options,
    }
    state = "failed" if auroc is None else "done"
    return Cell(
        [],
        names,
        folder,
        state=state,
        result={} if auroc is None else {"auroc": auroc, "seconds": 1.0},
    )


def test_means_average_the_seeds_of_a_class_first() -> None:
    cells = [
        cell_of("pca", 3, 0, 0.5),
        cell_of("pca", 3, 1, 0.7),
        cell_of("pca", 4, 0, 0.9),
        cell_of("pca", 4, 1, None),
    ]
    cells += [cell_of("knn", 3, seed, 0.8) for seed in (0, 1)]
    first, second = mean_rows(cells)
    assert first.auroc == pytest.approx((0.6 + 0.9) / 2)
    assert (first.classes, first.seeds, first.measured, first.cells) == (2, 2, 3, 4)
    assert (second.names["method"], second.auroc, second.classes) == ("knn", pytest.approx(0.8), 1)
    assert mean_rows(cells[:1] + cells[4:5]) == [], "each would be of one cell"
    rates = [cell_of("pca", 3, 0, 0.5, lr="0.1"), cell_of("pca", 4, 0, 0.7, lr="0.2")]
    assert mean_rows(rates) == [], "other options are another row"


def test_the_next_command_names_what_was_written(tmp_path: Path) -> None:
    def folder(output: str) -> Path:
        return Path(output) / "p1" / "pca" / "digits" / "inlier3" / "seed0"

    assert next_commands([cell_of("pca", 3, 0, None, folder("outputs"))]) == []
    (line,) = next_commands(
        [cell_of("pca", 3, seed, 0.5, folder("My Parts (2)")) for seed in (0, 1)]
    )
    assert line == "tables and comparisons: python -m noveltylab report 'My Parts (2)'"
    (line,) = next_commands(
        [cell_of("pca", 3, 0, 0.5, folder(name)) for name in ("o/v0.2", "o/v0.3")]
    )
    assert line.endswith("noveltylab report o")
    assert len(next_commands([cell_of("pca", 3, 0, 0.5, folder(name)) for name in ("a", "b")])) == 2
    (folder(str(tmp_path)) / "wandb" / "offline-run-1-a").mkdir(parents=True)
    sent = next_commands([cell_of("pca", 3, 0, 0.5, folder(str(tmp_path)))])[1]
    pattern = sent.partition("wandb sync ")[2]
    assert (
        sent.startswith("1 runs are kept on disk for W&B")
        and len(list(Path("/").glob(pattern[1:]))) == 1
    )


@pytest.mark.parametrize(
    ("have", "resources", "share"),
    [
        ({"CPU": 2}, (None, None), (0, 1)),
        ({"CPU": 16, "GPU": 2}, (None, None), (1, 8)),
        ({"CPU": 16, "GPU": 2}, (0.25, None), (0.25, 2)),
        ({"CPU": 16, "GPU": 2}, (0.5, 3), (0.5, 3)),
        ({"CPU": 2, "GPU": 8}, (None, None), (1, 1)),
        ({"CPU": 16, "GPU": 2}, (0, None), (0, 1)),
    ],
)
def test_automatic_shares_on_ray(
    monkeypatch: pytest.MonkeyPatch,
    have: dict[str, float],
    resources: tuple[Any, Any],
    share: tuple[float, int],
) -> None:
    monkeypatch.setattr(launchers, "start_ray", lambda _: have)
    launcher = _launcher("RayLauncher", *resources)
    config = OmegaConf.create(
        {"resources": {"num_cpus": resources[1]}, "trainer": {"accelerator": "auto"}}
    )
    assert fit_launcher(launcher, config)[0] == [f"resources.num_cpus={share[1]}"]
    assert (launcher.ray_cfg.remote.num_gpus, launcher.ray_cfg.remote.num_cpus) == share


@pytest.mark.parametrize(
    ("gpus", "cpus", "message"),
    [(1, None, "num_gpus=1: Ray has 0"), (0, 3, "num_cpus=3: Ray has 2")],
)
def test_more_than_there_is_is_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: float, cpus: int | None, message: str
) -> None:
    """Ray itself would wait for ever."""
    monkeypatch.setattr(launchers, "start_ray", lambda _: {"CPU": 2.0})
    config = OmegaConf.create({"resources": {"num_cpus": cpus}, "trainer": {"accelerator": "auto"}})
    with pytest.raises(UserError, match=message):
        fit_launcher(_launcher("RayLauncher", gpus, cpus), config)


def test_submitit_local_starts_no_more_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    for gpus, cpus, at_once in ((None, None, 8), (None, 3, 2), (1, None, 1)):
        config = OmegaConf.create({"resources": {"num_cpus": cpus, "num_gpus": gpus}})
        assert fit_launcher(_launcher("LocalLauncher", gpus, cpus), config)[1] == at_once


def _launcher(name: str, gpus: float | None, cpus: int | None) -> Any:
    remote = OmegaConf.create({"num_gpus": gpus, "num_cpus": cpus})
    return type(
        name,
        (),
        {"ray_cfg": SimpleNamespace(remote=remote, init=OmegaConf.create({"address": "local"}))},
    )()


def test_threads_of_a_run_are_set_and_kept(run_here: Callable[..., dict[str, Any]]) -> None:
    result = run_here("method=pca", "resources.num_cpus=2")
    assert result["provenance"]["hardware"]["threads"] == 2 == torch.get_num_threads()


# SLURM, as far as it goes without a cluster.


def _fake_slurm(folder: Path, sbatch: str) -> str:
    """A PATH with an sbatch of ours, an srun that starts the command as it is, and a silent sacct."""
    scripts = {
        "sbatch": sbatch,
        "srun": 'while [[ $1 == -* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done; exec "$@"',
        "sacct": 'echo "JobID|State"',
    }
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.posix
def test_the_sbatch_script_asks_for_what_our_options_say(
    command: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    script = tmp_path / "script.sh"
    monkeypatch.setenv(
        "PATH",
        _fake_slurm(tmp_path / "bin", f'cp "$1" {script}; echo "no such partition" >&2; exit 1'),
    )
    settings = ("partition=gpu", "timeout_min=90", "array_parallelism=2")
    process = command(
        *(*PCA, "inlier=1,2,3", "seed=0", "hydra/launcher=submitit_slurm"),
        *("resources.num_gpus=1", "resources.num_cpus=4"),
        *(f"hydra.launcher.{setting}" for setting in settings),
    )
    directives = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", script.read_text()))
    assert directives["gpus-per-node"] == "1"
    assert directives["cpus-per-task"] == "4"
    assert directives["array"] == "0-2%2"
    assert (directives["partition"], directives["time"], directives["nodes"]) == ("gpu", "90", "1")
    assert str(tmp_path / "elsewhere" / "outputs" / ".sweep" / ".submitit") in directives["output"]
    assert process.returncode == 1
    assert re.search(r"^  pca digits inlier 1 seed 0  .*no such partition$", process.stderr, re.M)
    assert process.stderr.count("  the same\n") == 2


@pytest.mark.posix
@pytest.mark.slow
def test_a_sweep_through_slurm(cli: Cli, tmp_path: Path) -> None:
    """sbatch, srun and sacct are stand-ins.

    The array, its pickles and the runs under SLURM's variables are real.
    """
    pytest.importorskip("submitit")
    sbatch = """
        echo "Submitted batch job 4711"
        last=$(grep -oP 'array=0-\\K[0-9]+' "$1")
        for task in $(seq 0 "$last"); do
            SLURM_JOB_ID=$((4711 + task)) SLURM_ARRAY_JOB_ID=4711 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_PROCID=0 \\
            SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NAME=noveltylab CUDA_VISIBLE_DEVICES=$task \\
            bash "$1" >/dev/null 2>&1 &
        done
    """
    environment = {**os.environ, "PATH": _fake_slurm(tmp_path / "bin", sbatch)}
    grid = ("-m", "inlier=1,2", *TINY, "resources.num_cpus=1", "hydra/launcher=submitit_slurm")
    process = cli(*grid, env=environment)
    assert process.returncode == 0, process.stderr
    assert states(process.stdout) == ["done"] * 2
    hardware = [
        json.loads(path.read_text())["provenance"]["hardware"]
        for path in results(tmp_path).values()
    ]
    assert sorted(machine["visible_gpus"] for machine in hardware) == ["0", "1"]
    assert [machine["threads"] for machine in hardware] == [1, 1]
    assert states(cli(*grid, env=environment).stdout) == ["complete"] * 2


@pytest.mark.slow
def test_a_sweep_through_submitit_local(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    process = cli(*PCA, "inlier=1,2,11", "hydra/launcher=submitit_local")
    assert process.returncode == 1
    assert states(process.stdout) == ["done", "done", "failed"]


# Ray, for real.

RAY = ("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2")


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, in the same place as `cli` has it."""
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "noveltylab", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=tmp_path / "elsewhere", stdout=pipe, stderr=pipe, text=True
    )


def wait_for(condition: Callable[[], Any], seconds: float = 200) -> Any:
    """What `condition` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)
    return value


@pytest.mark.slow
def test_a_sweep_on_ray(cli: Cli, tmp_path: Path) -> None:
    """Two workers with a thread each; a failure in one of them has its reason."""
    pytest.importorskip("ray")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = cli(
        *PCA, "data=digits,mnist", "inlier=1", "data.root=/nowhere", *RAY, env=environment
    )
    assert process.returncode == 1, process.stderr
    assert states(process.stdout) == ["done", "failed"]
    assert re.search(r"^  pca mnist inlier 1 seed 0  .*not found in /nowhere", process.stderr, re.M)
    (path,) = results(tmp_path).values()
    hardware = json.loads(path.read_text())["provenance"]["hardware"]
    assert (hardware["threads"], hardware["visible_gpus"]) == (1, "")


@pytest.mark.slow
def test_four_runs_at_half_a_gpu_share_two(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    gpus = (
        "resources.num_gpus=0.5",
        "hydra.launcher.ray.init.num_gpus=2",
        "hydra.launcher.ray.init.num_cpus=4",
    )
    process = cli(*PCA, "inlier=1,2", "seed=0,1", "hydra/launcher=ray", *gpus)
    assert process.returncode == 0, process.stderr
    seen = [
        json.loads(path.read_text())["provenance"]["hardware"]["visible_gpus"]
        for path in results(tmp_path).values()
    ]
    assert Counter(seen) == {"0": 2, "1": 2}


@pytest.mark.slow
def test_a_ray_cluster_by_its_address(cli: Cli, tmp_path: Path) -> None:
    """Relative folders mean those of the sweep, wherever the cluster was started.

    Nothing at an address is bad input.
    """
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"hydra.launcher.ray.init.address=127.0.0.1:{port}"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--include-dashboard=false",
    ]
    command = [*ray, "--num-cpus=2", f"--port={port}"]
    with (
        open(tmp_path / "ray.log", "w+") as log,
        subprocess.Popen(command, env=environment, stdout=log) as cluster,
    ):
        try:
            wait_for(lambda: "Ray runtime started" in (tmp_path / "ray.log").read_text())
            process = cli(*PCA, "inlier=1,2", "hydra/launcher=ray", address, env=environment)
        finally:
            cluster.terminate()
    assert process.returncode == 0, process.stderr
    assert states(process.stdout) == ["done", "done"]
    assert len(results(tmp_path / "elsewhere" / "outputs")) == 2
    process = cli(*PCA, "inlier=3,4", "hydra/launcher=ray", address, env=environment)
    assert process.returncode == 2
    assert f"{address}: no Ray answers there" in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.posix
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_a_killed_sweep_on_ray_is_completed_once(
    cli: Cli, command: Cli, tmp_path: Path, victim: str
) -> None:
    """SIGKILL while some cells are done and others under way: the former stay as they are, the
    latter go on.
    """
    pytest.importorskip("ray")
    options = (*TINY, "trainer.max_epochs=12", "trainer.checkpoint_seconds=0")
    assert command("-m", "inlier=1,2", *options).returncode == 0
    folder = tmp_path / "elsewhere" / "outputs" / "p1" / "ocgan" / "digits"
    before = stamps(folder)
    grid = ("-m", "inlier=1,2,3,4", *options, *RAY)
    process = start(tmp_path, *grid)
    try:
        lock = wait_for(lambda: next(folder.rglob(".seed0.lock"), None))
        killed = lock.parent / "seed0"
        wait_for((killed / "checkpoints" / "last.ckpt").is_file)
        if victim == "parent":
            process.kill()
            process.wait()
            wait_for(
                lambda: (
                    not any(holder(path.parent / "seed0") for path in folder.rglob(".seed0.lock"))
                )
            )
            assert not (killed / "result.json").exists()
        else:
            os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
            assert process.wait(300) == 0  # Ray tries again by itself
    finally:
        process.kill()
        process.communicate()
    completion = cli(*grid)
    assert completion.returncode == 0, completion.stderr
    expected = "done" if victim == "parent" else "complete"
    assert states(completion.stdout) == ["complete", "complete", expected, expected]
    assert {path: stamp for path, stamp in stamps(folder).items() if path in before} == before
    log = (killed / "run.log").read_text()
    assert log.count("run folder") == 2
    assert log.count("resuming from") == 1
    assert not list(folder.rglob(".seed0.lock"))


@pytest.mark.posix
@pytest.mark.slow
def test_a_cell_that_kills_its_worker_does_not_stop_the_others(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "killer.py").write_text(
        "import os, signal, torch\nfrom noveltylab.methods.pca import PCA\n\n"
        "class Killer(PCA):\n"
        "    def prepare(self, images):\n"
        "        if torch.initial_seed() == 1:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        super().prepare(images)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    once = "hydra.launcher.ray.remote.max_retries=0"
    process = cli(
        *PCA, "method._target_=killer.Killer", "inlier=1,2", "seed=0,1", *RAY, once, env=environment
    )
    assert process.returncode == 1
    assert states(process.stdout) == ["done", "failed", "done", "failed"]
    assert re.search(
        r"^  pca digits inlier 1 seed 1  its process died at every try; WorkerCrashedError",
        process.stderr,
        re.M,
    )
    assert "\n  pca digits inlier 2 seed 1  the same\n" in process.stderr


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_cells(tmp_path: Path) -> None:
    grid = ("-m", "method=pca", "inlier=range(0,4)", "trainer.accelerator=cpu")
    both = [start(tmp_path, *grid) for _ in range(2)]
    # 3: the other one was running the last cell
    codes = [(process.wait(300), process.communicate())[0] for process in both]
    assert 0 in codes and set(codes) <= {0, 3}
    folders = [path.parent for path in results(tmp_path).values()]
    assert len(folders) == 4
    for folder in folders:
        assert (folder / "run.log").read_text().count("run folder") == 1


# Every method on every data set.

#: dataset -> (what writes a tiny one under a root, its inlier)
SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "digits": (lambda root: None, "8"),
    "mnist": (write_mnist, "3"),
    "fmnist": (lambda root: write_mnist(root, name="FashionMNIST"), "sneaker"),
    "cifar10": (write_cifar10, "cat"),
    "coil100": (lambda root: write_coil(root, objects=(1, 2)), "obj1"),
    "ucsd": (lambda root: write_ucsd(root, frames=12), "normal"),
    "ucsd_clips": (lambda root: None, "normal"),  # of the same files
    "dcase": (write_dcase, "park"),
    "antispoofing": (write_faces, "genuine"),
}
ONE_EPOCH = (
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "data.batch_size=16",
    "data.limit_train=32",
    "data.verify=false",
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for write, _ in SETS.values():
        write(folder)
    return folder


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("method", ["ca_entropy", "nda", "ocgan", "oled", "pca"])
def test_every_method_runs_on_every_dataset(
    run_here: Callable[..., dict[str, Any]], sets: Path, method: str, data: str
) -> None:
    small = {**SMALL.get(method, {}), **({"latent_size": 8} if method == "nda" else {})}
    options = [f"method.{key}={str(value).lower()}" for key, value in small.items()]
    if data == "antispoofing":
        options += ["data.source=casia", "data.target=replay"]
    if data == "ucsd_clips":
        options += ["data.size=32", "data.frames=4"]
    result = run_here(
        f"method={method}",
        f"data={data}",
        f"inlier={SETS[data][1]}",
        f"data.root={sets}",
        *ONE_EPOCH,
        *options,
    )
    for metrics in (*result["scores"].values(), *result["floor"].values()):
        assert 0 <= metrics["auroc"] <= 1
    assert 12 < result["n"]["train"] <= 32
    assert result["data"] == data
    apart = {
        "ucsd": {"patches", "patches_by_mask", "clips"},
        "ucsd_clips": {"clips"},
        "antispoofing": {"images"},
        "dcase": {"files"},
    }
    assert set(result["apart"]) == apart.get(data, set())
