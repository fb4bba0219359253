"""The command line: what it composes, what it refuses and how."""

import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from noveltylab import __version__ as VERSION
from noveltylab import compose
from noveltylab.command.recipes import DEFAULT, config_names, recipe_options
from noveltylab.command.validate import check_arguments
from noveltylab.job import CONF, PACKAGE
from noveltylab.methods.base import find_method
from tests.conftest import TINY, assert_refused

Cli = Callable[..., subprocess.CompletedProcess[str]]

REFUSED = {
    **{
        f"{argument}, which is no name": (
            [argument],
            f"{argument}: no such choice; Choose from: {names}",
        )
        for argument, names in (
            ("data=null", "antispoofing, cifar10"),
            ("trainer=5", "cpu, ddp"),
            ("protocol=1.5", "cross, "),
            ("search=true", "optuna"),
            ("experiment=5", "ca_entropy/table1"),
            ("logger=5", "csv, mlflow"),
            ("hydra/launcher=5", "basic, "),
        )
    },
    "a number in a list of loggers": (
        ["logger=[csv,5]"],
        "logger=5: no such choice; Choose from: ",
    ),
    "a number in a sweep of names": (["-m", "trainer=cpu,5"], "trainer=5: no such choice; "),
    "a list in a list": (["logger=[[csv]]"], "names go into the list, such as logger=[csv,wandb]"),
    "a list of methods": (
        ["method=[pca,knn]"],
        "method=[pca,knn]: one name goes here; a sweep over several: -m method=pca,knn",
    ),
    "a mapping for a name": (
        ["method={a:1}"],
        "method={...}: holds no option of method; write each as method.<option>=<value>",
    ),
    "a mapping for a list": (["tags={a:1}"], "tags={a:1}: the value is of another kind than "),
    "a list of classes": (
        ["inlier=[0,1]"],
        "inlier=[0, 1]: one class goes here; a sweep over several: -m inlier=0,1",
    ),
    "flags that exclude each other": (
        ["-m", "--cfg", "job"],
        "--multirun and --cfg do not go together; take one of them",
    ),
    "unknown method": (["method=ocgn"], "method=ocgn: no such choice; did you mean 'ocgan'?"),
    "unknown recipe": (
        ["recipe=our"],
        "recipe=our: no such choice of method=ocgan; did you mean 'ours'? Choose from: default, ",
    ),
    "recipe of other methods": (
        ["method=knn", "recipe=ours"],
        "method=knn has no such recipe; it has: default",
    ),
    "recipe of one other method": (
        ["method=ocgan", "recipe=first_code"],
        "method=ocgan has no such recipe; it has: default, ours, paper, readme, release",
    ),
    "what recipe was once": (
        ["preset=ours"],
        "preset=ours: no such option any more; now it is recipe=ours",
    ),
    "what default was once": (
        ["-m", "preset=paper,ours"],
        "now it is recipe=default (recipe=paper is the paper",
    ),
    "a method's own recipe of once": (
        ["method=nda", "method.preset=adam"],
        "now it is method.optimizer=adam",
    ),
    "what two_thirds was once": (
        ["-m", "protocol=p1,memae"],
        "protocol=p1,memae: no such option any more; now it is protocol=two_thirds",
    ),
    "what folders was once": (
        ["data=images", "protocol=folder"],
        "protocol=folder: no such option any more; now it is protocol=folders",
    ),
    "what images was once": (
        ["data=folder", "data.root=parts"],
        "data=folder: no such option any more; now it is data=images",
    ),
    "a name of once": (["protocol.name=memae"], "now it is protocol.name=two_thirds"),
    "a data set's name of once": (["data.name=folder"], "now it is data.name=images"),
    "unknown data": (["data=mnits"], "did you mean 'mnist'?"),
    "unknown protocol": (
        ["protocol=p3"],
        "Choose from: cross, folders, frames, p1, p2, scenes, two_thirds",
    ),
    "unknown group": (["methd=ocgan"], "methd: no such option; did you mean 'method'?"),
    "misspelt key": (
        ["method.latent_sise=3"],
        "method.latent_sise: no such option; did you mean 'method.latent_size'?",
    ),
    "misspelt trainer key": (["trainer.max_epoch=3"], "did you mean 'trainer.max_epochs'?"),
    "key of one method": (
        ["-m", "method=nda,knn", "method.channels=8"],
        "no such option of method=knn; Choose from: k, ",
    ),
    "appended key": (["+method.foo=1"], "method.foo: no such option; "),
    "appended top key": (["+foo=1"], "foo: no such option; "),
    "wrong type": (["method.lr=abc"], "method.lr=abc: "),
    "wrong type of a switch": (["method.use_mining=3"], "method.use_mining=3: "),
    "wrong word": (["method.latent_layout=cube"], "the value should be 'vector' or 'map'"),
    "inlier too large": (["inlier=11"], "inlier=11: digits has classes 0 to 9"),
    "inlier by a wrong name": (["data=cifar10", "inlier=cta"], "did you mean 'cat'?"),
    "batch of nothing": (
        ["data.batch_size=0"],
        "data.batch_size=0: the value should be greater than or equal to 2",
    ),
    "negative epochs": (["trainer.max_epochs=-3"], "trainer.max_epochs=-3: "),
    "negative seed": (["seed=-1"], "seed=-1: "),
    "negative rate": (["method.lr=-1"], "method.lr=-1: the value should be greater than 0"),
    "size that does not fit": (["data.size=30"], "data.size=30: OCGAN takes a multiple of 8"),
    "unknown score": (
        ["method.primary=msw"],
        "method.primary=msw: no such score; did you mean 'mse'?",
    ),
    "protocol option": (["protocol=p1", "protocol.val_fraction=2"], "protocol.val_fraction"),
    "protocol without official split": (
        ["data=digits", "protocol=p2"],
        "protocol=p2 does not fit data=digits; it can be p1, two_thirds",
    ),
    "selection without held-out inliers": (
        ["protocol.val_fraction=0"],
        "select=val_loss needs held-out inliers",
    ),
    "missing data": (["data=mnist", "data.root=/nonexistent"], "not found in /nonexistent"),
    "unknown strategy": (
        ["method=ae", "trainer.strategy=foo"],
        "trainer.strategy=foo: the value should be 'auto' or 'ddp_find_unused_parameters_true'",
    ),
    "a precision that is none": (
        ["method=ae", "trainer.precision=half"],
        "trainer.precision=half: the value should be '32-true', '64-true', 'bf16-mixed', '16-mixed' or 'auto'",
    ),
    "a precision of GPUs": (
        ["method=ae", "trainer.accelerator=cpu", "trainer.precision=16-mixed"],
        "on a CPU use bf16-mixed or 32-true",
    ),
    "an accelerator of others": (
        ["method=ae", "trainer.accelerator=mps"],
        "trainer.accelerator=mps: no Apple GPU here",
    ),
    "too few images for two devices": (
        ["method=ae", "trainer.accelerator=cpu", "trainer.devices=2"],
        "126 training samples over 2 devices are fewer than data.batch_size=64 each",
    ),
    "graph of a CPU": (
        ["method=ae", "trainer.accelerator=cpu", "trainer.cuda_graph=on"],
        "trainer.cuda_graph=on: the device is cpu",
    ),
    "two schedules": (
        ["method=deep_svdd", "trainer.lr_decay_from=0.5"],
        "method=deep_svdd sets its learning rates itself",
    ),
    "a graph's rate": (
        ["trainer.lr_decay_from=0.5", "trainer.cuda_graph=auto"],
        "a recorded graph keeps its learning rate",
    ),
    "patience with methods without epochs": (
        ["method=pca", "trainer.patience=3"],
        "trainer.patience=3: method=pca is fitted once, without epochs",
    ),
    "patience of folds": (
        ["method=knn", "protocol.folds=5", "trainer.patience=1"],
        "trainer.patience=1: method=knn is fitted once, without epochs",
    ),
    "patience without looks": (
        ["select=last", "trainer.patience=2"],
        "trainer.patience=2: select=last scores the last of the planned epochs; take select=val_loss",
    ),
    "less than no patience": (["trainer.patience=-1"], "trainer.patience=-1: "),
    "batch norm of methods without": (
        ["method=pca", "trainer.batch_norm=anew"],
        "trainer.batch_norm=anew: method=pca has no batch norm",
    ),
    "statistics of no kind": (
        ["trainer.batch_norm=new"],
        "the value should be 'running' or 'anew'",
    ),
    "an average over less than nothing": (
        ["trainer.average_epochs=-1"],
        "trainer.average_epochs=-1: ",
    ),
    "an average without end": (["trainer.average_epochs=inf"], "should be a finite number"),
    "no such device": (["trainer.accelerator=mps"], "trainer.accelerator=mps: "),
    "not an override": (["inlier"], "cannot read 'inlier' on the command line"),
    "option elsewhere": (["lr=3"], "lr: no such option; did you mean 'method.lr'?"),
    "option by another name": (
        ["epochs=2"],
        "epochs: no such option; did you mean 'trainer.max_epochs'?",
    ),
    "option in the wrong group": (["trainer.batch_size=3"], "did you mean 'data.batch_size'?"),
    "appended option elsewhere": (["+lr=3"], "lr: no such option; did you mean 'method.lr'?"),
    "bad grammar": (["method.lr=["], "cannot read the value in 'method.lr=['"),
    "several values": (["seed=1,2"], "seed=1,2: several values are a sweep, which takes -m"),
    "range without a sweep": (["seed=range(0,3)"], "several values are a sweep, which takes -m"),
    "wrong flag": (["--foo"], "unrecognized arguments: --foo"),
    "empty path": (["output="], "output=: the path is empty; name a folder"),
    "path of nobody": (
        ["data=images", "data.root=Größe (2)"],
        "data.root=Größe (2): no such folder",
    ),
    "too long a path": (
        ["output=" + "x" * 3000],
        "a part of the path is longer than the 255 bytes",
    ),
    "path that is no UTF-8": (["output=Gr\udcf6"], "this name is no UTF-8"),
    "another option's value": (["output=${foo}"], "output: Interpolation key 'foo' not found"),
    "half an interpolation": (["output=a${b"], "begins the value of another option"),
    "project that W&B refuses": (
        ["logger=wandb", "logger.project=a/b"],
        "a project of W&B has 1 to 128 characters without /",
    ),
    "class outside the project": (
        ["method._target_=os.system"],
        "not a subclass of noveltylab.methods.base.Method",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_exit_2_and_creates_nothing(
    command: Cli, tmp_path: Path, case: str
) -> None:
    arguments, message = REFUSED[case]
    process = command(*arguments)
    assert_refused(process, message, tmp_path)


@pytest.mark.parametrize("arguments", [["method=ocgn"], ["method.lr=abc"], ["inlier=11"]])
def test_bad_input_from_a_real_shell(cli: Cli, tmp_path: Path, arguments: list[str]) -> None:
    process = cli(*arguments)
    assert_refused(process, f"error: {arguments[0]}: ", tmp_path)


def test_misspelt_key_from_a_file_is_refused(command: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "trial.yaml").write_text(
        "# @package _global_\nmethod:\n  latent_sise: 3\n"
    )
    process = command("--config-dir", str(tmp_path / "mine"), "+mine=trial")
    assert process.returncode == 2
    (tmp_path / "conf" / "mine").mkdir(parents=True)
    (tmp_path / "mine" / "trial.yaml").rename(tmp_path / "conf" / "mine" / "trial.yaml")
    process = command("--config-dir", str(tmp_path / "conf"), "+mine=trial")
    assert process.returncode == 2
    assert (
        "method.latent_sise: no such option; did you mean 'method.latent_size'?" in process.stderr
    )
    assert process.stderr.count("\n") == 1


def test_truncated_data_file_is_named(command: Cli, small_data: Path) -> None:
    path = small_data / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    process = command("data=mnist", "data.verify=false", "inlier=3")
    assert process.returncode == 2
    assert str(path) in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("method", config_names(CONF / "method"))
def test_a_method_composes_with_every_data_set(method: str) -> None:
    """Of the data sets for which its recipe says the same, the first: each file of theirs is
    composed by `test_every_config_file_composes_and_passes_the_checks`.
    """
    data_of = {}
    for data in config_names(CONF / "data"):
        data_of.setdefault(json.dumps(recipe_options(method, DEFAULT, data)), data)
    for data in data_of.values():
        options = compose(f"method={method}", f"data={data}")
        arguments = {
            key: value
            for key, value in options.method.items()
            if key not in ("name", "_target_", "primary")
        }
        check_arguments(find_method(options.method["_target_"]), arguments, "method")


@pytest.mark.parametrize("group", ["data", "logger", "trainer", "debug"])
def test_every_config_file_composes_and_passes_the_checks(group: str) -> None:
    for name in config_names(CONF / group):
        options = compose(f"{group}={name}")
        if group == "debug":
            assert options.debug == name


def test_cfg_job_answers_without_torch(cli: Cli) -> None:
    process = cli("--cfg", "job", "data=mnist", "inlier=3")
    assert process.returncode == 0
    assert "name: mnist" in process.stdout
    probe = (
        "import sys; sys.argv = ['noveltylab', '--cfg', 'job']\n"
        "from noveltylab.__main__ import main\n"
        "main()\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'wandb', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)


def test_works_from_an_installed_wheel(tmp_path: Path) -> None:
    """Builds the real wheel, unpacks it elsewhere and composes from there."""
    root = PACKAGE.parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"noveltylab/py.typed", "noveltylab/report/published.yaml"} <= names
    plans = {f"noveltylab/{path.relative_to(root)}" for path in root.glob("experiments/*/*.yaml")}
    assert plans <= names
    assert not [name for name in names if name.endswith((".md", ".csv", ".jsonl", ".png"))]
    assert {name.split("/")[0] for name in names} == {
        "noveltylab",
        f"noveltylab-{VERSION}.dist-info",
    }
    assert f"noveltylab-{VERSION}.dist-info/licenses/LICENSE" in names
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-P", "-m", "noveltylab", "--cfg", "job", "method=pca"]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "name: pca" in process.stdout
    where = [sys.executable, "-P", "-c", "from noveltylab.job import CONF; print(CONF)"]
    printed = subprocess.run(
        where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert Path(printed.strip()) == tmp_path / "site" / "noveltylab" / "conf"


def test_the_source_archive_carries_no_results(tmp_path: Path) -> None:
    """And yet all that the wheel is built from."""
    root = PACKAGE.parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert not [name for name in names if name.startswith("experiments/results")]
    assert {"LICENSE", "README.md", "conf/train.yaml", "noveltylab/py.typed"} <= names
    assert {str(path.relative_to(root)) for path in root.glob("experiments/*/*.yaml")} <= names


@pytest.mark.parametrize("arguments", [["--version"], ["method=pca", "--version"]])
def test_the_version_is_ours_not_hydras(command: Cli, arguments: list[str]) -> None:
    process = command(*arguments)
    assert (process.returncode, process.stdout) == (0, f"noveltylab {VERSION}\n")
    assert not process.stderr


def test_a_sweep_goes_on_after_a_failed_cell(command: Cli, tmp_path: Path) -> None:
    process = command("-m", "method=pca", "inlier=3,11,4", "trainer.accelerator=cpu")
    assert process.returncode == 1
    assert "1 of 3 cells failed" in process.stderr
    assert "inlier=11: digits has classes 0 to 9" in process.stderr
    classes = sorted(
        path.parent.parent.name for path in (tmp_path / "elsewhere").rglob("result.json")
    )
    assert classes == ["inlier3", "inlier4"]


@pytest.mark.posix
def test_interrupting_a_run_says_how_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C during training: no traceback, exit code 130; the same command then completes."""
    import signal

    command = [
        sys.executable,
        "-m",
        "noveltylab",
        f"output={tmp_path}",
        *TINY,
        "trainer.max_epochs=100000",
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            while not list(tmp_path.rglob("metrics.csv")):
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 130, error
    assert "the same command goes on" in error
    assert "Traceback" not in error
