"""Who may import whom: one table over every module, read from the syntax trees."""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from noveltylab.data.load import READ_BY
from noveltylab.job import PACKAGE


class Floor(NamedTuple):
    """A folder with its modules, or a module of the root, and the libraries that it may import."""

    room: str
    modules: str
    libraries: str


#: From the ground up: a room imports only itself and rooms that stand before it.
FLOORS = (
    Floor("errors", "", ""),
    Floor("installed", "", "omegaconf yaml"),
    Floor(
        "command",
        "arguments completion durations hints hydra_versions logger_options recipes screen signals signatures "
        "validate wandb_mode "
        "words",
        "hydra omegaconf pydantic rich yaml",
    ),
    Floor(
        "results",
        "archive files locks older phases provenance record schema scores search",
        "filelock numpy pydantic yaml",
    ),
    Floor(
        "data",
        "antispoofing cache cifar10 coil100 datamodule dcase dcase_files dcase_meta "
        "dcase_sound decode digits images inlier layout load masks mnist "
        "preprocess protocols samples split stored ucsd ucsd_clips ucsd_files",
        "PIL librosa lightning numpy scipy sklearn soundfile torch torchvision yaml",
    ),
    Floor("options", "", "omegaconf pydantic"),
    Floor("nets.cpu", "conv layers threads winograd", "torch"),
    Floor(
        "nets",
        "autoencoder backbone batch_norm classifier dcgan losses neighbours optimizers wide_resnet",
        "huggingface_hub safetensors timm torch",
    ),
    Floor(
        "methods",
        "ae alocc anogan base ca_entropy deep_svdd drocc dsebm features geometric gmm gpnd iforest kde "
        "knn lof lsa memae msad nda ocgan ocsvm oled panda patchcore pca pixelcnn pyod rotnet "
        "skip_ganomaly vae wavenet",
        "kornia lightning numpy pydantic sklearn torch",
    ),
    Floor(
        "scoring",
        "aggregate apply auroc batches conformal diagnosis drift floors folds kept_features leakage "
        "metrics pixels",
        "numpy scipy torch torchmetrics",
    ),
    Floor(
        "report",
        "__main__ blocks check collect compare dashboard expected "
        "grouping latex ours page papers plots published recipe records rows side_by_side "
        "stats tables text",
        "PIL jinja2 numpy rich scipy wandb yaml",
    ),
    Floor(
        "training",
        "callbacks checkpoints cuda_graph estimate fit loggers mlflow_sink precision sink tensorboard_sink "
        "wandb_sink",
        "PIL lightning mlflow numpy pydantic rich torch wandb",
    ),
    Floor(
        "run",
        "build complete describe diagnose folder lock measure pictures pipeline pixels plots plots_in_time "
        "plots_of_images process read recording rerun score summary",
        "PIL lightning matplotlib numpy omegaconf rich sklearn torch",
    ),
    Floor(
        "sweep",
        "cells estimate grid launchers plan search space status sweeper view",
        "hydra omegaconf optuna ray rich",
    ),
    Floor(
        "predict",
        "__main__ decisions detector export graph groups inputs load page paths request watch",
        "PIL av numpy onnx onnxruntime onnxscript pandas pydantic rich torch",
    ),
    Floor("help", "", "hydra omegaconf"),
    Floor("configs", "", "hydra omegaconf"),
    Floor("api", "", ""),
    Floor("job", "", "hydra omegaconf"),
    Floor("__main__", "", ""),
)
ROOMS = [floor.room for floor in FLOORS]


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py" and "conf" not in path.relative_to(PACKAGE).parts
    }


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports: modules, and what is taken out of them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    """The room in which a module stands: the longest name of a room that begins the module's."""
    names = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    assert names, f"{module} stands in no room of FLOORS"
    return max(names, key=len)


def imported_modules(path: Path) -> set[str]:
    """The modules of noveltylab that a file imports, without the package's name."""
    names = {
        name.removeprefix("noveltylab.") for name in imports(path) if name.startswith("noveltylab.")
    }
    return names & modules().keys()


def test_every_module_is_listed() -> None:
    listed = set()
    for floor in FLOORS:
        listed |= {f"{floor.room}.{module}" for module in floor.modules.split()} or {floor.room}
    assert listed == set(modules())


@pytest.mark.parametrize("floor", FLOORS, ids=ROOMS)
def test_a_room_imports_only_rooms_below_it(floor: Floor) -> None:
    below = ROOMS[: ROOMS.index(floor.room) + 1]
    for module, path in modules().items():
        if room_of(module) == floor.room:
            for imported in imported_modules(path):
                assert room_of(imported) in below, (
                    f"{module} imports {imported}, which stands above it"
                )


@pytest.mark.parametrize("floor", FLOORS, ids=ROOMS)
def test_a_room_imports_only_its_libraries(floor: Floor) -> None:
    for module, path in modules().items():
        if room_of(module) == floor.room:
            tops = {name.split(".")[0] for name in imports(path)} - {"", "noveltylab"}
            assert tops - sys.stdlib_module_names <= set(floor.libraries.split()), module


def test_no_module_imports_itself_by_way_of_others() -> None:
    arrows = {module: imported_modules(path) for module, path in modules().items()}
    while arrows:
        ground = {module for module, arrows_out in arrows.items() if not arrows_out & arrows.keys()}
        assert ground, f"a circle among {sorted(arrows)}"
        arrows = {
            module: arrows_out for module, arrows_out in arrows.items() if module not in ground
        }


def test_the_root_holds_the_command_and_its_options() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")}
    assert names == {
        "__init__",
        "__main__",
        "api",
        "configs",
        "options",
        "help",
        "errors",
        "installed",
        "job",
    }


#: Methods whose scores are those of other methods, on features instead of pixels.
DENSITIES = {"methods.features": ("methods.kde", "methods.knn", "methods.pca")}


def test_methods_know_nets_and_phases_only() -> None:
    for module, path in modules().items():
        if room_of(module) == "methods":
            rooms = {room_of(name) for name in imported_modules(path)}
            assert rooms <= {"methods", "nets", "nets.cpu", "errors", "installed", "results"}, (
                module
            )
            names = imported_modules(path)
            siblings = {name for name in names if room_of(name) == "methods"}
            assert siblings <= {"methods.base", *DENSITIES.get(module, ())}, module
            assert {name for name in names if room_of(name) == "results"} <= {"results.phases"}


def test_wandb_is_imported_where_it_logs_only() -> None:
    users = {module for module, path in modules().items() if "wandb" in imports(path)}
    assert users <= {"training.wandb_sink", "report.dashboard"}


@pytest.mark.parametrize(
    ("library", "user"),
    [("mlflow", "mlflow_sink"), ("torch.utils.tensorboard", "tensorboard_sink")],
)
def test_a_logger_is_imported_where_it_logs_only(library: str, user: str) -> None:
    users = {module for module, path in modules().items() if library in imports(path)}
    assert users == {f"training.{user}"}


def test_every_page_is_rendered_in_one_place() -> None:
    renderers = {module for module, path in modules().items() if "jinja2" in imports(path)}
    assert renderers == {"report.page"}


def test_everything_printed_goes_through_the_screen() -> None:
    for module, path in modules().items():
        if module in ("command.screen", "help"):  # help prints the comments in conf/ alone
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in ("print", "Console"):
                assert ast.unparse(node) == "print(__doc__)", (module, node.lineno)
        assert "logging.Formatter" not in path.read_text(), module


def test_report_computes_without_torch() -> None:
    for module, path in modules().items():
        if room_of(module) == "report":
            rooms = {room_of(name) for name in imported_modules(path)} - {"report"}
            assert rooms <= {"errors", "command", "results", "options", "scoring"}, module
            names = {name for name in imported_modules(path) if room_of(name) == "scoring"}
            assert names <= {"scoring.auroc", "scoring.metrics", "scoring.conformal"}, module


def test_config_code_test_share_their_stems() -> None:
    root = PACKAGE.parent
    for kind in ("method", "data"):
        package = PACKAGE / ("methods" if kind == "method" else "data")
        for config in (root / "conf" / kind).glob("*.yaml"):
            module = READ_BY.get(config.stem, config.stem)
            assert (package / f"{module}.py").is_file(), config


def test_no_module_outside_the_methods_is_longer_than_four_hundred_lines() -> None:
    """A method is one file in its paper's order; any other file is read in one sitting."""
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "methods"
    }
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
