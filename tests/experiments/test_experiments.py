"""The papers' tables as experiment files: each composes, has the cells of its table, and one of
them runs.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from noveltylab.command.hydra_versions import BASE
from noveltylab.command.validate import check_arguments
from noveltylab.data.protocols import PROTOCOLS
from noveltylab.errors import UserError
from noveltylab.job import CONF, EXPERIMENTS, PACKAGE
from noveltylab.methods.base import find_method
from noveltylab.options import Options, check_options
from noveltylab.sweep.grid import cells_of_grid
from tests.conftest import TINY, assert_refused
from tests.formats import write_every_set

Cli = Callable[..., subprocess.CompletedProcess[str]]
Run = Callable[..., dict[str, Any]]

ROOT = PACKAGE.parent / "experiments"
PUBLISHED = yaml.safe_load((ROOT / "published.yaml").read_text())["tables"]

#: experiment -> method, data, protocol, cells as rows x inliers x seeds; counted from the papers
#: and shared conventions
TABLES = {
    "ocgan/table1_mnist": ("ocgan", "mnist", "p1", 1 * 10 * 3),
    "ocgan/table1_coil100": ("ocgan", "coil100", "p1", 1 * 20 * 3),
    "ocgan/table1_fmnist": ("ocgan", "fmnist", "p1", 1 * 10 * 3),
    "ocgan/table2_mnist": ("ocgan", "mnist", "p2", 1 * 10 * 3),
    "ocgan/table3_cifar10": ("ocgan", "cifar10", "p2", 1 * 10 * 3),
    "ocgan/table4_mnist": ("ocgan", "mnist", "p2", 4 * 10 * 3),
    "ca_entropy/table1_coil100": ("ca_entropy", "coil100", "p1", 1 * 20 * 3),
    "ca_entropy/table2_mnist": ("ca_entropy", "mnist", "p2", 1 * 10 * 3),
    "ca_entropy/table3_cifar10": ("ca_entropy", "cifar10", "p2", 1 * 10 * 3),
    # three in the paper, and attention alone
    "ca_entropy/table4_cifar10": ("ca_entropy", "cifar10", "p2", 4 * 10 * 3),
    "oled/table1_mnist": ("oled", "mnist", "two_thirds", 1 * 10 * 3),
    "oled/table2_cifar10": ("oled", "cifar10", "p2", 1 * 10 * 3),
    "oled/table3_ucsd": ("oled", "ucsd", "frames", 1 * 1 * 3),
    "oled/table4_mnist": ("oled", "mnist", "two_thirds", 2 * 10 * 3),
    "oled/table5_mnist": ("oled", "mnist", "two_thirds", 1 * 1 * 3),  # digit 8
    "nda/table1_cifar10": ("nda", "cifar10", "p2", 8 * 10 * 3),
    "nda/table2_cifar10": ("nda", "cifar10", "p2", 7 * 10 * 3),
    "nda/table3_cifar10": ("nda", "cifar10", "p2", 1 * 10 * 3),
    "nda/table4_mnist": ("nda", "mnist", "p1", 1 * 10 * 3),
    "nda/table4_coil100": ("nda", "coil100", "p1", 1 * 20 * 3),
    "nda/table4_fmnist": ("nda", "fmnist", "p1", 1 * 10 * 3),
    "nda/table5_dcase": ("nda", "dcase", "scenes", 1 * 15 * 3),
    "nda/table6_antispoofing": ("nda", "antispoofing", "cross", 2 * 1 * 3),
}
#: experiment -> its option, cells as for TABLES; sweeps over a hyperparameter, of which no paper
#: prints numbers
SWEEPS = {
    "oled/sweep_t": ("method.t", 4 * 10 * 3),
    "oled/sweep_lambda": ("method.lam", 4 * 10 * 3),
    "oled/sweep_gamma": ("method.gamma", 4 * 10 * 3),
}
#: experiments without printed numbers: runs of minutes on a CPU, and the floors
STUDIES = [name for name in EXPERIMENTS if name.startswith("learn/")]
FLOORS = {"classical/baselines": 2 * 2 * 7 * 10, "classical/gcn": 2 * 10}
#: the sets of classical/floors: classes x seeds
SETS = (10, 2 * 10 * 3, 20 * 3, 10 * 3, 1, 15)
FLOORS["classical/floors"] = 4 * sum(SETS)
HERE = {path.stem for path in (CONF / "data").glob("*.yaml")}  # a dataset may be left out
TABLES_HERE = [name for name, (_, data, _, _) in TABLES.items() if data in HERE]

#: Networks that train in a second.
SMALL = {
    "ocgan": TINY[:3],
    "ca_entropy": ("method.channels=8", "method.feature_size=16"),
    "oled": ("method.width=0.125",),
    "nda": ("method.channels=8", "method.estimator_channels=16", "method.latent_size=8"),
}
SHORT = (
    "data.verify=false",
    "data.limit_train=24",
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "trainer.val_every=1",
    "trainer.accelerator=cpu",
)


@cache
def composed(*overrides: str) -> DictConfig:
    """With Hydra's own part; it takes a tenth of a second."""
    with initialize_config_dir(str(CONF), **BASE):
        return compose("train", list(overrides), return_hydra_config=True)


@cache
def cells(name: str) -> tuple[tuple[str, ...], ...]:
    """The overrides of every cell of a table, in the order in which Hydra runs them."""
    hydra = composed(f"experiment={name}").hydra
    assert hydra.mode.name == "MULTIRUN"  # without -m
    params = OmegaConf.to_container(hydra.sweeper.params)
    grid = cells_of_grid(params, EXPERIMENTS[name], [], OverridesParser.create())  # type: ignore[arg-type]  # a mapping
    return tuple((f"experiment={name}", *cell) for cell in grid)


@cache
def options(name: str) -> list[Options]:
    """Every cell's checked options; composed once for cells that differ in inlier and seed alone."""
    rows: dict[tuple[str, ...], list[dict[str, int]]] = {}
    for cell in cells(name):
        plain = {
            key: int(value)
            for key, value in (item.split("=") for item in cell)
            if key in ("inlier", "seed")
        }
        rows.setdefault(tuple(item for item in cell if item.split("=")[0] not in plain), []).append(
            plain
        )
    found = []
    for row, plains in rows.items():
        config = composed(*row)
        checked = check_options(
            OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        ).model_dump()
        found += [Options.model_validate(checked | plain) for plain in plains]
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a little of every table's data."""
    return write_every_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny_data(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures are drawn, and tables with the same split share its floors."""
    monkeypatch.setenv("NOVELTYLAB_DATA", str(written))
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(written / "cache"))
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)


def test_every_table_has_its_file_and_its_published_numbers() -> None:
    assert set(EXPERIMENTS) == {*TABLES, *SWEEPS, *STUDIES, *FLOORS}
    assert {path.stem for path in ROOT.glob("learn/*.yaml")} == {
        name.removeprefix("learn/") for name in STUDIES
    }
    assert set(PUBLISHED) == set(TABLES)


@pytest.mark.parametrize("name", FLOORS)
def test_the_floors_have_a_folder_for_each_cell(name: str) -> None:
    assert len(cells(name)) == FLOORS[name]
    folders = set()
    for cell in cells(name):
        values = dict(text.split("=", 1) for text in cell)
        keys = ("method", "data", "protocol", "inlier", "seed")
        folders.add(tuple(values.get(key) for key in keys))
        assert "method.name" not in values
    assert len(folders) == FLOORS[name]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_moves_one_option_and_has_the_papers_value_among_its_own(name: str) -> None:
    key, count = SWEEPS[name]
    option = key.removeprefix("method.")
    assert len(cells(name)) == len({cell.folder for cell in options(name)}) == count
    assert {cell.output for cell in options(name)} == {f"outputs/{name}"}
    values = {cell.method[option] for cell in options(name)}
    assert {"t": 87.5, "lam": 1, "gamma": 50}[option] in values and len(values) == 4
    table = options("oled/table1_mnist")[0]
    for cell in options(name):
        check_arguments(find_method(cell.method["_target_"]), arguments(cell), "method")
        assert arguments(cell) | {option: table.method[option]} == arguments(table)
        assert (cell.data, cell.protocol, cell.trainer) == (
            table.data,
            table.protocol,
            table.trainer,
        )
        assert cell.method["name"] == f"{name.replace('/sweep_', '_')}{cell.method[option]}"


def arguments(cell: Options) -> dict[str, Any]:
    return {
        key: value
        for key, value in cell.method.items()
        if key not in ("name", "_target_", "primary")
    }


@pytest.mark.parametrize("name", TABLES_HERE)
def test_cells_of_a_table(name: str) -> None:
    method, data, protocol, count = TABLES[name]
    assert len(cells(name)) == len(options(name)) == count
    assert len({cell.folder for cell in options(name)}) == count  # no two in one folder
    assert {cell.seed for cell in options(name)} == {0, 1, 2}
    assert (data, protocol) == (PUBLISHED[name]["data"], PUBLISHED[name]["protocol"])
    inliers = {cell.inlier_index for cell in options(name)}
    fixed = {"oled/table5_mnist": {8}, "oled/table3_ucsd": {0}, "nda/table6_antispoofing": {0}}
    assert inliers == fixed.get(name, set(options(name)[0].data.inliers))
    for cell in options(name):
        assert (find_method(cell.method["_target_"]).__module__.split(".")[-1], cell.data.name) == (
            method,
            data,
        )
        assert cell.protocol["name"] == protocol
        assert cell.output == f"outputs/{name}"


@pytest.mark.parametrize("name", TABLES_HERE)
def test_every_option_is_known(name: str) -> None:
    # the others differ in inlier and seed
    for cell in options(name)[:: len(options(name)) // 8 + 1]:
        given = {
            key: value
            for key, value in cell.method.items()
            if key not in ("name", "_target_", "primary")
        }
        check_arguments(find_method(cell.method["_target_"]), given, "method")
        given = {key: value for key, value in cell.protocol.items() if key != "name"}
        check_arguments(PROTOCOLS[cell.protocol["name"]], {**given, "seed": cell.seed}, "protocol")


@pytest.mark.parametrize("name", TABLES_HERE)
def test_every_row_that_is_published_is_run(name: str) -> None:
    """`published.yaml` says which of our methods, with which options, a paper's row is to be
    compared with.
    """
    ours = [
        given
        for given in PUBLISHED[name]["counterparts"].values()
        if given["method"] == TABLES[name][0]
    ]
    assert ours
    for given in ours:
        wanted = given.get("options", {}).items()
        found = [
            cell
            for cell in options(name)
            if all(cell.method[key] == value for key, value in wanted)
        ]
        single = ("oled/table5_mnist", "oled/table3_ucsd", "nda/table6_antispoofing")
        inliers = 1 if name in single else len(options(name)[0].data.inliers)
        assert len({(cell.inlier_index, cell.seed) for cell in found}) == inliers * 3


def test_every_row_runs_under_its_own_name() -> None:
    """So that rows have folders of their own, whatever the output; a table's are unique over all."""
    rows = [(name, row) for name in TABLES for row in EXPERIMENTS[name]]
    assert len(rows) == len({row for _, row in rows}) == 4 + 7 + 4 + 2
    for name, row in rows:
        assert row in {cell.method["name"] for cell in options(name)}
    for name in STUDIES:
        swept = {text for cell in cells(name) for text in cell if text.startswith("method.name=")}
        assert swept == {f"method.name={row}" for row in EXPERIMENTS[name]}


def test_every_file_says_what_it_is() -> None:
    for name in EXPERIMENTS:
        path = ROOT / f"{name}.yaml"
        lines = path.read_text().splitlines()
        assert lines[0] == "# @package _global_", path
        assert lines[1].startswith("# "), path
        assert name in STUDIES or name in FLOORS or "PAPER" in path.read_text(), path
        assert "???" not in path.read_text(), path


@pytest.mark.parametrize("name", TABLES_HERE)
def test_one_cell_of_each_table_runs(name: str, run_here: Run, tiny_data: None) -> None:
    method, data, protocol, _ = TABLES[name]
    # PCA of 3,072 values takes seconds
    size = ("data.size=24",) if data in ("cifar10", "coil100") else ()
    result = run_here(*cells(name)[0], *SHORT, *SMALL[method], *size)
    assert (result["data"], result["protocol"], result["seed"]) == (data, protocol, 0)
    assert result["config"]["method"]["_target_"].startswith(f"noveltylab.methods.{method}.")
    counterparts = [
        given for given in PUBLISHED[name]["counterparts"].values() if given["method"] == method
    ]
    assert {given["score"] for given in counterparts if "score" in given} <= set(result["scores"])


@pytest.mark.parametrize("name", SWEEPS)
def test_one_cell_of_each_sweep_runs(name: str, run_here: Run, tiny_data: None) -> None:
    key, _ = SWEEPS[name]
    option = key.removeprefix("method.")
    result = run_here(*cells(name)[-1], *SHORT, *SMALL["oled"])
    assert result["config"]["method"][option] == max(cell.method[option] for cell in options(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ocgan/table4_mnist", "ca_entropy/table4_cifar10", "oled/table4_mnist"]
)
def test_every_row_of_an_ablation_runs(name: str, run_here: Run, tiny_data: None) -> None:
    rows = [cell for cell in cells(name) if {"seed=0", "inlier=0"} <= set(cell)]
    results = [run_here(*cell, *SHORT, *SMALL[TABLES[name][0]]) for cell in rows]
    assert len({result["method"] for result in results}) == len(rows)


@pytest.mark.slow
def test_every_row_of_nda_runs(run_here: Run, tiny_data: None) -> None:
    """The contrastive row finds the encoder of the full row's run, of the same class and seed."""
    rows = [cell for cell in cells("nda/table2_cifar10") if {"seed=2", "inlier=4"} <= set(cell)]
    assert "method.name=nda_full" in rows[0] and "method.name=nda_contrastive" in rows[-1]
    with pytest.raises(UserError, match="inlier4/seed2/checkpoints/val_loss.pt: not such weights"):
        run_here(*rows[-1], *SHORT, *SMALL["nda"])
    results = {
        (result := run_here(*cell, *SHORT, *SMALL["nda"]))["method"]: result for cell in rows
    }
    assert len(results) == 7
    start = Path(results["nda_contrastive"]["config"]["method"]["contrastive_from"])
    assert start.is_file() and start.parts[-6:-1] == (
        "nda_full",
        "cifar10",
        "inlier4",
        "seed2",
        "checkpoints",
    )


# The command.


def test_options_on_the_command_line_narrow_a_table(
    command: Cli, tiny_data: None, tmp_path: Path
) -> None:
    """Three cells of thirty, of which one is bad: a sweep without -m goes on, and says so with exit
    code 1.
    """
    narrow = (
        "experiment=ocgan/table2_mnist",
        "method=pca",
        "seed=1",
        "data.verify=false",
        "trainer.accelerator=cpu",
    )
    process = command(*narrow, "inlier=3,11,4")
    assert process.returncode == 1, process.stderr
    assert "inlier=11: mnist has classes 0 to 9" in process.stderr
    folder = tmp_path / "elsewhere" / "outputs" / "ocgan" / "table2_mnist" / "p2" / "pca" / "mnist"
    assert sorted(path.parent for path in folder.rglob("result.json")) == [
        folder / "inlier3" / "seed1",
        folder / "inlier4" / "seed1",
    ]


def test_one_row_of_a_table_under_another_output(
    command: Cli, tiny_data: None, tmp_path: Path
) -> None:
    narrow = (
        "experiment=ocgan/table4_mnist",
        "row=ocgan_autoencoder,ocgan_latent_discriminator",
        "inlier=0",
        "seed=0",
    )
    process = command(*narrow, *SHORT, "method.channels=4", f"output={tmp_path / 'try'}")
    assert process.returncode == 0, process.stderr
    found = sorted(path.parent for path in (tmp_path / "try").rglob("result.json"))
    names = ["ocgan_autoencoder", "ocgan_latent_discriminator"]
    assert found == [
        tmp_path / "try" / "p2" / name / "mnist" / "inlier0" / "seed0" for name in names
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["experiment=ocgan/tabel2_mnist"],
            "experiment=ocgan/tabel2_mnist: no such choice; did you mean 'ocgan/table2_mnist'?",
        ),
        (
            ["experiment=zzz"],
            "experiment=zzz: no such choice; Choose from: ca_entropy/table1_coil100, ",
        ),
        (
            ["experiment=ocgan/table4_mnist/ocgan_full"],
            "no such choice; did you mean 'ocgan/table4_mnist'?",
        ),
        (["experiment=learn/learn"], "experiment=learn/learn: no such choice"),
        (
            ["experiment=ocgan/table4_mnist", "row=autoencoder"],
            "row=autoencoder: no such row of this experiment; did you mean 'ocgan_autoencoder'? "
            "Choose from: ocgan_autoencoder, ocgan_full, ",
        ),
        (
            ["experiment=ocgan/table4_mnits", "row=autoencoder"],
            "experiment=ocgan/table4_mnits: no such choice; did you mean 'ocgan/table4_mnist'?",
        ),
        (
            ["experiment=ocgan/table2_mnist", "row=autoencoder"],
            "row=autoencoder: rows are run by the sweep of their experiment=...",
        ),
        (
            ["experiment=nda/table3_cifar10", "method.gama=1"],
            "method.gama: no such option; did you mean 'method.gamma'?",
        ),
        (["row=nda_mse"], "row=nda_mse: rows are run by the sweep of their experiment=..."),
        (["-m", "row=nda_mse"], "row=nda_mse: rows are run by the sweep of their experiment=..."),
        (
            ["experiment=ocgan/table4_mnist", "row=nda_mse,ocgan_full"],
            "row=nda_mse: no such row of this experiment; Choose from: ocgan_autoencoder, ",
        ),
        (
            ["experiment=test/misspelt"],
            "method.latent_sise: no such option; did you mean 'method.latent_size'?",
        ),
        (["experiment=test/unknown"], "learning_rate: no such option; "),
    ],
)
def test_bad_input_is_one_line_exit_2_and_creates_nothing(
    command: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    """Hydra would add a misspelt key of an experiment file in silence."""
    store = ConfigStore.instance()
    monkeypatch.setitem(store.repo["experiment"], "test", {})
    for name, node in (
        ("misspelt", {"method": {"latent_sise": 3}}),
        ("unknown", {"learning_rate": 0.1}),
    ):
        store.store(name, DictConfig(node), "experiment/test", "_global_")
    process = command(*arguments)
    assert_refused(process, message, tmp_path)


def test_help_lists_the_experiments_and_shows_the_options_of_one(command: Cli) -> None:
    shown = command("--help").stdout
    assert all(name in shown for name in EXPERIMENTS)
    shown = command("experiment=oled/table4_mnist", "--help").stdout
    assert "(now oled)" in shown and "(now two_thirds)" in shown
    assert "method.mask_grad=eps" in shown and "trainer.max_epochs=6" in shown


def test_found_beside_the_code_when_installed(tmp_path: Path) -> None:
    """Where a wheel puts them."""
    for source, target in ((PACKAGE, ""), (CONF, "conf"), (ROOT, "experiments")):
        shutil.copytree(
            source, tmp_path / "noveltylab" / target, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = [
        sys.executable,
        "-P",
        "-m",
        "noveltylab",
        "--cfg",
        "job",
        "experiment=ocgan/table4_mnist",
        "row=ocgan_full",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "name: ocgan_full" in process.stdout
    assert "output: outputs/ocgan/table4_mnist" in process.stdout
