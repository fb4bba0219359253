"""The plans of `make learn`, the results it keeps and the page written from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from experiments import keep
from experiments.learn import __main__ as learn
from noveltylab.__main__ import CONF
from noveltylab.command.dotted import flatten
from noveltylab.command.recipes import read_recipe
from noveltylab.methods.base import find_method
from noveltylab.options import (
    OLD_VALUES,
    check_arguments,
    check_options,
    flat_options,
    kind_of_option,
)
from noveltylab.report.collect import collect
from noveltylab.report.recipe import recipe_options
from noveltylab.results.archive import Row, find_row, read_archive, write_rows
from tests.experiments.test_experiments import composed

ROWS = [(plan, method) for plan in learn.PLANS for method in learn.read_plan(plan)["methods"]]
PLAN: dict[str, Any] = {
    "title": "Digits",
    "data": "digits",
    "protocol": "p1",
    "inliers": [1, 8],
    "steady": [8],
    "every": ["trainer.accelerator=cpu", "trainer.val_every=1"],
    "methods": {
        "ae": ["method.channels=4", "method.lr=1e-3", "trainer.max_epochs=3"],
        "four": ["method=pca", "method.components=4"],
    },
    "notes": "A note.",
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of digits in a folder of its own."""
    here = tmp_path / "learn"
    here.mkdir()
    (here / "small.yaml").write_text(yaml.safe_dump(PLAN))
    monkeypatch.setattr(learn, "HERE", here)
    monkeypatch.setattr(keep, "KEPT", here / "results")
    monkeypatch.setattr(keep, "PAPERS", ())
    monkeypatch.setattr(learn, "PLANS", ["small"])
    return here


def kept_row(method: str, inlier: int = 8, seed: int = 0) -> Row:
    """A run that the plan of `small` has kept."""
    folder = keep.archive("learn/small") / f"p1/{method}/digits/inlier{inlier}/seed{seed}"
    row = find_row(folder)
    assert row is not None
    return row


def test_every_kept_result_was_made_by_its_plan_and_stands_on_the_page() -> None:
    """Nothing on it is typed by hand; `document` raises where a result has another schedule."""
    assert (learn.HERE / "RESULTS.md").read_text() == learn.document()
    cells = {
        (f"learn/{name}", method, *cell)
        for name in learn.PLANS
        for plan in [learn.read_plan(name)]
        for method in plan["methods"]
        for cell in plan["cells"]
    }
    kept = {
        (run.source, run.result.method, run.result.inlier, run.result.seed)
        for run in collect(keep.KEPT).runs
    }
    assert {cell for cell in kept if cell[0].startswith("learn/")} <= cells


@pytest.mark.parametrize(("name", "method"), ROWS)
def test_every_row_of_a_plan_is_a_run(name: str, method: str) -> None:
    plan = learn.read_plan(name)
    config = composed(*learn.overrides(name, plan, method, plan["cells"][0], Path("outputs")))
    options = check_options(
        OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    )
    assert options.folder == Path("outputs", name) / learn.folder(plan, method, plan["cells"][0])
    given = {
        key: value
        for key, value in options.method.items()
        if key not in ("name", "_target_", "primary")
    }
    check_arguments(find_method(options.method["_target_"]), given, "method")


def test_runs_are_kept_and_stand_on_the_page(small: Path, tmp_path: Path) -> None:
    assert learn.main(["small", "--inlier", "8", "--output", str(tmp_path / "out")]) == 0
    archive = keep.archive("learn/small")
    assert [path.name for path in (small / "results").rglob("*.*")] == ["small.jsonl"]
    assert [*read_archive(archive).lines] == [
        f"p1/{method}/digits/inlier8/seed0" for method in ("ae", "four")
    ]
    ae, four = kept_row("ae"), kept_row("four")
    assert [*ae.files] == ["metrics.csv"] and not four.files
    result = ae.result
    page = (small / "RESULTS.md").read_text()
    auroc = result["scores"]["mse"]["auroc"]
    lines = ae.files["metrics.csv"].splitlines()
    logged = [float(line.split(",")[2]) for line in lines if "val/oracle-mse," in line]
    assert (
        f"| ae | mse |  | **{auroc:.4f}** | **{auroc:.4f}** (1 of 2) | {max(logged) - min(logged):.3f} |"
        in page
    )
    assert f"| floor: pca, 32 px |  |  | {result['floor']['pca']['auroc']:.4f} |" in page
    assert "A note." in page


def test_a_plan_runs_its_first_classes_and_shows_their_mean_apart(
    small: Path, tmp_path: Path
) -> None:
    (small / "small.yaml").write_text(
        yaml.safe_dump({**PLAN, "inliers": [1, 3, 8], "first": [8], "steady": []})
    )
    for inlier in ([], ["--inlier", "1"]):
        assert (
            learn.main(["small", "--method", "four", "--output", str(tmp_path / "out"), *inlier])
            == 0
        )
    kept = [kept_row("four", inlier).result for inlier in (1, 8)]
    one, eight = (result["scores"]["residual"]["auroc"] for result in kept)
    page = (small / "RESULTS.md").read_text()
    assert "| method | score | 1 | 3 | 8 | mean of 8 | mean |" in page
    both = f"**{(one + eight) / 2:.4f}** (2 of 3)"
    assert (
        f"| four | residual | **{one:.4f}** |  | **{eight:.4f}** | **{eight:.4f}** | {both} |"
        in page
    )


def test_each_seed_of_a_plan_is_a_column(small: Path, tmp_path: Path) -> None:
    (small / "small.yaml").write_text(
        yaml.safe_dump({**PLAN, "inliers": [8], "seeds": [0, 2], "steady": []})
    )
    assert learn.main(["small", "--method", "four", "--output", str(tmp_path / "out")]) == 0
    results = [kept_row("four", seed=seed).result for seed in (0, 2)]
    first, second = (result["scores"]["residual"]["auroc"] for result in results)
    page = (small / "RESULTS.md").read_text()
    assert [result["seed"] for result in results] == [0, 2] and first != second
    assert "| method | score | 8, seed 0 | 8, seed 2 | mean |" in page
    assert (
        f"| four | residual | **{first:.4f}** | **{second:.4f}** | **{(first + second) / 2:.4f}** |"
        in page
    )


def test_logs_and_floors_of_what_a_method_sees_stand_on_the_page(
    small: Path, tmp_path: Path
) -> None:
    """The means over the last epoch against the run's own log; the highest floor against its
    result.
    """
    methods = {"ae": ["data.contrast=gcn", "trainer.max_epochs=2"]}
    plan = {
        **PLAN,
        "inliers": [8],
        "steady": [],
        "methods": methods,
        "logged": ["train/mse", "val/loss", "train/other"],
    }
    (small / "small.yaml").write_text(yaml.safe_dump(plan))
    assert learn.main(["small", "--output", str(tmp_path / "out")]) == 0
    row = kept_row("ae")
    logged = [line.split(",") for line in row.files["metrics.csv"].splitlines()[1:]]
    last = int(logged[-1][0])
    means = [
        np.mean([float(value) for at, name, value in logged if name == key and int(at) > last / 2])
        for key in ("train/mse", "val/loss")
    ]
    page = (small / "RESULTS.md").read_text()
    assert "| method | train/mse | val/loss | train/other |" in page
    assert f"| ae | {means[0]:.4g} | {means[1]:.4g} |  |" in page
    floors = {name: metrics["auroc"] for name, metrics in row.result["floor"].items()}
    highest = max(
        (name for name in floors if name.endswith("_seen")), key=lambda name: floors[name]
    )
    assert f"| floor of what ae sees: {highest} |  | {floors[highest]:.4f} |" in page


def test_a_class_with_more_seeds_does_not_count_more_in_a_mean() -> None:
    plan = {"cells": [(1, 0), (1, 1), (8, 0), (8, 1)], "inliers": [1, 8], "first": [1, 8]}
    assert "| 0.7000 (3 of 4) |" in learn.row(plan, "ae", "mse", [0.5, 0.5, 0.9, None], "")


def test_the_plan_of_the_recipes_ours_measures_what_they_change() -> None:
    rows = learn.read_plan("ours")["methods"]
    methods = [path.parent.name for path in (CONF / "recipe").glob("*/ours.yaml")]
    assert set(rows) == {*methods, *(f"{method}_ours" for method in methods)}
    for method in methods:
        own = [
            text
            for text in rows[f"{method}_ours"]
            if text != f"method={method}" and text not in rows[method]
        ]
        assert OmegaConf.from_dotlist(own) == read_recipe(f"{method}/ours")["every"]


def test_the_first_code_of_deep_svdd_is_measured_as_its_recipe_has_it() -> None:
    rows = learn.read_plan("deep_svdd")["methods"]
    own = [
        text
        for text in rows["deep_svdd_first_code"]
        if text not in ("method=deep_svdd", *rows["deep_svdd"])
    ]
    assert OmegaConf.from_dotlist(own) == read_recipe("deep_svdd/first_code")["every"]


@pytest.mark.parametrize(
    "name", [name for name in learn.PLANS if keep.archive(f"learn/{name}").is_file()]
)
def test_a_plan_gives_the_very_options_that_its_kept_results_have(name: str) -> None:
    plan = learn.read_plan(name)
    for row in plan["methods"]:
        kept = {
            cell: result for cell in plan["cells"] if (result := learn.kept(name, plan, row, cell))
        }
        for cell, result in list(kept.items())[:1]:
            typed = learn.overrides(name, plan, row, cell, Path("outputs"))
            changes = {
                key: value
                for key, value in flatten(parsed(typed)).items()
                if "." in key or key == "select"
            }
            (method,) = {
                text.removeprefix("method=") for text in typed if text.startswith("method=")
            }
            own = (
                OLD_VALUES
                | recipe_options(method, plan["data"], plan["protocol"], "", {})
                | changes
            )
            for key, value in flat_options(result["config"]).items():
                if kind_of_option(key) == "numbers" and key != "protocol.folds":
                    planned = own.get(key, "val_loss" if key == "select" else "absent")
                    assert float_or_text(planned) == float_or_text(value), (row, key)


def parsed(overrides: list[str]) -> dict[str, Any]:
    """The options that make numbers, nested; groups such as method=ocgan are none."""
    names = {text: text.partition("=")[0] for text in overrides}
    chosen = [text for text, name in names.items() if "." in name or name == "select"]
    return OmegaConf.to_container(OmegaConf.from_dotlist(chosen))  # type: ignore[return-value]  # a mapping


def float_or_text(value: Any) -> Any:
    """YAML's own reader takes 1e-3 for text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def test_a_row_that_builds_on_another_has_the_last_word(small: Path, tmp_path: Path) -> None:
    methods = {
        **PLAN["methods"],
        "six": ["four", "method.components=6"],
        "eight": ["six", "method.components=8"],
    }
    (small / "small.yaml").write_text(yaml.safe_dump({**PLAN, "methods": methods}, sort_keys=False))
    assert (
        learn.main(
            ["small", "--method", "eight", "--inlier", "1", "--output", str(tmp_path / "out")]
        )
        == 0
    )
    result = kept_row("eight", inlier=1).result
    assert result["config"]["method"]["components"] == 8
    assert learn.main(["small", "--report"]) == 0


def test_a_result_of_another_schedule_is_refused(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        learn.main(
            ["small", "--method", "four", "--inlier", "8", "--output", str(tmp_path / "out")]
        )
        == 0
    )
    row = kept_row("four")
    row.result["config"]["trainer"]["val_every"] = 5
    write_rows(keep.archive("learn/small"), [row])
    (small / "RESULTS.md").unlink()
    assert learn.main(["small", "--report"]) == 2
    assert "trainer.val_every=5, but small.yaml has 1: run it again" in capsys.readouterr().err
    assert not (small / "RESULTS.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "choose from 'small'"),
        (["small", "--method", "ae,vae"], "--method vae: not in this plan; choose from ae, four"),
        (["small", "--inlier", "8,9"], "--inlier 9: not in this plan; choose from 1, 8"),
        (["small", "--inlier", "cat"], "--inlier cat: not in this plan; choose from 1, 8"),
    ],
)
def test_bad_input_exits_2_and_runs_nothing(
    small: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        learn.main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in small.iterdir()] == ["small.yaml"]
