"""Paths and names of ordinary people reach the options as they were typed."""

import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from noveltylab.command.arguments import explain_unreadable, is_sweep, read_changes, readable
from noveltylab.command.hydra_versions import BASE
from noveltylab.errors import UserError
from noveltylab.job import CONF

NAMES = [
    "/data/Teile_Größe",
    "/data/零件/良品",
    "My Parts (2)",
    "it's",
    'say "hi"',
    "a#b",
    "a&b;c|d",
    "a=b",
    "=",
    "~/parts",
    "Müller, Söhne",
    "a,b",
    "[1]",
    "a[1]",
    "{a: 1}",
    "C:\\Program Files (x86)\\Teile\\",
    "C:\\Users\\it's",
    "\\\\server\\share",
    "2024",
    "1e3",
    "true",
    "range(0,3)",
    "parts(2)",
    "glob(*)",
    "100%",
    "cost$",
    "a:b",
    "@home",
    "!x",
    "a\tb",
]


def read(argument: str) -> object:
    """What Hydra makes of an argument, in the configuration."""
    override = OverridesParser.create().parse_override(argument)
    (again,) = BasicSweeper.split_arguments([override], None)[0]  # as a cell of a sweep gets it
    values = [OverridesParser.create().parse_override(text).value() for text in (argument, *again)]
    contents = [
        OmegaConf.to_container(OmegaConf.create({"x": value}), resolve=True)["x"]
        for value in values
    ]  # type: ignore[index,call-overload]
    assert contents[0] == contents[1]
    return contents[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["data.root", "output", "+data.root"])
def test_a_path_is_taken_as_it_is(name: str, key: str) -> None:
    assert read(readable([f"{key}={name}"])[0]) == name


@given(st.text(st.sampled_from(string.printable + "äßé零件\u00a0–…ﬁ😀"), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_path_is_taken_as_it_is(name: str) -> None:
    assume("${" not in name)  # another option's value
    assume(name.strip() == name and name != "null")
    assume(name[0] not in "'\"")  # somebody's own quotes
    assert read(readable([f"data.root={name}"])[0]) == name


@given(
    st.text(
        st.sampled_from(string.ascii_letters + " '\"()[]{}#&=~:\\äß零件"), min_size=1, max_size=12
    )
)
@settings(max_examples=100, deadline=None)
def test_reading_twice_changes_nothing(name: str) -> None:
    once = readable([f"output={name}"])
    assert readable(once) == once


def test_quotes_of_ones_own_interpolations_and_null_stay() -> None:
    words = [
        "data.root='My Parts (2)'",
        "output=o/lr${method.lr}",
        "data.root=null",
        "seed=1,2",
        "method.lr=[",
    ]
    assert readable(words) == words
    assert readable(["output=o/ü${seed}"]) == ["output='o/ü${seed}'"]


def test_a_list_of_paths_is_a_sweep_where_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert readable(["-m", "data.root=a,b"])[1] == "data.root=a,b"
    assert readable(["experiment=x", "output=a,b"])[1] == "output=a,b"
    for name in ("Größe", "My Parts (2)", "c,d"):
        (tmp_path / name).mkdir()
    assert readable(["-m", "data.root=Größe,My Parts (2)"])[1] == "data.root='Größe','My Parts (2)'"
    assert readable(["-m", "data.root=c,d"])[1] == "data.root='c,d'", "a folder of this very name"


def test_a_pattern_of_choices_may_have_brackets() -> None:
    assert readable(["-m", "method=glob(k[dn]*)"])[1] == "method=glob('k[dn]*')"
    assert readable(["-m", "method=glob(k*)", "seed=1,2"]) == ["-m", "method=glob(k*)", "seed=1,2"]


def test_names_that_hydra_cannot_read_are_quoted() -> None:
    assert readable(["inlier=Größe"]) == ["inlier='Größe'"]
    assert readable(["-m", "inlier=Größe,klein"])[1] == "inlier='Größe','klein'"
    assert readable(["-m", "inlier=range(0,10)", "inlier='a,b',c"]) == [
        "-m",
        "inlier=range(0,10)",
        "inlier='a,b',c",
    ]
    assert readable(["logger.project=Prüfstand"]) == ["logger.project='Prüfstand'"]


@pytest.mark.parametrize("name", [*NAMES, "the new lamp, at night (b): 5", "line\nline"])
def test_notes_are_one_text_in_a_sweep_too(name: str) -> None:
    (_, argument) = readable(["-m", f"notes={name}"])
    assert read(argument) == name
    assert readable(["notes=null", "notes='a, b'"]) == ["notes=null", "notes='a, b'"]


@pytest.fixture
def config_folder() -> Iterator[None]:
    with initialize_config_dir(str(CONF), **BASE):
        yield


@pytest.mark.usefixtures("config_folder")
@pytest.mark.parametrize("name", ["Größe (2)", "it's", "[1]", "a,b", "C:\\x\\"])
def test_the_composed_configuration_has_it(name: str) -> None:
    config = compose("train", readable(["data=images", f"data.root={name}", f"output={name}"]))
    assert (config.data.root, config.output) == (name, name)


def test_an_interpolation_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.root=a\$\{b: .* begins the value of another option"):
        readable(["data.root=a${b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["--cfg", "nope"], "invalid choice: 'nope'"),
        (["--experimental-rerun", "x"], "loads a pickle"),
        (["--resolve"], "belong to --cfg"),
    ],
)
def test_a_wrong_flag_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        is_sweep(arguments)


def test_what_to_type_instead() -> None:
    advice = explain_unreadable("select=a(b", ["select=a(b"])
    assert advice.endswith("text is written in quotes inside quotes: 'select=\"a(b\"'")
    advice = explain_unreadable("Parts", ["data.root=My", "Parts"])
    assert advice.endswith("a value with spaces is written in quotes: 'data.root=My Parts'")


@pytest.mark.parametrize("name", NAMES)
def test_a_repeated_run_takes_paths_as_they_are(name: str) -> None:
    changes = read_changes(
        [f"data.root={name}", f"output={name}", "data.limit_train=20", "trainer.accelerator=cpu"]
    )
    assert (changes.data.root, changes.output) == (name, name)
    assert (changes.data.limit_train, changes.trainer.accelerator) == (20, "cpu")


@pytest.mark.parametrize("change", ["seed", "=3", "method.lr=[", "seed=${x}", "output=a${b"])
def test_a_change_that_cannot_be_read_is_refused(change: str) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_changes(["data.root=x", change])
