"""Runs from Python: the same options, errors and numbers as the command, and nothing left behind."""

import itertools
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import hydra.version
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from noveltylab import UserError, compose, load_detector, train
from noveltylab.command.hydra_versions import BASE
from noveltylab.command.recipes import config_names
from noveltylab.configs import compose_config
from noveltylab.job import CONF, PACKAGE
from noveltylab.options import check_options
from noveltylab.run.process import LOGGERS
from tests.conftest import TINY
from tests.test_main import REFUSED, Cli

PAGE = PACKAGE.parent / "docs" / "api.md"


def state() -> dict[str, Any]:
    """What of this process a run may not change."""
    loggers = [logging.getLogger(name) for name in (None, *LOGGERS)]
    return {
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "precision": torch.get_float32_matmul_precision(),
        "grad": torch.is_grad_enabled(),
        "random": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002  # the caller's
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "argv": list(sys.argv),
        "cwd": os.getcwd(),
        "loggers": [(log.level, log.propagate, list(log.handlers)) for log in loggers],
        "raises": logging.raiseExceptions,
        "warnings": (list(warnings.filters), warnings.showwarning),
        "hydra": (GlobalHydra.instance(), GlobalHydra.instance().hydra),
        "version": hydra.version.getbase(),
        "choices": ConfigStore.instance().repo,
        "streams": (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
    }


@pytest.fixture
def unusual_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process in which everything that a run sets is set otherwise."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    log = logging.getLogger("noveltylab")
    handler = logging.NullHandler()
    log.addHandler(handler)
    log.setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.DEBUG)
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["notebook", "--flag"])
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002  # what is put back
    torch.manual_seed(3)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("ignore", message="mine")
    other = tmp_path / "conf"
    other.mkdir()
    (other / "theirs.yaml").write_text("a: 1\n")
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(other), **BASE):
        yield
        assert hydra.compose("theirs") == {"a": 1}
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    log.setLevel(logging.NOTSET)
    log.removeHandler(handler)
    signal.signal(signal.SIGTERM, before)


def test_a_run_leaves_the_process_as_it_was(unusual_process: None) -> None:
    before = state()
    options = compose("method=ocgan", "resources.num_cpus=1", "deterministic=true", *TINY)
    assert state() == before
    result = train(options)
    assert state() == before
    assert train(options) == result  # complete already
    assert state() == before


def test_a_refused_run_leaves_the_process_as_it_was(unusual_process: None) -> None:
    before = state()
    with pytest.raises(UserError, match="did you mean 'method.latent_size'"):
        compose("method.latent_sise=3")
    with pytest.raises(UserError, match="method.primary=nothing: no such score"):
        train(compose("method.primary=nothing", *TINY))
    with pytest.raises(UserError, match="several devices|trains on several"):
        train(compose("trainer.devices=2"))
    assert state() == before
    assert not Path("outputs").exists()


def test_a_fresh_process_is_as_before(tmp_path: Path) -> None:
    """Nothing of noveltylab, torch or Lightning is loaded before the run."""
    probe = """
        import logging, os, random, signal, sys, threading, warnings
        import hydra.core.config_store, hydra.core.global_hydra
        names = [*os.environ, "PL_GLOBAL_SEED", "OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"]
        def state():
            return {
                "signals": [signal.getsignal(number) for number in signal.valid_signals()],
                "random": hash(random.getstate()),
                "argv": list(sys.argv),
                "environment": {name: os.environ.get(name) for name in names},
                "root": (logging.root.level, list(logging.root.handlers)),
                "log": logging.getLogger("noveltylab").handlers,
                "hydra": hydra.core.global_hydra.GlobalHydra.instance().hydra,
                "choices": {
                    name for name in hydra.core.config_store.ConfigStore.instance().repo
                    if name in ("recipe", "row", "experiment")
                },
                "threads": [thread.name for thread in threading.enumerate()],
                "filters": [entry for entry in warnings.filters if entry[0] == "error"],
            }
        from noveltylab import compose, train
        before = state()
        options = compose("method=pca", "trainer.accelerator=cpu", "pictures=false")
        assert "torch" not in sys.modules
        train(options)
        after = state()
        for name in before:
            assert before[name] == after[name], (name, before[name], after[name])
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(probe)], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_the_guarantees_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (guarantees,) = [block for block in blocks if "Drift" in block]
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    capsys.readouterr()
    exec(guarantees, names)
    assert names["threshold"] is not None
    assert capsys.readouterr().out.endswith("['all']\n")


def test_the_five_lines_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line]) == 5
    names: dict[str, Any] = {}
    exec(block[1], names)
    result, detector = names["result"], names["detector"]
    assert result["scores"][result["primary"]]["auroc"] > 0.5
    assert detector.folder == Path(result["folder"])
    recorded = json.loads((Path(result["folder"]) / "result.json").read_text())
    assert result == {**recorded, "folder": result["folder"]}


def test_the_numbers_are_those_of_the_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("method=ocgan", "seed=5", *TINY)
    assert cli(*arguments).returncode == 0
    monkeypatch.chdir(tmp_path)
    folder = Path(train(compose(*arguments))["folder"])
    other = tmp_path / "elsewhere" / folder.relative_to(tmp_path.resolve())
    assert (folder / "scores.csv").read_bytes() == (other / "scores.csv").read_bytes()
    config = OmegaConf.load(folder / "config.yaml")
    assert config == OmegaConf.load(other / "config.yaml")
    # each finds the other's run complete
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(compose(*arguments))["folder"] == str(other)


def test_every_choice_is_recorded_as_the_command_records_it() -> None:
    """`train` has the checked options alone, and what it records is what was composed."""
    datasets = itertools.cycle(config_names(CONF / "data"))
    choices = [
        (f"method={method}", f"data={data}")
        for method, data in zip(config_names(CONF / "method"), datasets, strict=False)
    ]
    for choice in [*choices, ("logger=wandb", "recipe=paper")]:
        config = compose_config(list(choice))
        plain = OmegaConf.to_container(config, resolve=True)
        assert check_options(config).model_dump(exclude_unset=True) == plain


@pytest.mark.parametrize(
    "name",
    [
        "unknown method",
        "unknown recipe",
        "recipe of other methods",
        "what recipe was once",
        "unknown group",
        "misspelt key",
        "inlier too large",
    ],
)
def test_bad_options_are_refused_in_the_words_of_the_command(name: str) -> None:
    arguments, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        compose(*arguments)


@pytest.mark.parametrize("name", ["appended key", "wrong type"])
def test_bad_options_of_a_method_are_refused_before_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method's own code says which options it has."""
    monkeypatch.chdir(tmp_path)
    arguments, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        train(compose(*arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "inlier=3"], "-m: flags belong to the command"),
        ([3], "3: options are texts"),
        (["inlier=0,1"], "inlier=0,1: several values are a sweep"),
        (["experiment=ocgan/table4_mnist", "row=ocgan_full"], "these are 30 runs"),
        (["experiment=ocgan/table4_mnist", "row=ocgan_ful"], "did you mean 'ocgan_full'?"),
        (["experiment=ocgan/table9"], "experiment=ocgan/table9: no such choice"),
        (["row=ocgan_full"], "rows are run by the sweep of their experiment"),
    ],
)
def test_what_is_no_single_run_is_refused(arguments: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        compose(*arguments)


def test_one_run_of_an_experiment_is_composed() -> None:
    chosen = ("experiment=ocgan/table4_mnist", "row=ocgan_two_discriminators")
    options = compose(*chosen, "inlier=3", "seed=1", "trainer.max_epochs=7")
    assert (options.inlier, options.seed, options.trainer.max_epochs) == (3, 1, 7)
    assert options.method["name"] == "ocgan_two_discriminators"
    assert options.method["use_mining"] is False
    assert options.output == "outputs/ocgan/table4_mnist"


def test_a_run_in_another_thread_leaves_signals_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    results = []
    options = compose("method=ocgan", *TINY)
    thread = threading.Thread(target=lambda: results.append(train(options)))
    thread.start()
    thread.join()
    assert results
    assert load_detector(results[0]["folder"], "cpu").folder == Path(results[0]["folder"])
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
