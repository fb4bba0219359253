"""Methods and data sets of other installed packages: the example package, and packages with faults."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from noveltylab import configs, installed
from noveltylab.errors import UserError
from tests.formats import write_images

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples"
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Python's path with the example package, installed from its wheel."""
    source = tmp_path_factory.mktemp("source") / "examples"
    shutil.copytree(EXAMPLE, source)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)  # as pip installs a package of plain Python
    return folder


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes what lies in a folder installed, for this process alone."""
    Plugins.instance()  # whose choices are put into the store once
    store = ConfigStore.instance()
    before = store.repo
    modules = set(sys.modules)

    def put(folder: Path) -> None:
        monkeypatch.syspath_prepend(str(folder))
        forget()
        store.repo = copy.deepcopy(before)
        configs.register()

    yield put
    store.repo = before
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("noveltylab_example", "theirs"):
            del sys.modules[name]
    forget()


def forget() -> None:
    installed.offers.cache_clear()
    configs.own_choices.cache_clear()


@pytest.fixture
def with_example(example: Path, on_path: Callable[[Path], None]) -> None:
    on_path(example)


def write_package(folder: Path, methods: str = "", data: str = "", name: str = "theirs") -> Path:
    """An installed distribution of these entry points with an empty package of its name."""
    info = folder / f"{name}-2.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    text = f"[noveltylab.methods]\n{methods}\n[noveltylab.data]\n{data}\n"
    (info / "entry_points.txt").write_text(text)
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    return folder / name


def result_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "result.json").read_text())
    return content


def test_an_offered_method_runs_and_is_loaded_repeated_and_exported(
    with_example: None, command: Cli, tmp_path: Path
) -> None:
    here = tmp_path / "elsewhere"
    process = command("method=mean_image", "data=digits", "pictures=false")
    assert process.returncode == 0, process.stderr
    run = "outputs/p1/mean_image/digits/inlier8/seed0"
    result = result_of(here / run)
    assert result["provenance"]["versions"]["noveltylab-example"] == "1.0"  # type: ignore[index]
    process = command("rerun", run)
    assert process.returncode == 0, process.stderr
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    process = command("export", f"run={run}", "format=onnx")
    assert process.returncode == 0, process.stderr
    from PIL import Image

    Image.new("L", (8, 8), 90).save(here / "new.png")
    process = command("predict", f"run={run}", "input=new.png", "fpr=0.2")
    assert process.returncode == 0, process.stderr
    assert "new.png" in process.stdout


def test_an_offered_method_and_data_set_are_swept_and_reported(
    with_example: None, command: Cli, tmp_path: Path
) -> None:
    from noveltylab_example.letters import draw

    here = tmp_path / "elsewhere"
    draw(here / "data")
    process = command(
        "-m", "method=linear_ae,pca", "data=letters", "inlier=a,b", "trainer.max_epochs=2",
        "pictures=false",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert len(list((here / "outputs").rglob("result.json"))) == 4
    process = command("report", "outputs")
    assert process.returncode == 0, process.stderr
    page = (here / "outputs/report/report.md").read_text()
    assert re.search(r"linear_ae.*\n(.*\n)*.*pca", page)


def test_absent_files_of_an_offered_data_set_are_one_clear_error(
    with_example: None, command: Cli
) -> None:
    process = command("method=pca", "data=letters")
    assert process.returncode == 2
    assert "letters.npz not found" in process.stderr
    assert "python -m noveltylab_example.letters" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=linear_a"], "did you mean 'linear_ae'?"),
        (["data=lettrs"], "did you mean 'letters'?"),
        (
            ["method=linear_ae", "method.latent_siz=3"],
            "no such option of method=linear_ae; did you mean 'method.latent_size'?",
        ),
        (["method=mean_image", "method.distance=l3"], "method.distance=l3: "),
        (["data=images", "data.label=letters", "data.root=x"], "that is the name of a data set"),
    ],
)
def test_mistakes_name_what_is_offered(
    with_example: None, command: Cli, arguments: list[str], words: str
) -> None:
    process = command(*arguments)
    assert process.returncode == 2
    assert words in process.stderr


def test_help_has_the_options_of_what_is_offered(with_example: None, command: Cli) -> None:
    process = command("method=mean_image", "data=letters", "--help")
    assert "|mean_image|" in process.stdout
    assert "|letters|" in process.stdout
    assert (
        "method.distance=l2\n      of each pixel: l1 | l2.  Example: method.distance=l1"
        in process.stdout
    )
    assert "data.classes=['a', 'b', 'c']" in process.stdout


def test_a_recipe_for_every_data_set_is_for_an_offered_one_too(with_example: None) -> None:
    composed = configs.compose_config(["method=ocgan", "data=letters", "recipe=paper"])
    digits = configs.compose_config(["method=ocgan", "data=digits", "recipe=paper"])
    assert composed.method == digits.method


def test_the_installed_command_offers_it(cli: Cli, example: Path) -> None:
    paths = [str(ROOT), str(example), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = cli("--cfg", "job", "method=linear_ae", "data=letters", env=environment)
    assert process.returncode == 0, process.stderr
    assert "_target_: noveltylab_example.linear_ae.LinearAE" in process.stdout
    assert "name: letters" in process.stdout


def test_what_only_a_run_folder_names_is_not_loaded(
    with_example: None, command: Cli, tmp_path: Path
) -> None:
    here = tmp_path / "elsewhere"
    assert command("method=mean_image", "data=digits", "pictures=false").returncode == 0
    run = here / "outputs/p1/mean_image/digits/inlier8/seed0"
    result = result_of(run)
    # of the same package, but offered by no entry point
    result["config"]["method"]["_target_"] = "noveltylab_example.letters.draw"  # type: ignore[index]
    (run / "result.json").write_text(json.dumps(result))
    (here / "new.png").touch()
    for words in (["predict", f"run={run}", "input=new.png"], ["rerun", str(run)]):
        process = command(*words)
        assert process.returncode == 2
        assert (
            "which is no method of noveltylab and is offered by no installed package"
            in process.stderr
        )


def test_packages_in_the_working_directory_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, methods="evil = theirs.evil:Evil")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    assert installed.find_offer("method", "evil") is None
    monkeypatch.chdir("/")
    forget()
    assert installed.find_offer("method", "evil") is not None
    forget()


def test_our_own_names_stay_ours(tmp_path: Path, on_path: Callable[[Path], None]) -> None:
    package = write_package(tmp_path, methods="pca = theirs.pca:PCA")
    (package / "pca.yaml").write_text("primary: other\n")
    on_path(tmp_path)
    config = configs.compose_config(["method=pca"])
    assert config.method._target_ == "noveltylab.methods.pca.PCA"


FAULTS = {
    "the file is no YAML": ("mine = theirs.mine:Mine", "a: [", "cannot be read"),
    "the file is no mapping": ("mine = theirs.mine:Mine", "- a\n", "holds no options, but list"),
    "the module is missing": ("mine = theirs.nowhere:Mine", None, "cannot be imported"),
    "the package is missing": ("mine = nowhere.mine:Mine", None, "cannot be imported"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_package_with_a_fault_is_told_and_hinders_nobody(
    fault: str, tmp_path: Path, on_path: Callable[[Path], None], command: Cli
) -> None:
    entry, text, words = FAULTS[fault]
    package = write_package(tmp_path / "site", methods=entry)
    if text is not None:
        (package / "mine.yaml").write_text(text)
    on_path(tmp_path / "site")
    process = command("method=mine")
    assert process.returncode == 2
    assert "method=mine of theirs 2.5: " in process.stderr
    assert words in process.stderr
    assert command("--cfg", "job", "method=pca").returncode == 0
    assert command("--help").returncode == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise RuntimeError('no licence')\n",
            "theirs.mine:Mine cannot be imported (RuntimeError: no licence)",
        ),
        ("class Mine:\n    pass\n", "not a subclass of noveltylab.methods.base.Method"),
    ],
    ids=["fails to import", "no method"],
)
def test_a_module_that_cannot_be_used_is_told(
    tmp_path: Path, on_path: Callable[[Path], None], command: Cli, code: str, words: str
) -> None:
    package = write_package(tmp_path / "site", methods="mine = theirs.mine:Mine")
    (package / "mine.yaml").write_text("primary: x\n")
    (package / "mine.py").write_text(code)
    on_path(tmp_path / "site")
    process = command("method=mine")
    assert process.returncode == 2
    assert words in process.stderr


def test_two_packages_with_one_name_are_told(
    tmp_path: Path, on_path: Callable[[Path], None], command: Cli
) -> None:
    write_package(tmp_path / "site", methods="mine = theirs.mine:Mine")
    write_package(tmp_path / "site", methods="mine = others.mine:Mine", name="others")
    on_path(tmp_path / "site")
    process = command("method=mine")
    assert process.returncode == 2
    assert "method=mine: others and theirs offer it; uninstall all but one" in process.stderr
    assert command("--cfg", "job", "method=pca").returncode == 0


def test_a_data_set_needs_a_file_of_options(
    tmp_path: Path, on_path: Callable[[Path], None], command: Cli
) -> None:
    package = write_package(tmp_path / "site", data="shapes = theirs.shapes:read")
    on_path(tmp_path / "site")
    process = command("data=shapes")
    assert process.returncode == 2
    assert f"looked for its options in {package / 'shapes.yaml'}; there are none" in process.stderr


def test_a_method_without_a_file_has_the_defaults_of_its_class(
    tmp_path: Path, on_path: Callable[[Path], None], command: Cli
) -> None:
    package = write_package(tmp_path / "site", methods="centre = theirs.centre:Centre")
    example = (EXAMPLE / "noveltylab_example" / "mean_image.py").read_text()
    (package / "centre.py").write_text(example.replace("MeanImage", "Centre"))
    on_path(tmp_path / "site")
    process = command("method=centre", "data=digits", "pictures=false")
    assert process.returncode == 2
    assert "method.primary=None: no such score; Choose from: distance" in process.stderr
    process = command("method=centre", "data=digits", "pictures=false", "method.primary=distance")
    assert process.returncode == 0, process.stderr
    assert "method.distance=l2" in command("method=centre", "--help").stdout


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        ("theirs", ("theirs",)),
        ("theirs.mine", ("theirs",)),
        ("theirs.deep", ("theirs", "deep")),
        ("theirs.deep.mine", ("theirs", "deep")),
    ],
)
def test_the_folder_of_a_module_is_found_without_importing_it(
    tmp_path: Path, on_path: Callable[[Path], None], module: str, parts: tuple[str, ...]
) -> None:
    package = write_package(tmp_path)
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package / "deep").mkdir()
    on_path(tmp_path)
    assert installed.folder_of(module) == tmp_path.joinpath(*parts)
    assert installed.folder_of("nowhere.mine") is None


def test_an_offer_without_an_attribute_is_the_reader_of_its_module() -> None:
    offer = installed.Offer("data", "letters", "their.letters", "theirs", "1")
    assert offer.target == "their.letters.read"


def test_problems_are_user_errors(tmp_path: Path, on_path: Callable[[Path], None]) -> None:
    on_path(tmp_path)
    with pytest.raises(UserError, match="no installed package offers it"):
        configs.offered_options("method", "nobodys")


# The page that explains it.

PAGE = (ROOT / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_files_of_the_example() -> None:
    shown = {}
    for block in (*blocks("toml"), *blocks("python"), *blocks("yaml")):
        title, _, text = block.partition("\n")
        if title.startswith("# examples/"):
            shown[title.removeprefix("# examples/")] = text
    paths = [path for path in EXAMPLE.rglob("*") if path.suffix in (".toml", ".py", ".yaml")]
    paths = [path for path in paths if path.name != "__init__.py"]
    names = {path.relative_to(EXAMPLE).as_posix() for path in paths}
    assert names == set(shown)
    for name, text in shown.items():
        assert text == (EXAMPLE / name).read_text(), name


def test_the_commands_of_the_page_run(
    with_example: None, command: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noveltylab_example.letters import draw

    here = tmp_path / "elsewhere"
    write_images(here / "new", {"": 3})
    (table,) = (block for block in blocks("yaml") if block.startswith("# @package"))
    path = here / table.splitlines()[1].removeprefix("# ")
    path.parent.mkdir(parents=True)
    path.write_text(table)
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        program, *words = shlex.split(line)
        if words[:2] == ["-m", "noveltylab_example.letters"]:
            draw(here / words[2])
            continue
        if any(word.startswith("format=") for word in words):
            pytest.importorskip("onnxscript")
        assert program == "noveltylab"
        process = command(*words)
        assert process.returncode == 0, f"{line}\n{process.stderr}"


@pytest.mark.parametrize(
    ("choices", "auroc"),
    [
        (("method=mean_image", "data=digits"), "0.9804"),
        (("method=linear_ae", "data=digits", "trainer.max_epochs=30"), "0.9820"),
        (("method=linear_ae", "data=letters", "inlier=c", "trainer.max_epochs=100"), "0.9650"),
    ],
)
def test_the_numbers_of_the_page_are_those_of_its_commands(
    with_example: None, command: Cli, tmp_path: Path, choices: tuple[str, ...], auroc: str
) -> None:
    from noveltylab_example.letters import draw

    here = tmp_path / "elsewhere"
    draw(here / "data")
    process = command(*choices, "pictures=false", "trainer.accelerator=cpu")
    assert process.returncode == 0, process.stderr
    (path,) = (here / "outputs").rglob("result.json")
    scores = result_of(path.parent)["scores"]
    assert [f"{metrics['auroc']:.4f}" for metrics in scores.values()] == [auroc]  # type: ignore[attr-defined]
    assert auroc in PAGE
