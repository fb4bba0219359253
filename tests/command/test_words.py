"""The words of the command, modules that are no command, and the option that somebody meant."""

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import noveltylab
from noveltylab.command.hints import HABITS, meant, option_hint
from noveltylab.command.words import (
    MODULES,
    commands,
    nearest_command,
    refuse_other_modules,
    requested_module,
)
from noveltylab.errors import nearest
from noveltylab.help import compose_choices, config_names, flat_keys
from noveltylab.job import CONF, PACKAGE
from noveltylab.results.record import write_result
from tests.report.conftest import flat_metrics, result_of

Cli = Callable[..., subprocess.CompletedProcess[str]]


def module_names() -> list[str]:
    """Every module and package of noveltylab, as `python -m` takes them."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        names.append(".".join(parts))
    return names


def runs_something(name: str) -> bool:
    """Whether `python -m name` calls a main."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return source.exists() and '__name__ == "__main__"' in source.read_text()


def run_python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize("word", MODULES)
def test_a_word_calls_the_main_of_its_module(
    command: Cli, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    calls = []

    def main(arguments: list[str]) -> int:
        calls.append(arguments)
        return 7

    monkeypatch.setattr(import_module(MODULES[word]), "main", main)
    assert command(word, "run=somewhere", "--html").returncode == 7
    assert calls == [["run=somewhere", "--html"]]


@pytest.mark.parametrize("word", MODULES)
def test_the_help_of_a_word_needs_no_torch(tmp_path: Path, word: str) -> None:
    probe = (
        f"import sys; sys.argv = ['noveltylab', '{word}', '--help']\n"
        "from noveltylab.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    process = run_python("-c", probe, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert f"python -m noveltylab {word} " in process.stdout


def test_a_word_that_ends_well_has_exit_code_0(command: Cli, tmp_path: Path) -> None:
    result = result_of("pca", "digits", "p1", 3, 0, {"residual": flat_metrics(0.9)}, {})
    write_result(tmp_path / "elsewhere" / "outputs" / "seed0", result)
    process = command("report", "outputs")
    assert process.returncode == 0, process.stderr
    assert list((tmp_path / "elsewhere").rglob("report.html"))


@pytest.mark.parametrize(
    ("word", "hint"),
    [("predct", "'predict'"), ("reprot", "'report'"), ("dash", ""), ("outputs/", "")],
)
def test_a_wrong_word_is_one_line_with_the_nearest(command: Cli, word: str, hint: str) -> None:
    process = command(word, "--html", "run=somewhere", "input=new")
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: cannot read '{word}' on the command line; ")
    assert ("did you mean" in process.stderr) == bool(hint)
    assert hint in process.stderr
    assert "predict, report, export, rerun, dashboard, diagnose, status" in process.stderr
    assert process.stderr.count("\n") == 1


def test_help_lists_every_word(command: Cli) -> None:
    text = command("--help").stdout
    for word in MODULES:
        assert f"python -m noveltylab {word} ..." in text


@pytest.mark.parametrize("name", module_names())
def test_a_module_is_a_command_or_says_which_is_meant(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    line = ["python", "-m", name, "seed=1"]
    if runs_something(name):
        assert name in commands()
        refuse_other_modules(line)
        return
    assert name not in commands()
    with pytest.raises(SystemExit) as end:
        refuse_other_modules(line)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error == f"error: {name} is no command; type: {nearest_command(name)}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "noveltylab.training.fit"], "type: python -m noveltylab\n"),
        (["-um", "noveltylab.predict.detector"], "type: python -m noveltylab predict\n"),
        (["-mnoveltylab.rerun"], "type: python -m noveltylab rerun\n"),
    ],
)
def test_python_m_of_no_command_ends_with_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    process = run_python(*arguments, "method=pca", folder=tmp_path)
    assert process.returncode == 2
    assert process.stderr.endswith(message)
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["noveltylab.report", "noveltylab.predict", "noveltylab.run.rerun"]
)
def test_modules_with_a_main_go_on_working(tmp_path: Path, name: str) -> None:
    process = run_python("-m", name, "--help", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "python -m noveltylab " in process.stdout


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["python", "-m", "noveltylab.x"], "noveltylab.x"),
        (["python", "-X", "importtime", "-Ximporttime", "-m", "noveltylab"], "noveltylab"),
        (["python", "-W", "error", "-Pmnoveltylab.x"], "noveltylab.x"),
        (["python", "-m", "pytest", "noveltylab.x"], None),
        (["python", "-m", "noveltylabs"], None),
        (["python", "-m"], None),
        (["python", "train.py", "-x"], None),
    ],
)
def test_the_module_is_read_from_the_interpreters_arguments(
    arguments: list[str], module: str | None
) -> None:
    assert requested_module(arguments) == module


def test_every_word_names_a_module_with_a_main() -> None:
    for name in MODULES.values():
        path = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
        functions = ast.parse(path.read_text()).body
        assert "main" in {node.name for node in functions if isinstance(node, ast.FunctionDef)}


def test_public_names_are_loaded_when_used(tmp_path: Path) -> None:
    probe = (
        "import sys, noveltylab\n"
        "assert {'Method', 'load_detector', '__version__'} <= set(dir(noveltylab))\n"
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)\n"
        "from noveltylab import Method, load_detector\n"
        "assert Method.__module__ == 'noveltylab.methods.base'\n"
        "assert load_detector.__module__ == 'noveltylab.predict.load'\n"
        "assert 'torch' in sys.modules\n"
    )
    process = run_python("-c", probe, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    with pytest.raises(AttributeError, match="has no attribute 'load_detectr'"):
        _ = noveltylab.load_detectr


def test_the_console_script_is_the_command() -> None:
    import tomllib

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"noveltylab": "noveltylab.__main__:main"}


@pytest.fixture(scope="module")
def names() -> list[str]:
    return flat_keys(compose_choices(CONF, []))


@pytest.mark.parametrize(
    ("typed", "options"),
    {
        "lr": ["method.lr"],
        "trainer.lr": ["method.lr"],
        "LR": ["method.lr"],
        "learning_rate": ["method.lr"],
        "model.learning-rate": ["method.lr"],
        "epochs": ["trainer.max_epochs"],
        "trainer.epochs": ["trainer.max_epochs"],
        "max_epochs": ["trainer.max_epochs"],
        "batch_size": ["data.batch_size"],
        "bs": ["data.batch_size"],
        "gpus": ["trainer.accelerator", "trainer.devices"],
        "device": ["trainer.accelerator"],
        "root": ["data.root"],
        "data_dir": ["data.root"],
        "class": ["inlier"],
        "normal_class": ["inlier"],
        "dataset": ["data"],
        "model": ["method"],
        "methd": ["method"],
        "out_dir": ["output"],
        "val_split": ["protocol.val_fraction"],
        "num_workers": ["resources.num_cpus"],
        "latent_dim": ["method.latent_size"],
        "method.latent_sise": ["method.latent_size"],
        "trainer.max_epoch": ["trainer.max_epochs"],
        "bach_size": ["data.batch_size"],
        "overwrite": ["force"],
        "verbose": [],
        "foo": [],
        "method.foo": [],
        "weight_decay": [],
    }.items(),
)
def test_the_option_that_is_meant(names: list[str], typed: str, options: list[str]) -> None:
    assert meant(typed, names) == options


def test_a_hint_names_only_options_that_exist(names: list[str]) -> None:
    assert option_hint("lr", ["method.k", "seed"]) == ""
    assert option_hint("gpus", names) == "did you mean 'trainer.accelerator' or 'trainer.devices'? "


def test_every_habit_belongs_to_an_option_of_some_method() -> None:
    every = {"experiment", "hydra/launcher"}
    for method in config_names(CONF / "method"):
        keys = flat_keys(compose_choices(CONF, [f"method={method}", "logger=wandb"]))
        every |= {*keys, *(key.rpartition(".")[0] for key in keys)}
    assert HABITS.keys() <= every
    assert not every & set(" ".join(HABITS.values()).split()), (
        "the name of an option needs no habit"
    )


def test_a_name_is_near_or_not_said() -> None:
    assert nearest("svdd", ["deep_svdd", "pca"]).startswith("did you mean 'deep_svdd'?")
    assert nearest("ocgn", ["ocgan", "pca"]).startswith("did you mean 'ocgan'?")
    assert nearest("lr", ["logger", "pca"]) == "Choose from: logger, pca"
