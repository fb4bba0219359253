"""A run folder with anything in it: every reader has an answer or one line that names the folder
and the field.
"""

import copy
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from noveltylab.command.screen import say
from noveltylab.errors import UserError
from noveltylab.predict.load import load_detector
from noveltylab.report.collect import collect
from noveltylab.results.record import read_config, read_result, recorded_config
from noveltylab.run.folder import damage, previous
from noveltylab.run.rerun import fresh_options
from noveltylab.run.summary import print_summary
from noveltylab.sweep.cells import numbers


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """A test that waits for a pipe ends the whole run instead of hanging it."""
    alarm = threading.Timer(300, os._exit, [70])
    alarm.start()
    yield
    alarm.cancel()


@pytest.fixture(scope="module")
def run_folder(pca_outputs: Path) -> Path:
    """The folder of a run on digits."""
    return pca_outputs / "p1" / "pca" / "digits" / "inlier8" / "seed0"


def read_all(folder: Path, config: dict[str, Any]) -> list[str]:
    """What every reader says against the folder; any exception but UserError is a failure."""
    messages = []

    def summarise() -> None:
        result = read_result(folder)
        numbers(result)
        recorded_config(result)
        print_summary(result, folder, Console(file=io.StringIO()))

    readers: list[Callable[[], object]] = [
        summarise,
        lambda: read_config(folder),
        lambda: damage(folder),
        lambda: previous(folder, config, force=False),
        lambda: fresh_options(folder, read_result(folder), []),
        lambda: load_detector(folder, "cpu"),
    ]
    for reader in readers:
        try:
            reader()
        except UserError as error:
            messages.append(str(error))
    runs = collect(folder.parents[4])
    assert len(runs.runs) + len(runs.damaged) + len(runs.unfinished) + len(runs.unmeasured) == 1
    for run in runs.runs:
        assert run.options and run.family and run.made_with
        assert run.shortened is not None
    return messages + [reason for _, reason in runs.damaged]


def shown(message: str) -> str:
    """What the terminal gets of an error."""
    stream = io.StringIO()
    say(message, stream)
    return stream.getvalue()


ODD_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "file of the kernel": lambda path: path.symlink_to("/proc/kmsg"),
    "loop of links": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
    "empty": Path.touch,
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_text("[" * 100_000),
    "list": lambda path: path.write_text("[1]"),
    "text": lambda path: path.write_text('"x"'),
    "null": lambda path: path.write_text("null"),
}


@pytest.mark.posix
@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize(
    "name", ["result.json", "config.yaml", "scores.csv", "calibration.csv", "split.npz", "weights"]
)
def test_an_odd_file_is_one_line(run_folder: Path, name: str, kind: str) -> None:
    config = read_result(run_folder)["config"]
    path = run_folder / ("checkpoints/last.pt" if name == "weights" else name)
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        ODD_FILES[kind](path)
        messages = read_all(run_folder, config)
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        aside.rename(path)
    assert any(str(run_folder) in line for line in messages)
    assert not any("\n" in line for line in messages)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**63, 2**64, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["../../x", "/etc", "a\x1b[2J", "${oc.env:HOME}", "NaN", "\ud800", "x" * 5000, "os.system"]
    ),
    st.just([]),
    st.just({}),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(
        st.text(max_size=4), st.one_of(st.integers(), st.none(), st.text(max_size=3)), max_size=3
    ),
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something can be replaced or taken away."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in items:
        yield (*place, key)
        yield from places(part, (*place, key))


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    0.5,
    -0.5,
    float("nan"),
    "",
    "x",
    "../../x",
    [],
    [0],
    ["x"],
    {},
    {"x": 0},
]


def replaced(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of the content with another value in that place."""
    changed = copy.deepcopy(content)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: json.dumps(value)[:12])
@pytest.mark.parametrize("name", ["result.json", "config.yaml"])
def test_no_value_in_any_place_is_a_traceback(run_folder: Path, name: str, value: Any) -> None:
    whole = read_result(run_folder)
    content = whole if name == "result.json" else whole["config"]
    path = run_folder / name
    before = path.read_bytes()
    tracebacks = []
    try:
        for place in places(content):
            path.write_text(json.dumps(replaced(content, place, value)))
            try:
                read_all(run_folder, whole["config"])
            except Exception as error:  # collected, so that one run names every place
                tracebacks.append(f"{'.'.join(map(str, place))}: {type(error).__name__}: {error}")
    finally:
        path.write_bytes(before)
    assert tracebacks == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_change_of_a_result_or_config_is_a_traceback(
    run_folder: Path, data: st.DataObject
) -> None:
    whole = read_result(run_folder)
    name = data.draw(st.sampled_from(["result.json", "config.yaml"]))
    content = copy.deepcopy(whole if name == "result.json" else whole["config"])
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([*places(content)] or [()]))
        if not place:
            break
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        change = data.draw(st.sampled_from(["replace", "remove", "rename"]))
        if change == "replace":
            holder[place[-1]] = data.draw(VALUES)
        elif isinstance(holder, dict):
            value = holder.pop(place[-1])
            if change == "rename":
                holder[data.draw(st.text(max_size=6))] = value
    path = run_folder / name
    before = path.read_bytes()
    try:
        path.write_text(json.dumps(content))  # which is YAML as well
        messages = read_all(run_folder, whole["config"])
    finally:
        path.write_bytes(before)
    assert all(shown(message).count("\n") == 1 for message in messages)


@pytest.mark.posix
@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda result: result.pop("seconds"), "seconds: field required"),
        (lambda result: result["scores"]["residual"].update(auroc="0.9"), "scores.residual.auroc"),
        (
            lambda result: result["scores"]["residual"].update(auroc=float("nan")),
            "scores.residual.auroc",
        ),
        (lambda result: result.update(files=[]), "files"),
        (lambda result: result.update(files={"/proc/kmsg": "0" * 64}), "files."),
        (lambda result: result.update(files={"../x": "0" * 64}), "files."),
        (lambda result: result.pop("n"), "n: field required"),
        (lambda result: result["n"].pop("val"), "n.val"),
        (lambda result: result["weights"].update(file="../../x.pt"), "weights.file"),
        (lambda result: result["seconds"].pop("total"), "seconds: has no total"),
        (lambda result: result["selected"].update(rule="best"), "selected.rule"),
    ],
)
def test_a_wrong_field_is_named_with_its_folder(
    run_folder: Path, change: Callable[[dict[str, Any]], object], field: str
) -> None:
    result = read_result(run_folder)
    before = (run_folder / "result.json").read_bytes()
    change(result)
    try:
        (run_folder / "result.json").write_text(json.dumps(result))
        with pytest.raises(UserError) as caught:
            read_result(run_folder)
    finally:
        (run_folder / "result.json").write_bytes(before)
    assert str(run_folder) in str(caught.value) and field in str(caught.value)
