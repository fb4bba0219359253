"""Wrong values are told from the source of a method, as its class itself would tell them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from noveltylab.command.signatures import PACKAGE, check_method, options_model
from noveltylab.command.validate import check_arguments, signature_model
from noveltylab.errors import UserError
from noveltylab.methods.base import find_method
from tests.methods.conftest import METHODS, method_config

#: Its options depend on the detector that is asked for, and its module imports PyOD.
UNTOLD = ("pyod",)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(UNTOLD)))
def test_the_source_says_what_the_class_says(name: str) -> None:
    target = method_config(name)["_target_"]
    module, _, class_name = target.rpartition(".")
    model = options_model(PACKAGE / "methods" / f"{module.rpartition('.')[2]}.py", class_name)
    assert model is not None
    expected = signature_model(find_method(target))
    assert fields(model) == fields(expected)


def fields(model: Any) -> dict[str, Any]:
    return {
        name: (field.annotation, field.metadata, field.is_required())
        for name, field in model.model_fields.items()
    }


@pytest.mark.parametrize(
    "changes",
    [{"lr": -1}, {"lr": "high"}, {"channels": 0}, {"mining_start": 2.0}, {"chanels": 8}],
    ids=str,
)
def test_a_wrong_value_is_told_in_the_same_words(changes: dict[str, Any]) -> None:
    config = method_config("ocgan") | changes
    with pytest.raises(UserError) as told:
        check_method(config)
    options = {key: config[key] for key in config if key not in ("name", "_target_", "primary")}
    with pytest.raises(UserError) as expected:
        check_arguments(find_method(config["_target_"]), options, "method")
    assert str(told.value) == str(expected.value)


@pytest.mark.parametrize("target", ["otherlab.methods.Theirs", "noveltylab.methods.base.Method"])
def test_what_the_source_does_not_tell_is_left_to_whoever_builds(target: str) -> None:
    check_method({"name": "theirs", "_target_": target, "primary": "mse", "lr": -1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=ocgan", "data=digits", "method.lr=-1"], "method.lr=-1: the value should be"),
        (["method=ocgan", "data=mnist", "data.root=nowhere"], "not found in nowhere"),
        (["method=ocgan", "data=cifar10", "data.root=nowhere"], "not found in nowhere"),
        (["method=ocgan", "data=coil20", "data.root=nowhere"], "not found in nowhere"),
        (["data=images", "data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["predict", "run=nowhere", "input=new"], "run=nowhere: no such folder"),
        (["export", "run=nowhere", "format=onnx"], "run=nowhere: no such folder"),
        (["diagnose", "run=nowhere"], "run=nowhere: no such folder"),
        (["rerun", "nowhere"], "nowhere"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_without_torch(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    process = without_torch(arguments, tmp_path)
    assert process.returncode == 2, process.stderr
    assert message in process.stderr.splitlines()[0] and "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


def test_a_complete_run_and_an_absent_input_are_told_without_torch(
    tmp_path: Path, pca_outputs: Path
) -> None:
    arguments = [f"output={pca_outputs}", "method=pca", "trainer.accelerator=cpu", "pictures=false"]
    again = without_torch(arguments, tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"complete already: {pca_outputs}/p1/pca" in again.stdout
    run = f"run={pca_outputs}/p1/pca/digits/inlier8/seed0"
    process = without_torch(["predict", run, "input=new"], tmp_path)
    assert process.returncode == 2
    assert "input=new: no such file or folder; this run takes images and videos" in process.stderr


def without_torch(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which may not import torch."""
    probe = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = ['noveltylab', *{arguments!r}]\n"
        "from noveltylab.__main__ import main\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", probe], cwd=folder, capture_output=True, text=True, check=False
    )
