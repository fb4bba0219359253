"""`--help`: every option of what was chosen, and one line for a choice that there is not."""

import re
import subprocess
from collections.abc import Callable

import pytest

from noveltylab.errors import UserError
from noveltylab.help import compose_choices, flat_keys, print_help
from noveltylab.job import CONF, EXPERIMENTS

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_help_explains_every_option_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((CONF / "method").glob("*.yaml")):
        choice = [f"method={path.stem}"]
        print_help(CONF, choice)
        output = capsys.readouterr().out
        explained = set(re.findall(r"^  ([\w.]+)(?:=.*)?\n      .*", output, re.MULTILINE))
        keys = {
            key for key in flat_keys(compose_choices(CONF, choice)) if not key.endswith("_target_")
        }
        assert keys - explained <= {"method.name", "data.name", "protocol.name"}, (
            "these are chosen as groups"
        )
        assert output.count("Example:") == len(explained)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=nope"], "data=nope: no such choice; Choose from: antispoofing, cifar10"),
        (["method=ocgn"], "method=ocgn: no such choice; did you mean 'ocgan'?"),
        (["logger=[csv,wandbb]"], "logger=wandbb: no such choice; did you mean 'wandb'?"),
        (["recipe=our"], "recipe=our: no such choice; did you mean 'ours'?"),
        (["method=knn", "recipe=ours"], "recipe=ours: no such choice; Choose from: default$"),
        (["recipe=paper", "method=nope"], "method=nope: no such choice; Choose from: ae, alocc, "),
        (["experiment=ocgan/table2"], "no such choice; did you mean 'ocgan/table2_mnist'?"),
        (["protocol=memae"], "now it is protocol=two_thirds"),
        (["trainer="], "trainer=: no such choice; Choose from: cpu, ddp, default, gpu, mps"),
    ],
)
def test_help_on_a_choice_that_there_is_not_names_the_right_ones(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        print_help(CONF, arguments, EXPERIMENTS)


def test_a_wrong_choice_is_one_line_and_exit_code_2(command: Cli) -> None:
    process = command("--help", "data=nope")
    assert process.returncode == 2
    assert process.stderr.startswith("error: data=nope: no such choice; ")
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""


@pytest.mark.parametrize(
    ("choice", "title"),
    [
        ("logger=[]", "logger (none)"),
        ("logger=[csv, wandb]", "logger (csv wandb)"),
        ("method=pca,knn", "method (pca)"),
        ("method.lr=1", "method (ocgan)"),
    ],
)
def test_help_on_lists_and_sweeps(
    capsys: pytest.CaptureFixture[str], choice: str, title: str
) -> None:
    print_help(CONF, [choice])
    assert f"\n{title}\n" in capsys.readouterr().out
