"""Who may import whom, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

from noveltylab.__main__ import PACKAGE

#: module (or package) -> what it may import, besides the standard library and noveltylab.errors
ALLOWED = {
    "errors": set(),
    "files": {"yaml"},
    "screen": {"rich"},
    "help": {"hydra", "omegaconf", "noveltylab.recipes", "noveltylab.results"},
    "recipes": set(),
    "older": set(),
    "arguments": {"hydra", "omegaconf", "yaml"},
    "hints": set(),
    "options": {
        "omegaconf",
        "pydantic",
        "noveltylab.hints",
        "noveltylab.results",
        "noveltylab.schema",
        "noveltylab.wandb_mode",
    },
    "wandb_mode": set(),
    "schema": {"pydantic"},
    "results": {"noveltylab.files", "noveltylab.older", "noveltylab.phases", "noveltylab.schema"},
    "aggregate": {"numpy", "noveltylab.scores"},
    "scores": {"numpy", "noveltylab.files", "noveltylab.results", "noveltylab.spreadsheet"},
    "auroc": {"numpy"},
    "metrics": {"numpy", "noveltylab.auroc", "noveltylab.inverted"},
    "figures": {"numpy", "noveltylab.results"},
    "template": {"jinja2", "noveltylab.screen"},
    "phases": set(),
    "inverted": set(),
    "summary": {"rich", "noveltylab.inverted", "noveltylab.phases", "noveltylab.results", "noveltylab.screen"},
    "data.protocols": {"numpy", "noveltylab.files", "noveltylab.results"},
    "evaluate": {
        "numpy",
        "torch",
        "noveltylab.data.decode",
        "noveltylab.data.preprocess",
        "noveltylab.methods.base",
    },
}

#: what the report may know of the package: what a run left behind, and how to compute it again
REPORT = tuple(
    f"noveltylab.{name}"
    for name in (
        "report",
        "results",
        "phases",
        "recipes",
        "older",
        "inverted",
        "errors",
        "files",
        "screen",
        "schema",
        "scores",
        "signals",
        "metrics",
        "conformal",
        "spreadsheet",
        "template",
        "auroc",
    )
)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            if node.module == "noveltylab":
                found |= {f"noveltylab.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py" and "conf" not in path.relative_to(PACKAGE).parts
    }


def foreign(names: set[str]) -> set[str]:
    import sys

    return {name for name in names if name and name.split(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize("module", ALLOWED)
def test_module_imports_only_what_its_layer_may(module: str) -> None:
    allowed = ALLOWED[module] | {"noveltylab.errors"}
    for name in foreign(imports(modules()[module], top_level_only=True)) - {"noveltylab"}:
        assert any(name == other or name.startswith(f"{other}.") for other in allowed), f"{module} imports {name}"


def test_methods_know_base_and_nets_only() -> None:
    for module, path in modules().items():
        if module.startswith(("methods.", "nets.")):
            for name in imports(path):
                if module == "methods.base" and name.startswith("noveltylab.phases"):
                    continue  # which the report reads without torch
                if name.startswith("noveltylab"):
                    assert name.startswith(("noveltylab.methods.base", "noveltylab.nets", "noveltylab.errors")), (
                        module,
                        name,
                    )
                assert name.split(".")[0] != "wandb", module


def test_data_knows_no_method_and_nothing_imports_run() -> None:
    for module, path in modules().items():
        names = imports(path)
        if module.startswith("data."):
            assert not any(name.startswith("noveltylab.methods") for name in names), module
        if module not in ("__main__", "rerun", "diagnose"):
            assert "noveltylab.run" not in names, module
        if module not in ("loggers", "dashboard"):
            assert "wandb" not in {name.split(".")[0] for name in names}, module


def test_every_page_is_rendered_in_one_place() -> None:
    renderers = {module for module, path in modules().items() if "jinja2" in imports(path)}
    assert renderers == {"template"}


def test_everything_printed_goes_through_the_screen() -> None:
    for module, path in modules().items():
        if module in ("screen", "help"):  # help prints the comments in conf/ alone
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console"):
                assert ast.unparse(node) == "print(__doc__)", (module, node.lineno)
        assert "logging.Formatter" not in path.read_text(), module


def test_report_knows_results_only() -> None:
    for module, path in modules().items():
        for name in imports(path) if module.startswith("report.") else ():
            if name.startswith("noveltylab."):
                assert name.startswith(REPORT), (module, name)
            assert name.split(".")[0] not in ("torch", "lightning", "hydra", "omegaconf", "wandb"), (module, name)


def test_config_code_test_share_their_stems() -> None:
    root = PACKAGE.parent
    for kind in ("method", "data"):
        package = PACKAGE / ("methods" if kind == "method" else "data")
        for config in (root / "conf" / kind).glob("*.yaml"):
            assert (package / f"{config.stem}.py").is_file(), config
