"""Changes a method in one place, runs its tests, and says which changes they do not notice.

    python -m tests.mutants [ocgan nda ...]     # `make mutants`; without a name, every list

tests/mutations/<name>.yaml lists the changes of one method, or of a folder of the package, by file. Each change is made in a
copy of the package, in a process forked from one that has imported torch, and the tests run there until the first one fails.
"""

import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process that started threads cannot be forked

import pytest
import yaml
from rich.progress import Progress

ROOT = Path(__file__).parents[1]
LISTS = Path("tests/mutations")
COPIED = ("noveltylab", "conf", "tests", "experiments/published.yaml", "pyproject.toml")
#: Imported once, before the forks: most of the time that a test file needs.
LIBRARIES = (
    "hydra",
    "kornia",
    "lightning",
    "scipy.stats",
    "sklearn.metrics",
    "torchmetrics",
    "torchvision",
)
SECONDS = 300  # after which tests are stopped that a change has made endless
ALLOWED = 20  # one change in so many may survive, of each name


@dataclass(frozen=True)
class Mutant:
    """One change: in `file`, `old` becomes `new`; `description` says it in words."""

    name: str
    file: Path
    description: str
    old: str
    new: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """The old text, however the formatter breaks it into lines."""
        tokens = re.findall(r"\w+|[^\w\s]", self.old)
        spaced = [
            rf",?\s*{re.escape(token)}" if token in ")]}" else re.escape(token) for token in tokens
        ]
        return re.compile(r"\s*".join(spaced))

    def changed(self, code: str) -> str:
        """The code with the change made."""
        return self.pattern.sub(lambda _: self.new, code)

    def fault(self, root: Path) -> str:
        """Why the change cannot be made, "" if it can."""
        count = len(self.pattern.findall((root / self.file).read_text()))
        if count == 1:
            return ""
        where = LISTS / f"{self.name}.yaml"
        return f"{where}: {self.description!r} is stale: its old text occurs {count} times in {self.file}, not once"

    def apply(self, root: Path) -> None:
        path = root / self.file
        path.write_text(self.changed(path.read_text()))
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant: the one that failed first, "" if all passed."""

    mutant: Mutant
    failed: str


def read_mutants(root: Path, name: str) -> list[Mutant]:
    """The changes of tests/mutations/<name>.yaml."""
    files = yaml.safe_load((root / LISTS / f"{name}.yaml").read_text())
    return [
        Mutant(name, Path(file), entry["change"], entry["old"], entry["new"])
        for file, entries in files.items()
        for entry in entries
    ]


def list_names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / LISTS).glob("*.yaml"))


def tests_of(root: Path, name: str) -> list[str]:
    """A method's own tests and the suite of all methods.

    For a folder of the package it is the folder of its tests.
    """
    method_tests = Path("tests/methods") / f"test_{name}.py"
    if not (root / method_tests).exists():
        return [f"tests/{name}"]
    shared = Path("tests/methods/test_contract.py")
    return [str(path) for path in (method_tests, shared) if (root / path).exists()]


class Watch:
    """A plugin of pytest: the quickest tests first, none of the shared suite's for other methods;
    what failed first.

    `seconds` says how long a test took, by its id; it is filled in for those that have not run yet.
    """

    def __init__(self, name: str, seconds: dict[str, float]) -> None:
        self.name = name
        self.seconds = seconds
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self.concerns(item)]
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.0))

    def concerns(self, item: pytest.Item) -> bool:
        if item.path.name != "test_contract.py":
            return True
        return item.callspec.params.get("name") == self.name  # type: ignore[attr-defined]  # parametrised, all of them

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds.setdefault(report.nodeid, 0.0)
        self.seconds[report.nodeid] += report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid.split("::", 1)[-1]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"import of {report.nodeid}"


def run_tests(copy: Path, name: str) -> str:
    """Runs the tests of one name on the package in `copy`, in this process.

    Returns the first failure, "" if there is none.

    Leaves how long each took in <name>.json.
    """
    for module in list(sys.modules):
        if module.split(".")[0] in ("noveltylab", "tests"):
            del sys.modules[module]
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    importlib.invalidate_caches()
    os.environ |= {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.chdir(copy)
    times = copy / f"{name}.json"
    watch = Watch(name, json.loads(times.read_text()) if times.exists() else {})
    options = [
        "-x",
        "-m",
        "not slow",
        f"--rootdir={copy}",
        f"--config-file={copy / 'pyproject.toml'}",
    ]
    code = pytest.main([*options, *tests_of(copy, name)], plugins=[watch])
    if code == pytest.ExitCode.OK:
        package = sys.modules["noveltylab"]
        assert Path(str(package.__file__)).is_relative_to(copy), f"{package.__file__} was tested"
        times.write_text(json.dumps(watch.seconds))
        return ""
    return watch.failed or f"pytest: {pytest.ExitCode(code).name}"


def fork_tests(copy: Path, name: str) -> int:
    """Runs the tests in a process of its own, which leaves `failed.txt` and `log.txt` in `copy`.

    Returns its id.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    code = 1
    try:
        signal.alarm(SECONDS)
        log = os.open(copy / "log.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        failed = run_tests(copy.resolve(), name)
        (copy / "failed.txt").write_text(failed)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def first_failure(copy: Path, status: int) -> str:
    """What a finished process of `fork_tests` found."""
    if (copy / "failed.txt").exists():
        return (copy / "failed.txt").read_text()
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return f"out of time ({SECONDS} s)"
    if code < 0:
        return f"the process was ended by signal {-code}"
    raise RuntimeError(f"the tests could not be run:\n{(copy / 'log.txt').read_text()[-4000:]}")


def run_mutants(base: Path, mutants: Iterable[Mutant], workers: int) -> Iterator[Outcome]:
    """Each mutant's outcome as its tests end.

    `base` is a copy of the package, its neighbours hold the changed ones.
    """
    waiting = list(mutants)[::-1]
    running: dict[int, tuple[Mutant, Path]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            copy = Path(tempfile.mkdtemp(dir=base.parent))
            shutil.copytree(base, copy, dirs_exist_ok=True)
            mutant.apply(copy)
            running[fork_tests(copy, mutant.name)] = mutant, copy
        process, status = os.wait()
        mutant, copy = running.pop(process)
        yield Outcome(mutant, first_failure(copy, status))
        shutil.rmtree(copy)


def copy_package(root: Path, base: Path) -> None:
    base.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, base / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            (base / name).parent.mkdir(exist_ok=True)
            shutil.copy2(root / name, base / name)


def mutate(root: Path, names: list[str], workers: int) -> list[Outcome]:
    """Runs the lists of these names; the unchanged package must pass first."""
    mutants = [mutant for name in names for mutant in read_mutants(root, name)]
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        base = Path(folder).resolve() / "base"
        copy_package(root, base)
        bar = progress.add_task("unchanged", total=len(mutants))
        for name in names:
            _, status = os.waitpid(fork_tests(base, name), 0)
            if failed := first_failure(base, status):
                log = (base / "log.txt").read_text()[-4000:]
                raise SystemExit(
                    f"{log}\nerror: without any change the tests of {name} fail: {failed}"
                )
            (base / "failed.txt").unlink()
        outcomes = []
        for outcome in run_mutants(base, mutants, workers):
            outcomes.append(outcome)
            if not outcome.failed:
                progress.print(f"{outcome.mutant.name}: not noticed: {outcome.mutant.description}")
            progress.update(bar, advance=1, description=outcome.mutant.name)
    order = {mutant: position for position, mutant in enumerate(mutants)}
    return sorted(outcomes, key=lambda outcome: order[outcome.mutant])


def table(outcomes: list[Outcome]) -> str:
    """A line for each change with the test that noticed it, then one for each name."""
    lines = []
    for outcome in outcomes:
        verdict = "noticed " if outcome.failed else "SURVIVED"
        lines.append(
            f"{outcome.mutant.name:<12}{verdict}  {outcome.mutant.description:<76}  {outcome.failed}".rstrip()
        )
    lines += ["", f"{'':<12}{'changes':>8}{'noticed':>8}{'survived':>9}"]
    for name, (count, survived) in counts(outcomes).items():
        lines.append(f"{name:<12}{count:>8}{count - survived:>8}{survived:>9}")
    return "\n".join(lines)


def counts(outcomes: list[Outcome]) -> dict[str, tuple[int, int]]:
    """How many changes each name has, and how many survived."""
    verdicts: dict[str, list[bool]] = {}
    for outcome in outcomes:
        verdicts.setdefault(outcome.mutant.name, []).append(not outcome.failed)
    return {name: (len(survived), sum(survived)) for name, survived in verdicts.items()}


def too_many_survive(outcomes: list[Outcome]) -> bool:
    """Whether the tests of any name miss more than one change in twenty."""
    return any(ALLOWED * survived > count for count, survived in counts(outcomes).values())


def main(root: Path, names: list[str], workers: int) -> int:
    if unknown := [name for name in names if name not in list_names(root)]:
        print(
            f"error: no list of changes for {', '.join(unknown)}; there are {', '.join(list_names(root))}"
        )
        return 2
    names = names or list_names(root)
    faults = [mutant.fault(root) for name in names for mutant in read_mutants(root, name)]
    if stale := [fault for fault in faults if fault]:
        print("\n".join(stale))
        return 2
    outcomes = mutate(root, names, workers)
    print(table(outcomes))
    return int(too_many_survive(outcomes))


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.exit(main(ROOT, sys.argv[1:], len(os.sched_getaffinity(0))))
