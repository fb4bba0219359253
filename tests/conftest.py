"""Tiny runs for every test: real formats, small networks, one thread."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import noveltylab.__main__
import noveltylab.job
from noveltylab.command.hydra_versions import BASE
from noveltylab.command.signals import HANGUP
from noveltylab.job import CONF
from tests.formats import write_cifar10, write_mnist

torch.set_num_threads(1)
# Seconds of a network in each of thousands of runs; the tests of this floor turn it on.
os.environ["NOVELTYLAB_FLOOR_FEATURES"] = "off"
# The same examples in every run: what `make test` says of a commit stays so. `make test-search`
# draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("repeatable")
# Tests in the background (nohup, &) are born deaf to these, and so would be the runs that they
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
if HANGUP is not None:
    signal.signal(HANGUP, signal.SIG_DFL)

#: The benchmarks measure memory as POSIX does.
collect_ignore = ["test_benchmarks.py"] if os.name == "nt" else []

#: An OCGAN that trains in a second.
TINY = (
    "method.channels=4",
    "method.classifier_channels=4",
    "method.image_discriminator_channels=4",
    "data.batch_size=16",
    "trainer.max_epochs=4",
    "trainer.val_every=1",
    "trainer.accelerator=cpu",
    "pictures=false",
)


#: The tests marked `long`, an id a line; `make test-times` writes it.
LONG_TESTS = Path(__file__).parent / "long.txt"
#: A test is long from so many seconds on, with the fixtures that are set up for it.
LONG_SECONDS = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-long", action="store_true", help="write tests/long.txt from the times of this run"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m leaves out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the long tests, and skips what Windows has not."""
    long_tests = set(LONG_TESTS.read_text().splitlines())
    for item in items:
        if without_group(item.nodeid) in long_tests:
            item.add_marker(pytest.mark.long)
        if os.name == "nt" and item.get_closest_marker("posix"):
            item.add_marker(pytest.mark.skip(reason="needs POSIX"))


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a few hundred images in the formats of MNIST and CIFAR-10."""
    root = tmp_path / "data"
    write_mnist(root)
    write_mnist(root, name="FashionMNIST")
    write_cifar10(root)
    monkeypatch.setenv("NOVELTYLAB_DATA", str(root))
    return root


@pytest.fixture
def run_here(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """run_here("data=mnist", ...): composes the real config with overrides and runs it in this
    process, without pictures.
    """
    return run_in(tmp_path)


def run_in(folder: Path) -> Callable[..., dict[str, Any]]:
    """`run_here` for a folder that outlives a test."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from noveltylab.options import check_options
    from noveltylab.run.pipeline import run

    def go(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(CONF), **BASE):
            config = compose(
                "train", [f"output={folder / 'outputs'}", "pictures=false", *overrides]
            )
        return run(check_options(config), OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]

    return go


@pytest.fixture(scope="session")
def pca_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run of PCA on digits; tests change copies of it."""
    folder = tmp_path_factory.mktemp("pca")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVELTYLAB_CACHE", str(folder / "cache"))
        run_in(folder)("method=pca", "trainer.accelerator=cpu")
    return folder / "outputs"


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """cli("method=ocgn"): the real command in a process of its own, from an empty working
    directory.
    """
    folder = tmp_path / "elsewhere"

    def go(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "noveltylab", *arguments]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=300, **options
        )

    return go


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `cli`, but in this process: no new import of torch. From the same empty working directory."""
    folder = tmp_path / "elsewhere"

    def go(*arguments: str) -> subprocess.CompletedProcess[str]:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["noveltylab", *arguments])
        monkeypatch.setattr(noveltylab.job, "failures", [])
        for name in ("HYDRA_FULL_ERROR", "OMP_WAIT_POLICY"):
            monkeypatch.setenv(name, os.environ.get(name, "PASSIVE"))
        capfd.readouterr()
        try:
            noveltylab.__main__.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = capfd.readouterr()
        return subprocess.CompletedProcess(list(arguments), code, output.out, output.err)

    return go


def assert_refused(process: subprocess.CompletedProcess[str], message: str, tmp_path: Path) -> None:
    """`cli` or `command` ended with one line of error and exit code 2, and created nothing."""
    assert process.returncode == 2, process.stderr
    assert message in process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((program for name in names if (program := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the path")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A run with resources.num_cpus leaves torch's threads to the next test as they were."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def forbid(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Nobody may look into that folder, root neither."""
    scandir = os.scandir

    def guarded(path: Any = ".") -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)


class Killed(BaseException):
    """Stands in for SIGKILL inside one process."""


@contextmanager
def killed(epoch: int, *, before_scoring: bool = False) -> Iterator[None]:
    """Inside, a run is killed after so many epochs, in the middle of the next one.

    Args:
        epoch: Whole epochs that have been trained by then.
        before_scoring: Kill also when training is over and the scores are to be computed.
    """
    from noveltylab.methods.base import Method

    step = Method.training_step

    def train_and_kill(self: Method, chunk: Any, index: int) -> None:
        step(self, chunk, index)
        if self.current_epoch == epoch:
            raise Killed

    def kill(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "training_step", train_and_kill)
        if before_scoring:
            patch.setattr("noveltylab.run.pipeline.score", kill)
        with pytest.raises(Killed):
            yield


#: Files whose time is printed at the end.
SLOWEST_FILES = 12


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the files that took most of the time, in seconds of one worker."""
    seconds = times_of_tests(terminalreporter)
    if config.getoption("--write-long"):
        long_tests = [test for test, time in seconds.items() if time >= LONG_SECONDS]
        LONG_TESTS.write_text("".join(f"{test}\n" for test in sorted(long_tests)))
    by_file: dict[str, float] = {}
    for test, time in seconds.items():
        file = test.partition("::")[0]
        by_file[file] = by_file.get(file, 0.0) + time
    slowest = sorted(by_file, key=by_file.__getitem__, reverse=True)[:SLOWEST_FILES]
    if len(by_file) > SLOWEST_FILES:
        terminalreporter.section(f"slowest files of {len(by_file)}")
        for file in slowest:
            terminalreporter.write_line(f"{by_file[file]:7.1f} s  {file}")


def times_of_tests(terminalreporter: Any) -> dict[str, float]:
    """Test -> its seconds, with those of the fixtures that were set up for it."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                test = without_group(report.nodeid)
                seconds[test] = seconds.get(test, 0.0) + report.duration
    return seconds


def without_group(test: str) -> str:
    """A test's id without the group that xdist adds behind it, `test_it[case]@group`."""
    name, at, group = test.rpartition("@")
    return name if at and "]" not in group else test
