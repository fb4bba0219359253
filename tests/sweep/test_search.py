"""search=optuna: chooses by held-out inliers alone, goes on after a kill, and says what it did."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from noveltylab import configs
from noveltylab.command.arguments import quote
from noveltylab.data import digits
from noveltylab.data.samples import Samples
from noveltylab.errors import UserError
from noveltylab.job import run_one
from noveltylab.results.scores import read_scores
from noveltylab.results.search import (
    LOSS,
    SCORE,
    Search,
    Trial,
    criterion,
    mean,
    read_search,
    sentences,
    write_search,
)
from tests.conftest import assert_refused

pytest.importorskip("optuna")

Cli = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("pictures=false", "trainer.accelerator=cpu")
KNN = ("search=optuna", "method=knn", "data=digits", "method.k=1,3,5", "inlier=3,8", *QUICK)
AE = (
    *("search=optuna", "method=ae", "data=digits", "trainer.max_epochs=2", "inlier=3"),
    *("method.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_trials=3"),
    *("method.channels=4", *QUICK),
)


def search_in(folder: Path) -> Search:
    (path,) = (folder / "elsewhere").glob("outputs*/search/*/search.json")
    return read_search(path)


def noisy(inliers: set[int]) -> Callable[..., Samples]:
    """The reader of digits with noise in the place of every image that is no inlier's."""
    read = digits.read

    def changed(*arguments: Any, **options: Any) -> Samples:
        samples = read(*arguments, **options)
        random = np.random.default_rng(1)
        images = samples.images.clone()
        for position, label in enumerate(samples.labels):
            if int(label) not in inliers:
                noise = random.integers(0, 256, images[position].shape, np.uint8)
                images[position] = torch.from_numpy(noise)
        return replace(samples, images=images)

    return changed


@pytest.mark.parametrize(
    ("arguments", "inliers", "words"), [(KNN, {3, 8}, SCORE), (AE, {3}, LOSS)], ids=["knn", "ae"]
)
def test_other_outliers_change_no_choice(
    arguments: tuple[str, ...],
    inliers: set[int],
    words: str,
    command: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if len(inliers) > 1:  # of each the other is an outlier, and stays
        arguments = tuple(text.replace("inlier=3,8", "inlier=3") for text in arguments)
        inliers = {3}
    process = command(*arguments)
    assert process.returncode == 0, process.stderr
    before = search_in(tmp_path)
    (tmp_path / "elsewhere" / "outputs").rename(tmp_path / "first")
    monkeypatch.setattr(digits, "read", noisy(inliers))
    process = command(*arguments)
    assert process.returncode == 0, process.stderr
    after = search_in(tmp_path)
    assert after.criterion == before.criterion == words
    assert len(after.trials) == 3
    assert [trial.options for trial in after.trials] == [trial.options for trial in before.trials]
    assert [trial.value for trial in after.trials] == [trial.value for trial in before.trials]
    assert after.chosen is not None and before.chosen is not None
    assert after.chosen.number == before.chosen.number
    # the outliers were others indeed
    assert [trial.auroc for trial in after.trials] != [trial.auroc for trial in before.trials]


def test_listed_values_are_each_tried_once_and_the_lowest_is_chosen(
    command: Cli, tmp_path: Path
) -> None:
    process = command(*KNN)
    assert process.returncode == 0, process.stderr
    search = search_in(tmp_path)
    assert sorted(trial.options["method.k"] for trial in search.trials) == ["1", "3", "5"]
    folder = next((tmp_path / "elsewhere").glob("outputs/search/*"))
    for trial in search.trials:
        runs = [folder / name for name in trial.folders]
        assert len(runs) == 2
        held_out = [read_scores(run / "calibration.csv").columns["distance"].mean() for run in runs]
        aurocs = [
            json.loads((run / "result.json").read_text())["scores"]["distance"]["auroc"]
            for run in runs
        ]
        assert trial.value == pytest.approx(np.mean(held_out), rel=1e-12)
        assert trial.auroc == pytest.approx(np.mean(aurocs), rel=1e-12)
    assert search.chosen is not None
    assert search.chosen.value == min(trial.value for trial in search.trials if trial.value)
    assert "no outlier used" in process.stdout
    assert "is no result" in process.stdout
    # the same command does nothing more
    process = command(*KNN)
    assert "3 of 3 trials ended before" in process.stderr
    assert search_in(tmp_path) == search
    # the report tells it
    process = command("report", "outputs")
    assert process.returncode == 0, process.stderr
    page = (tmp_path / "elsewhere/outputs/report/report.md").read_text()
    assert "## Searches" in page
    for sentence in sentences(search):
        assert sentence.split(": ")[0] in page


def test_a_search_that_was_stopped_goes_on_to_the_same_trials(
    command: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*AE[:-3], *QUICK, "method.channels=4", "hydra.sweeper.n_trials=4"]
    process = command(*arguments, "output=outputs1")
    assert process.returncode == 0, process.stderr
    (path,) = (tmp_path / "elsewhere").glob("outputs1/search/*/search.json")
    whole = read_search(path)
    # stopped in the middle of its second trial
    from noveltylab.sweep import cells

    run_cell = cells.run_cell
    count = 0

    def stop_second(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return run_cell(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("noveltylab.job.run_cell", stop_second)
        process = command(*arguments, "output=outputs2")
    assert process.returncode == 130, process.stderr
    (folder,) = (tmp_path / "elsewhere").glob("outputs2/search/*")
    database = sqlite3.connect(folder / "study.sqlite3")
    states = [state for (state,) in database.execute("select state from trials order by number")]
    database.close()
    assert states == ["COMPLETE", "RUNNING"]
    process = command(*arguments, "output=outputs2")
    assert process.returncode == 0, process.stderr
    assert "1 of 4 trials ended before" in process.stderr, process.stderr
    again = read_search(folder / "search.json")
    assert [trial.options for trial in again.trials] == [trial.options for trial in whole.trials]
    assert [trial.value for trial in again.trials] == [trial.value for trial in whole.trials]


MISTAKES = {
    "nothing to choose": (["method=knn"], "nothing to choose"),
    "a class is no choice": (
        ["method=knn", "data=digits,mnist", "method.k=1,3"],
        "which differ for another data",
    ),
    "nor a protocol": (
        ["method=knn", "protocol.val_fraction=0.1,0.2"],
        "which differ for another protocol.val_fraction",
    ),
    "nor a score": (
        ["method=alocc", "method.primary=d_x,mse"],
        "which differ for another method.primary",
    ),
    "an empty interval": (["method=knn", "method.k=interval(5,1)"], "from a lower end to a higher"),
    "factors of zero": (
        ["method=ae", "method.lr=tag(log,interval(0,1))"],
        "factors need a lower end above zero",
    ),
    "no such option": (["method=knn", "method.kk=1,3"], "did you mean 'method.k'?"),
    "a bad value": (["method=knn", "method.k=0,-1"], "method.k=0: "),
    "a setting": (
        ["method=knn", "method.k=1,3", "hydra.sweeper.trials=3"],
        "no such option of search=optuna; did you mean 'n_trials'?",
    ),
    "no trials": (["method=knn", "method.k=1,3", "hydra.sweeper.n_trials=0"], "n_trials=0: "),
    "no sampler": (
        ["method=knn", "method.k=1,3", "hydra.sweeper.sampler=grid"],
        "it can be tpe or random",
    ),
    "no seed": (
        ["method=knn", "method.k=1,3", "hydra.sweeper.sampler_seed=-1"],
        "a whole number from 0",
    ),
    "no search": (["search=optun"], "search=optun: no such choice; did you mean 'optuna'?"),
    "rows": (["experiment=learn/mnist", "method.lr=1e-3,1e-4"], "the rows of an experiment"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_search_that_cannot_be_meant_is_refused_before_anything_is_created(
    mistake: str, command: Cli, tmp_path: Path
) -> None:
    arguments, words = MISTAKES[mistake]
    process = command("search=optuna", *arguments)
    assert_refused(process, words, tmp_path)


def test_without_optuna_the_extra_is_named(
    command: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    process = command(*KNN)
    assert_refused(process, "pip install 'noveltylab[search]'", tmp_path)


def test_a_damaged_study_is_told_and_kept(command: Cli, tmp_path: Path) -> None:
    assert command(*KNN).returncode == 0
    (path,) = (tmp_path / "elsewhere").glob("outputs/search/*/study.sqlite3")
    path.write_bytes(b"no study")
    process = command(*KNN)
    assert process.returncode == 2
    assert "the study cannot be opened (file is not a database); move" in process.stderr
    path.write_bytes(b"SQLite format 3\0" + bytes(200))
    process = command(*KNN)
    assert process.returncode == 2
    assert "the study cannot be opened" in process.stderr
    assert path.stat().st_size == 216


def test_trials_that_fail_are_told_and_the_others_stay(command: Cli, tmp_path: Path) -> None:
    process = command("search=optuna", "method=knn", "data=digits", "method.k=3,-1", *QUICK)
    assert process.returncode == 0, process.stderr
    search = search_in(tmp_path)
    values = {trial.options["method.k"]: trial.value for trial in search.trials}
    assert values["-1"] is None
    assert search.chosen is not None
    assert search.chosen.options == {"method.k": "3"}
    assert "1 failed" in process.stdout


def test_without_held_out_inliers_there_is_nothing_to_choose_by(
    command: Cli, tmp_path: Path
) -> None:
    process = command(*KNN, "protocol.val_fraction=0", "select=last")
    assert process.returncode == 1
    assert "held out no inliers to choose by" in process.stderr
    assert search_in(tmp_path).chosen is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("method=knn",), SCORE),
        (("method=ae", "trainer.max_epochs=2", "method.channels=4"), LOSS),
        (("method=ae", "trainer.max_epochs=2", "method.channels=4", "select=last"), SCORE),
    ],
)
def test_what_a_run_hands_to_any_sweeper_is_of_held_out_inliers(
    tmp_path: Path, arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs.compose_config([*arguments, "data=digits", f"output={tmp_path}", *QUICK])
    monkeypatch.setattr(
        "noveltylab.job.HydraConfig.get",
        lambda: OmegaConf.create(
            {"runtime": {"choices": {"row": None, "recipe": "default", "method": "pca"}}}
        ),
    )
    value = run_one(config)
    (path,) = tmp_path.rglob("result.json")
    result = json.loads(path.read_text())
    assert criterion(result, path.parent) == (value, words)
    if words == LOSS:
        assert value == result["selected"]["value"]
    else:
        held_out = read_scores(path.parent / "calibration.csv").columns[result["primary"]]
        assert value == pytest.approx(held_out.mean())
    assert value not in [metrics["auroc"] for metrics in result["scores"].values()]


def trial(number: int, value: float | None, auroc: float | None) -> Trial:
    return Trial(
        number=number, options={"method.k": str(number)}, value=value, auroc=auroc, folders=[]
    )


def search_of(*trials: Trial) -> Search:
    return Search(
        method="knn", data="digits", criterion=LOSS, fixed=[], space={"method.k": "1,3"},
        asked=3, trials=list(trials),
    )  # fmt: skip


def test_what_choosing_by_the_test_would_have_added() -> None:
    search = search_of(trial(0, 0.5, 0.9), trial(1, 0.4, 0.8), trial(2, None, None))
    assert search.chosen == trial(1, 0.4, 0.8)
    assert search.best_by_test == trial(0, 0.5, 0.9)
    assert search.added_by_test == pytest.approx(0.1)
    lines = sentences(search)
    assert "3 of 3 trials, 1 failed" in lines[0]
    assert "adds 0.1000 and is no result" in lines[1]
    assert sentences(search_of(trial(0, None, None))) == ["nothing chosen: 1 of 3 trials, 1 failed"]
    assert len(sentences(search_of(trial(0, 0.5, None)))) == 1
    assert search_of(trial(1, 0.5, 0.1), trial(2, 0.5, 0.9)).chosen == trial(1, 0.5, 0.1)


def test_a_mean_needs_every_value() -> None:
    assert mean([1.0, 2.0]) == 1.5
    assert mean([1.0, None]) is None
    assert mean([]) is None


def test_a_search_is_kept_and_read_back(tmp_path: Path) -> None:
    search = search_of(trial(0, 0.5, 0.9))
    assert read_search(write_search(tmp_path, search)) == search


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"trials": NaN}', "[" * 10_000])
def test_a_damaged_search_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "search.json"
    path.write_text(text)
    with pytest.raises(UserError, match="damaged"):
        read_search(path)


@pytest.mark.parametrize("text", ["a b", "it's", "back\\slash", "a,b", "end\\"])
def test_a_folder_of_any_name_is_one_value(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"output={quote(text)}")
    assert override.value() == text
