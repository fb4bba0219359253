"""The docs say what is there: their links and keys exist, and every command of theirs runs."""

import argparse
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from noveltylab.command.arguments import readable
from noveltylab.command.hints import check_moved
from noveltylab.command.words import MODULES
from noveltylab.configs import EXPERIMENTS
from noveltylab.methods.base import Batch, find_method
from noveltylab.options import Options, check_options
from noveltylab.results.archive import archive_of
from noveltylab.results.record import read_result
from noveltylab.run.pipeline import run
from noveltylab.sweep.grid import cells_of_grid
from tests.conftest import run_in
from tests.experiments.test_experiments import composed
from tests.formats import write_every_set, write_faces, write_images
from tests.methods.conftest import METHODS, SMALL, blobs, method_config, small

Cli = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Page -> its text.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}

LONGEST_README = 130
MOST_WORDS = 25
HOST = re.compile(r"https?://|www\.|\b[\w-]+\.(com|org|net|edu|ai|io)\b")


# The pages.


def test_the_readme_is_one_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= LONGEST_README


def test_the_readmes_screen_is_the_one_that_is_explained() -> None:
    (screen,) = re.findall(r"```text\n(ocgan .*?)```", PAGES["README.md"], re.DOTALL)
    assert screen in PAGES["docs/start.md"]


def test_the_readmes_numbers_are_those_of_the_methods_pages() -> None:
    page, count = "", 0
    for row in table_rows(PAGES["README.md"]):
        target = re.search(r"\]\((.*?)\)", row[0])
        if target:
            page = PAGES[target[1]]
        if page and len(row) == 7 and "not run here" not in row[0]:
            numbers = set(re.findall(r"\b[01]\.\d+", " ".join(row[3:6])))
            known = set(re.findall(r"\b[01]\.\d+", page + PAGES["docs/results.md"]))
            assert numbers and numbers <= known, row
            count += 1
    assert count > 12


@pytest.mark.parametrize("page", PAGES)
def test_cells_of_tables_are_short(page: str) -> None:
    for row in table_rows(PAGES[page]):
        for cell in row:
            assert len(cell.split()) <= MOST_WORDS, cell


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_no_page_names_a_web_host(page: str) -> None:
    named = [line for line in PAGES[page].splitlines() if HOST.search(line)]
    assert named == []


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_linked_files_are_there(page: str) -> None:
    """Of the README too, which mkdocs does not read."""
    folder = (ROOT / page).parent
    for target, _ in links(PAGES[page]):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if ".md#" in text])
def test_linked_headings_are_there(page: str) -> None:
    """Of the README too, which mkdocs does not read."""
    folder = (ROOT / page).parent
    for target, heading in links(PAGES[page]):
        if heading:
            path = folder / target if target else ROOT / page
            assert heading in headings(path.read_text()), f"{target}#{heading}"


def links(text: str) -> Iterator[tuple[str, str]]:
    """File and heading of each link to a file, "" for none; those to the web are left out."""
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", without_code(text)):
        if not HOST.search(target):
            file, _, heading = target.partition("#")
            yield file, heading


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs name them."""
    anchors = set()
    for title in re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", title).strip().lower()
        anchors.add(re.sub(r"\s", "-", words))
    return anchors


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of each table."""
    for line in without_code(text).splitlines():
        if line.lstrip().startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())][1:-1]


# The keys of the methods.


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_page_explains_every_key_that_it_logs(name: str) -> None:
    page = without_code(PAGES[f"docs/methods/{name}.md"])
    quoted = set(re.findall(r"`([^`]+)`", page))
    assert logged_keys(name) - quoted == set()


@pytest.mark.parametrize("name", METHODS)
def test_every_key_of_a_methods_table_is_logged(name: str) -> None:
    """A key that appears only under other options than the defaults stands in the method's file."""
    listed = listed_keys(PAGES[f"docs/methods/{name}.md"])
    assert listed
    source = (ROOT / "noveltylab" / "methods" / f"{name}.py").read_text()
    elsewhere = {key for key in listed if f'"{key}"' in source}
    assert listed - elsewhere - logged_keys(name) == set()


@cache
def logged_keys(name: str) -> set[str]:
    """The keys of losses, scores and further numbers, by a few updates on drawn images."""
    method = small(name)
    inliers, outliers = blobs(24), blobs(8, bars=True)
    method.prepare(inliers)
    keys: set[str] = set()
    if method.iterative:
        method.train()
        for progress in (0.0, 0.5, 0.99):
            method.progress = progress
            keys |= method.update(Batch(inliers[:8], torch.arange(8))).keys()
    method.eval()
    with torch.no_grad():
        keys |= method.extra_metrics(inliers[:8], outliers).keys()
    return keys | set(method.score_names)


def listed_keys(page: str) -> set[str]:
    """What stands in backticks in the first column of the tables whose first heading is `key`."""
    keys: set[str] = set()
    listing = False
    for line in [*without_code(page).splitlines(), ""]:
        if not line.startswith("|"):
            listing = False
            continue
        (first, *_) = next(table_rows(line))
        if first.strip("`* ").lower() == "key":
            listing = True
        elif listing:
            keys.update(re.findall(r"`([^`]+)`", first))
    return keys


# The commands.


def commands(text: str) -> list[str]:
    """The command lines of the bash blocks, each once, in their order."""
    lines: dict[str, None] = {}
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] in (["noveltylab"], ["make"]) or words[:2] == ["python", "-m"]:
                lines[shlex.join(words)] = None
    return list(lines)


COMMANDS = {page: commands(text) for page, text in PAGES.items()}
#: Pages whose commands run in `make test-long`, as a newcomer types them first; those of the other
#: pages run in `make test-slow`.
FIRST_PAGES = ("README.md", "docs/start.md", "docs/own_images.md", "docs/sweeps.md")
#: Commands of these pages that are slow as well: sets that take long to read, and cells of tables,
#: of which tests/experiments runs one each.
SLOW = re.compile(r"experiment=|search=|data=(ucsd|dcase)|format=|report experiments")


def marks(page: str, line: str) -> list[pytest.MarkDecorator]:
    """A page's commands run one after the other, in one process; short ones need what long ones made."""
    group = pytest.mark.xdist_group(page)
    is_slow = page not in FIRST_PAGES or (page != "README.md" and SLOW.search(line))
    if is_slow:
        return [group, pytest.mark.slow]
    return [group, pytest.mark.long]


#: Its commands are run by tests/test_installed.py, with the package that it describes.
EXTENDING = "docs/extending.md"
CASES = [
    pytest.param(page, line, id=f"{page}: {line}", marks=marks(page, line))
    for page, lines in COMMANDS.items()
    for line in lines
    if page != EXTENDING
]

#: What makes a run of seconds of any command. What is typed has the last word, but for epochs.
SHORT = {
    "data.verify": "false",
    "data.limit_train": "24",
    "data.batch_size": "8",
    "trainer.val_every": "1",
}
ALWAYS_SHORT = {"trainer.max_epochs": "1", "trainer.accelerator": "cpu"}
#: Of a few training images no more principal components can be taken.
SMALLER = {"nda": {"latent_size": 8}}
#: Options whose runs need what a test has not: clusters, a GPU, the network. They are composed.
ELSEWHERE = re.compile(
    r"hydra/launcher=(?!basic)|logger=wandb|data\.download=true|trainer\.devices=|trainer=(?!cpu|default)|precision=16-mixed"
    r"|trainer\.accelerator=(?!cpu|auto)|trainer\.cuda_graph=(?!off)"
)
#: What `make run` types: every page may build on it.
FIRST = "```bash\nnoveltylab method=ocgan data=digits\n```"
#: Own images by the name of their folder; other names get those of `parts`.
FOLDERS = {
    "parts": {"train/good": 90, "test/good": 4, "test/odd": 4},
    "new": {"": 6},
}


def test_every_page_has_commands_to_run() -> None:
    assert len(CASES) > 30
    assert COMMANDS["README.md"][:2] == ["make run", "make test"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_written_as_one_types_them(page: str) -> None:
    assert not [line for line in COMMANDS[page] if line.startswith("python -m noveltylab ")]
    assert not [line for line in COMMANDS[page] if re.search(r"[|<>]|&&|\.\.\.", line)]


@dataclass
class Place:
    """Where the commands of a page run, one after the other."""

    page: str
    folder: Path
    command: Cli
    run_folders: dict[tuple[str, ...], Path]

    def run(self, *arguments: str) -> None:
        process = self.command(*arguments)
        output = f"{process.stdout}\n{process.stderr}"
        assert process.returncode == 0, f"{shlex.join(arguments)}\n{output}"

    def need_images(self, arguments: list[str]) -> None:
        """Makes the folders of images that the command names."""
        for argument in arguments:
            key, _, value = argument.partition("=")
            if key in ("data.root", "input") and value and not (self.folder / value).exists():
                first = Path(value).parts[0]
                if "data=antispoofing" in arguments:
                    write_faces(self.folder / value)
                elif not (self.folder / first).exists():
                    counts = FOLDERS.get(first, FOLDERS["parts"])
                    write_images(self.folder / first, counts)

    def need_groups(self, arguments: list[str]) -> None:
        """Makes the list of groups that the command names, by the lines of this page that do."""
        for argument in arguments:
            key, _, name = argument.partition("=")
            if key == "groups":
                self.need_images(["input=parts", "input=new"])
                scripts = re.findall(r"<<'END'\n(.*?)^END", PAGES[self.page], re.M | re.S)
                (script,) = [script for script in scripts if name in script]
                exec(script, {})
                assert (self.folder / name).is_file()

    def train(self, cell: list[str]) -> None:
        """One short run, once for all pages that show it."""
        words = tuple(shortened(cell))
        options = checked(list(words))
        pictures = "side_by_side" in shlex.join(COMMANDS[self.page])
        if words in self.run_folders and not options.folder.exists() and not pictures:
            shutil.copytree(self.run_folders[words], options.folder)
            return
        # over a run with other options of this page it is refused, as when typed
        run(options, OmegaConf.to_container(config_of(words), resolve=True))  # type: ignore[arg-type]  # a mapping
        assert (self.folder / options.folder / "result.json").is_file()
        if "data.root" not in shlex.join(words):
            self.run_folders[words] = self.folder / options.folder

    def need_run(self, path: Path) -> None:
        """Makes the run that a command names, by the line of this page that makes it."""
        if (self.folder / path / "result.json").is_file():
            return
        for line in [*COMMANDS[self.page], *commands(FIRST)]:
            if is_training(line) and not ELSEWHERE.search(line):
                words = shlex.split(line)[1:]
                self.need_images(words)
                cell = cell_of(words, path)
                if cell is not None:
                    self.train(cell)
                    return
        pytest.fail(f"no command of {self.page} makes {path}")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder for each page."""
    return cache(lambda page: tmp_path_factory.mktemp(re.sub(r"\W+", "_", page)))


@pytest.fixture(scope="session")
def run_folders() -> dict[tuple[str, ...], Path]:
    """Short runs that were made, and their folders."""
    return {}


@pytest.fixture(scope="session")
def every_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a little of every set."""
    return write_every_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    page: str,
    places: Callable[[str], Path],
    every_set: Path,
    tmp_path: Path,
    command: Cli,
    run_folders: dict[tuple[str, ...], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    folder = places(page)
    # `command` goes there
    (tmp_path / "elsewhere").symlink_to(folder)
    for name in ("experiments", "docs"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    monkeypatch.setenv("NOVELTYLAB_DATA", str(every_set))
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(every_set / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(folder)
    if "side_by_side" not in " ".join(COMMANDS[page]):
        monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    return Place(page, folder, command, run_folders)


@pytest.mark.parametrize(("page", "line"), CASES)
def test_a_command_of_the_docs_runs(
    page: str, line: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = line.replace("python -m noveltylab ", "noveltylab ")
    program, *words = shlex.split(line)
    if program == "make":
        check_target(words)
    elif program == "python":
        run_module(place, words[1], words[2:], monkeypatch)
    elif words and words[0] in MODULES:
        run_word(place, words)
    elif {"--help", "-h", "--cfg", "-c"} & set(words):
        place.run(*words)
    elif "search=optuna" in words:
        pytest.importorskip("optuna")
        place.run(*words, "trainer.max_epochs=1", "data.limit_train=24", "pictures=false")
    else:
        for choice in ("pyod", "dcase"):
            extra = {"pyod": "pyod", "dcase": "librosa"}[choice]
            if choice in line:
                pytest.importorskip(extra)
        place.need_images(words)
        cell = one_cell(words)
        if ELSEWHERE.search(line):
            checked(cell)
        else:
            place.train(cell)


def check_target(words: list[str]) -> None:
    """`make` would run it."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    process = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout


def run_module(place: Place, name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the repository's own tools the quick one is run; of the others the arguments are read."""
    assert find_spec(name), name
    module = importlib.import_module(name)
    if name == "experiments.side_by_side":
        _, *runs = words
        for run in runs:
            place.need_run(Path(run))
        assert module.main(words) == 0
    elif "argparse" in vars(module):
        monkeypatch.setattr("sys.argv", [name, *words])
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_and_stop)
        with pytest.raises(ArgumentsRead):
            module.main()
    elif hasattr(module, "main"):
        inspect.signature(module.main).bind(*([words] if name.endswith("batch_norm") else words))


class ArgumentsRead(Exception):
    """The arguments are good."""


def read_and_stop(parser: argparse.ArgumentParser, arguments: Any = None) -> None:
    _, unknown = parser.parse_known_args(arguments)
    assert unknown == []
    raise ArgumentsRead


def run_word(place: Place, words: list[str]) -> None:
    word, *arguments = words
    if word == "dashboard":
        pytest.importorskip("wandb_workspaces")
        place.run(word, *[argument for argument in arguments if argument != "--push"])
        return
    if word in ("report", "status"):
        folders = [Path(text) for text in arguments[:1] if not text.startswith("-")]
        folder = folders[0] if folders else Path("outputs")
        if folder.parts[0] != "experiments" and not any(
            (place.folder / folder).rglob("result.json")
        ):
            run_in(place.folder)(
                "method=pca", "trainer.accelerator=cpu", f"output={place.folder / folder}"
            )
        place.run(word, *arguments)
        return
    (named,) = [
        Path(text.removeprefix("run="))
        for text in arguments
        if text.startswith("run=") or "=" not in text
    ][:1]
    if archive_of(ROOT / named):
        # the images of kept results are not here
        assert read_result(ROOT / named)["config"]
        return
    place.need_images(arguments)
    place.need_groups(arguments)
    place.need_run(named)
    if word == "export" and "format=onnx" in arguments:
        pytest.importorskip("onnxscript")
    if "--watch" in arguments:  # else it would wait for files that never come
        arguments += ["every=0", "idle=0"]
    place.run(word, *arguments)


# From what is typed to one short run.


def is_training(line: str) -> bool:
    program, *words = shlex.split(line)
    flags = {"--help", "-h", "--cfg", "-c"} & set(words)
    return program == "noveltylab" and words[:1] != [] and words[0] not in MODULES and not flags


def values_of(override: Any) -> list[str]:
    """What an argument sweeps over; its value alone if it is none."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    return [str(value) for value in override.sweep_string_iterator()]


def params_of(experiment: str) -> dict[str, Any]:
    """What the cells of an experiment differ in."""
    return OmegaConf.to_container(composed(experiment).hydra.sweeper.params)  # type: ignore[return-value]  # a mapping


def grid(words: list[str]) -> dict[str, list[str]]:
    """Each option of a command, also those of its experiment's cells, and its values."""
    typed = [word for word in words if not word.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(typed)
    values = {override.get_key_element(): values_of(override) for override in overrides}
    name = values.get("experiment", [""])[0]
    if name:
        for key, value in params_of(f"experiment={name}").items():
            (override,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
            values.setdefault(key, values_of(override))
        if EXPERIMENTS[name]:
            values.setdefault("row", list(EXPERIMENTS[name]))
    return values


def one_cell(words: list[str]) -> list[str]:
    """The first cell of what is typed, as one would type it."""
    flags = [word for word in words if word.startswith("-")]
    return [*flags, *(f"{key}={values[0]}" for key, values in grid(words).items())]


def cell_of(words: list[str], folder: Path) -> list[str] | None:
    """The cell of a command that makes this run folder, None if none does."""
    flags = [word for word in words if word.startswith("-")]
    values = grid(words)
    methods = values.get("method", [])
    named = any(folder.parts[-4].startswith(method) for method in methods)
    if methods and not named and "method.name" not in values:
        return None
    for key in ("inlier", "seed"):
        if len(values.get(key, [])) > 1:
            wanted = re.search(rf"{key}(\d+)", str(folder))
            values[key] = [value for value in values[key] if wanted and value == wanted[1]]
    for key in values.keys() - {"method", "data", "protocol", "inlier", "seed", "row", "recipe"}:
        values[key] = values[key][:1]
    for choice in product(*values.values()):
        cell = [f"{key}={value}" for key, value in zip(values, choice, strict=True)]
        if checked(cell).folder == folder:
            return [*flags, *cell]
    return None


def config_of(cell: Sequence[str]) -> DictConfig:
    """The configuration of one cell, read as the command reads it."""
    words = readable([word for word in cell if not word.startswith("-")])
    check_moved(words)
    experiment = [word for word in words if word.startswith("experiment=")]
    params, rows = {}, {}
    if experiment:
        params = params_of(experiment[0])
        rows = EXPERIMENTS[experiment[0].removeprefix("experiment=")]
    typed = [word for word in words if word not in experiment]
    overrides, *_ = cells_of_grid(params, rows, typed, OverridesParser.create())
    with warnings.catch_warnings():
        # the launchers' schemas, as in noveltylab/job.py
        warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against")
        config = composed(*experiment, *overrides)
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def checked(cell: Sequence[str]) -> Options:
    """The options of one cell; UserError if one is wrong."""
    return check_options(config_of(cell))


def shortened(cell: list[str]) -> list[str]:
    """The cell on little data, with small networks, for one epoch."""
    typed = dict(word.split("=", 1) for word in cell if "=" in word)
    name = typed.get("method") or typed.get("experiment", "ocgan").split("/")[0]
    changes = dict(SHORT)
    if name in METHODS:
        sizes = SMALL.get(name, {}) | SMALLER.get(name, {})
        changes |= {f"method.{key}": str(value) for key, value in sizes.items()}
        if not find_method(method_config(name)["_target_"]).iterative:
            del changes["data.limit_train"]
    if {"cifar10", "coil100"} & set(typed.get("data", "").split(",")):
        changes["data.size"] = "24"
    changes = {key: value for key, value in changes.items() if key not in typed} | ALWAYS_SHORT
    kept = [word for word in cell if word.partition("=")[0] not in changes]
    return [*kept, *(f"{key}={value}" for key, value in changes.items())]


# The notebooks.

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
#: What a test writes into a notebook's cells: fewer images, small networks, one epoch.
TINY_CELLS = {
    "table": (
        'options = ["seed=0"]',
        f"options = {['seed=0', *shortened(['method=ocgan'])[1:]]}",
    ),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_what_it_printed(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, every_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    text = path.read_text()
    if path.stem in TINY_CELLS:
        cell, tiny = (json.dumps(line)[1:-1] for line in TINY_CELLS[path.stem])
        assert cell in text
        text = text.replace(cell, tiny)
    monkeypatch.setenv("NOVELTYLAB_DATA", str(every_set))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    notebook = nbformat.reads(text, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's own libraries
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
